"""A store laid out as ARCO-ERA5, opened lazily behind URLs, cut by region and time, trained on."""

import numpy as np
import pytest
import xarray as xr

from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.predictors import open_predictors
from apps.climate_downscaling.remote import as_asked
from apps.climate_downscaling.window import parse_region
from core.errors import AleatorError

HOURS = 40_000
KNOWN = slice(20_000, 20_048)
LEVELS = [500, 700, 850]


@pytest.fixture(scope="module")
def store():
    """URL of an archive of years, of which two days are written; the rest costs nothing."""
    import dask.array as da

    lat, lon = np.arange(60, 29.9, -2.0), np.arange(0, 360, 2.0)
    times = np.datetime64("1998-01-01", "ns") + np.arange(HOURS) * np.timedelta64(1, "h")
    shape = (HOURS, len(lat), len(lon))
    flat = da.full(shape, np.nan, dtype="f4", chunks=(10_000, -1, -1))
    deep = da.full(
        (HOURS, len(LEVELS), *shape[1:]), np.nan, dtype="f4", chunks=(10_000, -1, -1, -1)
    )
    dims = ("time", "latitude", "longitude")
    whole = xr.Dataset(
        {
            "2m_temperature": (dims, flat, {"short_name": "t2m", "units": "K"}),
            "total_precipitation": (dims, flat, {"short_name": "tp", "units": "m"}),
            "mean_sea_level_pressure": (dims, flat, {"short_name": "msl"}),  # units lost
            "temperature": (("time", "level", *dims[1:]), deep, {"short_name": "t"}),
        },
        {
            "time": times,
            "level": ("level", np.array(LEVELS)),
            "latitude": ("latitude", lat, {"units": "degrees_north"}),
            "longitude": ("longitude", lon, {"units": "degrees_east"}),
        },
    )
    url = "memory://arco/era5.zarr-v3"
    encoding = {n: {"chunks": (1, *v.shape[1:])} for n, v in whole.data_vars.items()}
    whole.to_zarr(
        url, mode="w", compute=False, zarr_format=2, consolidated=True, encoding=encoding
    )
    rng = np.random.default_rng(0)
    part = whole.isel(time=KNOWN).drop_vars(["latitude", "longitude", "level"])
    values = {n: (v.dims, rng.random(v.shape).astype("f4")) for n, v in part.items()}
    written = xr.Dataset(values, {"time": part["time"]})
    written["2m_temperature"] = written["2m_temperature"] + 280
    written["total_precipitation"] = written["total_precipitation"] * 1e-3
    written.drop_vars("time").to_zarr(url, region={"time": KNOWN}, mode="r+")
    return url, written.assign_coords(latitude=lat, longitude=lon, level=LEVELS)


def test_names_units_and_rates_are_those_of_the_field(store):
    url, known = store
    first, last = (known["time"].values[i] for i in (0, -1))
    window = f"{np.datetime_as_string(first, 'm')}:{np.datetime_as_string(last, 'm')}"
    window = window.replace("T", " ")
    names = ["tas", "pr", "psl", "ta850"]
    field = open_field(url, names, time_range=window)
    assert len(field) == 48
    assert field.names == ("tas", "pr", "psl", "ta850")
    assert [v.units for v in field.variables] == ["K", "mm day-1", "Pa", "K"]
    got = field.read()
    np.testing.assert_array_equal(got[:, 0], known["2m_temperature"])
    np.testing.assert_allclose(got[:, 1], known["total_precipitation"] * 24000, rtol=1e-5)
    np.testing.assert_array_equal(got[:, 2], known["mean_sea_level_pressure"])
    np.testing.assert_array_equal(got[:, 3], known["temperature"].sel(level=850))


