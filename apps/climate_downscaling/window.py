"""The part of a large archive that is asked for, cut out before anything is read.

Selecting afterwards would be the same numbers, but a task a chunk of the whole archive.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import xarray as xr

from apps.climate_downscaling import cf
from core.errors import AleatorError

DATE = r"-?\d{4,}(?:-\d{2}(?:-\d{2}(?:[T ]\d{2}(?::\d{2}(?::\d{2})?)?)?)?)?"
TIMES = re.compile(rf"(?P<first>{DATE})?[:/](?P<last>{DATE})?")
_NUMBER = r"-?\d+(?:\.\d*)?"
_REGION = re.compile(rf"({_NUMBER}):({_NUMBER}),({_NUMBER}):({_NUMBER})")


def parse_region(text: str) -> tuple[float, float, float, float]:
    """South, north, west and east of "lat0:lat1,lon0:lon1".

    Raises:
        AleatorError: not of that form, latitudes beyond a pole or in no order, or no width.
    """
    found = _REGION.fullmatch(text.replace(" ", ""))
    if not found:
        raise AleatorError(f"--region {text}: expected lat0:lat1,lon0:lon1, e.g. 36:44,-10:4")
    south, north, west, east = (float(v) for v in found.groups())
    if not (-90 <= south < north <= 90):
        raise AleatorError(
            f"--region {text}: latitudes run from the southern to the northern, within -90 and 90"
        )
    if not 0 < east - west <= 360:
        raise AleatorError(
            f"--region {text}: longitudes run from the western to the eastern, e.g. -10:4 or "
            "350:364"
        )
    return south, north, west, east


def cut(
    dataset: xr.Dataset,
    variable: str,
    where: str,
    region: str | None,
    times: str | None,
    margin: int,
) -> xr.Dataset:
    """The cells of a region and about the times of a range; lazily.

    Args:
        dataset: the archive.
        variable: one of its variables, whose axes are cut.
        where: the archive, for messages.
        region: "lat0:lat1,lon0:lon1", inclusive; None for all.
        times: "A:B"; None for all. What is not a range of its dates is left for later, to be
            refused.
        margin: time steps that are kept beyond either end.

    Raises:
        AleatorError: a region of a grid without latitudes and longitudes, or without cells.
    """
    array = dataset[variable]
    if region is not None:
        dataset = _cut_region(dataset, array, where, region)
    time = cf.find_axis(dataset, array, "time")
    if times is None or time is None or time not in dataset.indexes:
        return dataset
    found, index = TIMES.fullmatch(times.strip()), dataset.indexes[time]
    if not found or not index.is_monotonic_increasing:
        return dataset
    try:
        window = index.slice_indexer(found["first"], found["last"])
    except (TypeError, ValueError, KeyError, OverflowError):
        return dataset
    if not len(index[window]):
        return dataset
    start, stop, _ = window.indices(len(index))
    return dataset.isel({time: slice(max(0, start - margin), stop + margin)})


def _cut_region(dataset: xr.Dataset, array: xr.DataArray, where: str, region: str) -> xr.Dataset:
    south, north, west, east = parse_region(region)
    axes: Any = [cf.find_axis(dataset, array, axis) for axis in ("y", "x")]
    for axis in axes:
        if axis is None or axis not in dataset.variables:
            raise AleatorError(f"{where}: --region needs latitudes and longitudes along its axes")
    lat, lon = (dataset[axis].values.astype(np.float64) for axis in axes)
    rows = np.flatnonzero((lat >= south - 1e-6) & (lat <= north + 1e-6))
    east_of = (lon - west + 1e-6) % 360
    columns = np.flatnonzero(east_of <= east - west + 2e-6)
    if not len(rows) or not len(columns):
        raise AleatorError(
            f"{where}: no cell within --region {region}; it has latitudes {lat.min():g} to "
            f"{lat.max():g} and longitudes {lon.min():g} to {lon.max():g}"
        )
    columns = columns[np.argsort(east_of[columns], kind="stable")]
    chosen: dict[Any, Any] = {axes[0]: slice(int(rows[0]), int(rows[-1]) + 1)}
    straight = (np.diff(columns) == 1).all()
    chosen[axes[1]] = slice(int(columns[0]), int(columns[-1]) + 1) if straight else columns
    return dataset.isel(chosen)
