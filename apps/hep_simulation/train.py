"""Training: read showers, fit the generator, say on held-out showers how well it closes."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.cascade import rotated
from apps.hep_simulation.certificate import certify
from apps.hep_simulation.config import Config
from apps.hep_simulation.data import Chunk, open_showers, read_all
from apps.hep_simulation.distil import pupil
from apps.hep_simulation.features import features
from apps.hep_simulation.geometry import Geometry
from apps.hep_simulation.model import ShowerModel, new_model
from apps.hep_simulation.particles import particle_name
from apps.hep_simulation.simulate import SHOWER
from apps.hep_simulation.validity import fit_validity
from core.cards import write_card
from core.data import batch_indices
from core.errors import AleatorError
from core.model import Context, GenerativeModel
from core.random import keyed_generator
from core.report import command_line, hardware
from core.training import Fitted, fit

Say = Callable[[object], None]
FIRST = 600
"""Training showers that the scales of the networks' inputs are taken from."""
LEAST = 200
"""Showers needed to train at all."""
SCORED = 300
"""Held-out showers that early stopping looks at."""


def train(
    sources: Sequence[Path],
    geometry: Geometry,
    output: Path,
    config: Config,
    *,
    teacher: Path | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = print,
) -> ShowerModel:
    """Train a model and save it.

    Args:
        sources: shower files; taken together.
        geometry: of all of them.
        output: folder for the model; `training/` in it keeps the log and the state of the run.
        config: how.
        teacher: folder of a diffusion model, for the family "consistency".
        seed: of everything random.
        resume: continue a run that was stopped.
        overwrite: replace a model that is there.
        say: for the log.

    Raises:
        AleatorError: bad data or options, or a model is there already.
    """
    if (output / "model.json").exists() and not overwrite:
        raise AleatorError(f"{output} holds a model; choose another folder or --overwrite")
    if (teacher is None) == (config.family == "consistency"):
        raise AleatorError(
            "a teacher (--teacher MODEL) goes with --family consistency, and only it"
        )
    config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, seed=seed))
    names = [open_showers(path, geometry) for path in sources]
    data = read_all(sources, geometry)
    fingerprint = "-".join(file.fingerprint() for file in names)
    started = time.monotonic()
    learnt, held = split(data, config.validation, seed)
    torch.manual_seed(seed)
    if teacher is None:
        model = fresh(learnt, geometry, config)
    else:
        model = pupil(teacher, learnt, geometry, config)
    say(f"{len(data)} showers: {len(learnt)} to learn from, {len(held)} held out; "
        f"{geometry.describe()}")  # fmt: skip
    events, context = (
        model.events(learnt.showers),
        model.context(learnt.energies, learnt.particles),
    )
    rotates = geometry.uniform if config.rotate is None else config.rotate
    if teacher is None:
        begin(model.generator, events, context)
    fitted = fit(
        model.generator,
        make_batches(events, context, config, rotates),
        config.fit,
        folder=output / "training",
        # a pupil's loss is of ever smaller steps: a later one does not compare with an earlier
        score=make_score(model, held, seed) if teacher is None else None,
        resume=resume,
        device="cpu",
        job={"data": fingerprint, "config": config.to_dict()} | _of(teacher),
    )
    model.generator = fitted.model.eval()
    model.validity = fit_validity(_arrays(learnt), _arrays(held), geometry)
    model.closure = judge(model, held, seed)
    for name, found in model.closure.items():
        say(f"held out, {name}: bias {found['bias']:+.3f} sd, worth {found['worth']:.0f} events")
    minutes = fitted.seconds / 60
    card = _card(model, sources, len(learnt), len(held), fitted, minutes)
    saved = model.save(output, card, fingerprint)
    write_card(output / "card.md", card)
    shutil.copy(output / "training" / "metrics.jsonl", output / "metrics.jsonl")
    shutil.rmtree(output / "training")
    (output / "binning.xml").write_text(geometry.to_xml(), encoding="utf-8")
    say(f"{output}: model {saved.fingerprint}, best at step {fitted.best_step}, "
        f"{(time.monotonic() - started) / 60:.1f} min")  # fmt: skip
    model.fingerprint, model.card = saved.fingerprint, card
    return model


def _of(teacher: Path | None) -> dict[str, str]:
    """What a run that goes on must have been begun with."""
    return {} if teacher is None else {"teacher": ShowerModel.load(teacher).fingerprint}


def split(data: Chunk, share: float, seed: int) -> tuple[Chunk, Chunk]:
    """A random part to learn from and the rest, a share, held out.

    Raises:
        AleatorError: too few showers.
    """
    if len(data) < LEAST:
        raise AleatorError(f"{len(data)} showers are too few to train on; {LEAST} are needed")
    order = torch.randperm(len(data), generator=keyed_generator(seed, len(data))).numpy()
    cut = len(data) - max(50, round(share * len(data)))
    return _rows(data, np.sort(order[:cut])), _rows(data, np.sort(order[cut:]))


