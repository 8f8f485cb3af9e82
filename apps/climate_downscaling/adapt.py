"""`adapt`: a driving model brought to the climate of the reanalysis that the predictors are from.

Perfect prognosis takes predictors as they are: a bias of the driving model goes through. Its
variables are therefore interpolated to the reference's grid and adjusted cell by cell
(`quantiles`), and a table says what that did to mean, spread, wet days and trend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from apps.climate_downscaling.cf import QUANTITIES
from apps.climate_downscaling.field import Field, show_time
from apps.climate_downscaling.predictors import open_predictors
from apps.climate_downscaling.quantiles import METHODS, Method, adjust
from apps.climate_downscaling.template import OOD, Encoder, template
from core.errors import AleatorError
from core.report import Row, Table, command_line, replacing

Say = Callable[[object], None]
WET = 1.0
"""Mm day-1: a wet day in the table."""
DRY = 0.1
"""Mm day-1: days with less are dry to the quantile functions."""


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
    seed: int = 0
    overwrite: bool = False


def checked_method(method: str) -> Method:
    """The method of that name.

    Raises:
        AleatorError: there is none.
    """
    if method not in METHODS:
        raise AleatorError(f"--method {method}: unknown; known are {', '.join(METHODS)}")
    return method


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
    season = tuple(f.year_fraction() for f in (field, history, reference))
    adjusted = np.empty_like(values)
    for v, name in enumerate(names):
        adjusted[:, v] = adjust(
            *(values[:, v], past[:, v], wanted[:, v], season),  # type: ignore[arg-type]
            method=request.method,
            window=request.window,
            threshold=DRY if name == "pr" else None,
            seed=request.seed,
        )
        if name in QUANTITIES and QUANTITIES[name].nonnegative:
            adjusted[:, v] = adjusted[:, v].clip(min=0)
    _write(request, field, adjusted)
    say(f"wrote {request.output}")
    rows: list[Row] = []
    for v, variable in enumerate(field.variables):
        series = {
            "reference": (reference, wanted[:, v]),
            "model, same years": (history, past[:, v]),
            "model, to adjust": (field, values[:, v]),
            "adjusted": (field, adjusted[:, v]),
        }
        for what, (of, x) in series.items():
            facts = _facts(x, of, variable.name)
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


def _table(rows: Sequence[Row], method: str) -> Table:
    columns = {
        "variable": "variable",
        "series": "series",
        "mean": "mean",
        "sd": "sd",
        "q99": "99 %",
        "wet": "wet days",
        "trend": "trend a decade",
    }
    formats = dict.fromkeys(("mean", "sd", "q99", "trend"), ".4g") | {"wet": ".3f"}
    names = {"qm": "Quantile mapping", "qdm": "Quantile delta mapping"}
    return Table(list(rows), columns, formats, {}, f"{names[method]}, means over cells")
