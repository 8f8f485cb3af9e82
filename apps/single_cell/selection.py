r"""Hyper-parameters and an honest verdict, both by molecular cross-validation on the user's data.

One split of the molecules (90 % to learn from, 10 % to judge by) on at most `SAMPLE` cells. Short
runs move latent size, strength and likelihood, one at a time, while the corrected Poisson loss of
held-out molecules falls; the winner is then trained in full, drawn in (`shrinkage`), and put
beside what a user would do instead: nothing, the library mean, Poisson factors. Some cells are
left out altogether: they tell how surprising a cell is that was never seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from apps.single_cell.baselines import Baseline, LibraryMean, PoissonFactors, Raw
from apps.single_cell.config import Config
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.fitting import default_steps
from apps.single_cell.layers import Output
from apps.single_cell.mcv import cross_validate, difference, thin
from apps.single_cell.model import CellVAE
from apps.single_cell.ood import Surprise
from apps.single_cell.posterior import CELLS, pit, rates
from apps.single_cell.shrinkage import Shrinkage, shrink
from apps.single_cell.trial import FEW, SHARE, Trial, sums
from apps.single_cell.verdict import Verdict
from core.errors import AleatorError

Say = Callable[[object], None]

SAMPLE = 6000
"""Cells that are looked at, at most: a seeded sample of larger sets."""
BASE: dict[str, Any] = {"likelihood": "nb", "latent": 20, "strength": 100.0}
LADDERS: dict[str, tuple[Any, ...]] = {
    "strength": (1.0, 10.0, 100.0, 1e3, 1e4),
    "latent": (5, 10, 20, 40),
    "likelihood": ("poisson", "nb"),
}
FACTORS = 20
"""Rank of the Poisson factors, bounded by the number of cells."""
LEVEL, LEVELS = 0.9, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Of the interval in the verdict, and of those in its curve."""


@dataclass
class Selection:
    """What molecular cross-validation chose and found.

    Attributes:
        config: chosen.
        verdict: on the model of the trial.
        surprise: of its cells.
        model: of the trial, from nine tenths of the molecules.
        genes: (G,) mask of what it knows.
        shrinkage: of that model, and for the one of all molecules.
    """

    config: Config
    verdict: Verdict
    surprise: Surprise
    model: CellVAE
    genes: np.ndarray
    shrinkage: Shrinkage


def select(
    counts: Counts,
    design: Design,
    config: Config,
    *,
    seed: int = 0,
    device: str = "auto",
    search: bool = True,
    say: Say = lambda _: None,
) -> Selection:
    """Choose what is None in the configuration, and judge the result.

    Args:
        counts: (N, G) whole numbers.
        design: covariates.
        config: what is given is kept.
        seed: of sample, split, weights and draws.
        device: where to train.
        search: move from the defaults if others do better; False takes the defaults.
        say: for the log.

    Raises:
        AleatorError: too few cells, or counts that are not whole.
    """
    found = _chosen(counts, design, config, seed, device, search, say)
    trial, model, unseen = found.trial, found.model, found.unseen
    verdict = judge(trial, model, tuple(found.tried), say)
    hidden = thin(counts.take(unseen), SHARE, seed)[0][:, trial.molecules.genes]
    surprise = Surprise.fit(
        *_elbos(model, trial.molecules.train, trial.design, seed),
        *_elbos(model, hidden, design.take(unseen), seed),
    )
    genes = trial.molecules.genes
    return Selection(found.config, verdict, surprise, model, genes, found.shrinkage)


def choose(
    counts: Counts, design: Design, config: Config, *, seed: int = 0, search: bool = True
) -> tuple[Config, Shrinkage]:
    """What `select` chooses, without its verdict; arguments and errors as there."""
    found = _chosen(counts, design, config, seed, "auto", search, lambda _: None)
    return found.config, found.shrinkage


@dataclass
class _Chosen:
    """What came of choosing: the trial, its model, and the cells that stayed unseen."""

    config: Config
    trial: Trial
    model: CellVAE
    unseen: np.ndarray
    tried: list[tuple[str, float]]
    shrinkage: Shrinkage


