"""Series of stations as files have them, as one row of cells that the rest of the code can take.

A CSV has the columns time, lat, lon, one for each variable, named and with units as `tas [degC]`,
and, if wanted, `station` with names. A NetCDF file or Zarr store has variables (time, station)
and the coordinates lat and lon (station), as CF's discrete sampling geometries do.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from apps.climate_downscaling.cf import attribute
from apps.climate_downscaling.sphere import SAME_PLACE, unit_vectors
from core.errors import AleatorError

if TYPE_CHECKING:
    from apps.climate_downscaling.field import Field
    from apps.climate_downscaling.grid import Grid

NAMES = "station_name"
"""Coordinate of a row's cells: what the stations are called."""
CSV = (".csv", ".txt")

_COLUMN = re.compile(r"\s*(?P<name>[^\[\]]+?)\s*(?:\[(?P<units>[^\]]*)\])?\s*")
_DEGREES = {"lat": ("latitude", "degrees_north"), "lon": ("longitude", "degrees_east")}


def from_csv(path: Path) -> xr.Dataset:
    """A long table as a dataset (time, station).

    Raises:
        AleatorError: not a table, columns are missing, places or dates that are none, or a place
            has two rows for one time.
    """
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise AleatorError(f"{path}: not a CSV table ({error})") from None
    units = {}
    for column in list(table.columns):
        found = _COLUMN.fullmatch(str(column))
        name = found["name"] if found else str(column)
        table = table.rename(columns={column: name})
        if found and found["units"] is not None:
            units[name] = found["units"]
    table = _checked(table, path)
    place = table.groupby(["lat", "lon"], sort=False).ngroup()
    if table.assign(place=place).duplicated(["time", "place"]).any():
        raise AleatorError(f"{path}: a place has two rows for one time; keep one of them")
    index = [table["time"], place.rename("station")]
    fields = table.drop(columns=["time", "lat", "lon"]).select_dtypes("number")
    fields = fields.drop(columns="station", errors="ignore")
    dataset = fields.set_index(pd.MultiIndex.from_arrays(index)).to_xarray()
    first = table.groupby(place).first()
    for name in ("lat", "lon"):
        dataset[name] = ("station", first[name].to_numpy())
    if "station" in first:
        dataset[NAMES] = ("station", first["station"].astype(str).to_numpy(dtype=str))
    for name, unit in units.items():
        if name in dataset:
            dataset[name].attrs["units"] = unit
    return dataset


