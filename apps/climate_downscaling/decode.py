"""From a dataset as the file has it to arrays on (time, y, x) in canonical names and units.

Each function settles one question about the file: which variables, which axes, which times, which
cells, which units. Values are not touched except lazily.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from apps.climate_downscaling import cf
from apps.climate_downscaling.field import Field, Layout, Variable
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.station_files import NAMES
from apps.climate_downscaling.times import show_time, time_keys, whole_seconds, with_dates
from core.errors import AleatorError

CHUNK_BYTES = 2**24
"""Target size of a lazy block: whole maps, as many time steps as fit."""

Axes = dict[str, Any]


def assemble(dataset: xr.Dataset, names: list[str], where: str, ensemble: bool) -> Field:
    """The field of some variables of a dataset, in its own order of times sorted.

    Args:
        dataset: as opened.
        names: the file's names of the variables.
        where: the file, for messages.
        ensemble: keep an axis of members.

    Returns:
        the field.

    Raises:
        AleatorError: what is missing, ambiguous or inconsistent.
    """
    axes = find_axes(dataset, dataset[names[0]], where)
    dataset, calendar = with_dates(dataset, str(axes["time"]), where)
    dataset = _chunked(dataset, names, str(axes["time"]))
    dataset, grid, layout, notes = with_grid(dataset, dataset[names[0]], axes, where)
    arrays, known = {}, []
    for name in names:
        array, variable = canonical(dataset, name, where)
        if variable.name in arrays:
            raise AleatorError(f"{where}: {variable.source_name} and another are {variable.name}")
        arrays[variable.name] = _on_axes(dataset, array, axes, where, ensemble)
        known.append(variable)
        if (variable.scale, variable.offset) != (1.0, 0.0):
            notes.append(f"{name}: {variable.source_units} converted to {variable.units}")
    data = xr.Dataset(arrays)
    data = data.assign_coords(_kept_coordinates(dataset, names, axes, layout))
    data = data.assign_coords(time=("time", dataset[axes["time"]].values), y=grid.y, x=grid.x)
    data["time"].attrs = dict(dataset[axes["time"]].attrs)
    data["time"].encoding = dict(dataset[axes["time"]].encoding)
    return _in_order(
        Field(
            data=data,
            grid=grid,
            variables=tuple(known),
            calendar=calendar,
            notes=tuple(notes),
            source=where,
            statics=_statics(dataset, axes, where),
            layout=dataclasses.replace(layout, time_name=str(axes["time"])),
            attributes=dict(dataset.attrs),
        )
    )


def choose(dataset: xr.Dataset, wanted: Sequence[str] | None, where: str) -> list[str]:
    """The file's names of the variables wanted; all on a map in time if None."""
    if wanted is not None:
        if not wanted:
            raise AleatorError(f"{where}: no variable asked for")
        return [cf.find_variable(dataset, name, where) for name in wanted]
    numeric = {str(n): v for n, v in dataset.data_vars.items() if v.dtype.kind in "fiu"}
    names = [
        name
        for name, variable in numeric.items()
        if None not in [cf.find_axis(dataset, variable, axis) for axis in ("time", "y", "x")]
    ]
    if names:
        return names
    fields = [name for name, variable in numeric.items() if variable.ndim >= 2]
    if fields:
        find_axes(dataset, dataset[fields[0]], where)
    raise AleatorError(f"{where}: no variable on a map in time")


def find_axes(dataset: xr.Dataset, variable: xr.DataArray, where: str) -> Axes:
    """Dimensions of a variable that are time, y, x and member (None if there is none).

    Raises:
        AleatorError: no time axis, or not on a map.
    """
    axes = {axis: cf.find_axis(dataset, variable, axis) for axis in ("time", "y", "x", "member")}
    dims = ", ".join(map(str, variable.dims)) or "none"
    if axes["time"] is None:
        raise AleatorError(
            f"{where}: {variable.name} has no time axis (its dimensions: {dims}); "
            'add one with units such as "days since 2000-01-01"'
        )
    for axis, word in (("y", "latitude"), ("x", "longitude")):
        if axes[axis] is None:
            raise AleatorError(
                f"{where}: {variable.name} has no {word} or projection axis (its dimensions: "
                f'{dims}); give the coordinate the standard_name "{word}"'
            )
    return axes


def canonical(dataset: xr.Dataset, name: str, where: str) -> tuple[xr.DataArray, Variable]:
    """A variable in canonical units, float32, lazily, and what is known about it.

    Raises:
        AleatorError: no units, or units that do not convert.
    """
    array = dataset[name]
    if array.dtype.kind not in "fiu":
        raise AleatorError(f"{where}: {name} does not hold numbers")
    short = cf.identify(name, array) or name
    found = cf.attribute(array, "units")
    units, scale, offset = cf.units_map(short, found, f"{where}: {name}")
    told = cf.cf_attributes(short, array.attrs)
    variable = Variable(
        name=short,
        units=units,
        cell_methods=cf.attribute(array, "cell_methods") or "",
        source_name=name,
        source_units=found or "",
        scale=scale,
        offset=offset,
        **told,
    )
    if (scale, offset) != (1.0, 0.0):
        array = array.astype(np.float64) * scale + offset
    return array.astype(np.float32), variable


