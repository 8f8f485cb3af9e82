"""`adapt`: a driving model brought to the climate of the reanalysis that the predictors are from.

Perfect prognosis takes predictors as they are: a bias of the driving model goes through. Its
variables are therefore interpolated to the reference's grid and adjusted, cell by cell
(`quantiles`) or all together (`bridge`), and a table says what that did to mean, spread, extremes,
wet days and trend, and to the correlations of cells and of variables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import ConfigDict

from apps.climate_downscaling.bridge import BridgeConfig, adjust_jointly
from apps.climate_downscaling.cf import QUANTITIES
from apps.climate_downscaling.dependence import spatial_gap, variable_gap
from apps.climate_downscaling.field import Field, show_time
from apps.climate_downscaling.predictors import open_predictors
from apps.climate_downscaling.quantiles import adjust
from apps.climate_downscaling.template import OOD, Encoder, template
from core.errors import AleatorError
from core.report import Row, Table, command_line, replacing
from core.settings import parse_settings

Say = Callable[[object], None]
Method = Literal["qm", "qdm", "bridge"]
METHODS: dict[Method, str] = {
    "qm": "Quantile mapping",
    "qdm": "Quantile delta mapping",
    "bridge": "Flow-matching bridge",
}
WET = 1.0
"""Mm day-1: a wet day in the table."""
DRY = 0.1
"""Mm day-1: days with less are dry to the quantile functions."""


@dataclass(frozen=True)
class _Settings:
    """What `--set` may be about."""

    bridge: BridgeConfig = dataclasses.field(default_factory=BridgeConfig)

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Request:
    """What `adapt` was asked for; see `python -m pipelines.climate adapt --help`."""

    sources: tuple[str, ...]
    history: tuple[str, ...]
    reference: tuple[str, ...]
    output: Path
    variables: tuple[str, ...] = ()
    method: Method = "qdm"
    window: float = 0.25
    bridge: BridgeConfig = dataclasses.field(default_factory=BridgeConfig)
    seed: int = 0
    overwrite: bool = False


def checked_method(method: str) -> Method:
    """The method of that name.

    Raises:
        AleatorError: there is none.
    """
    for known in METHODS:
        if method == known:
            return known
    raise AleatorError(f"--method {method}: unknown; known are {', '.join(METHODS)}")


def bridge_of(settings: Mapping[str, Any]) -> BridgeConfig:
    """Options of the bridge from `--set bridge.NAME=VALUE`.

    Raises:
        AleatorError: an unknown option, or a bad value.
    """
    return parse_settings(_Settings, settings).bridge


def adjusted_values(
    values: np.ndarray,
    history: np.ndarray,
    reference: np.ndarray,
    season: tuple[np.ndarray, np.ndarray, np.ndarray],
    names: Sequence[str],
    *,
    method: Method = "qdm",
    window: float = 0.25,
    bridge: BridgeConfig | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Adjust (T, V, ...) given the history (S, V, ...) and the reference (R, V, ...).

    Args:
        values: of the model, to adjust.
        history: of the model in the reference's years.
        reference: what the history should have been like.
        season: places in the year of the three, in [0, 1).
        names: of the V variables.
        method: how.
        window: of the year, centred, that quantile functions are estimated in.
        bridge: options of that method.
        seed: of everything random.

    Returns:
        (T, V, ...) adjusted.
    """
    thresholds = [DRY if name == "pr" else None for name in names]
    if method == "bridge":
        given: dict[str, Any] = {"thresholds": thresholds, "window": window, "config": bridge}
        adjusted = adjust_jointly(values, history, reference, season, **given, seed=seed)
    else:
        adjusted = np.empty_like(values)
        for v, threshold in enumerate(thresholds):
            adjusted[:, v] = adjust(
                *(values[:, v], history[:, v], reference[:, v], season),
                method=method,
                window=window,
                threshold=threshold,
                seed=seed,
            )
    for v, name in enumerate(names):
        if name in QUANTITIES and QUANTITIES[name].nonnegative:
            adjusted[:, v] = adjusted[:, v].clip(min=0)
    return adjusted


