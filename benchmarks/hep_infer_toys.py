"""Toys whose posterior is known: a chain of linear-Gaussian stages, against brute force.

    u ~ U(0, 1)²  →  z = A u + ε₁  →  x = B z + ε₂,    ε Gaussian: x | u is Gaussian

sampled stage by stage through `core.chain`, each event anew; the posterior on a fine grid.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.inference.config import make_config
from apps.hep_simulation.inference.data import EventSets
from apps.hep_simulation.inference.evaluation import judge
from apps.hep_simulation.inference.posterior import Inference, load
from apps.hep_simulation.inference.prior import BoxPrior
from apps.hep_simulation.inference.train import fingerprint, train
from core.chain import Chain
from core.evaluation import classifier_test
from core.model import Context, Density, GenerativeModel, Loss, context_batch, expand_context
from core.random import Generators, keyed_generator, randn
from core.report import Table

PARTON = torch.tensor([[1.0, 0.3], [-0.4, 0.8], [0.2, 0.5]], dtype=torch.float64)
DETECTOR = torch.tensor(
    [[1.0, 0.0, 0.2], [0.3, 1.0, 0.0], [0.0, -0.5, 1.0], [0.6, 0.6, 0.6]], dtype=torch.float64
)
PARTON_NOISE, DETECTOR_NOISE = 0.5, 0.4
PRIOR = BoxPrior(("a", "b"), (0.0, 0.0), (1.0, 1.0))
SIZES = (1, 10, 50, 500)


class LinearGaussian(GenerativeModel):
    """x | c ~ N(W c, s²): a stage with a closed form."""

    def __init__(self, weight: Tensor, noise: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.noise = noise
        self.event_shape = torch.Size((len(weight),))
        self.context_shape = torch.Size((weight.shape[1],))

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        return Loss(-self.log_prob(x, context).value)

    def log_prob(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Density:
        assert isinstance(context, Tensor)
        gap = (x - context @ self.weight.T) / self.noise
        unit = 0.5 * math.log(2 * math.pi) + math.log(self.noise)
        return Density((-0.5 * gap.square() - unit).sum(1), "exact")

    def sample(
        self, shape: Sequence[int] = (), context: Context = None, *, sampler: Any = None,
        guidance: Any = None, generator: Generators | None = None,
    ) -> Tensor:  # fmt: skip
        given = expand_context(context, math.prod(shape))
        assert isinstance(given, Tensor)
        mean = given @ self.weight.T
        x = mean + self.noise * randn(mean.shape, generator, dtype=mean.dtype)
        return x.reshape(*shape, context_batch(context) or 1, *self.event_shape)


def chain() -> Chain:
    """Parton level, then detector."""
    return Chain(
        {
            "parton": LinearGaussian(PARTON, PARTON_NOISE),
            "detector": LinearGaussian(DETECTOR, DETECTOR_NOISE),
        }
    )


def simulate(count: int, events: int, seed: int) -> EventSets:
    """Sets of events out of the chain."""
    generator = keyed_generator(seed)
    u = torch.rand((count, 2), generator=generator, dtype=torch.float64)
    x = chain().sample((events,), u, generator=generator)["detector"].transpose(0, 1)
    return EventSets(
        x.float().numpy(), ("w", "x", "y", "z"), PRIOR.from_unit(u.numpy()), PRIOR, "chain"
    )


def brute_force(x: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the exact posterior, and ln p of it on the grid that they come from."""
    side = (np.arange(500) + 0.5) / 500
    grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    slope = (DETECTOR @ PARTON).numpy()
    covariance = PARTON_NOISE**2 * DETECTOR @ DETECTOR.T + DETECTOR_NOISE**2 * torch.eye(4)
    precision = np.linalg.inv(covariance.numpy())
    gap = x.astype(np.float64).mean(0) - grid @ slope.T
    log_p = -0.5 * len(x) * np.einsum("gi,ij,gj->g", gap, precision, gap)
    log_p -= log_p.max()
    p = np.exp(log_p) / np.exp(log_p).sum()
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(grid), draws, p=p)
    return grid[rows] + (rng.random((draws, 2)) - 0.5) / 500, log_p - np.log(np.exp(log_p).mean())


