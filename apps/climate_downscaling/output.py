"""How the output gets to disk: a Zarr group first, whole files only when they are whole.

`create_store` writes a template into a Zarr group in no time, whatever its length; chunks are then
filled in any order (`core.streaming`); `exporter` streams a finished group into NetCDF a slice at
a time, and nothing has the output's name before it is complete.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import xarray as xr

from apps.climate_downscaling.template import OOD, Encoder, template
from core.errors import AleatorError

__all__ = ["OOD", "Encoder", "create_store", "exporter", "finish", "template", "to_netcdf"]


def create_store(dataset: xr.Dataset, path: Path | str) -> None:
    """Write a template as a Zarr group: every coordinate, no data.

    Args:
        dataset: from `template`.
        path: folder to create; Zarr format 2 with consolidated metadata, which everything reads.
    """
    from numcodecs import Blosc

    compressor = Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)
    encoding = {
        name: {**array.encoding, "compressors": [compressor]}
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
        return to_netcdf
    raise AleatorError(f"{output}: the name must end in .nc or .zarr")


def finish(store: Path | str, output: Path | str, *, overwrite: bool = False) -> Path:
    """Turn a complete Zarr group into the output, in one step that cannot be seen half done.

    Args:
        store: a group made by `create_store` and filled; it is gone afterwards.
        output: OUT.zarr or OUT.nc.
        overwrite: replace an existing output.

    Returns:
        the output's path.

    Raises:
        AleatorError: it exists, has another suffix, or the disk is full.
    """
    store, output = Path(store), Path(output)
    export = exporter(output)
    if output.exists() and not overwrite:
        raise AleatorError(f"{output} exists; choose another name or --overwrite")
    made = store
    if export is not None:
        made = output.with_name(output.name + ".partial")
        export(store, made)
    if output.is_dir():
        shutil.rmtree(output)
    os.replace(made, output)
    if export is not None:
        shutil.rmtree(store)
    return output


def to_netcdf(store: Path | str, path: Path | str) -> None:
    """Stream a Zarr group into a compressed NetCDF4 file, one chunk of time in memory at once.

    Args:
        store: the group.
        path: the file to write.

    Raises:
        AleatorError: the disk is full; what was written of the file is removed.
    """
    raw = xr.open_zarr(store, decode_cf=False, consolidated=True, chunks=None)
    large = [str(name) for name, array in raw.data_vars.items() if array.ndim == 4]
    small = raw.drop_vars(large)
    plain = {
        n: {"_FillValue": None} for n, v in small.variables.items() if "_FillValue" not in v.attrs
    }
    Path(path).unlink(missing_ok=True)
    try:
        small.to_netcdf(path, engine="netcdf4", format="NETCDF4", encoding=plain)
        with netCDF4.Dataset(path, "a") as file:
            for name in large:
                _copy(raw[name], file)
    except (OSError, RuntimeError) as error:
        Path(path).unlink(missing_ok=True)
        if getattr(error, "errno", None) == errno.ENOSPC or _is_full(Path(path)):
            raise AleatorError(
                f"{path}: the disk is full; free some space and run the same command again"
            ) from error
        raise


def _copy(array: xr.DataArray, file: Any) -> None:
    steps = array.shape[1]
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
    for start in range(0, steps, chunks[1]):
        stop = min(start + chunks[1], steps)
        variable[:, start:stop] = array[:, start:stop].values


def _is_full(path: Path) -> bool:
    """HDF5 reports a full disk as an unnamed error: look for it."""
    return shutil.disk_usage(path.parent).free < 2**20
