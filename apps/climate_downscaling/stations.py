"""Observations at points: a CSV table or a NetCDF file of stations, onto cells of a grid.

A CSV has the columns time, lat, lon and one for each variable, named and with units as
`tas [degC]` or `pr [mm day-1]`; a NetCDF file has variables (time, station) with CF units, and the
coordinates lat and lon (station). What is missing is left empty, or NaN. An observation counts for
the nearest cell that has data, at the time that it has exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr

from apps.climate_downscaling import cf
from apps.climate_downscaling.data import open_source
from apps.climate_downscaling.decode import canonical
from apps.climate_downscaling.field import Field, Variable
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.sphere import SAME_PLACE, unit_vectors
from apps.climate_downscaling.station_files import CSV, from_csv
from apps.climate_downscaling.times import time_keys, whole_seconds, with_dates
from core.errors import AleatorError

ERRORS = {"K": 0.5, "mm day-1": 1.0, "m s-1": 1.0, "Pa": 50.0}
"""Unit -> standard deviation of an observation about its cell's mean, where none is given."""

COLDEST = 150.0
"""K: no station is colder."""

_RADIUS = 6371.0


@dataclass(frozen=True, eq=False)
class Seen:
    """Observations of one time.

    Attributes:
        cells: (K,) positions in a field (V, H, W), flattened.
        values: (K,) canonical units.
        errors: (K,) standard deviations, the same.
    """

    cells: np.ndarray
    values: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True, eq=False)
class Stations:
    """Observations on the cells of a model.

    Attributes:
        source: where they came from.
        by_time: seconds since 1970 -> those of that time.
        places: how many cells have any.
        notes: what was done on reading, in words.
    """

    source: str
    by_time: Mapping[int, Seen]
    places: int
    notes: tuple[str, ...] = field(default=())

    def at(self, key: int) -> Seen | None:
        """Those of one time, if there are any."""
        return self.by_time.get(key)

    def among(self, keys: Sequence[int]) -> dict[int, Seen]:
        """Place in `keys` -> those of that time, where there are any."""
        return {i: self.by_time[key] for i, key in enumerate(keys) if key in self.by_time}

    def fingerprint(self) -> str:
        """16 hexadecimal digits of all values, places, times and errors."""
        digest = hashlib.sha256()
        for key in sorted(self.by_time):
            seen = self.by_time[key]
            digest.update(np.int64(key).tobytes())
            for values in (seen.cells, seen.values, seen.errors):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]


def read_stations(
    source: str | Path,
    variables: tuple[Variable, ...],
    grid: Grid,
    valid: np.ndarray,
    errors: Mapping[str, float] | None = None,
) -> Stations:
    """Read observations and find their cells.

    Args:
        source: CSV or NetCDF.
        variables: of the model; others in the file are left alone.
        grid: of the model.
        valid: (H, W) cells that have data.
        errors: variable -> standard deviation in canonical units; see `ERRORS`.

    Raises:
        AleatorError: it cannot be read, has none of the variables, no coordinates, no units, or
            no station within the grid.
    """
    path = Path(source)
    if not path.exists():
        raise AleatorError(f"{path}: no such file")
    dataset = from_csv(path) if path.suffix.lower() in CSV else open_source(path)[0]
    dataset = dataset.load()
    time = _time_name(dataset, path)
    dataset, _ = with_dates(dataset, time, str(path))
    lat, lon = _places(dataset, path)
    cell, inside = _nearest(lat, lon, grid, valid, path)
    keys = time_keys(whole_seconds(dataset[time].values))
    values = _values(dataset, time, variables, path)
    spreads = _errors(variables, values, errors or {})
    notes = [] if inside.all() else [f"{int((~inside).sum())} stations lie outside the model"]
    rows: dict[int, list[tuple[int, float, float]]] = {}
    size = int(np.prod(grid.shape))
    for v, array in values.items():
        for t, s in zip(*np.nonzero(np.isfinite(array) & inside), strict=True):
            entry = (v * size + int(cell[s]), float(array[t, s]), spreads[v])
            rows.setdefault(int(keys[t]), []).append(entry)
    if not rows:
        raise AleatorError(f"{path}: no observation, or none within the model's domain")
    by_time = {key: _merged(entries) for key, entries in rows.items()}
    places = len(set(cell[inside].tolist()))
    return Stations(str(path), by_time, places, tuple(notes))