def _chosen(
    counts: Counts,
    design: Design,
    config: Config,
    seed: int,
    device: str,
    search: bool,
    say: Say,
) -> _Chosen:
    """Search if that is wanted, then find the number of steps."""
    if len(counts) < FEW:
        raise AleatorError(
            f"{len(counts)} cells are too few to learn from and to judge by; {FEW} are needed"
        )
    seen, unseen = _sample(len(counts), seed)
    trial = Trial.of(counts, design, seen, seed, device)
    steps = config.steps or default_steps(len(trial.library), config.batch_size)
    tried: list[tuple[str, float]] = []
    if search:
        config = _search(trial, config, steps, tried, say)
    rest: dict[str, Any] = {k: v for k, v in BASE.items() if getattr(config, k) is None}
    config = replace(config, **rest)
    model, best = trial.fit(replace(config, steps=steps), checks=0 if config.steps else 6)
    whole = default_steps(len(counts), config.batch_size)
    chosen = config.steps or max(1, round(whole * best / steps))
    shrinkage = trial.shrinkage(model, config)
    say(shrinkage)
    model = shrink(model, shrinkage, Counts(trial.molecules.train), trial.design, seed=seed)
    return _Chosen(replace(config, steps=chosen), trial, model, unseen, tried, shrinkage)


def judge(trial: Trial, model: CellVAE, tried: tuple[tuple[str, float], ...], say: Say) -> Verdict:
    """The model beside what could be done without it, on the same held-out molecules."""
    molecules = trial.molecules
    ours = trial.tally(model, estimate=Output.estimate)
    rank = max(1, min(FACTORS, min(molecules.train.shape) // 5))
    others: dict[str, Baseline] = {
        "raw": Raw(),
        "library mean": LibraryMean(),
        f"Poisson NMF {rank}": PoissonFactors(rank, 100, seed=trial.seed),
    }
    tallies = {
        name: cross_validate(method.fit(molecules.train).predict, molecules, CELLS)
        for name, method in others.items()
    }
    losses = {"ours": ours, **tallies}
    curve = coverage(trial, model)
    return Verdict(
        {name: float(tally.per_cell().mean()) for name, tally in losses.items()},
        {name: difference(ours, tally) for name, tally in tallies.items()},
        dict(curve)[LEVEL],
        molecules.train.shape[0],
        tried,
        curve,
    )


def coverage(trial: Trial, model: CellVAE, cells: int = 1000) -> tuple[tuple[float, float], ...]:
    """(Level, share of held-out molecules whose randomised rank is in that central interval).

    Only values where a molecule is expected in at least one of a hundred cells count: what is all
    but always zero is inside any interval.
    """
    train, test = trial.molecules.train[:cells], trial.molecules.test[:cells]
    stream = np.random.default_rng(trial.seed)
    inside, total = np.zeros(len(LEVELS), np.int64), 0
    for part in rates(model, Counts(train), trial.design, seed=trial.seed):
        held = test[part.start : part.stop].toarray()
        ranks = pit(part, trial.molecules.ratio, held, stream.random(held.shape))
        counted = part.mean * trial.molecules.ratio > 0.01
        apart = np.sort(np.abs(ranks - 0.5)[counted])
        inside += np.searchsorted(apart, np.array(LEVELS) / 2, side="right")
        total += len(apart)
    shares = inside / max(1, total)
    return tuple((level, float(share)) for level, share in zip(LEVELS, shares, strict=True))


def _search(
    trial: Trial, config: Config, steps: int, tried: list[tuple[str, float]], say: Say
) -> Config:
    """Move each free option along its ladder while short runs get better."""
    free = [name for name in LADDERS if getattr(config, name) is None]
    start: dict[str, Any] = {name: BASE[name] for name in free}
    current = replace(config, **start, steps=max(80, steps // 6))
    if not free:
        return config

    def loss(candidate: Config) -> float:
        value = trial.score(trial.fit(candidate)[0])
        told = f"{candidate.likelihood}, latent {candidate.latent}, "
        told += f"strength {candidate.strength:g}"
        tried.append((told, value))
        say(f"tried {told}: {value:.5f}")
        return value

    least = loss(current)
    for name in free:
        ladder = LADDERS[name]
        for direction in (1, -1):
            moved = False
            while True:
                place = ladder.index(getattr(current, name)) + direction
                if not 0 <= place < len(ladder):
                    break
                moved_to: dict[str, Any] = {name: ladder[place]}
                candidate = replace(current, **moved_to)
                value = loss(candidate)
                if value >= least:
                    break
                current, least, moved = candidate, value, True
            if moved:
                break
    return replace(current, steps=config.steps)


def _sample(cells: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells to learn from, and a tenth (at most 1000) that stay unseen; in random order."""
    stream = np.random.default_rng([seed, cells])
    order = stream.permutation(cells)[:SAMPLE]
    hidden = min(1000, max(5, len(order) // 10))
    return order[hidden:], order[:hidden]


def _elbos(
    model: CellVAE, train: Any, design: Design, seed: int, most: int = 2000
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of ln p(x) and libraries of the first cells."""
    train = train[:most]
    kept = np.flatnonzero(sums(train) > 0)
    train, design = train[kept], design.take(kept)
    found = [part.elbo for part in rates(model, Counts(train), design, draws=2, seed=seed)]
    return np.concatenate(found), sums(train)
