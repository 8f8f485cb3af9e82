"""Train on events that have both generator-level and reconstructed jets: four small models."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.jets import features
from apps.hep_simulation.jets.choice import Choice
from apps.hep_simulation.jets.data import EventFile
from apps.hep_simulation.jets.density import MixedDensity
from apps.hep_simulation.jets.features import Scaling
from apps.hep_simulation.jets.model import ObjectSimulator, scaled
from apps.hep_simulation.jets.pairs import Pairs, fake_kinematics, pairs_of
from core.cards import write_card
from core.data import batch_indices
from core.errors import AleatorError
from core.model import Context, GenerativeModel
from core.report import command_line, hardware
from core.training import FitConfig, fit

Say = Callable[[object], None]
M = TypeVar("M", bound=GenerativeModel)
LEAST = 500
"""Fewest matched pairs."""
HELD = 10
"""Every tenth event says when to stop."""

DEFAULTS: dict[str, Any] = {
    "steps": 4000, "batch_size": 512, "learning_rate": 2e-3, "warmup": 100, "weight_decay": 1e-3,
    "clip": 5.0, "ema": 0.998, "validate_every": 250, "patience": 4, "precision": "32-true",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        source: events with GenJet_* and Jet_*.
        output: folder of the model.
        settings: `width`, `mixtures`, `fit`.
        cut_genjets: see `EventFile`.
        seed: of weights and batches.
        resume: continue a run that was stopped.
        overwrite: replace a model.
        device: where to train.
    """

    source: Path
    output: Path
    settings: dict[str, Any] = field(default_factory=dict)
    cut_genjets: bool = False
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    device: str = "auto"


def run(request: Request, say: Say = print) -> ObjectSimulator:
    """Read, train, save.

    Raises:
        AleatorError: events or options that cannot be used, or a model is there already.
    """
    if (request.output / "model.json").exists() and not request.overwrite:
        raise AleatorError(f"{request.output} holds a model; choose another folder or --overwrite")
    config = _config(request)
    file = EventFile(request.source, reconstructed=True, cut_genjets=request.cut_genjets)
    pairs = pairs_of(file.chunks(5000))
    say(
        f"{request.source}: {file.num_events} events, {len(pairs.found)} generator-level jets, "
        f"{100 * pairs.found.mean():.1f} % found, {len(pairs.fake_event)} fakes"
    )
    if len(pairs.event) < LEAST:
        raise AleatorError(
            f"{request.source}: {len(pairs.event)} matched jets; at least {LEAST} are needed"
        )
    trained = train(
        pairs, config, request.output / "training", width=request.settings.get("width", 64),
        mixtures=request.settings.get("mixtures", 8), resume=request.resume,
        device=request.device, name=request.source.name, say=say,
    )  # fmt: skip
    trained.save(request.output, fingerprint(pairs))
    write_card(request.output / "card.md", trained.card)
    say(f"model written to {request.output}")
    return trained


def _config(request: Request) -> FitConfig:
    if unknown := set(request.settings) - {"width", "mixtures", "fit"}:
        raise AleatorError(f"--set {min(unknown)}: known are width, mixtures and fit.OPTION")
    for key in ("width", "mixtures"):
        value = request.settings.get(key, 1)
        if not isinstance(value, int) or value < 1:
            raise AleatorError(f"--set {key}={value}: a positive whole number is needed")
    given = request.settings.get("fit", {})
    if unknown := set(given) - {f.name for f in fields(FitConfig)}:
        raise AleatorError(f"fit has no option {min(unknown)!r}")
    return FitConfig(**{**DEFAULTS, "seed": request.seed, **given})