def _checked(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """With places in degrees and times as dates."""
    listed = ", ".join(map(str, table.columns))
    for needed in ("time", "lat", "lon"):
        if needed not in table:
            raise AleatorError(f"{path}: no column {needed}; it has {listed}")
    for name in ("lat", "lon"):
        places = pd.to_numeric(table[name], errors="coerce")
        if places.isna().any():
            row = int(places.isna().argmax())
            raise AleatorError(
                f"{path}: row {row + 1}: {name} is '{table[name].iloc[row]}'; degrees are needed"
            )
        table[name] = places
    try:
        table["time"] = pd.to_datetime(table["time"]).dt.tz_localize(None)
    except (ValueError, TypeError) as error:
        raise AleatorError(f"{path}: column time holds no dates ({error})") from None
    return table


def as_row(dataset: xr.Dataset, where: str) -> xr.Dataset:
    """Stations as a map of one row: (time, station) becomes (time, y, x), lat and lon (y, x).

    Args:
        dataset: anything; what has no stations is given back as it is.
        where: the file, for messages.

    Raises:
        AleatorError: a station has no place.
    """
    place = station_dimension(dataset)
    if place is None:
        return dataset
    lat, lon = (str(_along(dataset, axis)) for axis in _DEGREES)
    places = {"lat": dataset[lat].values, "lon": dataset[lon].values}
    for name, values in places.items():
        if not np.isfinite(values.astype(np.float64)).all():
            raise AleatorError(f"{where}: {name} of a station is missing; leave that station out")
    names = _names(dataset, place)
    row = dataset.drop_vars([lat, lon, place, NAMES], errors="ignore")
    words = [n for n, v in row.variables.items() if place in v.dims and v.dtype.kind not in "fiu"]
    row = row.drop_vars(words).rename({place: "x"}).reset_coords()
    arrays = {n: v.expand_dims("y", v.dims.index("x")) for n, v in row.items() if "x" in v.dims}
    row = row.assign(arrays).set_coords([n for n in row if n in dataset.coords])
    for name, (standard, unit) in _DEGREES.items():
        attrs = {"standard_name": standard, "units": unit}
        row = row.assign_coords({name: (("y", "x"), places[name][None].astype(np.float64), attrs)})
    return row.assign_coords({NAMES: ("x", np.array(names))})


def from_row(dataset: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """The inverse of `as_row` for what is to be written: (..., row, station) to (..., station).

    Args:
        dataset: with the dimensions row and station; encodings are kept.
        names: of the stations.
    """
    found = {}
    for name, variable in dataset.variables.items():
        if "row" not in variable.dims:
            found[name] = variable
            continue
        at = variable.dims.index("row")
        plain = variable.isel(row=0)
        plain.encoding = {
            k: (*v[:at], *v[at + 1 :]) if k in ("chunks", "chunksizes") else v
            for k, v in variable.encoding.items()
        }
        found[name] = plain
    facts = {"long_name": "station name", "cf_role": "timeseries_id"}
    found[NAMES] = xr.Variable("station", np.array(names, dtype=str), facts)
    coords = {name: found.pop(name) for name in [*dataset.coords, NAMES]}
    return xr.Dataset(found, coords, {**dataset.attrs, "featureType": "timeSeries"})


def station_dimension(dataset: xr.Dataset) -> Hashable | None:
    """The dimension along which both latitude and longitude are given; None if there is none."""
    lat, lon = (_along(dataset, axis) for axis in _DEGREES)
    if lat is None or lon is None or dataset[lat].dims != dataset[lon].dims:
        return None
    (place,) = dataset[lat].dims
    is_time = place in dataset.variables and dataset[place].dtype.kind == "M"
    return None if is_time or place in ("time", lat, lon) else place


def match_stations(field: Field, grid: Grid) -> Field:
    """The stations of `grid`, in its order, among those of a field.

    Raises:
        AleatorError: one is not there, within a kilometre.
    """
    own, wanted = (unit_vectors(g.lat, g.lon)[:, 0] for g in (field.grid, grid))
    apart = np.linalg.norm(own[:, None, :] - wanted[:, :, None], axis=0)
    index = apart.argmin(1)
    far = apart.min(1) > SAME_PLACE
    if far.any():
        missing = grid.stations[int(far.argmax())]
        raise AleatorError(
            f"{field.source}: {int(far.sum())} of {len(far)} stations are not there, the first "
            f"is {missing}"
        )
    return dataclasses.replace(
        field,
        data=field.data.isel(x=index).assign_coords(x=grid.x),
        statics=field.statics.isel(x=index, missing_dims="ignore"),
        grid=grid,
    )


def _along(dataset: xr.Dataset, axis: str) -> Hashable | None:
    """The one-dimensional latitude or longitude."""
    standard = _DEGREES[axis][0]
    for name, variable in dataset.variables.items():
        known = attribute(variable, "standard_name") == standard
        if variable.ndim == 1 and (known or str(name).lower() in (axis, standard)):
            return name
    return None


def _names(dataset: xr.Dataset, place: Hashable) -> list[str]:
    """What the stations are called: their identifier, else the coordinate, else numbers."""
    named = [
        name
        for name, v in dataset.variables.items()
        if v.dims == (place,) and (v.attrs.get("cf_role") or name in (NAMES, "name", "station_id"))
    ]
    chosen = [*named, *([place] if place in dataset.variables else [])]
    if not chosen:
        return [str(i + 1) for i in range(dataset.sizes[place])]
    values = dataset[chosen[0]].values
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