def with_grid(
    dataset: xr.Dataset, variable: xr.DataArray, axes: Axes, where: str
) -> tuple[xr.Dataset, Grid, Layout, list[str]]:
    """The cells of a variable.

    Args:
        dataset: the file, chunked.
        variable: one of its variables.
        axes: its axes.
        where: the file, for messages.

    Returns:
        the dataset (rolled where its longitudes had a gap), the grid, the file's names for it,
        and notes.

    Raises:
        AleatorError: irregular coordinates, or none.
    """
    y_dim, x_dim = axes["y"], axes["x"]
    lat, lon = (cf.find_2d(dataset, variable, (y_dim, x_dim), axis) for axis in ("y", "x"))
    mapping_name, mapping = cf.grid_mapping(dataset, variable)
    kind, units = _kind_of_grid(dataset, axes, mapping, lat is not None, where)
    notes = []
    if kind == "latlon":
        dataset, note = _without_gap(dataset, x_dim)
        notes += note
    names = (str(y_dim), str(x_dim))
    y, x = (
        dataset[dim].values if units != "1" else np.arange(dataset.sizes[dim]) for dim in names
    )
    if kind == "latlon" and np.abs(y).max() > 90.001:
        raise AleatorError(f"{where}: {y_dim} goes beyond 90 degrees: it is not a latitude")
    two: dict[str, Any] = {
        key: dataset[name].transpose(y_dim, x_dim).values
        for key, name in (("lat", lat), ("lon", lon))
        if name and kind == "projected"
    }
    if NAMES in dataset.coords:
        names = ("row", "station")
        two["stations"] = tuple(dataset[NAMES].values.tolist())
    try:
        grid = Grid(y, x, *names, kind, units, **two, grid_mapping=mapping)
    except AleatorError as error:
        raise AleatorError(f"{where}: {error}") from error
    layout = Layout(
        lat_name=lat or "lat", lon_name=lon or "lon", mapping_name=mapping_name or "crs"
    )
    return dataset, grid, layout, notes


def _kind_of_grid(
    dataset: xr.Dataset, axes: Axes, mapping: dict[str, Any], curvilinear: bool, where: str
) -> tuple[Any, str]:
    """("latlon" | "projected", units of the coordinates)."""
    y, x = (dataset[axes[axis]] if axes[axis] in dataset.coords else None for axis in ("y", "x"))
    if y is None or x is None:
        if curvilinear:
            return "projected", "1"
        missing = axes["y"] if y is None else axes["x"]
        raise AleatorError(
            f"{where}: the dimension {missing} has no coordinate values; assign latitudes and "
            "longitudes to the dimensions"
        )
    standard, units = cf.attribute(y, "standard_name"), cf.attribute(y, "units") or ""
    mapped = mapping.get("grid_mapping_name", "latitude_longitude")
    if standard == "grid_latitude" or mapped == "rotated_latitude_longitude":
        return "projected", "degrees"
    known = {"m": "m", "meter": "m", "metre": "m", "meters": "m", "metres": "m", "km": "km"}
    if units in known:
        return "projected", known[units]
    named = str(axes["y"]).lower() in {"lat", "latitude", "nav_lat"}
    if standard == "latitude" or units.lower().startswith(("degrees_n", "degree_n")) or named:
        return "latlon", "degrees"
    if mapped != "latitude_longitude":
        return "projected", "m"
    if curvilinear:
        return "projected", "1"
    raise AleatorError(
        f'{where}: {axes["y"]} has no units; say "degrees_north" for a latitude or "m" for a '
        "projection"
    )


def _without_gap(dataset: xr.Dataset, x_dim: str) -> tuple[xr.Dataset, list[str]]:
    """Join a map that was cut at Greenwich: 0...10, 350...359 becomes -10...10."""
    x = dataset[x_dim].values
    steps = np.diff(x) % 360
    if x.size < 3 or np.ptp(steps) <= 0.01 * np.median(steps) + 1e-3:
        return dataset, []
    cut = int(np.argmax(np.abs(np.diff(x)))) + 1
    rolled = np.roll(x, -cut)
    if np.ptp(np.diff(rolled) % 360) > 0.01 * np.median(steps) + 1e-3:
        return dataset, []  # irregular in earnest: Grid says so
    joined = dataset.roll({x_dim: -cut}, roll_coords=True)
    return joined, [f"{x_dim} joined across the meridian at which the file cuts it"]