def toys(models: Path, sbi: Path | None) -> list[Table]:
    """C2ST and ranks on the chain."""
    sets = simulate(600, 50, 1)
    model = _model(sets, models / "hep_chain")
    from hep_infer import COLUMNS, FORMATS, kept

    name = "chain, brute force"
    rows = [kept(models, name, n, lambda n=n: _against_brute_force(model, n)) for n in SIZES]
    title = (
        "Linear-Gaussian chain against brute force (six test sets a row; trained on 600 × 50 "
        "events; .5 cannot be told apart; floor: brute force against itself; mean ln q of 100 "
        "truths beside that of the exact posterior)"
    )
    first = _c2st_table(rows, title)
    ranks = []
    for n in (1, 10, 50):
        ranks.append(
            kept(
                models, "ours, chain", n,
                lambda n=n: judge(model, simulate(300, n, 3), draws=200).row(),
            )
        )  # fmt: skip
    if sbi is not None:
        from hep_infer_sbi import npe

        test = simulate(300, 50, 3)
        ranks.append(kept(models, "sbi NPE, chain", 50, lambda: npe(sbi, sets, test, 0)))
    return [first, Table(ranks, COLUMNS, FORMATS, title="Ranks on the chain, 300 parameters")]


def larger(models: Path) -> list[Table]:
    """C2ST where training sets are as large as the largest that is judged: nothing is emulated."""
    model = _model(simulate(600, max(SIZES), 1), models / "hep_chain_500")
    from hep_infer import kept

    name = "chain of 500, brute force"
    rows = [kept(models, name, n, lambda n=n: _against_brute_force(model, n, 12)) for n in SIZES]
    title = "Trained on 600 × 500 events; twelve test sets a row, else as the table of the chain"
    return [_c2st_table(rows, title)]


def _c2st_table(rows: Sequence[Any], title: str) -> Table:
    columns = {
        "events": "events", "c2st": "c2st", "low": "least", "high": "greatest", "same": "floor",
        "log_q": "ln q", "exact": "exact",
    }  # fmt: skip
    return Table(rows, columns, dict.fromkeys(columns, ".3f") | {"events": "d"}, title=title)


def _model(sets: EventSets, folder: Path) -> Inference:
    if (folder / "model.json").exists():
        return load(folder)
    found = train(
        sets, make_config("npe", {}, 0), folder / "training", resume=True,
        say=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    found.save(folder, fingerprint(sets))
    return found


def _against_brute_force(model: Inference, n: int, count: int = 6) -> dict[str, Any]:
    sets, found, floor = simulate(count, n, 2), [], []
    for k, x in enumerate(sets.x):
        ours = model.sample_unit(x, 1000, keyed_generator(7, k))
        exact = torch.as_tensor(brute_force(x, 1000, k)[0])
        again = torch.as_tensor(brute_force(x, 1000, 1000 + k)[0])
        found.append(classifier_test(ours, exact, epochs=50).accuracy)
        if k < 3:
            floor.append(classifier_test(again, exact, epochs=50).accuracy)
    some = simulate(100, n, 4)
    assert some.theta is not None
    exact_log = []
    for truth, x in zip(some.theta, some.x, strict=True):
        log_p = brute_force(x, 1, 0)[1]
        i, j = np.minimum((truth * 500).astype(int), 499)
        exact_log.append(log_p[i * 500 + j])
    ours_log = judge(model, some, draws=20).log_q.mean().item()
    return {
        "c2st": float(np.mean(found)), "low": min(found), "high": max(found),
        "same": float(np.mean(floor)), "log_q": ours_log, "exact": float(np.mean(exact_log)),
    }  # fmt: skip
