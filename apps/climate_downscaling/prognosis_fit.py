"""Fitting what perfect prognosis needs before its residual's model: data, regression, spread."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from apps.climate_downscaling.config import Config
from apps.climate_downscaling.data import Source
from apps.climate_downscaling.drift import Drift
from apps.climate_downscaling.field_dispersion import FieldDispersion
from apps.climate_downscaling.field_ridge import cross_fit_fields
from apps.climate_downscaling.gaps import enough, filled
from apps.climate_downscaling.model import clock_vector
from apps.climate_downscaling.ood import OutOfDistribution
from apps.climate_downscaling.predictors import base_name, open_predictors, same_times
from apps.climate_downscaling.preprocessing import Transforms
from apps.climate_downscaling.prognosis import PrognosisModel
from apps.climate_downscaling.residuals import View, some_times
from apps.climate_downscaling.scratch import Scratch, pieces, run_of
from apps.climate_downscaling.station_model import StationModel, refuse_unfit
from apps.climate_downscaling.training_data import (
    Prepared,
    clock_of,
    open_fine,
    split_times,
    static_fields,
    with_statics,
)
from apps.climate_downscaling.year_effect import YearEffect
from core.errors import AleatorError
from core.random import keyed_generator

GAPS = 0.02
"""Share of the times at which a cell of a model may lack data that its level is fitted to."""


def prepare_prognosis(source: Source, config: Config) -> Prepared:
    """Open fine data and the predictors that `config.predictors` names, at common times.

    Raises:
        AleatorError: the data cannot be read, do not fit each other, or are too short.
    """
    fine = open_fine(source, config)
    if fine.members:
        raise AleatorError(f"{fine.source}: training needs one realisation, not an ensemble")
    if config.statics:
        fine = with_statics(fine, config.statics)
    wanted = config.predictors
    predictors = open_predictors(
        wanted.files,
        wanted.variables,
        lags=wanted.lags,
        time_range=config.time_range,
        region=wanted.region,
    )
    predictors, fine = same_times(predictors, fine)
    train, test = split_times(fine, config.split)
    return Prepared(fine, predictors, train, test, fine.grid)


def fit_prognosis(
    prepared: Prepared,
    config: Config,
    part: slice,
    scratch: Scratch | None = None,
    known: PrognosisModel | None = None,
) -> View:
    """Fit everything but the residual's model: mask, regression, drift, dispersion, OOD.

    Args:
        prepared: the data.
        config: settled options.
        part: time steps to fit on.
        scratch: where fields go; in memory if None. Predictors are always in memory.
        known: a model of maps whose cells are taken; see `_of_model`.

    Raises:
        AleatorError: no cell has data throughout, or too few times.
    """
    scratch = scratch or Scratch()
    stations = bool(prepared.fine.grid.stations)
    if stations:
        refuse_unfit(config.residual)
    fine, coarse = prepared.arrays(part, scratch)
    prepared.coarse.refuse_bad(coarse.numpy(), part.start)
    variables = prepared.coarse.variables
    x = Transforms.of([base_name(v.name) for v in variables]).coarse(coarse)
    transforms = Transforms.of(config.variables, config.transforms, ordered=config.ordered)
    if transforms.order:
        transforms.order.refuse_crossed(fine, config.variables, prepared.fine.source)
    if stations:
        valid, fine = _filled(x, fine, transforms, prepared.fine.source, config)
    elif known is not None:
        valid, fine = _of_model(known, x, fine, prepared.fine.source)
    else:
        valid, fine = _complete(fine, prepared.fine.source)
    z, stream = scratch.empty(fine.shape), keyed_generator(config.fit.seed, -2)
    every = [run_of(rows) for rows in pieces(len(fine), fine)]
    for rows in every:
        z[rows] = transforms.forward(fine[rows], stream)
    folds = (config.predictors.strengths, config.mean.blocks, config.mean.gap)
    fitted = cross_fit_fields(x, z, valid, *folds, scratch)
    keys = prepared.fine.time_keys()[part]
    mean, error = fitted.mean, z  # what was z is the error of the mean from here on
    for rows in every:
        error[rows] -= mean[rows]
    drift = Drift.fit(error, keys, valid)
    for rows in every:
        level = drift.honest(rows)
        mean[rows] += level
        error[rows] -= level
    some = some_times(fine)
    seen = (error[some], mean[some], fitted.leverage[some])
    gap = math.ceil(config.mean.gap * len(seen[0]) / len(fine))  # of the times looked at
    dispersion = FieldDispersion.fit(*seen, valid, blocks=config.mean.blocks, gap=gap)
    extra = config.residual.channels
    clock = clock_of(prepared.fine.times[part], extra)
    model = (StationModel if stations else PrognosisModel)(
        config=config,
        variables=prepared.fine.variables,
        fine_grid=prepared.fine.grid,
        coarse_grid=prepared.coarse.grid,
        clock=clock,
        statics=static_fields(prepared.fine, config.factor, prepared.domain, extra)[0],
        valid=valid,
        mean=fitted.ridge.at(drift.offset),
        dispersion=dispersion,
        context_scale=torch.zeros(0),
        inflation=torch.ones(len(config.variables)),
        persistence=torch.full((len(config.variables),), torch.nan),
        time_step=0,
        ood=OutOfDistribution.fit((x - fitted.ridge.centres) / fitted.ridge.scale),
        predictor_variables=variables,
        rules=drift.rules,
        years=YearEffect.fit(error, keys, valid),
    )
    scale = error  # nor is the error needed any more
    for rows in every:
        scale[rows] = dispersion(mean[rows], fitted.leverage[rows])
    hours = clock_vector(prepared.fine, clock, part.start, part.stop)
    return View(model, fine, coarse, mean, scale, hours, scratch.chunk)


def levelled(
    model: PrognosisModel, prepared: Prepared, part: slice, scratch: Scratch | None = None
) -> PrognosisModel:
    """The same spread and network, with regression, drift and year effect fitted again.

    For winters that have come since, and for models that were made before drift and year effect
    were what they are; `train --relevel` does it.

    Args:
        model: trained.
        prepared: the data; those of the model, or longer.
        part: time steps to fit on.
        scratch: where fields go; in memory if None.

    Raises:
        AleatorError: the data do not fit the model.
    """
    _refuse_other(model, prepared)
    known = None if prepared.fine.grid.stations else model
    fresh = fit_prognosis(prepared, model.config, part, scratch, known).model
    assert isinstance(fresh, PrognosisModel)
    if not torch.equal(fresh.valid, model.valid):
        raise AleatorError(
            f"{prepared.fine.source}: other stations have data at half of the times than when the "
            "model was trained; train it again"
        )
    return dataclasses.replace(
        model, mean=fresh.mean, rules=fresh.rules, years=fresh.years, fingerprint=""
    )


def _refuse_other(model: PrognosisModel, prepared: Prepared) -> None:
    """Refuse data that are not those of the model.

    Raises:
        AleatorError: other variables, cells or predictors.
    """
    fine, coarse = prepared.fine, prepared.coarse
    if fine.names != model.names:
        raise AleatorError(
            f"{fine.source}: {', '.join(fine.names)}; the model has {', '.join(model.names)}"
        )
    for field, known in ((fine, model.fine_grid), (coarse, model.coarse_grid)):
        if not known.same_as(field.grid):
            raise AleatorError(
                f"{field.source}: {field.grid.describe()}; the model has {known.describe()}"
            )
    names = [variable.name for variable in model.predictor_variables]
    if [*coarse.names] != names:
        raise AleatorError(
            f"{coarse.source}: predictors {', '.join(coarse.names)}; the model has "
            f"{', '.join(names)}, in this order"
        )


def _complete(fine: Tensor, source: str) -> tuple[Tensor, Tensor]:
    """Cells (H, W) that have data at all times, and the same fields, the others filled in place.

    Observations have gaps: cells with one are left out, as is the sea. What stands in them, the
    mean of the others at that time, changes nothing.
    """
    every = [run_of(rows) for rows in pieces(len(fine), fine)]
    valid = ~torch.stack([fine[rows].isnan().any(0).any(0) for rows in every]).any(0)
    if not valid.any():
        times = sum(int(fine[rows].isnan().all((1, 2, 3)).sum()) for rows in every)
        raise AleatorError(
            f"{source}: no cell has data at all training times"
            + (f" ({times} times have none at all: cut them out)" if times else "")
        )
    for rows in every:
        usual = fine[rows][..., valid].mean(-1)[..., None, None]
        fine[rows] = torch.where(valid, fine[rows], usual)
    return valid, fine


def _of_model(
    model: PrognosisModel, x: Tensor, fine: Tensor, source: str
) -> tuple[Tensor, Tensor]:
    """The cells (H, W) of a model, and the same fields, what is missing filled in place.

    Cells that have come are left out. Gaps in those that the model has hold what it expects there,
    of which a few change nothing.

    Args:
        model: trained.
        x: (T, P, h, w) predictors.
        fine: (T, V, H, W).
        source: what to call it.

    Raises:
        AleatorError: more than a few gaps.
    """
    every = [run_of(rows) for rows in pieces(len(fine), fine)]
    lacking = torch.stack([fine[rows].isnan().any(1).sum(0) for rows in every]).sum(0)
    many = (lacking > GAPS * len(fine)) & model.valid
    if many.any():
        raise AleatorError(
            f"{source}: {int(many.sum())} of the model's cells have no data at more than "
            f"{GAPS:.0%} of the times; train it again"
        )
    for rows in every:
        values = fine[rows]
        if values[..., model.valid].isnan().any():
            expected = model.transforms.inverse(model.mean.predict(x[rows]))
            values = torch.where(values.isnan(), expected, values)
        usual = values[..., model.valid].mean(-1)[..., None, None]
        fine[rows] = torch.where(model.valid, values, usual)
    return model.valid, fine


def _filled(
    x: Tensor, fine: Tensor, transforms: Transforms, source: str, config: Config
) -> tuple[Tensor, Tensor]:
    """Stations (1, S) that are there often enough, and their series with the gaps drawn."""
    valid = enough(fine)
    if not valid.any():
        raise AleatorError(
            f"{source}: no station has {', '.join(config.variables)} at half of the training times"
        )
    latent, draws = (keyed_generator(config.fit.seed, key) for key in (-5, -6))
    folds = {"blocks": config.mean.blocks, "gap": config.mean.gap}
    z = transforms.forward(fine, latent)
    z = filled(x, z, valid, config.predictors.strengths, draws, **folds)
    drawn = torch.where(fine.isnan(), transforms.inverse(z), fine)
    usual = drawn[..., valid].mean(-1)[..., None, None]
    return valid, torch.where(valid, drawn, usual)
