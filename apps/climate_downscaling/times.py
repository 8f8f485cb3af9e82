"""Times of any CF calendar: dates from files, seconds, fractions of a year, and back to files."""

from __future__ import annotations

import datetime
import re
from typing import Any

import cftime
import numpy as np
import xarray as xr

from apps.climate_downscaling import cf
from core.errors import AleatorError


def with_dates(dataset: xr.Dataset, name: str, where: str) -> tuple[xr.Dataset, str]:
    """Decode the time coordinate; a GRIB's valid time, where it has one per step, is the time."""
    valid = [
        coordinate
        for coordinate in dataset.coords.values()
        if coordinate.dims == (name,) and cf.attribute(coordinate, "standard_name") == "time"
    ]
    coordinate = valid[0] if valid else dataset.get(name)
    if coordinate is not None and coordinate.dtype.kind not in "MO":
        dataset, coordinate = _decoded(dataset, coordinate)
    if coordinate is None or coordinate.dtype.kind not in "MO":
        raise AleatorError(
            f'{where}: {name} holds no dates; give it units such as "days since 2000-01-01" and '
            "a calendar"
        )
    times = coordinate.values
    if not times.size:
        raise AleatorError(f"{where}: there are no time steps")
    if np.asarray(
        [t is None for t in times] if times.dtype.kind == "O" else np.isnat(times)
    ).any():
        raise AleatorError(f"{where}: {name} has missing dates")
    times = whole_seconds(times)
    is_numpy = times.dtype.kind == "M"
    calendar = coordinate.encoding.get("calendar", "standard") if is_numpy else times[0].calendar
    told = {key: cf.attribute(coordinate, key) for key in ("long_name", "bounds")}
    attributes = {key: text for key, text in told.items() if text}
    encoding = {k: v for k, v in coordinate.encoding.items() if k in {"units", "calendar"}}
    dataset = dataset.assign_coords({name: (name, times, attributes)})
    dataset[name].encoding = encoding
    return dataset, {"gregorian": "standard"}.get(calendar, calendar)


def with_time_axis(dataset: xr.Dataset) -> xr.Dataset:
    """A dataset whose time is no dimension given one: a single date, or a forecast's valid times.

    `ds.isel(time=0)` and a GRIB of one message leave a scalar; a forecast has steps from a
    reference time. Variables known to have no time (orography) keep their shape.
    """
    maps = [name for name, v in dataset.data_vars.items() if v.ndim >= 2]
    if any(cf.find_axis(dataset, dataset[name], "time") is not None for name in maps):
        return dataset
    dates = [c for c in dataset.coords.values() if cf.is_time(c)]
    valid = [c for c in dates if cf.attribute(c, "standard_name") == "time"]
    for coordinate in valid:
        if coordinate.ndim == 1:
            step, name = coordinate.dims[0], coordinate.name
            return dataset.swap_dims({step: name}).drop_vars(step, errors="ignore")
    scalars = [c for c in [*valid, *dates] if not c.ndim]
    if not scalars:
        return dataset
    name, date = scalars[0].name, scalars[0].variable
    axis = xr.Variable((name,), date.values[np.newaxis], date.attrs, date.encoding)
    bare = dataset.drop_vars(name)
    moving = [n for n in maps if _is_field(bare, bare[n])]
    return bare.assign({n: bare[n].expand_dims(name) for n in moving}).assign_coords({name: axis})


def _is_field(dataset: xr.Dataset, variable: xr.DataArray) -> bool:
    """Whether a variable without time is on the map and neither static nor a coordinate of it."""
    if None in [cf.find_axis(dataset, variable, axis) for axis in ("y", "x")]:
        return False
    units = (cf.attribute(variable, "units") or "").lower()
    return not (
        units.startswith("degrees_") or cf.identify(str(variable.name), variable) in cf.STATIC
    )


def _decoded(
    dataset: xr.Dataset, coordinate: xr.DataArray
) -> tuple[xr.Dataset, xr.DataArray | None]:
    """Dates of a coordinate of numbers, and of its bounds; None where they are no dates."""
    numbers = {"t": coordinate.variable}
    bounds = cf.attribute(coordinate, "bounds")
    if bounds is not None and bounds in dataset.variables:
        numbers[bounds] = dataset[bounds].variable
    try:
        dates = xr.decode_cf(xr.Dataset(numbers), decode_timedelta=False)
    except (ValueError, OverflowError):
        return dataset, None
    found = {name: dates[name].variable for name in numbers if name != "t"}
    return dataset.assign(found), dates["t"]