def adapt(request: Request, say: Say = print) -> Table:
    """Adjust a model's series and write it as NetCDF.

    Args:
        request: what is wanted.
        say: for the log.

    Returns:
        the table of what was done.

    Raises:
        AleatorError: files that do not fit each other, or the output exists.
    """
    if request.output.suffix != ".nc":
        raise AleatorError(f"{request.output}: the name must end in .nc")
    if request.output.exists() and not request.overwrite:
        raise AleatorError(f"{request.output} exists; choose another name or --overwrite")
    reference = open_predictors(request.reference, request.variables)
    names = reference.names
    field, history = (
        open_predictors(files, names, reference.grid)
        for files in (request.sources, request.history)
    )
    reference, history = _common_years(reference, history)
    say(field.describe())
    say(f"adjusted from {_span(history)} of the model to {_span(reference)} of the reference")
    values, past, wanted = (f.read() for f in (field, history, reference))
    adjusted = adjusted_values(
        *(values, past, wanted),
        (field.year_fraction(), history.year_fraction(), reference.year_fraction()),
        names,
        method=request.method,
        window=request.window,
        bridge=request.bridge,
        seed=request.seed,
    )
    _write(request, field, adjusted)
    say(f"wrote {request.output}")
    rows: list[Row] = []
    for v, variable in enumerate(field.variables):
        series = {
            "reference": (reference, wanted),
            "model, same years": (history, past),
            "model, to adjust": (field, values),
            "adjusted": (field, adjusted),
        }
        for what, (of, x) in series.items():
            facts: dict[str, Any] = {**_facts(x[:, v], of, variable.name)}
            if of is not reference:
                facts["space"] = spatial_gap(x[:, v], wanted[:, v])
                facts["between"] = variable_gap(x, wanted, v)
            rows.append({"variable": variable.name, "series": what, **facts})
    return _table(rows, request.method)


def _common_years(reference: Field, history: Field) -> tuple[Field, Field]:
    """Both in the years that both have."""
    years = _years(reference), _years(history)
    common = np.intersect1d(years[0], years[1])
    if not len(common):
        raise AleatorError(
            f"{history.source} ({_span(history)}) and {reference.source} ({_span(reference)}) "
            "have no year in common: --history must be of the reference's period"
        )
    both = []
    for of, own in zip((reference, history), years, strict=True):
        steps = np.flatnonzero(np.isin(own, common))
        both.append(dataclasses.replace(of, data=of.data.isel(time=steps)))
    return both[0], both[1]


def _years(field: Field) -> np.ndarray:
    times = field.times
    if times.dtype.kind == "M":
        return times.astype("datetime64[Y]").astype(int) + 1970
    return np.array([t.year for t in times])


def _span(field: Field) -> str:
    first, last = (show_time(field.times[i]) for i in (0, -1))
    return f"{first[:10]} to {last[:10]}"


def _write(request: Request, field: Field, adjusted: np.ndarray) -> None:
    named = {"aleator_adapted": request.method, "title": "Adjusted to a reference climate"}
    described = template(field, field.grid, 1, attributes=named, history=command_line())
    arrays: dict[str, Any] = Encoder.of(field, field.grid)(adjusted[None])
    filled = described.assign(
        {n: described[n].variable._replace(data=array) for n, array in arrays.items()}
    )
    plain: xr.Dataset = filled.drop_vars(OOD).isel(member=0, drop=True)
    for array in plain.variables.values():
        array.encoding.pop("chunksizes", None)
        array.encoding.pop("chunks", None)
    with replacing(request.output) as draft:
        plain.to_netcdf(draft, engine="netcdf4")


def _facts(x: np.ndarray, field: Field, name: str) -> Row:
    """Mean over cells of what adjusting may change."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    decades = field.time_keys() / (10 * 365.2425 * 86400)
    slope = np.polyfit(decades - decades.mean(), flat.mean(1), 1)[0]
    return {
        "mean": flat.mean(),
        "sd": flat.std(0).mean(),
        "q99": np.quantile(flat, 0.99, axis=0).mean(),
        "wet": (flat > WET).mean() if name == "pr" else None,
        "trend": slope,
    }


def _table(rows: Sequence[Row], method: Method) -> Table:
    columns = {
        "variable": "variable",
        "series": "series",
        "mean": "mean",
        "sd": "sd",
        "q99": "99 %",
        "wet": "wet days",
        "trend": "trend a decade",
        "space": "cells' corr., off by",
        "between": "variables' corr., off by",
    }
    formats = dict.fromkeys(("mean", "sd", "q99", "trend"), ".4g")
    formats |= dict.fromkeys(("wet", "space", "between"), ".3f")
    return Table(list(rows), columns, formats, {}, f"{METHODS[method]}, means over cells")
