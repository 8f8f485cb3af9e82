"""What a file's names mean: which variable, which axis, which unit, which projection.

CF metadata decide first (standard_name, axis, units, grid_mapping), then the names that models,
reanalyses and GRIB are known to use. Nothing here opens a file or touches a value.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import xarray as xr

from apps.climate_downscaling.units import UnknownUnitError, conversion
from core.errors import AleatorError


class Quantity(NamedTuple):
    """A variable that this application knows.

    Attributes:
        units: held in memory.
        standard_name: CF standard name.
        file_units: written to files: those of the standard name.
        long_name: in words.
        aliases: what else files call it.
        methods: words of `cell_methods` that tell it from others of the same standard name.
        water: 1 kg m-2 is 1 mm.
        nonnegative: cannot be below zero.
    """

    units: str
    standard_name: str
    file_units: str
    long_name: str
    aliases: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    water: bool = False
    nonnegative: bool = False


def _air(long_name: str, *aliases: str, methods: tuple[str, ...] = ()) -> Quantity:
    return Quantity("K", "air_temperature", "K", long_name, aliases, methods)


QUANTITIES: dict[str, Quantity] = {
    "tas": _air(
        "near-surface air temperature",
        "t2m",
        "2t",
        "t2",
        "T2",
        "T_2M",
        "tmp2m",
        "tg",
        "tmean",
        "2m_temperature",
    ),
    "tasmax": _air(
        "daily maximum near-surface air temperature", "tmax", "tx", "mx2t", methods=("maximum",)
    ),
    "tasmin": _air(
        "daily minimum near-surface air temperature", "tmin", "tn", "mn2t", methods=("minimum",)
    ),
    "pr": Quantity(
        *("mm day-1", "precipitation_flux", "kg m-2 s-1", "precipitation"),
        (
            "tp",
            "prate",
            "precip",
            "precipitation",
            "rr",
            "mtpr",
            "avg_tprate",
            "rainfall",
            "total_precipitation",
        ),
        water=True,
        nonnegative=True,
    ),
    "psl": Quantity(
        *("Pa", "air_pressure_at_mean_sea_level", "Pa", "sea level pressure"),
        ("msl", "slp", "mslp", "prmsl", "mean_sea_level_pressure"),
    ),
    "ps": Quantity(
        "Pa", "surface_air_pressure", "Pa", "surface pressure", ("sp", "sfcp", "surface_pressure")
    ),
    "uas": Quantity(
        "m s-1",
        "eastward_wind",
        "m s-1",
        "eastward wind at 10 m",
        ("u10", "10u", "U10", "10m_u_component_of_wind"),
    ),
    "vas": Quantity(
        "m s-1",
        "northward_wind",
        "m s-1",
        "northward wind at 10 m",
        ("v10", "10v", "V10", "10m_v_component_of_wind"),
    ),
    "sfcWind": Quantity(
        *("m s-1", "wind_speed", "m s-1", "wind speed at 10 m"),
        ("si10", "ws10", "10si", "sfcwind", "wind_speed"),
        nonnegative=True,
    ),
    "huss": Quantity(
        *("1", "specific_humidity", "1", "near-surface specific humidity"),
        ("sh2", "2sh", "q2", "qas"),
        nonnegative=True,
    ),
    "hurs": Quantity(
        *("%", "relative_humidity", "%", "near-surface relative humidity"),
        ("r2", "rh", "2r", "rh2m"),
        nonnegative=True,
    ),
    "rsds": Quantity(
        *("W m-2", "surface_downwelling_shortwave_flux_in_air", "W m-2"),
        "surface downwelling shortwave radiation",
        ("msdwswrf", "avg_sdswrf", "swdown"),
        nonnegative=True,
    ),
    "rlds": Quantity(
        *("W m-2", "surface_downwelling_longwave_flux_in_air", "W m-2"),
        "surface downwelling longwave radiation",
        ("msdwlwrf", "avg_sdlwrf", "lwdown"),
        nonnegative=True,
    ),
    "orog": Quantity(
        *("m", "surface_altitude", "m", "orography"),
        ("topo", "elevation", "elev", "hgt", "orography", "HSURF", "height_asl", "topography"),
    ),
    "sftlf": Quantity(
        *("%", "land_area_fraction", "%", "land fraction"),
        ("lsm", "landfrac", "land_fraction", "landmask", "lsmask", "land_sea_mask"),
        nonnegative=True,
    ),
}
STATIC = ("orog", "sftlf")
"""Variables without a time axis that downscaling can use as predictors."""

_OTHER_STANDARD_NAMES = {
    "lwe_precipitation_rate": "pr",
    "rainfall_flux": "pr",
    "altitude": "orog",
    "land_binary_mask": "sftlf",
    "air_pressure_at_sea_level": "psl",
}
_AXES: dict[str, dict[str, set[str]]] = {
    "time": {
        "standard_name": {"time"},
        "axis": {"T"},
        "name": {"time", "valid_time", "t", "times", "xtime", "date", "tstep"},
    },
    "y": {
        "standard_name": {"latitude", "grid_latitude", "projection_y_coordinate"},
        "axis": {"Y"},
        "units": {"degrees_north", "degree_north", "degrees_n", "degree_n", "degreesn"},
        "name": {
            "lat",
            "latitude",
            "y",
            "yc",
            "rlat",
            "nlat",
            "j",
            "nj",
            "south_north",
            "nav_lat",
        },
    },
    "x": {
        "standard_name": {"longitude", "grid_longitude", "projection_x_coordinate"},
        "axis": {"X"},
        "units": {"degrees_east", "degree_east", "degrees_e", "degree_e", "degreese"},
        "name": {"lon", "longitude", "x", "xc", "rlon", "nlon", "i", "ni", "west_east", "nav_lon"},
    },
    "member": {
        "standard_name": {"realization"},
        "axis": {"E"},
        "name": {"member", "members", "number", "realization", "ensemble", "ens", "realisation"},
    },
}


def attribute(variable: xr.DataArray | xr.Variable, name: str) -> str | None:
    """An attribute, wherever decoding left it; None if it is absent or empty."""
    value = variable.attrs.get(name, variable.encoding.get(name))
    text = "" if value is None else str(value).strip()
    return text if text.lower() not in {"", "unknown", "~", "none"} else None


def find_variable(dataset: xr.Dataset, wanted: str, where: str) -> str:
    """The file's name of a variable.

    Args:
        dataset: the file.
        wanted: short name ("tas"), alias ("t2m"), standard name, or the file's own name.
        where: the file, for messages.

    Returns:
        its name in the file.

    Raises:
        AleatorError: absent, or several fit.
    """
    fits = fitting(dataset, wanted)
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise AleatorError(
            f"{where}: {', '.join(sorted(fits))} could each be {wanted}; "
            f"name the one you mean (--variables {sorted(fits)[0]})"
        )
    present = {str(name): dataset[name] for name in dataset.data_vars}
    fields = [n for n, v in present.items() if v.ndim >= 2 and v.dtype.kind in "fiu"]
    listed = ", ".join(_label(name, present[name]) for name in fields) or "no field at all"
    raise AleatorError(f"{where}: no variable {wanted}; it has {listed}")


def fitting(dataset: xr.Dataset, wanted: str) -> list[str]:
    """The file's names of all variables that could be the one wanted; see `find_variable`."""
    present = {str(name): dataset[name] for name in dataset.data_vars}
    key = canonical_name(wanted) or wanted
    for name in (wanted, key):
        if name in present:
            return [name]
    fits = [name for name, variable in present.items() if identify(name, variable) == key]
    if not fits:
        fits = [name for name, v in present.items() if attribute(v, "standard_name") == wanted]
    by_name = [name for name in fits if canonical_name(name) == key]
    return by_name if len(by_name) == 1 else fits


