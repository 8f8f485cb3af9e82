"""Fitting what perfect prognosis needs before its residual's model: data, regression, spread."""

from __future__ import annotations

import dataclasses

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
from apps.climate_downscaling.residuals import View
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


def fit_prognosis(prepared: Prepared, config: Config, part: slice) -> View:
    """Fit everything but the residual's model: mask, regression, drift, dispersion, OOD.

    Args:
        prepared: the data.
        config: settled options.
        part: time steps to fit on.

    Raises:
        AleatorError: no cell has data throughout, or too few times.
    """
    stations = bool(prepared.fine.grid.stations)
    if stations:
        refuse_unfit(config.residual)
    fine, coarse = prepared.arrays(part)
    prepared.coarse.refuse_bad(coarse.numpy(), part.start)
    variables = prepared.coarse.variables
    x = Transforms.of([base_name(v.name) for v in variables]).coarse(coarse)
    transforms = Transforms.of(config.variables, config.transforms, ordered=config.ordered)
    if transforms.order:
        transforms.order.refuse_crossed(fine, config.variables, prepared.fine.source)
    folds = {"blocks": config.mean.blocks, "gap": config.mean.gap}
    if stations:
        valid, fine = _filled(x, fine, transforms, prepared.fine.source, config)
    else:
        valid, fine = _complete(fine, prepared.fine.source)
    z = transforms.forward(fine, keyed_generator(config.fit.seed, -2))
    fitted = cross_fit_fields(x, z, valid, config.predictors.strengths, **folds)
    keys = prepared.fine.time_keys()[part]
    drift = Drift.fit(z - fitted.mean, keys, valid)
    mean = fitted.mean + drift.honest
    dispersion = FieldDispersion.fit(z - mean, mean, fitted.leverage, valid, **folds)
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
        years=YearEffect.fit(z - mean, keys, valid),
    )
    scale = dispersion(mean, fitted.leverage)
    hours = clock_vector(prepared.fine, clock, part.start, part.stop)
    return View(model, fine, coarse, mean, scale, hours)


def levelled(model: PrognosisModel, prepared: Prepared, part: slice) -> PrognosisModel:
    """The same spread and network, with regression, drift and year effect fitted again.

    For winters that have come since, and for models that were made before drift and year effect
    were what they are.

    Args:
        model: trained.
        prepared: the data; those of the model, or longer.
        part: time steps to fit on.

    Raises:
        AleatorError: the data do not fit the model.
    """
    fresh = fit_prognosis(prepared, model.config, part).model
    assert isinstance(fresh, PrognosisModel)
    if not torch.equal(fresh.valid, model.valid):
        raise AleatorError(
            f"{prepared.fine.source}: other cells have data at all times than when the model was "
            "trained; train it again"
        )
    return dataclasses.replace(
        model, mean=fresh.mean, rules=fresh.rules, years=fresh.years, fingerprint=""
    )


def _complete(fine: Tensor, source: str) -> tuple[Tensor, Tensor]:
    """Cells (H, W) that have data at all times, and the fields with values in the others too.

    Observations have gaps: cells with one are left out, as is the sea. What stands in them, the
    mean of the others at that time, changes nothing.
    """
    valid = ~fine.isnan().any(0).any(0)
    if not valid.any():
        times = int(fine.isnan().all((1, 2, 3)).sum())
        raise AleatorError(
            f"{source}: no cell has data at all training times"
            + (f" ({times} times have none at all: cut them out)" if times else "")
        )
    usual = fine[..., valid].mean(-1)[..., None, None]
    return valid, torch.where(valid, fine, usual)


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
