"""Files to fields: NetCDF, Zarr and GRIB, opened lazily, validated once, in canonical terms.

`open_field` reads what CF metadata say (or, failing that, what the names are known to mean),
converts units, sorts times, and refuses what cannot be right with one line that names the file,
the variable and the remedy. Everything that this application reads comes in through here.
"""

from __future__ import annotations

import glob
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from apps.climate_downscaling import cf, decode
from apps.climate_downscaling.classic import expected_size
from apps.climate_downscaling.field import Field, Variable, show_time, time_keys, year_fraction
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.remote import as_asked, is_url, local_path, open_url
from apps.climate_downscaling.station_files import as_row, from_csv
from apps.climate_downscaling.times import padded, with_time_axis
from apps.climate_downscaling.window import TIMES, cut
from core.errors import AleatorError

__all__ = ["Field", "Variable", "open_field", "open_statics", "sample_path", "select_times"]
__all__ += ["time_keys", "year_fraction"]

Source = str | Path | xr.Dataset | xr.DataArray | Sequence[str | Path]


def sample_path(name: str = "era5_uk_t2m_2019-03.nc") -> Path:
    """Where a bundled file is; `samples/README.md` says what it holds.

    Raises:
        AleatorError: there is no such sample.
    """
    folder = Path(str(importlib.resources.files("apps.climate_downscaling") / "samples"))
    if not (folder / name).exists():
        raise AleatorError(f"no bundled sample {name}; see {folder / 'README.md'}")
    return folder / name


def open_field(
    source: Source,
    variables: Sequence[str] | str | None = None,
    *,
    time_range: str | None = None,
    region: str | None = None,
    margin: int | None = None,
    ensemble: bool = False,
) -> Field:
    """Open a file, or take a dataset, as a field.

    Args:
        source: path of a NetCDF or GRIB file, path or URL of a Zarr store, path of a table of
            stations (CSV), a pattern or list of such, or an xarray object.
        variables: short names (tas, pr), aliases (t2m) or standard names, in the order wanted;
            None for every variable on the map and in time.
        time_range: "A:B", both inclusive and either open, e.g. "2019-03-25:2019-03".
        region: "lat0:lat1,lon0:lon1", inclusive; None for all.
        margin: keep this many time steps about the range, instead of those in it.
        ensemble: keep an axis of members; otherwise a file with several is refused.

    Returns:
        the lazy field.

    Raises:
        AleatorError: anything that is missing, damaged, ambiguous or inconsistent.
    """
    dataset, where = open_source(source)
    dataset = as_row(dataset, where)
    wanted = [variables] if isinstance(variables, str) else variables
    dataset = with_time_axis(as_asked(dataset, wanted or (), where))
    names = decode.choose(dataset, wanted, where)
    dataset = cut(dataset, names[0], where, region, time_range, 1 if margin is None else margin)
    field = decode.assemble(dataset, names, where, ensemble)
    return field if time_range is None or margin is not None else select_times(field, time_range)


def open_statics(source: Source, names: Sequence[str] = cf.STATIC) -> tuple[xr.Dataset, Grid]:
    """Read variables without time, e.g. orography and land fraction, and their grid.

    Args:
        source: as for `open_field`.
        names: those wanted, each of which must be there.

    Returns:
        a dataset (y, x), float32, canonical units, and the grid.

    Raises:
        AleatorError: missing, not on a map, or units that do not convert.
    """
    dataset, where = open_source(source)
    found = [cf.find_variable(dataset, name, where) for name in names]
    first = dataset[found[0]].squeeze(drop=True)
    axes = {axis: cf.find_axis(dataset, first, axis) for axis in ("y", "x")}
    if None in axes.values():
        raise AleatorError(f"{where}: {found[0]} is not on a map (no latitude and longitude)")
    dataset, grid, _, _ = decode.with_grid(dataset, first, axes, where)
    arrays = {}
    for name in found:
        array, variable = decode.canonical(dataset, name, where)
        array = array.squeeze(drop=True).rename({axes["y"]: "y", axes["x"]: "x"})
        arrays[variable.name] = array.transpose("y", "x").drop_vars(list(array.coords))
    return xr.Dataset(arrays).load(), grid


def select_times(field: Field, time_range: str) -> Field:
    """The time steps from A to B.

    Args:
        field: any field.
        time_range: "A:B", both inclusive and either open; a part of a date means all of it.

    Returns:
        the field of those steps.

    Raises:
        AleatorError: not of that form, not a date of the calendar, or nothing selected.
    """
    found = TIMES.fullmatch(time_range.strip())
    if not found or not any(found.groups()):
        raise AleatorError(
            f"--time-range {time_range}: expected A:B with dates such as 2019-03-25:2019-03-31"
        )
    have = f"{field.source} has {show_time(field.times[0])} to {show_time(field.times[-1])}"
    try:
        index = field.data.indexes["time"]
        window = index.slice_indexer(found["first"], found["last"])
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise AleatorError(
            f"--time-range {time_range}: not dates of the {field.calendar} calendar; {have}"
        ) from error
    if not len(index[window]):
        raise AleatorError(f"--time-range {time_range} selects no time step: {have}")
    return field.isel(time=window)