def describe_stations(stations: Stations, known: Field) -> str:
    """What observations there are for the times of a field, in words.

    Raises:
        AleatorError: none for any of them.
    """
    keys = known.time_keys().tolist()
    some = [key for key in keys if key in stations.by_time]
    if not some:
        first, last = (np.datetime64(end(stations.by_time), "s") for end in (min, max))
        raise AleatorError(
            f"{stations.source}: no observation at a time of the input; it has {first} to {last}, "
            "and times must agree to the second"
        )
    count = sum(len(stations.by_time[key].cells) for key in some)
    notes = "".join(f"\n  note: {note}" for note in stations.notes)
    return (
        f"{stations.source}: {count} observations in {stations.places} cells, at {len(some)} of "
        f"{len(keys)} times{notes}"
    )


def _merged(entries: list[tuple[int, float, float]]) -> Seen:
    """Stations of one cell are averaged: the cell has one value."""
    cells, values, errors = (np.array(column) for column in zip(*entries, strict=True))
    unique, index = np.unique(cells, return_inverse=True)
    count = np.bincount(index)
    mean = np.bincount(index, values) / count
    return Seen(unique, mean, np.bincount(index, errors) / count)


def _time_name(dataset: xr.Dataset, path: Path) -> str:
    for name in ("time", "valid_time", "date"):
        if name in dataset.dims:
            return name
    raise AleatorError(f"{path}: no time dimension; stations are variables (time, station)")


def _places(dataset: xr.Dataset, path: Path) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for names in (("lat", "latitude"), ("lon", "longitude")):
        name = next((n for n in names if n in dataset.variables), None)
        if name is None or dataset[name].ndim != 1:
            raise AleatorError(
                f"{path}: no coordinate {names[0]} of the stations; give lat and lon (station)"
            )
        places = dataset[name].values.astype(np.float64)
        if not np.isfinite(places).all():
            raise AleatorError(f"{path}: {name} of a station is missing; leave that station out")
        found.append(places)
    return found[0], found[1]


def _values(
    dataset: xr.Dataset, time: str, variables: tuple[Variable, ...], path: Path
) -> dict[int, np.ndarray]:
    """Number of the variable -> (T, S) in canonical units."""
    found = {}
    for v, variable in enumerate(variables):
        names = cf.fitting(dataset, variable.name)
        if len(names) == 1 and dataset[names[0]].ndim == 2:
            array, _ = canonical(dataset, names[0], str(path))
            found[v] = array.transpose(time, ...).values
            _refuse_strange(found[v], variable, path)
    if not found:
        wanted = ", ".join(variable.name for variable in variables)
        have = ", ".join(map(str, dataset.data_vars)) or "nothing"
        raise AleatorError(f"{path}: none of the model's variables ({wanted}); it has {have}")
    return found


def _refuse_strange(values: np.ndarray, variable: Variable, path: Path) -> None:
    if np.isinf(values).any():
        raise AleatorError(f"{path}: {variable.name} has infinite values; leave them empty")
    known = values[np.isfinite(values)]
    if variable.units == "K" and known.size and known.min() < COLDEST:
        raise AleatorError(
            f"{path}: {variable.name} is {known.min():g} K somewhere: degrees Celsius? say so in "
            f"the units, {variable.name} [degC]"
        )


def _errors(
    variables: tuple[Variable, ...], present: Mapping[int, np.ndarray], given: Mapping[str, float]
) -> dict[int, float]:
    names = [variable.name for variable in variables]
    if strange := set(given) - set(names):
        raise AleatorError(
            f"--observation-error {min(strange)}: the model's variables are {', '.join(names)}"
        )
    found = {}
    for v in present:
        error = given.get(names[v], ERRORS.get(variables[v].units))
        if error is None:
            raise AleatorError(f"--observation-error {names[v]}=VALUE is needed for this variable")
        if not error > 0:
            raise AleatorError(f"--observation-error {names[v]}={error:g}: it must be positive")
        found[v] = float(error)
    return found


def _nearest(
    lat: np.ndarray, lon: np.ndarray, grid: Grid, valid: np.ndarray, path: Path
) -> tuple[np.ndarray, np.ndarray]:
    """(S,) nearest cell with data, and whether it is within a cell's diagonal."""
    where = grid.geographic()
    if where is None:
        raise AleatorError(
            f"{path}: the model's grid has no latitudes and longitudes to find the stations on"
        )
    cells = np.flatnonzero(valid.ravel())
    centres = unit_vectors(*(c.ravel()[cells] for c in where))
    near = np.arccos(np.clip(unit_vectors(lat, lon).T @ centres, -1, 1))
    best = near.argmin(1)
    if grid.stations:
        return cells[best], near[np.arange(len(lat)), best] <= SAME_PLACE
    # a cell's size from its nearest neighbour on the map, whatever the projection
    p = unit_vectors(*(c for c in where))
    step = max(
        float(np.linalg.norm(np.diff(p, axis=axis), axis=0).max(initial=0.0)) for axis in (1, 2)
    )
    inside = near[np.arange(len(lat)), best] <= 1.5 * step
    return cells[best], inside