def identify(name: str, variable: xr.DataArray) -> str | None:
    """The short name that a file's variable stands for, or None.

    A name that is known decides; otherwise the standard name, unless several quantities share it
    and neither `cell_methods` nor the absence of a level tells which.
    """
    by_name = canonical_name(name) or canonical_name(attribute(variable, "short_name") or "")
    if by_name:
        return by_name
    standard = attribute(variable, "standard_name") or attribute(variable, "GRIB_cfName")
    if standard in _OTHER_STANDARD_NAMES:
        return _OTHER_STANDARD_NAMES[standard]
    fits = {k: q for k, q in QUANTITIES.items() if q.standard_name == standard}
    methods = attribute(variable, "cell_methods") or ""
    told = [k for k, q in fits.items() if q.methods and all(m in methods for m in q.methods)]
    plain = [k for k, q in fits.items() if not q.methods]
    at_level = any(c in {"plev", "level", "isobaricInhPa", "pressure"} for c in variable.coords)
    # "ta850" has the standard name of "tas": digits of a level in the name say that it is aloft.
    at_level = at_level or name.rstrip("0123456789") != name
    chosen = told or ([] if at_level else plain)
    return chosen[0] if len(chosen) == 1 else None


def canonical_name(name: str) -> str | None:
    """The short name for a name or alias, in any case; None if it is not known."""
    if name in QUANTITIES:
        return name
    lowered = name.lower()
    for key, quantity in QUANTITIES.items():
        if lowered == key.lower() or lowered in (alias.lower() for alias in quantity.aliases):
            return key
    return None


