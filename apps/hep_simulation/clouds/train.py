"""Train a cloud model: multiplicity and mass first, then the flow of sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.clouds.data import TYPES, Clouds, fingerprint, join, read_clouds
from apps.hep_simulation.clouds.features import Scaling, relative, spreads, turned
from apps.hep_simulation.clouds.model import CloudModel, networks
from apps.hep_simulation.jets.density import MixedDensity
from core.cards import write_card
from core.coupling import match_points
from core.data import batch_indices
from core.errors import AleatorError
from core.model import Context, GenerativeModel
from core.path_model import PathModel
from core.random import keyed_generator
from core.report import command_line, hardware
from core.training import FitConfig, fit

Say = Callable[[object], None]
LEAST = 500
"""Fewest jets."""
HELD = 20
"""Every twentieth jet says how training goes."""
_SORTED = 8
"""Batches that are cut out of one sorted draw, so that sets of a batch are of like size."""
FAMILIES = ("flow_matching", "diffusion")
_FIT: dict[str, Any] = {
    "steps": 4000, "batch_size": 64, "learning_rate": 1e-3, "warmup": 200, "weight_decay": 1e-3,
    "clip": 1.0, "ema": 0.998, "validate_every": 500, "precision": "32-true",
}  # fmt: skip
_SHAPE_FIT: dict[str, Any] = {"batch_size": 512, "learning_rate": 2e-3, "warmup": 100, "clip": 5.0}


@dataclass(frozen=True)
class CloudConfig:
    """Options.

    Attributes:
        family: one of `FAMILIES`.
        width: features of a constituent inside the set transformer.
        depth: blocks of it.
        heads: of the attention.
        induced: points through which all attend; 0 for attention of all to all.
        rotate: turn jets about their axis in training: QCD jets hardly have a direction.
        matched: pair noise and constituents by optimal transport within the jet.
        fit: of the flow.
    """

    family: str = "flow_matching"
    width: int = 64
    depth: int = 3
    heads: int = 4
    induced: int = 0
    rotate: bool = True
    matched: bool = True
    fit: FitConfig = field(default_factory=lambda: FitConfig(**_FIT))

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise AleatorError(f"family {self.family!r} of clouds; known: {', '.join(FAMILIES)}")
        for name in ("width", "depth", "heads"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise AleatorError(f"{name}={getattr(self, name)!r}: a positive whole number")
        if not isinstance(self.induced, int) or self.induced < 0 or self.width % self.heads:
            raise AleatorError(
                f"induced={self.induced!r} must not be negative, and width={self.width} must "
                f"divide by heads={self.heads}"
            )


def make_config(settings: Mapping[str, Any], seed: int = 0) -> CloudConfig:
    """Defaults, with the user's settings.

    Raises:
        AleatorError: an unknown option, or a value out of range.
    """
    known = {f.name for f in fields(CloudConfig)}
    if unknown := set(settings) - known:
        raise AleatorError(
            f"clouds have no option {min(unknown)!r}; known: {', '.join(sorted(known))}"
        )
    given = dict(settings.get("fit", {}))
    if unknown := set(given) - {f.name for f in fields(FitConfig)}:
        raise AleatorError(f"fit has no option {min(unknown)!r}")
    try:
        trained = FitConfig(**{**_FIT, "seed": seed, **given})
        return CloudConfig(**{**settings, "fit": trained})
    except TypeError as error:
        raise AleatorError(f"--set: a value of the wrong kind ({error})") from None


def run(
    sources: Sequence[Path],
    output: Path,
    config: CloudConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = print,
) -> CloudModel:
    """Read, train, save.

    Raises:
        AleatorError: jets that cannot be used, or a model is there already.
    """
    if (output / "model.json").exists() and not (overwrite or resume):
        raise AleatorError(f"{output} holds a model; choose another folder or --overwrite")
    clouds = join([read_clouds(path) for path in sources])
    say(
        f"{', '.join(path.name for path in sources)}: {len(clouds)} jets of {clouds.counts.min()} "
        f"to {clouds.counts.max()} constituents"
    )
    trained = train(clouds, config, output / "training", resume=resume, say=say)
    trained.save(output, fingerprint(clouds))
    write_card(output / "card.md", trained.card)
    say(f"model written to {output}")
    return trained


def train(
    clouds: Clouds, config: CloudConfig, folder: Path, *, resume: bool = False, say: Say = print
) -> CloudModel:
    """Train on jets in memory.

    Raises:
        AleatorError: too few jets, or all of one constituent.
    """
    if len(clouds) < LEAST:
        raise AleatorError(f"{len(clouds)} jets; at least {LEAST} are needed to train on")
    if clouds.counts.max() < 2:
        raise AleatorError("every jet has one constituent: there is nothing to learn")
    started = time.process_time()
    clouds, scaling = relative(clouds), Scaling.fit(relative(clouds))
    most, conditions = int(clouds.counts.max()), 4 + len(TYPES)
    parts = {
        "shape": {
            "event_shape": [3], "context_dim": conditions - 2, "active": [[1]], "least": [1],
            "needs_two": [0],
        },
        "cloud": {
            "family": config.family, "event_shape": [most, 8],
            "net": {
                "name": "set_transformer", "width": config.width, "depth": config.depth,
                "heads": config.heads, "induced": config.induced, "vector_dim": conditions,
            },
        },
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(config.fit.seed)
        shape, cloud = networks(parts)
    stage = _Stage(config, folder, resume, {"jets": fingerprint(clouds), "networks": parts}, say)
    shape_scale = stage.shape(shape, clouds, scaling)
    score = stage.cloud(cloud, clouds, scaling)
    given = np.stack([np.log(clouds.pt), np.abs(clouds.eta)], 1)
    weights = sum(p.numel() for model in (shape, cloud) for p in model.parameters())
    return CloudModel(
        shape.eval(), cloud.eval(), scaling, shape_scale, most, given.min(0), given.max(0),
        tuple(int(k) for k in np.unique(clouds.kind)), bool(clouds.species.any()), parts,
        _card(clouds, config, score, weights, time.process_time() - started),
    )  # fmt: skip


@dataclass(frozen=True)
class _Stage:
    config: CloudConfig
    folder: Path
    resume: bool
    job: dict[str, Any]
    say: Say

    def shape(self, model: MixedDensity, clouds: Clouds, scaling: Scaling) -> np.ndarray:
        """Fit multiplicity and mass; mean and deviation of ln m/pT."""
        log = np.log(spreads(clouds.points, clouds.mask))
        two = clouds.counts > 1
        scale = np.array([log[two].mean(), max(log[two].std(), 1e-6)])
        value = np.where(two, (log - scale[0]) / scale[1], 0.0)
        rows = np.stack([np.zeros(len(clouds)), clouds.counts, value], 1)
        x = torch.as_tensor(rows, dtype=torch.float32)
        context = scaling.shape_context(clouds.pt, clouds.eta, clouds.kind)
        held = torch.arange(len(x)) % HELD == 0
        own, own_context = x[~held], context[~held]
        config = replace(
            self.config.fit, **_SHAPE_FIT, steps=min(1500, 10 * self.config.fit.steps), stop_at=0,
            weight_decay=1e-3, validate_every=150, patience=4,
        )  # fmt: skip

        def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
            rows = batch_indices(config.seed, step, config.batch_size, len(own))
            return own[rows], own_context[rows]

        @torch.no_grad()
        def score(current: GenerativeModel) -> float:
            device = next(current.parameters()).device
            return current.loss(x[held].to(device), context[held].to(device)).mean().item()

        model.begin(own[:, 0])
        found = fit(
            model, batches, config, folder=self.folder / "shape", score=score,
            resume=self.resume, job=self.job, progress=None,
        )  # fmt: skip
        model.load_state_dict(found.model.state_dict())
        self.say(f"multiplicity and mass: held-out loss {found.best_score:.3f} nats")
        return scale

    def cloud(self, model: PathModel, clouds: Clouds, scaling: Scaling) -> float:
        """Fit the flow of sets; its held-out loss."""
        x, mask = scaling.encode(clouds), torch.as_tensor(clouds.mask)
        context = scaling.context(
            clouds.pt, clouds.eta, clouds.kind, clouds.counts, spreads(clouds.points, clouds.mask)
        )
        held = torch.arange(len(x)) % HELD == 0
        own, config = (~held).nonzero()[:, 0], self.config
        size = mask.sum(1)

        def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
            rows = own[_like_sized(size[own], config.fit, step)]
            some, there = turned(x[rows], generator, rotate=config.rotate), mask[rows]
            return _paired(some, there, context[rows], generator, config.matched)

        @torch.no_grad()
        def score(current: GenerativeModel) -> float:
            losses = []
            for rows in held.nonzero()[:1000, 0].split(100):
                generator = keyed_generator(0, int(rows[0]))
                some, given = _paired(
                    x[rows], mask[rows], context[rows], generator, config.matched
                )
                losses.append(current.loss(some, given, generator=generator).mean().item())
            return float(np.mean(losses))

        found = fit(
            model, batches, config.fit, folder=self.folder / "cloud", score=score,
            resume=self.resume,
            job=self.job | {"matched": config.matched, "rotate": config.rotate},
        )  # fmt: skip
        model.load_state_dict(found.model.state_dict())
        self.say(f"clouds: held-out loss {found.best_score:.4f} after {found.steps} steps")
        return found.best_score


def _paired(
    x: Tensor, mask: Tensor, context: Tensor, generator: torch.Generator, matched: bool
) -> tuple[Tensor, Context]:
    """Clouds without common padding, and noise for each of their points."""
    room = int(mask.sum(1).max())
    x, mask = x[:, :room], mask[:, :room]
    noise = torch.randn(x.shape, generator=generator) * mask[:, :, None]
    if matched:
        noise = match_points(x, noise, mask)
    return x, {"vector": context, "mask": mask, "noise": noise}


def _like_sized(size: Tensor, config: FitConfig, step: int) -> Tensor:
    """Rows of a batch: a part of a larger draw that was sorted by size."""
    many = min(_SORTED * config.batch_size, len(size))
    rows = batch_indices(config.seed, step // _SORTED, many, len(size))
    rows = rows[size[rows].argsort(stable=True)]
    order = torch.randperm(_SORTED, generator=keyed_generator(config.seed, step // _SORTED, 8))
    part = int(order[step % _SORTED])
    return rows[part * len(rows) // _SORTED : (part + 1) * len(rows) // _SORTED]


def _card(
    clouds: Clouds, config: CloudConfig, score: float, weights: int, seconds: float
) -> dict[str, Any]:
    return {
        "title": "Jets as clouds of constituents",
        "data": f"{len(clouds)} jets of {clouds.counts.min()} to {clouds.counts.max()} "
        f"constituents, {clouds.pt.min():.4g} to {clouds.pt.max():.4g} GeV",
        "split": f"every {HELD}th jet held out",
        "seed": config.fit.seed,
        "hardware": hardware(),
        "minutes": seconds / 60,
        "parameters": weights,
        "command": command_line(),
        "family": config.family,
        "scores": [{"held-out loss": score}],
        "limits": "Constituents are massless and relative to their own sum. Jets of an event are "
        "drawn independently. Another process or another range of pT needs its own training.",
    }