def _rows(data: Chunk, rows: np.ndarray) -> Chunk:
    return Chunk(0, data.energies[rows], data.particles[rows], data.showers[rows])


def _arrays(data: Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return data.showers, data.energies, data.particles


def fresh(learnt: Chunk, geometry: Geometry, config: Config) -> ShowerModel:
    """A new model for these showers: its particles, threshold and energy range are theirs.

    Raises:
        AleatorError: all showers are empty.
    """
    positive = learnt.showers[learnt.showers > 0]
    if not len(positive):
        raise AleatorError("all training showers are empty")
    energies = (float(learnt.energies.min()), float(learnt.energies.max()))
    # a hair below, so that the least voxel is not lost to rounding
    threshold = float(positive.min()) * (1 - 1e-6)
    particles = tuple(int(p) for p in np.unique(learnt.particles))
    return new_model(config, geometry, particles, threshold, energies)


def begin(generator: GenerativeModel, events: Tensor, context: dict[str, Tensor]) -> None:
    """Fit what is not learnt by gradients to the first training showers."""
    standardise: Any = generator.standardise
    standardise(events[:FIRST], {name: value[:FIRST] for name, value in context.items()})


def make_batches(
    events: Tensor, context: dict[str, Tensor], config: Config, rotates: bool
) -> Callable[[int, torch.Generator], tuple[Tensor, Context]]:
    """Batches of showers, each turned and reflected at random where that is a symmetry."""
    size, sectors = config.fit.batch_size, events.shape[2]

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        rows = batch_indices(config.fit.seed, step, size, len(events))
        x = events[rows]
        if rotates:
            turn = torch.randint(sectors, (len(rows),), generator=generator)
            x = rotated(x, turn, torch.rand(len(rows), generator=generator) < 0.5)
        return x, {name: value[rows] for name, value in context.items()}

    return batches


def make_score(model: ShowerModel, held: Chunk, seed: int) -> Callable[[GenerativeModel], float]:
    """Negative log-likelihood of held-out showers, or their loss where there is no density."""
    events = model.events(held.showers[:SCORED])
    context = model.context(held.energies[:SCORED], held.particles[:SCORED])

    @torch.no_grad()
    def score(generator: GenerativeModel) -> float:
        generator.eval()
        total = 0.0
        for start in range(0, len(events), 100):
            rows = slice(start, start + 100)
            part = {name: value[rows] for name, value in context.items()}
            if model.config.family == "cascade":
                total -= float(generator.log_prob(events[rows], part).value.sum())
            else:
                stream = keyed_generator(seed, start)
                total += float(generator.loss(events[rows], part, generator=stream).value.sum())
        return total / len(events)

    return score


def judge(model: ShowerModel, held: Chunk, seed: int) -> dict[str, dict[str, float]]:
    """The certificate: closure of simulated showers of the held-out showers' conditions."""
    parts = []
    for start in range(0, len(held), 100):
        stop = min(start + 100, len(held))
        streams = [keyed_generator(seed, i, SHOWER) for i in range(start, stop)]
        parts.append(model.sample(held.energies[start:stop], held.particles[start:stop], streams))
    generated = features(np.concatenate(parts), held.energies, model.geometry)
    reference = features(held.showers, held.energies, model.geometry)
    return {name: asdict(found) for name, found in certify(generated, reference).items()}


def _card(
    model: ShowerModel,
    sources: Sequence[Path],
    learnt: int,
    held: int,
    fitted: Fitted,
    minutes: float,
) -> dict[str, Any]:
    low, high = (energy / 1000 for energy in model.energy_range)
    particles = ", ".join(particle_name(p) for p in model.particles)
    scores = [
        {"observable": name, "bias (sd)": round(f["bias"], 3), "worth (events)": round(f["worth"])}
        for name, f in model.closure.items()
    ]
    return {
        "title": f"Showers of {particles}",
        "summary": f"{model.config.family} on {model.geometry.describe()}, {low:.3g} to "
        f"{high:.3g} GeV.",
        "data": ", ".join(Path(path).name for path in sources),
        "split": f"{learnt} showers to learn from, {held} held out at random",
        "seed": model.config.fit.seed,
        "hardware": hardware(),
        "minutes": round(minutes, 1),
        "parameters": sum(p.numel() for p in model.generator.parameters()),
        "steps": f"{fitted.best_step} (of {fitted.steps})",
        "scores": scores,
        "limits": "It knows the detector, the particles and the energies that it was trained on; "
        "other conditions are flagged, and refused with --strict. Worth is what the held-out "
        "showers can resolve at most.",
        "command": command_line(),
    }