def units_map(name: str, found: str | None, where: str) -> tuple[str, float, float]:
    """The unit in memory and the map to it: value = scale · file value + offset.

    Args:
        name: short name of the variable, or its own.
        found: its `units` attribute.
        where: file and variable, for messages.

    Returns:
        units, scale and offset; the file's own units where the variable is not in the table.

    Raises:
        AleatorError: no units, unknown units or units of something else.
    """
    quantity = QUANTITIES.get(name)
    if found is None:
        hint = f'"{quantity.file_units}"' if quantity else "CF units"
        raise AleatorError(f"{where} has no units attribute: set it, e.g. to {hint}")
    if quantity is None:
        return found, 1.0, 0.0
    try:
        mapped = conversion(found, quantity.units, water=quantity.water)
    except UnknownUnitError:
        mapped = None
    if mapped is None:
        why = ""
        if quantity.water and _is_amount(found):
            why = ": it is an amount, divide it by the time over which it fell"
        raise AleatorError(
            f'{where} has units "{found}", which do not convert to "{quantity.units}"{why}'
        )
    return quantity.units, *mapped


def _is_amount(units: str) -> bool:
    try:
        return conversion(units, "mm", water=True) is not None
    except UnknownUnitError:
        return False


def find_axis(dataset: xr.Dataset, variable: xr.DataArray, axis: str) -> Hashable | None:
    """The dimension of a variable that is its "time", "y", "x" or "member" axis, or None."""
    signs = _AXES[axis]
    for key in ("standard_name", "axis", "units", "name"):
        for dim in variable.dims:
            text = str(dim)
            if key != "name" and dim in dataset.variables:
                text = attribute(dataset[dim], key) or ""
            elif key != "name":
                continue
            allowed = signs.get(key, set())
            if text in allowed or (key in {"units", "name"} and text.lower() in allowed):
                return dim
    if axis == "time":
        for dim in variable.dims:
            if dim in dataset.indexes and is_time(dataset[dim]):
                return dim
    return None


def is_time(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate holds dates, of numpy or of cftime."""
    if coordinate.dtype.kind != "O" or not coordinate.size:
        return coordinate.dtype.kind == "M"
    return hasattr(coordinate.values.flat[0], "calendar")


def find_2d(dataset: xr.Dataset, variable: xr.DataArray, dims: tuple, axis: str) -> str | None:
    """The name of the two-dimensional latitude ("y") or longitude ("x") on `dims`, or None."""
    signs = _AXES[axis]
    standard = "latitude" if axis == "y" else "longitude"
    for name in [*variable.coords, *dataset.data_vars]:
        found = dataset[name]
        if found.dims in {dims, dims[::-1]} and (
            attribute(found, "standard_name") == standard
            or (attribute(found, "units") or "").lower() in signs["units"]
            or str(name).lower() in {standard, standard[:3], f"nav_{standard[:3]}", f"xlat{''}"}
        ):
            return str(name)
    return None


def grid_mapping(dataset: xr.Dataset, variable: xr.DataArray) -> tuple[str | None, dict[str, Any]]:
    """Name and CF attributes of the projection of a variable; (None, {}) if there is none."""
    named = attribute(variable, "grid_mapping")
    names: Iterable[Any] = [named.split(":")[0]] if named else dataset.variables
    for name in names:
        if name in dataset.variables and "grid_mapping_name" in dataset[name].attrs:
            return str(name), dict(dataset[name].attrs)
    return None, {}


def cf_attributes(name: str, attributes: Mapping[str, Any]) -> dict[str, str]:
    """standard_name and long_name of a variable: the table's, then the file's."""
    quantity = QUANTITIES.get(name)
    own = {
        key: str(attributes[key]).strip()
        for key in ("standard_name", "long_name")
        if str(attributes.get(key, "unknown")).strip() not in {"unknown", ""}
    }
    if quantity is None:
        return {"standard_name": "", "long_name": name} | own
    return {"long_name": quantity.long_name} | own | {"standard_name": quantity.standard_name}


def _label(name: str, variable: xr.DataArray) -> str:
    standard = attribute(variable, "standard_name")
    return f"{name} ({standard})" if standard and standard != name else name
