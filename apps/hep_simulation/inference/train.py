"""Train an inference model: an ensemble over folds of the parameters, calibrated out of fold.

Six hundred simulated parameters are few, and a posterior that was stopped, scored or calibrated
on what it was trained on is overconfident. Each member therefore leaves one fold of *parameters*
out (not of events); that fold says when to stop, gives τ(n), and the scores in the card.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.inference.config import InferenceConfig, make_config, seeded
from apps.hep_simulation.inference.data import EventSets, read_sets
from apps.hep_simulation.inference.guard import Guard
from apps.hep_simulation.inference.network import REACH, SetPosterior
from apps.hep_simulation.inference.posterior import Inference, Posterior
from core.cards import write_card
from core.data import Standardizer, batch_indices
from core.errors import AleatorError
from core.model import Context, GenerativeModel
from core.random import keyed_generator
from core.report import command_line, hardware
from core.training import fit

Say = Callable[[object], None]
LEAST = 40
"""Fewest simulated parameters."""
_EMULATED = 0.25
"""Share of a batch that stands for larger sets than were simulated."""


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        source: simulations.
        output: folder of the model.
        method: "npe" or "nle".
        settings: `folds`, `members`, `network`, `fit`.
        seed: of folds, weights, batches.
        resume: continue a run that was stopped.
        overwrite: replace a model.
        device: where to train.
    """

    source: Path
    output: Path
    method: str = "npe"
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    device: str = "auto"


def run(request: Request, say: Say = print) -> Inference:
    """Read simulations, train, save.

    Raises:
        AleatorError: simulations or options that cannot be used, or a model is there already.
    """
    if (request.output / "model.json").exists() and not request.overwrite:
        raise AleatorError(f"{request.output} holds a model; choose another folder or --overwrite")
    config = make_config(request.method, request.settings, request.seed)
    sets = read_sets(request.source, simulated=True)
    say(f"{request.source}: {len(sets)} parameters, {sets.x.shape[1]} events each")
    trained = train(
        sets, config, request.output / "training", resume=request.resume, device=request.device,
        say=say,
    )  # fmt: skip
    trained.save(request.output, fingerprint(sets))
    write_card(request.output / "card.md", trained.card)
    say(f"model written to {request.output}")
    return trained


def train(
    sets: EventSets,
    config: InferenceConfig,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    say: Say = print,
) -> Inference:
    """Train on simulations in memory.

    Raises:
        AleatorError: too few parameters or events, or an observable that never changes.
    """
    assert sets.theta is not None
    assert sets.prior is not None
    if len(sets) < LEAST:
        raise AleatorError(f"{sets.source}: {len(sets)} parameters; at least {LEAST} are needed")
    if sets.x.shape[1] < 2:
        raise AleatorError(f"{sets.source}: one event a parameter; at least two are needed")
    flat = torch.as_tensor(sets.x).flatten(0, 1)
    constant = (flat.amax(0) == flat.amin(0)).nonzero()[:, 0].tolist()
    if constant:
        raise AleatorError(
            f"{sets.source}: {sets.x_names[constant[0]]} is the same in every event; leave it out"
        )
    standardizer = Standardizer.fit(flat)
    u = torch.as_tensor(sets.prior.to_unit(sets.theta))
    events = standardizer(torch.as_tensor(sets.x))
    guard = Guard.fit(u, events, counts(sets.x.shape[1]))
    started = time.monotonic()
    job = {"simulations": fingerprint(sets)}
    shared: dict[str, Any] = {
        "prior": sets.prior, "x_names": sets.x_names, "standardizer": standardizer, "guard": guard,
    }  # fmt: skip
    setup = Setup(config, folder, resume, device, job, say)
    if config.method == "nle":
        from apps.hep_simulation.inference.likelihood import train_likelihood

        return train_likelihood(
            u, events, setup, shared, lambda s, w: card(sets, config, s, started, w)
        )
    members, folds, options = _ensemble(u, events, setup)
    scores = _calibrate(members, folds, u, events)
    for row in scores:
        say(
            f"{row['events']} events, out of fold: mean ln q {row['mean ln q']:.3f} nats over the "
            f"prior, 68 % intervals hold {100 * row['68 % coverage']:.1f} %"
        )
    stored = {"method": "npe", "network": options, "count": len(members)}
    weights = sum(p.numel() for member in members for p in member.parameters())
    facts = card(sets, config, scores, started, weights)
    return Posterior(**shared, config=stored, card=facts, members=tuple(members))


@dataclass(frozen=True)
class Setup:
    """Where and how networks are trained."""

    config: InferenceConfig
    folder: Path
    resume: bool
    device: str
    job: dict[str, Any]
    say: Say


def counts(most: int) -> list[int]:
    """Set sizes at which things are tabulated: 1, 2, 5, 10, ... up to the largest."""
    grid = [n for n in (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000) if n < most]
    return [*grid, most]


def folds_of(size: int, folds: int, seed: int) -> list[Tensor]:
    """Rows of each fold, in order."""
    if size < 4 * folds:
        raise AleatorError(f"{size} parameters for {folds} folds: at least four each are needed")
    order = torch.randperm(size, generator=keyed_generator(seed, size, folds))
    return [order[k::folds].sort().values for k in range(folds)]