def whole_seconds(times: np.ndarray) -> np.ndarray:
    """Times of any shape without the round-off of hours or days counted in floating point."""
    half, near = (datetime.timedelta(milliseconds=n) for n in (500, 1))
    if times.dtype.kind == "M":
        whole = (times + np.timedelta64(half)).astype("datetime64[s]").astype(times.dtype)
        return np.where(abs(times - whole) < np.timedelta64(near), whole, times)
    whole = np.empty_like(times)
    whole[...] = np.vectorize(lambda t: (t + half).replace(microsecond=0), otypes="O")(times)
    return np.where(abs(times - whole) < near, whole, times)


def padded(units: str) -> str:
    """Time units with a year of four digits: "hours since 1-1-1" is ambiguous to readers."""
    return re.sub(r" since\s+(\d{1,3})-", lambda year: f" since {year[1].zfill(4)}-", units)


def time_keys(times: np.ndarray) -> np.ndarray:
    """(T,) int64 seconds since 1970-01-01 of datetime64 or cftime values, in their calendar."""
    if times.dtype.kind == "M":
        half = np.timedelta64(500, "ms")
        return (times + half).astype("datetime64[s]").astype(np.int64)
    calendar = times[0].calendar
    seconds = cftime.date2num(times, "seconds since 1970-01-01", calendar=calendar)
    return np.round(np.asarray(seconds, dtype=np.float64)).astype(np.int64)


def year_fraction(times: np.ndarray) -> np.ndarray:
    """(T,) how much of the year has passed, in [0, 1), in the calendar of the times."""
    if times.dtype.kind == "M":
        year = times.astype("datetime64[Y]")
        start, end = (y.astype("datetime64[s]").astype(np.int64) for y in (year, year + 1))
        return (time_keys(times) - start) / (end - start)
    keys = time_keys(times)
    starts = time_keys(
        np.array(
            [t.replace(month=1, day=1, hour=0, minute=0, second=0, microsecond=0) for t in times]
        )
    )
    ends = time_keys(np.array([type(t)(t.year + 1, 1, 1, **_calendar(t)) for t in times]))
    return (keys - starts) / (ends - starts)


def show_time(time: Any) -> str:
    """A time as people write it, to the minute."""
    if isinstance(time, np.datetime64):
        return str(time.astype("datetime64[m]")).replace("T", " ")
    return time.strftime("%Y-%m-%d %H:%M")


def _calendar(time: cftime.datetime) -> dict[str, str]:
    return {"calendar": time.calendar} if type(time) is cftime.datetime else {}


def time_encoding(times: np.ndarray, units: str | None, calendar: str) -> dict[str, Any]:
    """Units in which every time is a whole number, if there are such."""
    from xarray.coding.times import encode_cf_datetime

    first, _, since = padded(units or "days since 1970-01-01").partition(" since ")
    plain = {"calendar": calendar, "_FillValue": None}
    for step in (first, "days", "hours", "minutes", "seconds"):
        numbers, _, _ = encode_cf_datetime(
            times, f"{step} since {since}", calendar, np.dtype("f8")
        )
        if (numbers == np.round(numbers)).all() and np.abs(numbers).max() < 2**31:
            return plain | {"units": f"{step} since {since}", "dtype": "int32"}
    return plain | {"units": f"seconds since {since}", "dtype": "float64"}


def season_years(times: np.ndarray) -> np.ndarray:
    """(T,) the year that each time belongs to; a winter is not cut in two.

    Years begin in January where every month occurs, else in the middle of the longest run of
    months that do not.
    """
    if times.dtype.kind == "M":
        months = times.astype("datetime64[M]").astype(np.int64)
        year, month = months // 12 + 1970, months % 12
    else:
        year, month = (np.array([getattr(t, n) for t in times]) for n in ("year", "month"))
        month = month - 1
    present = np.isin(np.arange(12), month)
    if present.all():
        return year
    runs = []  # of absent months: length, first month of the new year
    for first in np.flatnonzero(~present & np.roll(present, 1)).tolist():
        length = int(np.argmax(np.roll(present, -first)))
        runs.append((length, (first + length // 2) % 12))
    start = max(runs)[1]
    return year + (month >= start) if start else year