def open_source(source: Source) -> tuple[xr.Dataset, str]:
    """The dataset and what to call it in messages."""
    if isinstance(source, xr.DataArray):
        return source.to_dataset(
            name=source.name or "field"
        ), f"dataset {source.name or ''}".strip()
    if isinstance(source, xr.Dataset):
        return source, Path(str(source.encoding.get("source", "dataset"))).name
    if isinstance(source, str | Path):
        text = str(source)
        if not glob.has_magic(text) or Path(text).exists():
            return _open_path(source), text
        paths = [Path(p) for p in sorted(glob.glob(text))]
        if not paths:
            raise AleatorError(f"{text}: no such file")
        return _joined(paths, text), text
    paths = [Path(p) for p in source]
    if not paths:
        raise AleatorError("no input file given")
    return _joined(paths, f"{paths[0]} and {len(paths) - 1} more"), str(paths[0])


def _joined(paths: list[Path], where: str) -> xr.Dataset:
    """Files of different times or different variables as one dataset."""
    parts = [_open_path(path).chunk() for path in paths]
    try:
        joined = xr.combine_by_coords(
            parts,
            data_vars="minimal",
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="override",
        )
        return joined if isinstance(joined, xr.Dataset) else joined.to_dataset()
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise AleatorError(f"{where}: these files do not belong together ({reason})") from error


def _open_path(source: str | Path) -> xr.Dataset:
    text = local_path(str(source))
    if is_url(text):
        return _opened(text, None)
    path = Path(text)
    if not path.exists():
        raise AleatorError(f"{path}: no such file")
    if path.is_dir():
        if not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata")):
            raise AleatorError(f"{path}: a folder that is not a Zarr store")
        return _opened(path, "zarr", consolidated=False)
    if path.suffix.lower() == ".csv":
        return from_csv(path)
    if not path.stat().st_size:
        raise AleatorError(f"{path}: the file is empty")
    with path.open("rb") as file:
        start = file.read(1024)
    if start[:3] == b"CDF":
        _refuse_cut_short(path)
    if start[:4] == b"\x89HDF" or start[:3] == b"CDF":
        return _opened(path, "netcdf4")
    if b"GRIB" in start:
        return _open_grib(path)
    raise AleatorError(f"{path}: not a NetCDF, Zarr or GRIB file")


def _opened(path: str | Path, engine: str | None, **options: Any) -> xr.Dataset:
    try:
        if engine is None:
            raw = open_url(str(path))
        else:
            raw = xr.open_dataset(path, engine=engine, decode_cf=False, **options)
        for variable in raw.variables.values():
            if " since " in str(variable.attrs.get("units")):
                variable.attrs["units"] = padded(variable.attrs["units"])
        return xr.decode_cf(raw, decode_timedelta=False)
    except (PermissionError, AleatorError):
        raise
    except Exception as error:  # each backend raises its own kinds for damaged files
        text = " ".join(str(error).split())[:160]
        if "decode time" in text or "unable to decode" in text.lower():
            raise AleatorError(f"{path}: its dates cannot be read ({text})") from error
        raise AleatorError(
            f"{path}: cannot be opened, it is damaged or was cut short ({text})"
        ) from error


def _refuse_cut_short(path: Path) -> None:
    try:
        whole = expected_size(path)
    except (EOFError, ValueError, KeyError, IndexError) as error:
        raise AleatorError(f"{path}: damaged, its header cannot be read ({error})") from error
    if path.stat().st_size < whole:
        raise AleatorError(
            f"{path}: cut short, {path.stat().st_size} of at least {whole} bytes; copy it again"
        )


def _open_grib(path: Path) -> xr.Dataset:
    """All messages as one dataset; nothing is written beside the file."""
    try:
        import cfgrib
    except (ImportError, RuntimeError) as error:
        raise AleatorError(
            f"{path}: reading GRIB needs cfgrib; pip install 'aleator[grib]'"
        ) from error
    try:
        parts = cfgrib.open_datasets(str(path), backend_kwargs={"indexpath": ""})
    except Exception as error:  # ecCodes has no base class of errors
        text = " ".join(str(error).split())[:160]
        raise AleatorError(
            f"{path}: cannot be opened, it is damaged or was cut short ({text})"
        ) from error
    if not parts:
        raise AleatorError(f"{path}: no complete GRIB message; the file was cut short")
    if len(parts) == 1:
        return parts[0]
    levels = {"heightAboveGround", "surface", "meanSea", "entireAtmosphere", "step", "number"}
    plain = [part.drop_vars(levels - set(part.dims), errors="ignore") for part in parts]
    return xr.merge(plain, compat="override", join="outer", combine_attrs="override")