def test_only_the_part_asked_for_is_in_the_graph(store):
    url, known = store
    day = "2000-04-13:2000-04-13"
    field = open_field(url, "2m_temperature", time_range=day, region="36:44,-10:4")
    assert len(field) == 24
    np.testing.assert_array_equal(field.grid.y, np.arange(44, 35, -2.0))
    np.testing.assert_allclose(field.grid.x % 360, np.arange(-10, 5, 2.0) % 360)
    assert (np.diff(field.grid.x) == 2).all()  # across Greenwich in one piece
    assert field.data["tas"].data.npartitions < 30
    assert sum(field.data["tas"].data.chunks[0]) == 24
    east = known["2m_temperature"].assign_coords(longitude=known["longitude"] % 360)
    columns = np.arange(-10, 5, 2.0) % 360
    rows = np.arange(44, 35, -2.0)
    wanted = east.sel(latitude=rows, longitude=columns)
    at = np.isin(known["time"].values, field.times)
    some = np.isin(field.times, known["time"].values)
    np.testing.assert_array_equal(field.read(allow_missing=True)[some, 0], wanted.values[at])


def test_predictors_come_from_it_with_their_neighbours(store):
    url, known = store
    hour = known["time"].values[10]
    text = np.datetime_as_string(hour, "m").replace("T", " ")
    options = {"lags": (-1, 0, 1), "time_range": f"{text}:{text}", "region": "30:50,350:374"}
    field = open_predictors([url], ["tas", "ta700"], **options)
    assert field.names == ("tas[-1]", "ta700[-1]", "tas", "ta700", "tas[+1]", "ta700[+1]")
    got = field.read()[0]
    columns = np.arange(350, 375, 2.0) % 360
    around = known["2m_temperature"].sel(latitude=slice(50, 30), longitude=columns)
    for channel, step in ((0, 9), (2, 10), (4, 11)):
        np.testing.assert_allclose(got[channel], around.values[step], rtol=1e-6)


def test_a_folder_by_its_file_url_is_the_folder(store, tmp_path):
    _, known = store
    local = known[["2m_temperature"]].assign_coords(time=known["time"])
    local["2m_temperature"].attrs["units"] = "K"
    for axis, unit in (("latitude", "degrees_north"), ("longitude", "degrees_east")):
        local[axis].attrs["units"] = unit
    local.to_zarr(tmp_path / "local.zarr", zarr_format=2, consolidated=True)
    one = open_field(f"file://{tmp_path}/local.zarr", "tas")
    two = open_field(tmp_path / "local.zarr", "tas")
    assert one.fingerprint() == two.fingerprint()


def test_mistakes_have_one_clear_line(store):
    url, _ = store
    for scheme, package in (("gs", "gcsfs"), ("s3", "s3fs"), ("abfs", "adlfs")):
        pytest.importorskip("fsspec")
        if _installed(package):
            continue
        with pytest.raises(AleatorError, match=f"reading it needs {package}; pip install"):
            open_field(f"{scheme}://bucket/era5.zarr")
    with pytest.raises(AleatorError, match="Protocol not known: teleport"):
        open_field("teleport://bucket/era5.zarr")
    with pytest.raises(AleatorError, match="no Zarr store there"):
        open_field("memory://nowhere/era5.zarr")
    with pytest.raises(AleatorError, match=r"temperature has no level 925 hPa; it has 500, 700"):
        open_field(url, "ta925")
    with pytest.raises(AleatorError, match="selects no time step"):
        open_field(url, "tas", time_range="1950:1951")
    with pytest.raises(AleatorError, match="no cell within --region -80:-70,0:10"):
        open_field(url, "tas", region="-80:-70,0:10")


def test_regions_that_are_none_are_refused():
    assert parse_region("36:44, -10:4") == (36, 44, -10, 4)
    for text, why in {
        "36-44": "expected lat0:lat1,lon0:lon1",
        "44:36,0:10": "southern to the northern",
        "36:95,0:10": "within -90 and 90",
        "36:44,10:0": "western to the eastern",
        "0:1,0:361": "western to the eastern",
    }.items():
        with pytest.raises(AleatorError, match=why):
            parse_region(text)


def test_daily_sums_are_not_taken_for_hourly_ones():
    times = np.datetime64("2000-01-01", "ns") + np.arange(3) * np.timedelta64(1, "D")
    rain = xr.DataArray(np.ones((3,)), {"time": times}, ("time",), attrs={"units": "m"})
    daily = as_asked(xr.Dataset({"total_precipitation": rain}), ["pr"], "x")
    assert daily["total_precipitation"].attrs["units"] == "m"


def _installed(package):
    import importlib.util

    return importlib.util.find_spec(package) is not None
