"""CF-1.11 output: what is written beside the numbers.

`template` describes the whole result without computing it. `Encoder` turns fields on the model's
grid into what the file holds: the input's names, units, direction of latitude and convention of
longitude, so that a user finds their own file again, only finer and with members.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from apps.climate_downscaling.cf import QUANTITIES
from apps.climate_downscaling.field import Field, Layout, Variable
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.station_files import from_row
from apps.climate_downscaling.times import time_encoding
from apps.climate_downscaling.units import UnknownUnitError, parse, spelled
from core.errors import AleatorError

CONVENTIONS = "CF-1.11"
OOD = "ood_score"
"""Name of the out-of-distribution score in the output."""

CHUNK_BYTES = 2**24
_DROPPED = {"Conventions", "history", "title", "tracking_id", "creation_date", "comment", "NCO"}
_LEAP_SECONDS = {"standard", "proleptic_gregorian", "julian"}
"""Calendars of which CF wants to know whether they count leap seconds."""
_DURATIONS = {"days": "d", "hours": "h", "minutes": "min", "seconds": "s"}


@dataclass(frozen=True)
class Encoder:
    """Turns fields in memory into arrays of the output; small, and pickles to workers.

    Attributes:
        variables: what the channels are, with the units that the file has.
        layout: how the input was turned.
        factor: fine cells per side of a coarse one.
        stations: the cells are a row of stations.
    """

    variables: tuple[Variable, ...]
    layout: Layout
    factor: int
    stations: bool = False

    @classmethod
    def of(
        cls, field: Field, fine_grid: Grid, variables: Sequence[Variable] | None = None
    ) -> Encoder:
        """The encoder of the downscaled `field`; arguments as for `template`."""
        factor = fine_grid.shape[0] // field.grid.shape[0]
        whole = fine_grid.shape == tuple(n * factor for n in field.grid.shape)
        if not whole or not fine_grid.coarsen(factor).same_as(field.grid):
            raise AleatorError(
                f"the model's fine grid ({fine_grid.describe()}) is not a refinement of the "
                f"input's ({field.grid.describe()})"
            )
        own = {variable.name: variable for variable in field.variables}
        chosen = [own.get(v.name, v) for v in variables or field.variables]
        written = tuple(_as_written(v) for v in chosen)
        return cls(written, field.layout, factor, bool(fine_grid.stations))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables in the output."""
        return tuple(variable.source_name for variable in self.variables)

    def __call__(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Encode some time steps.

        Args:
            values: (M, T, V, H, W) in canonical units, on the fine grid as the model has it.

        Returns:
            name -> (M, T, H, W) float32 in the file's units and order; (M, T, S) of stations.
        """
        turned = self.layout.restore(values, self.factor)
        encoded = {}
        for index, variable in enumerate(self.variables):
            channel = turned[:, :, index]
            if (variable.scale, variable.offset) != (1.0, 0.0):
                channel = (channel.astype(np.float64) - variable.offset) / variable.scale
            channel = channel[..., 0, :] if self.stations else channel
            encoded[variable.source_name] = np.ascontiguousarray(channel, dtype=np.float32)
        return encoded


def template(
    field: Field,
    fine_grid: Grid,
    members: int,
    *,
    variables: Sequence[Variable] | None = None,
    time_chunk: int | None = None,
    attributes: Mapping[str, Any] | None = None,
    history: str = "",
) -> xr.Dataset:
    """The whole output but for its numbers.

    Args:
        field: the coarse input, on the model's grid (`match`).
        fine_grid: the model's fine grid.
        members: ensemble members.
        variables: what the model writes; those of the input if None.
        time_chunk: time steps of a chunk; about 16 MiB if None.
        attributes: global attributes to set, e.g. title, source, the model's fingerprint.
        history: a line about this run, put before the input's own history.

    Returns:
        a lazy dataset (member, time, y, x), or (member, time, station), with coordinates, bounds,
        attributes and encoding.

    Raises:
        AleatorError: the fine grid is not a refinement of the input's, or no members.
    """
    if members < 1:
        raise AleatorError(f"members={members}: at least one is needed")
    import dask.array

    encoder = Encoder.of(field, fine_grid, variables)
    time = field.layout.time_name
    shape = (members, len(field), *fine_grid.shape)
    chunks = _chunks(shape, time_chunk)
    dims = ("member", time, field.grid.y_name, field.grid.x_name)
    coords = _map_coordinates(field, fine_grid, encoder)
    coords |= _time_coordinates(field, chunks[1])
    coords["member"] = xr.Variable(
        "member",
        np.arange(members, dtype=np.int32),
        {"standard_name": "realization", "long_name": "ensemble member", "units": "1"},
    )
    mapped = field.layout.mapping_name if field.grid.grid_mapping else None
    arrays = {}
    for variable in encoder.variables:
        empty = dask.array.full(shape, np.nan, dtype=np.float32, chunks=-1)
        arrays[variable.source_name] = xr.Variable(
            dims, empty, _variable_attributes(variable), _packing(chunks)
        )
        if mapped:
            arrays[variable.source_name].encoding["grid_mapping"] = mapped
    score = dask.array.full(shape[1:2], np.nan, dtype=np.float32, chunks=-1)
    arrays[OOD] = xr.Variable(time, score, _OOD_ATTRIBUTES, _packing(chunks[1:2]))
    taken = set(arrays) | set(coords)
    coords |= {name: v for name, v in _extras(field).items() if name not in taken}
    told = _global_attributes(field, attributes or {}, history)
    whole = xr.Dataset(arrays, coords, told)
    return from_row(whole, fine_grid.stations) if fine_grid.stations else whole


_OOD_ATTRIBUTES = {
    "long_name": "distance of the coarse input from the training data",
    "units": "1",
    "comment": "1 is the 99th percentile of unseen data of the training climate; more is further",
}


def _as_written(variable: Variable) -> Variable:
    """With the name and units of the file, spelled as UDUNITS reads them."""
    quantity = QUANTITIES.get(variable.name)
    if variable.source_units:
        units, scale, offset = variable.source_units, variable.scale, variable.offset
    elif quantity and quantity.units != quantity.file_units:  # known, but not from this file
        from apps.climate_downscaling.cf import units_map

        units = quantity.file_units
        _, scale, offset = units_map(variable.name, units, variable.name)
    else:
        units, scale, offset = variable.units, 1.0, 0.0
    standard = variable.standard_name
    if quantity and quantity.water and _is_depth_rate(units):
        standard = "lwe_precipitation_rate"
    return dataclasses.replace(
        variable,
        standard_name=standard,
        source_name=variable.source_name or variable.name,
        source_units=spelled(units),
        scale=scale,
        offset=offset,
    )


def _is_depth_rate(units: str) -> bool:
    try:
        return parse(units).powers == (0, 1, -1, 0)
    except UnknownUnitError:
        return False


def _variable_attributes(variable: Variable) -> dict[str, str]:
    told = {
        "standard_name": variable.standard_name,
        "long_name": variable.long_name,
        "units": variable.source_units,
        "cell_methods": variable.cell_methods,
    }
    if QUANTITIES.get(variable.name, QUANTITIES["pr"]).units == "K":
        told["units_metadata"] = "temperature: on_scale"
    return {key: text for key, text in told.items() if text}


def _packing(chunks: tuple[int, ...]) -> dict[str, Any]:
    """Encoding, also for a user who writes the dataset with `to_netcdf`."""
    return {
        "_FillValue": np.float32(np.nan),
        "dtype": "float32",
        "chunks": chunks,
        "chunksizes": chunks,
        "zlib": True,
        "complevel": 4,
    }


def _chunks(shape: tuple[int, int, int, int], steps: int | None) -> tuple[int, int, int, int]:
    """Whole maps; the members of as many time steps as fit, or as many members as fit."""
    members, length, ny, nx = shape
    steps = steps or CHUNK_BYTES // (4 * members * ny * nx)
    steps = max(1, min(steps, length))
    return max(1, min(members, CHUNK_BYTES // (4 * steps * ny * nx))), steps, ny, nx


def _map_coordinates(field: Field, fine: Grid, encoder: Encoder) -> dict[str, xr.Variable]:
    """Cell centres, their bounds, two-dimensional coordinates and the projection."""
    grid, layout, factor = field.grid, field.layout, encoder.factor
    y_name, x_name = grid.y_name, grid.x_name
    plain = {"_FillValue": None}
    coords = {}
    if grid.units != "1":
        shift = np.repeat(layout.shift_x or np.zeros(grid.shape[1]), factor)
        y_bounds, x_bounds = fine.bounds()
        along_y = np.column_stack([fine.y, y_bounds])[None].transpose(2, 1, 0)  # (3, ny, 1)
        along_x = (np.column_stack([fine.x, x_bounds]) + shift[:, None]).T[:, None]  # (3, 1, nx)
        along_y = layout.restore(along_y)[..., 0]
        along_x = layout.restore(along_x, factor)[:, 0]
        for name, axis, values, flipped in (
            (y_name, "Y", along_y, layout.flip_y),
            (x_name, "X", along_x, layout.flip_x),
        ):
            edges = values[1:][::-1] if flipped else values[1:]
            attrs = _axis_attributes(grid, axis) | {"bounds": f"{name}_bnds"}
            coords[name] = xr.Variable(name, values[0], attrs, plain)
            coords[f"{name}_bnds"] = xr.Variable((name, "bnds"), edges.T, {}, plain)
    if fine.lat is not None and fine.lon is not None:
        for name, values, word, unit in (
            (layout.lat_name, fine.lat, "latitude", "degrees_north"),
            (layout.lon_name, fine.lon, "longitude", "degrees_east"),
        ):
            attrs = {"standard_name": word, "long_name": word, "units": unit}
            turned = layout.restore(values, factor)
            coords[name] = xr.Variable((y_name, x_name), turned, attrs, plain)
    if grid.grid_mapping:
        mapping = xr.Variable((), np.int32(0), dict(grid.grid_mapping))
        coords[layout.mapping_name] = mapping
    return coords


def _axis_attributes(grid: Grid, axis: str) -> dict[str, str]:
    y = axis == "Y"
    if grid.kind == "latlon":
        name, units = ("latitude", "degrees_north") if y else ("longitude", "degrees_east")
    elif grid.units == "degrees":
        name, units = ("grid_latitude" if y else "grid_longitude"), "degrees"
    else:
        name, units = f"projection_{axis.lower()}_coordinate", grid.units
    return {
        "standard_name": name,
        "long_name": name.replace("_", " "),
        "units": units,
        "axis": axis,
    }


def _time_coordinates(field: Field, chunk: int) -> dict[str, xr.Variable]:
    """The time coordinate in the file's own units where they are exact, and its bounds."""
    source = field.data["time"]
    bounds = source.attrs.get("bounds")
    edges = field.extras.get(bounds) if bounds else None
    attrs = {"standard_name": "time", "long_name": "time", "axis": "T"}
    attrs |= {key: text for key, text in source.attrs.items() if key == "long_name"}
    if field.calendar in _LEAP_SECONDS:
        attrs["units_metadata"] = "leap_seconds: none"
    every = field.times if edges is None else np.concatenate([field.times, edges.values.ravel()])
    encoding = time_encoding(every, source.encoding.get("units"), field.calendar)
    name = field.layout.time_name
    coords = {name: xr.Variable(name, field.times, attrs, encoding | {"chunks": (len(field),)})}
    if edges is not None:
        coords[name].attrs["bounds"] = bounds
        dims = (name, *edges.dims[1:])
        coords[str(bounds)] = xr.Variable(dims, edges.values, {}, encoding)
    return coords


def _extras(field: Field) -> dict[str, xr.Variable]:
    """Scalar and per-time coordinates of the input, under the file's names."""
    kept = {}
    for name, coordinate in field.extras.items():
        if name == field.data["time"].attrs.get("bounds"):
            continue
        values, attrs = coordinate.values, dict(coordinate.attrs)
        if values.dtype.kind == "m":
            values = values / np.timedelta64(1, "h")
            attrs["units"] = "h"
        # "hours" alone would read as a time span in xarray; CF says the same with "h"
        attrs["units"] = _DURATIONS.get(str(attrs.get("units")), attrs.get("units"))
        attrs = {k: v for k, v in attrs.items() if v is not None and k not in {"dtype", "bounds"}}
        dims = tuple(field.layout.time_name if d == "time" else d for d in coordinate.dims)
        plain = {"_FillValue": None} if values.dtype.kind == "f" else {}
        if attrs.get("standard_name") == "realization":  # of the input; the output has its own
            del attrs["standard_name"]
        kept[name] = xr.Variable(dims, values, attrs, plain)
    return kept


def _global_attributes(field: Field, wanted: Mapping[str, Any], history: str) -> dict[str, Any]:
    """The input's, without what is no longer true of the output; then those wanted."""
    kept = {
        key: value
        for key, value in field.attributes.items()
        if key not in _DROPPED and not key.startswith(("GRIB_", "_"))
    }
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [f"{now} {history or 'downscaled with aleator'}", field.attributes.get("history", "")]
    title = f"Downscaled: {field.attributes.get('title', Path(field.source).name)}"
    if "source" in kept:
        kept["source"] = f"statistical downscaling (aleator) of: {kept['source']}"
    attributes = {"Conventions": CONVENTIONS, "title": title, **kept, **wanted}
    return attributes | {
        "Conventions": CONVENTIONS,
        "history": "\n".join(line for line in lines if line),
    }