def train(
    pairs: Pairs,
    config: FitConfig,
    folder: Path,
    *,
    width: int = 64,
    mixtures: int = 8,
    resume: bool = False,
    device: str = "auto",
    name: str = "events",
    say: Say = print,
) -> ObjectSimulator:
    """Train the four models on pairs in memory."""
    started = time.monotonic()
    active, least = features.rules()
    rule = {
        "event_shape": [9], "active": [[1, 1, 1, 1, *row] for row in active], "least": least,
        "needs_two": [1], "width": width, "mixtures": mixtures,
    }  # fmt: skip
    networks: dict[str, dict[str, Any]] = {
        "response": {**rule, "context_dim": 6},
        "fake": {**rule, "context_dim": 3, "width": max(8, width // 2)},
        "found": {"context_dim": 6, "classes": 2},
        "fakes": {"context_dim": 3, "classes": int(pairs.fake_count.max()) + 1},
    }
    job = {"events": fingerprint(pairs), "width": width, "mixtures": mixtures}
    run = _Run(config, folder, resume, device, job, say)

    conditions = features.conditions(pairs.gen)
    x, free = features.encode(features.responses(pairs.gen, pairs.reco), pairs.reco)
    scaling = Scaling.fit(x[:, 2:], free, conditions)
    mirror = _Mirror(scaling)
    response, score = run.fitted(
        "response", lambda: MixedDensity(**networks["response"]), scaled(x, free, scaling)[0],
        scaling.context(conditions), pairs.event, mirror,
    )  # fmt: skip

    events = np.arange(len(pairs.fake_count))
    fake_event = pairs.fake_event
    kinematics = fake_kinematics(pairs.fakes, pairs.leading_phi[fake_event])
    if len(fake_event):
        y, fake_free = features.encode(kinematics, pairs.fakes)
        fake_scaling = Scaling.fit(y[:, 2:], fake_free, pairs.activity)
        fake, _ = run.fitted(
            "fake", lambda: MixedDensity(**networks["fake"]),
            scaled(y, fake_free, fake_scaling)[0],
            fake_scaling.context(pairs.activity[fake_event]), pairs.fake_event,
        )  # fmt: skip
    else:  # the number of fakes is 0 always, and this model is never asked
        ones = np.ones((1, 7))
        fake_scaling = Scaling.fit(0 * ones, ones, pairs.activity)
        fake = MixedDensity(**networks["fake"]).eval()
    found, _ = run.fitted(
        "found", lambda: Choice(**networks["found"]), torch.as_tensor(pairs.found).float(),
        scaling.context(features.conditions(pairs.all_gen)), pairs.all_event,
    )  # fmt: skip
    fakes, _ = run.fitted(
        "fakes", lambda: Choice(**networks["fakes"]), torch.as_tensor(pairs.fake_count).float(),
        fake_scaling.context(pairs.activity), events,
    )  # fmt: skip
    models = {"response": response, "fake": fake, "found": found, "fakes": fakes}
    weights = sum(p.numel() for model in models.values() for p in model.parameters())
    card = _card(pairs, config, name, weights, score, time.monotonic() - started)
    every = features.conditions(pairs.all_gen)
    return ObjectSimulator(
        **models,  # type: ignore[arg-type]
        scaling=scaling, fake_scaling=fake_scaling, low=every.min(0), high=every.max(0),
        config=networks, card=card,
    )  # fmt: skip


@dataclass(frozen=True)
class _Mirror:
    """Nature does not tell +η from -η, nor +φ from -φ: half of the examples are reflected."""

    scaling: Scaling

    def __call__(self, x: Tensor, c: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, c = x.clone(), c.clone()
        for column, also in ((4, 1), (5, None)):
            turn = torch.rand(len(x), generator=generator) < 0.5
            x[turn, column] = _reflected(
                x[turn, column], self.scaling.mean[column - 2], self.scaling.std[column - 2]
            )
            if also is not None:
                mean, std = self.scaling.context_mean[also], self.scaling.context_std[also]
                c[turn, also] = _reflected(c[turn, also], mean, std)
        return x, c


def _reflected(z: Tensor, mean: float, std: float) -> Tensor:
    return -z - 2 * float(mean) / float(std)


@dataclass(frozen=True)
class _Run:
    config: FitConfig
    folder: Path
    resume: bool
    device: str
    job: dict[str, Any]
    say: Say

    def fitted(
        self,
        name: str,
        build: Callable[[], M],
        x: Tensor,
        context: Tensor,
        event: np.ndarray,
        augment: _Mirror | None = None,
    ) -> tuple[M, float]:
        """Train one model, every tenth event held out; the model and its held-out loss."""
        held = torch.as_tensor(event % HELD == 0)
        if held.all() or not held.any():
            held = torch.arange(len(x)) % HELD == 0
        own, own_context = x[~held], context[~held]
        config = self.config
        if name != "response":
            config = replace(config, steps=max(1, config.steps // 2))

        def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
            rows = batch_indices(config.seed, step, config.batch_size, len(own))
            if augment is None:
                return own[rows], own_context[rows]
            return augment(own[rows], own_context[rows], generator)

        @torch.no_grad()
        def score(model: GenerativeModel) -> float:
            device = next(model.parameters()).device
            return model.loss(x[held].to(device), context[held].to(device)).value.mean().item()

        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = build()
        if isinstance(model, MixedDensity):
            model.begin(own[:, 0])
        elif isinstance(model, Choice):
            model.begin(own)
        fitted = fit(
            model, batches, config, folder=self.folder / name, score=score, resume=self.resume,
            device=self.device, job={**self.job, "model": name}, progress=None,
        )  # fmt: skip
        self.say(f"{name}: held-out loss {fitted.best_score:.3f} nats after {fitted.steps} steps")
        return fitted.model.eval(), fitted.best_score  # type: ignore[return-value]


def fingerprint(pairs: Pairs) -> str:
    """16 hexadecimal digits of the training events."""
    digest = hashlib.sha256(np.ascontiguousarray(pairs.gen["pt"]).tobytes())
    for name in sorted(pairs.reco):
        digest.update(np.ascontiguousarray(pairs.reco[name]).tobytes())
    return digest.hexdigest()[:16]


def _card(
    pairs: Pairs, config: FitConfig, name: str, weights: int, score: float, seconds: float
) -> dict[str, Any]:
    return {
        "title": "Reconstructed jets from generator-level ones",
        "data": f"{name}: {len(pairs.fake_count)} events, {len(pairs.event)} matched jets, "
        f"{len(pairs.fake_event)} fakes",
        "split": f"every {HELD}th event held out",
        "seed": config.seed,
        "hardware": hardware(),
        "minutes": seconds / 60,
        "parameters": weights,
        "command": command_line(),
        "efficiency": float(pairs.found.mean()),
        "scores": [{"held-out -ln p (nats a jet, scaled)": score}],
        "limits": "Jets of an event are drawn independently given the generator-level event. "
        "Another detector, another process or another range of pT needs its own training.",
    }
