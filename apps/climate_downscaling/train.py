"""Training: regress the mean, learn the distribution of its residuals, judge the test part.

Nothing sees the test part before the final scores. Early stopping uses the last part of the
training period; residuals come from regressions that have not seen the times they are taken at.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from apps.climate_downscaling.config import Config, parse_config
from apps.climate_downscaling.downscale import ensemble
from apps.climate_downscaling.families import ANY_SIZE
from apps.climate_downscaling.field import show_time
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.ordering import Order
from apps.climate_downscaling.patches import checked_crop, tile
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.prognosis_fit import fit_prognosis
from apps.climate_downscaling.residuals import (
    Validation,
    fit_view,
    fitted_steps,
    make_batches,
    note_persistence,
    shifted_views,
)
from apps.climate_downscaling.scratch import Scratch, scratch_for
from apps.climate_downscaling.training_data import Prepared
from core.cards import write_card
from core.errors import AleatorError
from core.model import GenerativeModel
from core.registry import build
from core.report import command_line, hardware
from core.training import Fitted, fit
from core.training.fit import STATE
from core.training.state import begun_with, refuse_other

Say = Callable[[object], None]
LONG_ENOUGH = 1000
"""Training fields from which context="auto" conditions on the coarse field."""
MOST_SCORED = 2**29
"""Values of members that are held for the test scores."""


def train(
    source: str,
    output: Path,
    config: Config,
    *,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = print,
) -> DownscalingModel:
    """Train a model and save it.

    Args:
        source: fine data, or what `prepare` wrote.
        output: folder for the model; `training/` in it keeps the log and the state of the run.
        config: how.
        seed: of everything random.
        resume: continue a run that was stopped.
        device: where the network is trained.
        overwrite: replace a model that is there.
        say: for the log.

    Returns:
        the trained model.

    Raises:
        AleatorError: bad data or options, or a model is there already.
    """
    if (output / "model.json").exists() and not overwrite:
        raise AleatorError(f"{output} holds a model; choose another folder or --overwrite")
    config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, seed=seed))
    prepared = open_prepared(source, config)
    say(prepared.fine.describe())
    say(f"split: {prepared.describe_split()}")
    started = time.monotonic()
    part = prepared.train
    grid = prepared.fine.grid
    config = settle(config, part.stop - part.start, grid.shape, stations=bool(grid.stations))
    work = output / "training"
    job = _job(work, prepared, config, resume)
    scratch = _scratch(work, prepared, config, part, say)
    if config.predictors.files:
        own = fit_prognosis(prepared, config, part, scratch)
    else:
        own = fit_view(prepared, config, part, scratch)
    model = own.model
    note_persistence(own, prepared.fine.time_keys()[part])
    for line in model.describe():
        say(line)
    positions = config.residual.positions or 0
    views = [own, *shifted_views(prepared, own, part, positions, scratch)]
    torch.manual_seed(seed)
    residual = build(model.residual_config(config.residual.crop))
    say(f"residual: {_words(model, residual)}, {len(views)} positions of the coarse grid")
    steps, learnt = len(own.fine), fitted_steps(len(own.fine), config)
    first = learnt + config.split.gap if config.split.validation_fraction else steps
    score = Validation.of(own, first, steps, 32).score if first < steps else None
    fitted = fit(
        residual,
        make_batches(views, learnt),
        config.fit,
        folder=work,
        score=score,
        resume=resume,
        device=device,
        job=job,
    )
    model.residual = on_domain(model, fitted.model)
    if fitted.rank:
        return model  # the first process judges and writes
    unseen = first if score else 0
    model.inflation = Validation.of(own, unseen, steps, 128).inflation(fitted.model.eval())
    say(f"inflation of generated residuals: {_listed(model.inflation.tolist())}")
    minutes = (time.monotonic() - started) / 60
    scores = judge(model, prepared, device, say)
    card = _card(model, prepared, fitted, minutes, scores)
    fingerprint = _save(model, output, card, prepared)
    say(f"{output}: model {fingerprint}, best at step {fitted.best_step}")
    return dataclasses.replace(model, fingerprint=fingerprint, card=card)


def _save(
    model: DownscalingModel, output: Path, card: Mapping[str, Any], prepared: Prepared
) -> str:
    """Model, card and log in their folder; the state of the run is not needed any more."""
    work = output / "training"
    saved = model.save(output, card, prepared.fingerprint())
    write_card(output / "card.md", card)
    shutil.copy(work / "metrics.jsonl", output / "metrics.jsonl")
    shutil.rmtree(work)
    return saved.fingerprint


def _job(work: Path, prepared: Prepared, config: Config, resume: bool) -> dict[str, Any]:
    """What a run that is resumed must have in common with the one that was begun.

    Options that have come since with a default that changes nothing do not count.

    Raises:
        AleatorError: it is another one; said before an hour of fits.
    """
    job = {"data": prepared.fingerprint(), "config": config.to_dict()}
    begun = begun_with(work / STATE) if resume else {}
    if "config" in begun:
        before = dict(begun["config"])
        no_order = Order.of(config.variables) is None
        before.setdefault("ordered", config.ordered if no_order else False)
        if parse_config(before) == config:
            job["config"] = begun["config"]
        refuse_other(
            work / STATE, {name: begun[name] for name in job}, json.loads(json.dumps(job))
        )
    return job


def _scratch(work: Path, prepared: Prepared, config: Config, part: slice, say: Say) -> Scratch:
    """Where fields go that are too large for memory; each of several processes has its own."""
    folder = work / f"fields{os.environ.get('LOCAL_RANK', '')}"
    scratch = scratch_for(folder, values_of(prepared, config, part), config.memory)
    if scratch.folder is not None:
        shutil.rmtree(scratch.folder, ignore_errors=True)
        say(f"more than {config.memory:g} GiB of fields: they go to {scratch.folder}")
    return scratch


def values_of(prepared: Prepared, config: Config, part: slice) -> int:
    """Values of all fields of a training: data, their transform, mean and scale of every view."""
    if prepared.fine.grid.stations:
        return 0  # series are filled whole
    views = 1 + (config.residual.positions or 0)
    arrays = 3 if config.predictors.files else 4  # the transform's is used again
    return arrays * views * (part.stop - part.start) * math.prod(prepared.fine.shape[1:])


def on_domain(model: DownscalingModel, trained: GenerativeModel) -> GenerativeModel:
    """A network trained on patches, for the whole domain; on whole fields, as it is."""
    crop = model.config.residual.crop
    if crop is None:
        return trained.eval()
    whole = build(model.residual_config())
    whole.load_state_dict(trained.state_dict())
    tile(whole, crop, model.fine_grid)
    return whole.eval()


def settle(
    config: Config, steps: int, shape: tuple[int, int], *, stations: bool = False
) -> Config:
    """With "auto" and None replaced by what they mean for this many training fields (H, W).

    Raises:
        AleatorError: patches that do not fit.
    """
    residual = config.residual
    crop = checked_crop(residual.crop, shape)
    residual = dataclasses.replace(residual, crop=crop)
    if residual.family == "auto":
        residual = dataclasses.replace(residual, family="nsf" if stations else "diffusion")
    if residual.context == "auto":
        chosen: Literal["coarse", "static"] = "coarse" if steps >= LONG_ENOUGH else "static"
        residual = dataclasses.replace(residual, context=chosen)
    if residual.mix is None:
        mix = 1.0 if residual.context == "static" else 0.0
        residual = dataclasses.replace(residual, mix=mix)
    if crop and residual.family not in ANY_SIZE:
        raise AleatorError(
            f"residual.crop={crop}: patches are for {' and '.join(ANY_SIZE)}, not for "
            f"{residual.family}"
        )
    if residual.family not in ANY_SIZE:
        residual = dataclasses.replace(residual, positions=0)
    if residual.positions is None:
        others = max(0, config.factor**2 - 1)  # none with predictors of their own
        positions = min(4, others) if residual.context == "coarse" else 0
        residual = dataclasses.replace(residual, positions=positions)
    return dataclasses.replace(config, residual=residual)


def judge(
    model: DownscalingModel, prepared: Prepared, device: str, say: Say, members: int = 16
) -> list[dict[str, Any]]:
    """Scores of the test part, one row a variable; none without a test part."""
    from apps.climate_downscaling.evaluation import scores

    test = prepared.test
    if test.start == test.stop:
        return []
    a_time = members * math.prod(prepared.fine.shape[1:])
    most = max(1, MOST_SCORED // a_time)
    if test.stop - test.start > most:
        test = slice(test.start, test.start + most)
        say(f"the test part is long: its first {most} steps are scored")
    say(f"scoring the test part, {test.stop - test.start} steps, {members} members")
    drawn = ensemble(
        model, prepared.coarse, test.start, test.stop, members=members, seed=0, device=device
    )
    truth = prepared.arrays(test)[0].where(model.valid, torch.nan)
    rows = []
    for v, variable in enumerate(model.variables):
        found = scores(
            *(torch.from_numpy(drawn[:, :, v]), truth[:, v]),
            amount=model.transforms.nonnegative[v],
            factor=model.factor or None,
        )
        rows.append({"variable": variable.name, "units": variable.units, **found})
        listed = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        say(f"test, {variable.name} ({variable.units}): {listed}")
    return rows


def _sentence(model: DownscalingModel) -> str:
    if model.config.predictors.files:
        return "Mean by a ridge on all predictors"
    return "Mean by a local ridge"


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def _words(model: DownscalingModel, residual: GenerativeModel) -> str:
    count = sum(p.numel() for p in residual.parameters())
    kind = model.config.residual.family.replace("_", " ")
    return f"{kind}, {count:,} parameters, {model.config.residual.context} context"


def data_facts(model: DownscalingModel, prepared: Prepared) -> dict[str, Any]:
    """What a card says of the data."""
    names = ", ".join(f"{v.name} ({v.units})" for v in model.variables)
    source = prepared.fine.attributes.get("title") or Path(prepared.fine.source).name
    test = prepared.test
    start = show_time(prepared.fine.times[test.start]) if test.start < test.stop else None
    return {
        "data": f"{source}: {names}",
        "split": prepared.describe_split(),
        "test_start": start,
    }


def _card(
    model: DownscalingModel,
    prepared: Prepared,
    fitted: Fitted,
    minutes: float,
    scores: list[dict[str, Any]],
) -> dict[str, Any]:
    grid = model.coarse_grid.describe()
    return {
        "title": f"Downscaling of {', '.join(model.names)}"
        + (f" by {model.factor}" if model.factor else ""),
        "summary": f"From {grid} to {model.fine_grid.describe()}. {_sentence(model)}, "
        f"residual by {_words(model, fitted.model)}.",
        **data_facts(model, prepared),
        "seed": model.config.fit.seed,
        "hardware": hardware(),
        "minutes": round(minutes, 1),
        "parameters": sum(p.numel() for p in fitted.model.parameters()),
        "steps": f"{fitted.best_step} (of {fitted.steps})",
        "scores": scores,
        "limits": "It knows the climate, the region and the resolution that it was trained on: "
        "every output carries `ood_score`, and scores above 1 are further from the training data "
        "than 99 % of unseen data of the same climate. Members of neighbouring times are drawn "
        "independently, unless --coherent is given.",
        "command": command_line(),
    }
