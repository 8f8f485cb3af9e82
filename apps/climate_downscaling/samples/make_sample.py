"""Make the bundled ERA5 sample from the GRIB that it comes from.

    python apps/climate_downscaling/samples/make_sample.py FOLDER

FOLDER holds `era5-2mt-2019-03-uk.grib` (xarray's tutorial data, pydata/xarray-data) and
`era5-uk_orog_sftlf_etopo20.nc` (ETOPO20 averaged on the same cells). The first 32 × 48 cells are
kept, as float32: every 16-bit value of the GRIB is a multiple of 2^-13 K, which float32 holds
exactly, so nothing is lost. Needs `aleator[grib]`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import xarray as xr

GRIB = "era5-2mt-2019-03-uk.grib"
STATIC = "era5-uk_orog_sftlf_etopo20.nc"
SAMPLE = "era5_uk_t2m_2019-03.nc"
ROWS, COLUMNS = 32, 48

ATTRIBUTES = {
    "Conventions": "CF-1.11",
    "title": "ERA5 hourly 2 m temperature over the British Isles, March 2019, 0.25 degree",
    "institution": "European Centre for Medium-Range Weather Forecasts (Copernicus C3S)",
    "source": "ERA5 reanalysis; orography and land fraction from ETOPO20",
    "references": "Hersbach et al. (2020), doi:10.1002/qj.3803",
    "license": (
        "Licence to use Copernicus Products: free to use and redistribute with attribution. "
        "ETOPO20 is in the public domain."
    ),
    "attribution": (
        "Contains modified Copernicus Climate Change Service information 2019; neither the "
        "European Commission nor ECMWF is responsible for any use of it."
    ),
    "comment": "First 32 x 48 cells of the 33 x 49 of the GRIB; values unchanged.",
    "history": (
        "GRIB (pydata/xarray-data, era5-2mt-2019-03-uk.grib) to NetCDF by "
        "apps/climate_downscaling/samples/make_sample.py"
    ),
}


def make(folder: Path, target: Path) -> xr.Dataset:
    """Read the sources in `folder`, write the sample to `target` and return it."""
    window = {"latitude": slice(ROWS), "longitude": slice(COLUMNS)}
    grib = xr.open_dataset(folder / GRIB, engine="cfgrib", backend_kwargs={"indexpath": ""})
    static = xr.open_dataset(folder / STATIC)
    grib, static = grib.isel(window), static.isel(window)
    for axis in window:
        np.testing.assert_array_equal(grib[axis], static[axis])
    on_map = ("latitude", "longitude")
    sample = xr.Dataset(
        {
            "tas": (
                ("time", *on_map),
                grib["t2m"].values,
                {
                    "standard_name": "air_temperature",
                    "long_name": "2 metre temperature",
                    "units": "K",
                    "cell_methods": "time: point",
                },
            ),
            "orog": (
                on_map,
                static["orog"].values,
                {
                    "standard_name": "surface_altitude",
                    "long_name": "orography, ETOPO20 averaged on the cell",
                    "units": "m",
                },
            ),
            "sftlf": (
                on_map,
                static["sftlf"].values.clip(0, 100),  # rounding left 100.0002
                {
                    "standard_name": "land_area_fraction",
                    "long_name": "land fraction, ETOPO20 averaged on the cell",
                    "units": "%",
                },
            ),
        },
        {
            "time": ("time", grib["time"].values, {"standard_name": "time", "axis": "T"}),
            "latitude": ("latitude", grib["latitude"].values, _axis("latitude", "north", "Y")),
            "longitude": ("longitude", grib["longitude"].values, _axis("longitude", "east", "X")),
            "height": (
                (),
                2.0,
                {"standard_name": "height", "units": "m", "positive": "up", "axis": "Z"},
            ),
        },
        ATTRIBUTES,
    )
    packed = {"zlib": True, "complevel": 9, "shuffle": True, "_FillValue": None}
    encoding: dict[str, dict] = {
        str(name): {**packed, "chunksizes": (186, ROWS, COLUMNS)[-sample[name].ndim :]}
        for name in sample.data_vars
    }
    encoding |= {name: {"_FillValue": None} for name in ("latitude", "longitude", "height")}
    encoding["time"] = {"units": "hours since 2019-03-01 00:00:00", "dtype": "int32"}
    sample.to_netcdf(target, encoding=encoding)
    return sample


def _axis(name: str, direction: str, axis: str) -> dict[str, str]:
    return {
        "standard_name": name,
        "long_name": name,
        "units": f"degrees_{direction}",
        "axis": axis,
    }


if __name__ == "__main__":
    destination = Path(__file__).with_name(SAMPLE)
    made = make(Path(sys.argv[1]), destination)
    again = xr.open_dataset(destination)
    np.testing.assert_array_equal(again["tas"], made["tas"])
    print(f"{destination.name}: {destination.stat().st_size} bytes, {dict(made.sizes)}")