def _ensemble(
    u: Tensor, events: Tensor, setup: Setup
) -> tuple[list[SetPosterior], list[Tensor], dict[str, Any]]:
    """Members, the fold that each has left out, and the options that rebuild them."""
    config = setup.config
    known = {"width": 32, "learned": 8, "hidden": 16, "layers": 1, "bins": 6, "dropout": 0.1}
    if unknown := set(config.network) - set(known):
        raise AleatorError(f"network has no option {min(unknown)!r}; it has {', '.join(known)}")
    options: dict[str, Any] = {
        "event_shape": [u.shape[1]], "features": events.shape[2], "most": events.shape[1],
        **known, **config.network,
    }  # fmt: skip
    members, left_out = [], []
    parts = folds_of(len(u), config.folds, config.fit.seed)
    for k in range(config.folds * config.members):
        held = parts[k % config.folds]
        keep = torch.ones(len(u), dtype=torch.bool)
        keep[held] = False
        fit_config = seeded(config.fit, k)
        with torch.random.fork_rng():
            torch.manual_seed(fit_config.seed)
            model = SetPosterior(**options)
        model.begin(u[keep], events[keep])
        setup.say(f"member {k + 1} of {config.folds * config.members}")
        fitted = fit(
            model, _batches(u[keep], events[keep], fit_config.seed, fit_config.batch_size),
            fit_config, folder=setup.folder / f"member-{k}",
            score=_score(u[held], events[held]), resume=setup.resume, device=setup.device,
            job={**setup.job, "network": options, "member": k}, progress=None,
        )  # fmt: skip
        assert isinstance(fitted.model, SetPosterior)
        members.append(fitted.model.eval())
        left_out.append(held)
    return members, left_out, options


def _batches(
    u: Tensor, events: Tensor, seed: int, size: int
) -> Callable[[int, torch.Generator], tuple[Tensor, Context]]:
    """Random subsets, of sizes uniform in ln n, of the events of random parameters.

    A share of the rows is all events, and stands for a larger set.
    """
    most = events.shape[1]

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        rows = batch_indices(seed, step, size, len(u))
        v = torch.rand(len(rows), generator=generator)
        n = (v * math.log(most + 1)).exp().long().clamp(1, most)
        larger = n.double()
        emulated = int(_EMULATED * len(rows))
        n[:emulated] = most
        larger[:emulated] = most * (v[:emulated] * math.log(REACH)).exp()
        order = torch.rand(len(rows), most, generator=generator).argsort(1)[:, : int(n.max())]
        mask = torch.arange(order.shape[1])[None] < n[:, None]
        return u[rows], {"events": events[rows[:, None], order], "mask": mask, "larger": larger}

    return batches


def whole(events: Tensor, n: int) -> dict[str, Tensor]:
    """Context of the first n events of each set."""
    return {"events": events[:, :n], "mask": torch.ones(len(events), n, dtype=torch.bool)}


def _score(u: Tensor, events: Tensor) -> Callable[[GenerativeModel], float]:
    most = events.shape[1]
    sizes = sorted({min(3, most), min(12, most), most})

    @torch.no_grad()
    def score(model: GenerativeModel) -> float:
        device = next(model.parameters()).device
        losses = []
        for n in sizes:
            context = {key: value.to(device) for key, value in whole(events, n).items()}
            losses.append(model.loss(u.to(device), context).value.mean().item())
        return sum(losses) / len(losses)

    return score


@torch.no_grad()
def _calibrate(
    members: list[SetPosterior], folds: list[Tensor], u: Tensor, events: Tensor
) -> list[dict[str, Any]]:
    """Set τ(n) from the left-out folds; scores of each size, out of fold.

    τ² = mean ε² is the likeliest scale of the noise, one for all members and parameters.
    """
    sizes = counts(events.shape[1])
    pairs = list(zip(members, folds, strict=True))
    log_tau, scores = [], []
    for n in sizes:
        found = [m.noise(u[f], m.law(whole(events[f], n))) for m, f in pairs]
        z = torch.cat([noise for noise, _ in found])
        log_tau.append(0.5 * z.square().mean().log())
        tau = log_tau[-1].exp()
        prior = -0.5 * (z / tau).square() - log_tau[-1] - 0.5 * math.log(2 * math.pi)
        log_q = prior.sum(1) + torch.cat([log_det for _, log_det in found])
        scores.append(
            {
                "events": n,
                "mean ln q": log_q.mean().item(),
                "± s.e.": log_q.std().item() / math.sqrt(len(log_q)),
                "68 % coverage": (z / tau).abs().lt(0.994458).double().mean().item(),
                "τ": tau.item(),
            }
        )
    if len(sizes) > 1:
        for member in members:
            member.set_temper(torch.tensor(sizes), torch.stack(log_tau))
    return scores


def fingerprint(sets: EventSets) -> str:
    """16 hexadecimal digits of simulations."""
    digest = hashlib.sha256(np.ascontiguousarray(sets.x).tobytes())
    if sets.theta is not None:
        digest.update(np.ascontiguousarray(sets.theta).tobytes())
    return digest.hexdigest()[:16]


def card(
    sets: EventSets,
    config: InferenceConfig,
    scores: list[dict[str, Any]],
    started: float,
    weights: int,
) -> dict[str, Any]:
    """Facts of a trained model."""
    assert sets.prior is not None
    bounds = zip(sets.prior.names, sets.prior.low, sets.prior.high, strict=True)
    return {
        "title": f"p(θ | events), {config.method.upper()}",
        "data": f"{Path(sets.source).name}: {len(sets)} parameters, {sets.x.shape[1]} events each",
        "split": f"{config.folds} folds of parameters, each left out once",
        "seed": config.fit.seed,
        "hardware": hardware(),
        "minutes": (time.monotonic() - started) / 60,
        "parameters": weights,
        "command": command_line(),
        "method": config.method,
        "prior": {name: f"uniform ({low:g}, {high:g})" for name, low, high in bounds},
        "observables": list(sets.x_names),
        "scores": scores,
        "limits": "Scores are out of fold: of parameters that a member was not trained on. Sets "
        f"of more than {sets.x.shape[1]} events rest on an emulation of such sets.",
    }
