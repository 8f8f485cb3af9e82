"""Predictors in files of their own: upper air and surface, each on its grid, brought onto one.

Perfect prognosis learns from reanalysis to observations and is then driven by another model. The
predictors are every variable of every file, interpolated to the grid of the first file, at the
time itself and at neighbouring times (`lags`): the day of a station ends in the morning, that of
a reanalysis at midnight. Reference: Maraun and Widmann (2018), Statistical Downscaling and Bias
Correction for Climate Research, chapter 11.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from apps.climate_downscaling import cf
from apps.climate_downscaling.data import Source, open_field, open_source, select_times
from apps.climate_downscaling.field import Field, show_time
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.regrid import Bilinear
from apps.climate_downscaling.remap import Remap, moved
from apps.climate_downscaling.remote import as_asked
from core.errors import AleatorError

DAY = 86400


@dataclass(frozen=True)
class PredictorConfig:
    """What the predictors are.

    Attributes:
        files: NetCDF, Zarr or GRIB; the grid of the first is that of all. None: the model
            learns from block means of the fine data instead.
        variables: those used; every variable of the files if none is named.
        lags: time steps, relative to the predictand's, at which the predictors are seen.
        strengths: candidates of the regression's strength.
        region: "lat0:lat1,lon0:lon1" of the files that is looked at; all of it if None.
    """

    files: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    lags: tuple[int, ...] = (-1, 0, 1)
    strengths: tuple[float, ...] = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
    region: str | None = None

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise AleatorError("predictors.strengths: positive candidates are needed")
        if 0 not in self.lags or len(set(self.lags)) != len(self.lags):
            raise AleatorError(f"predictors.lags={list(self.lags)}: distinct, with 0 among them")


def sources_of(source: Source) -> list[Source]:
    """One or several sources as a list."""
    if isinstance(source, str | Path | xr.Dataset | xr.DataArray):
        return [source]
    return list(source)


def open_predictors(
    sources: Sequence[Source],
    names: Sequence[str] = (),
    grid: Grid | None = None,
    lags: Sequence[int] = (0,),
    time_range: str | None = None,
    region: str | None = None,
    method: str | None = None,
) -> Field:
    """Bring variables of several files onto one grid and the times that all have.

    Args:
        sources: files or datasets, on latitudes and longitudes.
        names: variables wanted, in this order; all of all files if none.
        grid: to interpolate to; that of the first file if None.
        lags: see `with_lags`.
        time_range: "A:B" of the times; their neighbours may lie outside.
        region: "lat0:lat1,lon0:lon1", all that is looked at; None for all.
        method: of `remap.METHODS`; None is bilinear.

    Returns:
        the lazy field.

    Raises:
        AleatorError: a variable is in no file or in two, an ensemble, a grid that does not cover
            the model's, or no time in common.
    """
    margin = max(map(abs, lags)) + 1
    fields = [_open(source, names, region, time_range, margin) for source in sources]
    found: dict[str, Field] = {}
    for field in fields:
        for name in field.names:
            if name in found:
                raise AleatorError(f"{name} is in {found[name].source} and in {field.source}")
            found[name] = field
    if missing := [name for name in names if name not in found]:
        where = ", ".join(field.source for field in fields)
        raise AleatorError(
            f"{where}: no variable {missing[0]}, which the model needs; "
            f"there are {', '.join(found)}"
        )
    wanted = list(names) or list(found)
    grid = grid or fields[0].grid
    first = found[wanted[0]]
    keys = _common_days([found[name] for name in wanted])
    arrays, variables = {}, []
    for name in wanted:
        field = found[name]
        move = _move(field.grid, grid, method, field.source)
        steps = np.flatnonzero(np.isin(_day(field), keys))
        arrays[name] = moved(field.data[name].isel(time=steps), move, grid)
        variables.append(field.variable(name))
    times = first.data["time"].isel(time=np.flatnonzero(np.isin(_day(first), keys)))
    joined = dataclasses.replace(
        first,
        data=xr.Dataset(arrays).assign_coords(time=times, y=grid.y, x=grid.x),
        grid=grid,
        variables=tuple(variables),
        source=", ".join(dict.fromkeys(found[name].source for name in wanted)),
        statics=xr.Dataset(),
        notes=(*first.notes, f"interpolated to {grid.describe()}"),
    )
    lagged = with_lags(joined, lags)
    return lagged if time_range is None else select_times(lagged, time_range)


def with_lags(field: Field, lags: Sequence[int]) -> Field:
    """Every variable also at neighbouring times, as further variables `tas[-1]`, `tas[+1]`.

    A neighbour is one step of the series away; where there is none (the ends, a gap between
    winters), the time itself stands in for it.

    Args:
        field: without lags.
        lags: time steps, 0 among them.
    """
    data, variables = {}, []
    for lag in lags:
        index = _neighbours(field, lag)
        for variable in field.variables:
            name = variable.name if lag == 0 else f"{variable.name}[{lag:+d}]"
            array = field.data[variable.name]
            data[name] = array if lag == 0 else _taken(array, index)
            variables.append(dataclasses.replace(variable, name=name))
    lagged = xr.Dataset(data).assign_coords(field.data.coords)
    return dataclasses.replace(field, data=lagged, variables=tuple(variables))


def base_name(name: str) -> str:
    """`tas` of `tas[-1]`."""
    return name.partition("[")[0]


def same_times(predictors: Field, fine: Field) -> tuple[Field, Field]:
    """Both on the times that both have; sub-daily parts of daily time stamps are not compared.

    Raises:
        AleatorError: there are none.
    """
    keys = _common_days([predictors, fine])
    both = []
    for field in (predictors, fine):
        steps = np.flatnonzero(np.isin(_day(field), keys))
        both.append(dataclasses.replace(field, data=field.data.isel(time=steps)))
    return both[0], both[1]


def _open(
    source: Source, names: Sequence[str], region: str | None, times: str | None, margin: int
) -> Field:
    if names:
        dataset, where = open_source(source)
        dataset = as_asked(dataset, names, where)
        names = [name for name in names if cf.fitting(dataset, name)]
        if not names:
            known = ", ".join(map(str, dataset.data_vars))
            raise AleatorError(f"{where}: none of the model's predictors; it has {known}")
    field = open_field(
        source, names or None, region=region, time_range=times, margin=margin if times else None
    )
    if field.members:
        raise AleatorError(
            f"{field.source}: an ensemble of {field.members} members; select one first, e.g. "
            "ncks -d member,0"
        )
    return field


def _day(field: Field) -> np.ndarray:
    """Keys by which times of two files are the same: whole days of daily data."""
    keys = field.time_keys()
    step = np.median(np.diff(keys)) if len(keys) > 1 else DAY
    return keys // DAY if step >= DAY else keys


def _common_days(fields: Sequence[Field]) -> np.ndarray:
    keys = _day(fields[0])
    for field in fields[1:]:
        keys = np.intersect1d(keys, _day(field))
        if not len(keys):
            spans = " and ".join(
                f"{f.source} ({show_time(f.times[0])} to {show_time(f.times[-1])})"
                for f in (fields[0], field)
            )
            raise AleatorError(f"{spans} have no time in common")
    return keys


def _move(source: Grid, target: Grid, method: str | None, where: str) -> Any:
    """What brings (..., h, w) onto the target."""
    if method not in (None, "bilinear"):
        return Remap.between(source, target, method, where)
    bilinear = Bilinear.between(source, target, where)

    def move(values: np.ndarray) -> np.ndarray:
        import torch

        return bilinear(torch.from_numpy(np.ascontiguousarray(values))).numpy()

    return move


def _neighbours(field: Field, lag: int) -> np.ndarray:
    """(T,) step that is `lag` steps later, or the step itself where there is none."""
    keys = field.time_keys()
    here = np.arange(len(keys))
    there = (here + lag).clip(0, len(keys) - 1)
    step = np.median(np.diff(keys)) if len(keys) > 1 else 1
    near = np.abs(keys[there] - keys[here] - lag * step) <= 0.5 * step
    return np.where(near, there, here)


def _taken(array: xr.DataArray, index: np.ndarray) -> xr.DataArray:
    """Steps of a lazy array in another order, in the chunks that it has."""
    return array.isel(time=index).drop_vars("time", errors="ignore").chunk(array.chunksizes)
