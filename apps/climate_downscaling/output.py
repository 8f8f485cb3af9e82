"""How the output gets to disk: a Zarr group first, then whatever format was asked for.

`create_store` writes a template into a Zarr group in no time, whatever its length; chunks are then
filled in any order (`core.streaming`), and `exporter` says how a finished group becomes NetCDF:
streamed, a chunk of time at a time.
"""

from __future__ import annotations

import errno
import functools
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import xarray as xr

from apps.climate_downscaling.template import OOD, Encoder, template
from core.errors import AleatorError

__all__ = ["OOD", "Encoder", "create_store", "exporter", "template", "to_netcdf"]

_NETCDF_KEYS = {"chunksizes", "zlib", "complevel"}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_LITTLE = 2**23
"""Bytes: with less space than that left, an error while writing means that the disk is full."""


def create_store(dataset: xr.Dataset, path: Path | str) -> None:
    """Write a template as a Zarr group: every coordinate, no data.

    Args:
        dataset: from `template`.
        path: folder to create; Zarr format 2 with consolidated metadata, which everything reads.
    """
    from numcodecs import Blosc

    compressor = Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)
    encoding = {
        name: {k: v for k, v in array.encoding.items() if k not in _NETCDF_KEYS}
        | {"compressors": [compressor]}
        for name, array in dataset.data_vars.items()
    }
    dataset.to_zarr(
        path, mode="w-", compute=False, zarr_format=2, consolidated=True, encoding=encoding
    )


def exporter(output: Path | str) -> Callable[[Path, Path], None] | None:
    """How a finished Zarr group becomes `output`: None for .zarr, a NetCDF writer for .nc.

    Raises:
        AleatorError: another suffix.
    """
    suffix = Path(output).suffix.lower()
    if suffix == ".zarr":
        return None
    if suffix in {".nc", ".nc4"}:
        return functools.partial(to_netcdf, name=output)
    raise AleatorError(f"{output}: the name must end in .nc or .zarr")


def to_netcdf(store: Path | str, path: Path | str, *, name: Path | str | None = None) -> None:
    """Stream a Zarr group into a compressed NetCDF4 file, one chunk of time in memory at once.

    Args:
        store: the group.
        path: the file to write.
        name: what to call it in messages; `path` if None.

    Raises:
        AleatorError: the disk is full; what was written of the file is removed.
    """
    path = Path(path)
    raw = xr.open_zarr(store, decode_cf=False, consolidated=True, chunks=None)
    large = [str(name) for name, array in raw.data_vars.items() if "member" in array.dims]
    streamed = [*large, *({OOD} & set(raw))]  # the fields first
    small = raw.drop_vars(streamed)
    plain: dict[str, Any] = {
        str(n): {"_FillValue": None}
        for n, v in small.variables.items()
        if "_FillValue" not in v.attrs
    }
    # names as rows of characters: every version of NetCDF has them
    plain |= {str(n): {"dtype": "S1"} for n, v in small.variables.items() if v.dtype.kind in "OUT"}
    unlimited = {raw[name].dims[1] for name in large}  # so that tools can append times
    path.unlink(missing_ok=True)
    try:
        small.to_netcdf(
            path,
            engine="netcdf4",
            format="NETCDF4",
            encoding=plain,
            unlimited_dims=unlimited,
        )
        with netCDF4.Dataset(path, "a") as file:
            for variable in streamed:
                _copy(raw[variable], file)
    except (OSError, RuntimeError) as error:  # HDF5 reports a full disk as an unnamed error
        full = getattr(error, "errno", None) in _FULL
        full = full or shutil.disk_usage(path.parent).free < _LITTLE
        path.unlink(missing_ok=True)
        if full:
            raise AleatorError(
                f"{name or path}: the disk is full; free some space: the same command continues"
            ) from error
        raise


def _copy(array: xr.DataArray, file: Any) -> None:
    """Create a variable and fill it, chunk by chunk."""
    chunks = array.encoding["chunks"]
    attributes = dict(array.attrs)
    for dim, size in zip(array.dims, array.shape, strict=True):
        if dim not in file.dimensions:
            file.createDimension(dim, size)
    variable = file.createVariable(
        array.name,
        array.dtype.str[1:],  # without a byte order, which netCDF4 would warn about
        array.dims,
        compression="zlib",
        complevel=4,
        shuffle=True,
        chunksizes=chunks,
        fill_value=attributes.pop("_FillValue", None),
    )
    variable.set_auto_maskandscale(False)
    variable.setncatts(attributes)
    starts = (range(0, size, chunk) for size, chunk in zip(array.shape, chunks, strict=True))
    for corner in itertools.product(*starts):
        block = tuple(
            slice(first, min(first + chunk, size))
            for first, chunk, size in zip(corner, chunks, array.shape, strict=True)
        )
        variable[block] = array[block].values