def _chunked(dataset: xr.Dataset, names: list[str], time: str) -> xr.Dataset:
    """Lazy blocks of whole maps, aligned with the blocks of the file."""
    lazy = {}
    for name in {*names, *(n for n, v in dataset.data_vars.items() if time not in v.dims)}:
        variable = dataset[name]
        if variable.chunks is not None or time not in variable.dims:
            continue
        axis = variable.dims.index(time)
        step = max(1, variable.nbytes // variable.sizes[time])
        steps = max(1, CHUNK_BYTES // step)
        stored = variable.encoding.get("chunksizes") or variable.encoding.get("chunks")
        if stored and len(stored) == variable.ndim and stored[axis] * step <= 8 * CHUNK_BYTES:
            steps = max(stored[axis], steps - steps % stored[axis])
        lazy[name] = variable.chunk(dict.fromkeys(variable.dims, -1) | {time: steps})
    return dataset.assign(lazy)


def _on_axes(
    dataset: xr.Dataset, array: xr.DataArray, axes: Axes, where: str, ensemble: bool
) -> xr.DataArray:
    """(time, y, x), or (member, time, y, x) if `ensemble`; other axes of size 1 are dropped."""
    own = find_axes(dataset, array, where)
    for axis in ("time", "y", "x"):
        if own[axis] != axes[axis]:
            raise AleatorError(
                f"{where}: {array.name} is on {own[axis]}, other variables on {axes[axis]}: "
                "open them one at a time"
            )
    order = [axes["time"], axes["y"], axes["x"]]
    names = dict(zip(order, ("time", "y", "x"), strict=True))
    if ensemble and own["member"] is not None:
        order.insert(0, own["member"])
        names[own["member"]] = "member"
    for dim in set(array.dims) - set(order):
        if array.sizes[dim] > 1:
            what = "members" if dim == own["member"] else "values"
            raise AleatorError(
                f"{where}: {array.name} has {array.sizes[dim]} {what} along {dim}: select one "
                f"(e.g. ds.isel({dim}=0))"
            )
        array = array.isel({dim: 0})
    array = array.transpose(*order).drop_vars(list(array.coords))
    return array.rename(names)


def _kept_coordinates(
    dataset: xr.Dataset, names: list[str], axes: Axes, layout: Layout
) -> dict[str, xr.DataArray]:
    """Scalar and per-time coordinates, and the bounds of time, on the canonical axes."""
    time = axes["time"]
    taken = {time, axes["y"], axes["x"], axes["member"], layout.mapping_name}
    kept: dict[str, xr.DataArray] = {}
    for name in names:
        for key, coordinate in dataset[name].coords.items():
            again = cf.attribute(coordinate, "standard_name") == "time"
            if key in taken or again or (key in dataset[name].dims and coordinate.size > 1):
                continue
            squeezed = coordinate.squeeze()
            if set(squeezed.dims) <= {time}:
                kept.setdefault(str(key), squeezed)
    bounds = cf.attribute(dataset[time], "bounds")
    if (
        bounds is not None
        and bounds in dataset.variables
        and dataset[bounds].dims[:1] == (time,)
        and dataset[bounds].dtype.kind in "MO"
    ):
        kept[bounds] = dataset[bounds].copy(data=whole_seconds(dataset[bounds].values))
    own = {"time", "y", "x", "member"}
    plain = {key: value.drop_vars(list(value.coords)) for key, value in kept.items()}
    return {
        key if key not in own else f"{key}_": value.rename(
            {time: "time"} if time in value.dims else {}
        )
        for key, value in plain.items()
    }


def _statics(dataset: xr.Dataset, axes: Axes, where: str) -> xr.Dataset:
    """Known variables without time on the same cells."""
    found = {}
    for name, array in dataset.variables.items():
        if set(array.dims) != {axes["y"], axes["x"]}:
            continue
        if cf.identify(str(name), dataset[name]) not in cf.STATIC:
            continue
        values, variable = canonical(dataset, str(name), where)
        values = values.transpose(axes["y"], axes["x"]).drop_vars(list(values.coords))
        found[variable.name] = values.rename({axes["y"]: "y", axes["x"]: "x"})
    return xr.Dataset(found).load()


def _in_order(field: Field) -> Field:
    """The field with its times sorted; duplicates are refused."""
    keys = time_keys(field.times)
    unique, counts = np.unique(keys, return_counts=True)
    if (counts > 1).any():
        at = field.times[int(np.flatnonzero(keys == unique[counts > 1][0])[0])]
        raise AleatorError(
            f"{field.source}: {int((counts - 1).sum())} duplicated times, the first at "
            f"{show_time(at)}; keep one of each (e.g. ds.drop_duplicates('time'))"
        )
    backwards = np.diff(keys) < 0
    if not backwards.any():
        return field
    index = slice(None, None, -1) if backwards.all() else np.argsort(keys, kind="stable")
    note = "times were out of order: sorted"
    return dataclasses.replace(field, data=field.data.isel(time=index), notes=(*field.notes, note))
