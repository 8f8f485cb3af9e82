"""Data that stay where they are: Zarr stores behind any URL that fsspec knows, opened lazily.

`gs://`, `s3://`, `https://`, `memory://`, `file://` and the rest; only what is asked for is read.
In the largest public archive, ARCO-ERA5, variables have long names (`2m_temperature`), levels
share a variable, and precipitation is what fell in the hour before: `ta850` of `temperature`, and
rates, are made of these. Reference: Carver and Merose (2023), ARCO-ERA5, 103rd AMS Annual Meeting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from apps.climate_downscaling import cf
from core.errors import AleatorError

ALOFT = {
    "ta": ("ta", "temperature", "t", "air"),
    "hus": ("hus", "specific_humidity", "q", "shum"),
    "hur": ("hur", "relative_humidity", "r", "rhum"),
    "ua": ("ua", "u_component_of_wind", "u", "uwnd"),
    "va": ("va", "v_component_of_wind", "v", "vwnd"),
    "zg": ("zg", "geopotential_height", "gh", "hgt"),
    "z": ("z", "geopotential"),
    "wap": ("wap", "vertical_velocity", "w", "omega"),
}
"""Short name -> what files call a variable on pressure levels."""
LEVELS = ("level", "plev", "lev", "isobaricInhPa", "pressure_level", "pressure")
ERA5 = {
    "2m_temperature": "K",
    "2m_dewpoint_temperature": "K",
    "10m_u_component_of_wind": "m s-1",
    "10m_v_component_of_wind": "m s-1",
    "mean_sea_level_pressure": "Pa",
    "surface_pressure": "Pa",
    "total_precipitation": "m",
    "land_sea_mask": "1",
    "temperature": "K",
    "specific_humidity": "kg kg-1",
    "u_component_of_wind": "m s-1",
    "v_component_of_wind": "m s-1",
    "vertical_velocity": "Pa s-1",
    "geopotential": "m2 s-2",
}
"""Units of ERA5's variables, by their long names: a store may have lost the attribute."""

_MARKS = (".zmetadata", "zarr.json", ".zgroup")
_NAME = re.compile(r"(?P<base>[a-z]+)(?P<level>\d{1,4})")


def is_url(source: object) -> bool:
    """Whether it is a URL rather than a path."""
    return "://" in str(source)


def local_path(source: str) -> str:
    """The path of a file:// URL; anything else as it is."""
    return source.removeprefix("file://") if source.startswith("file://") else source


def open_url(url: str) -> xr.Dataset:
    """A Zarr store, or what an OPeNDAP server has, undecoded.

    Args:
        url: with a scheme. Options of the file system come from fsspec's own configuration
            (e.g. FSSPEC_GS_TOKEN=anon, FSSPEC_S3_ANON=true).

    Raises:
        AleatorError: the scheme is not known or its package is missing, or there is no store.
    """
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise AleatorError(f"{url}: {_needed(error)}") from None
    except ValueError as error:
        raise AleatorError(f"{url}: {error}") from None
    store = path.rstrip("/")
    found = [mark for mark in _MARKS if system.exists(f"{store}/{mark}")]
    if found:
        consolidated = True if ".zmetadata" in found else None
        return xr.open_dataset(
            url, engine="zarr", decode_cf=False, chunks=None, consolidated=consolidated
        )
    if url.startswith(("http://", "https://")):  # an OPeNDAP server, perhaps
        return xr.open_dataset(url, engine="netcdf4", decode_cf=False)
    raise AleatorError(
        f"{url}: no Zarr store there (no {', '.join(_MARKS)}); other remote files are copied here "
        "first"
    )


def _needed(error: ImportError) -> str:
    """The package that fsspec asks for in its own words."""
    found = re.search(r"[Ii]nstall (\w+)", str(error))
    return f"reading it needs {found[1]}; pip install {found[1]}" if found else str(error)


def as_asked(dataset: xr.Dataset, names: Sequence[str], where: str) -> xr.Dataset:
    """With the variables asked for that a store of ERA5 or of levels only implies.

    Args:
        dataset: lazy.
        names: wanted; `ta850` is `temperature` at 850 hPa.
        where: the store, for messages.

    Returns:
        the dataset with `ta850` and the like added, units where ERA5's were lost, and hourly
        sums of precipitation as rates.

    Raises:
        AleatorError: there is no such level.
    """
    for name in names:
        if name not in dataset.data_vars and (found := _NAME.fullmatch(name)):
            dataset = _at_level(dataset, name, found["base"], float(found["level"]), where)
    for name, units in ERA5.items():
        if name in dataset.data_vars and cf.attribute(dataset[name], "units") is None:
            dataset = dataset.assign({name: dataset[name].assign_attrs(units=units)})
    rain = "total_precipitation"
    if rain in dataset.data_vars and cf.attribute(dataset[rain], "units") in ("m", "metres"):
        if _hourly(dataset[rain]):
            dataset = dataset.assign({rain: dataset[rain].assign_attrs(units="m h-1")})
    return dataset


def _at_level(dataset: xr.Dataset, name: str, base: str, level: float, where: str) -> xr.Dataset:
    for known in ALOFT.get(base, ()):
        if known not in dataset.data_vars:
            continue
        array = dataset[known]
        axis = next((d for d in array.dims if d in LEVELS and d in dataset.variables), None)
        if axis is None:
            continue
        values = dataset[axis].values.astype(np.float64)
        pascals = (cf.attribute(dataset[axis], "units") or "hPa").lower() in ("pa", "pascal")
        index = np.flatnonzero(np.isclose(values, level * (100 if pascals else 1)))
        if not len(index):
            listed = ", ".join(f"{v / (100 if pascals else 1):g}" for v in values)
            raise AleatorError(f"{where}: {known} has no level {level:g} hPa; it has {listed}")
        units = cf.attribute(array, "units") or ERA5.get(known)
        told: dict[str, Any] = {"units": units} if units else {}
        chosen = array.isel({axis: int(index[0])}, drop=True)
        return dataset.assign({name: chosen.assign_attrs(**told)})
    return dataset


def _hourly(array: xr.DataArray) -> bool:
    """Whether all times are an hour apart, as far as the first ones tell."""
    time = array.dims[0]
    first = array[time][:3].values if time in array.coords else np.zeros(0)
    steps = np.diff(first)
    return (
        bool(len(steps))
        and steps.dtype.kind == "m"
        and bool((steps == np.timedelta64(1, "h")).all())
    )
