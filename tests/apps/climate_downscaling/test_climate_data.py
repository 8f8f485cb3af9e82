"""Reading files: what is found, converted, sorted, kept, and what is refused and how."""

import pickle

import cftime
import numpy as np
import pytest
import xarray as xr

from apps.climate_downscaling.data import open_field, open_statics, sample_path
from core.errors import AleatorError


def dataset(times=None, *, name="tas", units="K", standard_name="air_temperature", ny=4, nx=6):
    """A small, correct file."""
    if times is None:
        times = np.arange("2000-01-01", "2000-01-11", dtype="datetime64[D]")
    if np.asarray(times).dtype.kind == "M":
        times = times.astype("datetime64[ns]")
    values = 280 + np.random.default_rng(0).normal(size=(len(times), ny, nx)).astype("f4")
    attributes = {"units": units, "standard_name": standard_name}
    return xr.Dataset(
        {name: (("time", "lat", "lon"), values, {k: v for k, v in attributes.items() if v})},
        {
            "time": times,
            "lat": ("lat", 50.0 - np.arange(ny), {"units": "degrees_north"}),
            "lon": ("lon", 5.0 + np.arange(nx), {"units": "degrees_east"}),
        },
    )


def assert_refused(source, *words, **options):
    with pytest.raises(AleatorError) as caught:
        open_field(source, **options).read(0, 2)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_the_sample_is_the_gribs_values(tmp_path):
    field = open_field(sample_path(), "t2m")
    assert field.names == ("tas",)
    assert field.shape == (744, 1, 32, 48)
    assert field.variables[0].units == "K"
    # every 16-bit GRIB value is a multiple of 2^-13 K
    scaled = field.read().astype("f8") * 2**13
    np.testing.assert_array_equal(scaled, np.round(scaled))
    assert field.times[0] == np.datetime64("2019-03-01T00")
    assert set(field.statics) == {"orog", "sftlf"}
    assert 0 <= field.static("sftlf").min() < field.static("sftlf").max() == 100
    assert "Copernicus" in field.attributes["attribution"]


@pytest.mark.parametrize(
    ("name", "standard_name", "wanted"),
    [
        ("tas", "", "tas"),
        ("t2m", "", "tas"),
        ("2t", "", "tas"),
        ("T2M", "", "tas"),
        ("temp", "air_temperature", "tas"),
        ("tas", "air_temperature", "t2m"),
        ("odd", "air_temperature", "air_temperature"),
    ],
)
def test_variables_are_found_by_name_alias_and_standard_name(name, standard_name, wanted):
    field = open_field(dataset(name=name, standard_name=standard_name), [wanted])
    assert field.names == ("tas",)
    assert field.variables[0].source_name == name
    assert field.variables[0].standard_name == "air_temperature"


def test_extremes_share_a_standard_name_and_are_told_apart_by_cell_methods():
    both = dataset(name="a").merge(dataset(name="b"))
    both["a"].attrs["cell_methods"] = "time: maximum"
    both["b"].attrs["cell_methods"] = "time: minimum"
    assert open_field(both, ["tasmin", "tasmax"]).variables[0].source_name == "b"
    assert open_field(both).names == ("tasmax", "tasmin")


def test_a_level_aloft_is_not_the_near_surface():
    assert_refused(dataset(name="ta850"), "no variable tas", "ta850", variables=["tas"])


@pytest.mark.parametrize(
    ("name", "units", "stored", "expected"),
    [
        ("tas", "degC", 15.0, 288.15),
        ("tas", "°C", -3.0, 270.15),
        ("pr", "kg m-2 s-1", 1 / 86400, 1.0),
        ("pr", "kg m**-2 s**-1", 1 / 86400, 1.0),
        ("pr", "mm/day", 3.5, 3.5),
        ("pr", "mm s-1", 1 / 86400, 1.0),
        ("pr", "mm h-1", 2.0, 48.0),
        ("pr", "m s-1", 1e-8, 0.864),
        ("psl", "hPa", 1013.25, 101325.0),
        ("uas", "knots", 10.0, 5.144444),
        ("huss", "g kg-1", 8.0, 0.008),
    ],
)
def test_units_convert_to_canonical(name, units, stored, expected):
    source = dataset(name=name, units=units, standard_name="")
    source[name][:] = stored
    field = open_field(source)
    np.testing.assert_allclose(field.read(), expected, rtol=1e-6)
    assert field.read().dtype == np.float32


@pytest.mark.parametrize(
    ("name", "units", "words"),
    [
        ("tas", "mm/day", ["tas", '"mm/day"', '"K"']),
        ("tas", "bananas", ["bananas"]),
        ("pr", "m", ["amount", "divide"]),
        ("pr", "K", ["pr", "do not convert"]),
        ("tas", "", ["tas", "no units", '"K"']),
    ],
)
def test_units_that_do_not_convert_are_refused(name, units, words):
    assert_refused(dataset(name=name, units=units, standard_name=""), *words)


def test_absent_variable_lists_those_present():
    source = dataset().assign(pr=dataset(name="pr", units="mm/day")["pr"])
    assert_refused(source, "no variable uas", "tas (air_temperature)", "pr", variables=["uas"])


def test_missing_file_and_not_a_climate_file(tmp_path):
    assert_refused(tmp_path / "absent.nc", "absent.nc", "no such file")
    (tmp_path / "notes.txt").write_text("hello " * 100)
    assert_refused(tmp_path / "notes.txt", "notes.txt", "not a NetCDF, Zarr or GRIB")
    (tmp_path / "empty.nc").touch()
    assert_refused(tmp_path / "empty.nc", "empty")
    (tmp_path / "folder").mkdir()
    assert_refused(tmp_path / "folder", "not a Zarr store")


@pytest.mark.parametrize("form", ["NETCDF4", "NETCDF3_64BIT"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated_netcdf(tmp_path, form, kept):
    whole = tmp_path / "whole.nc"
    dataset(ny=40, nx=60).to_netcdf(whole, format=form)
    content = whole.read_bytes()
    cut = tmp_path / "cut.nc"
    cut.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(AleatorError, match=r"cut.nc.*(damaged|cut short|empty)"):
        open_field(cut, "tas").read()


def test_lazily_reads_only_the_slice(tmp_path):
    path = tmp_path / "long.nc"
    times = np.arange("2000-01-01", "2002-01-01", dtype="datetime64[D]")
    source = dataset(times)
    source.to_netcdf(path, encoding={"tas": {"chunksizes": (5, 4, 6)}})
    field = open_field(path)
    assert field.data["tas"].chunks is not None
    np.testing.assert_array_equal(field.read(100, 107)[:, 0], source["tas"][100:107])
    again = pickle.loads(pickle.dumps(field))
    np.testing.assert_array_equal(again.read(3, 5), field.read(3, 5))
    assert again.fingerprint() == field.fingerprint()
    assert again.fingerprint() != open_field(source.isel(lat=slice(3))).fingerprint()


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "proleptic_gregorian"])
def test_calendars_are_kept(tmp_path, calendar):
    days = {"noleap": 59, "360_day": 60}.get(calendar, 60)
    source = dataset(xr.date_range("2004-01-01", periods=366, calendar=calendar).values)
    path = tmp_path / "calendar.nc"
    encoding = {"units": "days since 2000-01-01", "calendar": calendar}
    source.to_netcdf(path, encoding={"time": encoding})
    field = open_field(path)
    assert field.calendar == calendar
    expected = cftime.date2num(
        cftime.datetime(2004, 1, 1, calendar=calendar), "seconds since 1970-01-01", calendar
    )
    assert field.time_keys()[0] == expected
    assert set(np.diff(field.time_keys())) == {86400}
    length = {"noleap": 365, "360_day": 360}.get(calendar, 366)
    np.testing.assert_allclose(field.year_fraction()[:360], np.arange(360) / length, atol=1e-12)
    chosen = open_field(path, time_range="2004-01:2004-02")
    assert len(chosen) == days
    january = 30 if calendar == "360_day" else 31
    assert len(open_field(path, time_range="2004-02-01:")) == 366 - january


def test_hours_of_the_day():
    times = np.arange("2000-01-01", "2000-01-02", 90, dtype="datetime64[m]")
    np.testing.assert_allclose(open_field(dataset(times)).hour(), np.arange(16) * 1.5)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2000-01-02:2000-01-04", 3),
        (":2000-01-04", 4),
        ("2000-01-09:", 2),
        ("2000-01-02T00:00:2000-01-03T12:00", 2),
        ("2000:2000", 10),
        ("2000-01-02/2000-01-02", 1),
    ],
)
def test_time_ranges(text, count):
    assert len(open_field(dataset(), time_range=text)) == count


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("yesterday", ["expected A:B"]),
        (":", ["expected A:B"]),
        ("2000-13-01:2000-14", ["not dates", "2000-01-01"]),
        ("2010:2011", ["selects no time step", "2000-01-01"]),
        ("2000-01-05:2000-01-02", ["selects no time step"]),
    ],
)
def test_bad_time_ranges(text, words):
    assert_refused(dataset(), text, *words, time_range=text)


def test_times_are_sorted_with_a_note_and_never_duplicated():
    source = dataset()
    mixed = source.isel(time=[3, 0, 1, 2, 9, 8, 7, 4, 5, 6])
    field = open_field(mixed)
    assert any("sorted" in note for note in field.notes)
    np.testing.assert_array_equal(field.read()[:, 0], source["tas"])
    backwards = open_field(source.isel(time=slice(None, None, -1)))
    np.testing.assert_array_equal(backwards.read()[:, 0], source["tas"])
    assert_refused(source.isel(time=[0, 1, 1, 2, 2, 3]), "2 duplicated", "2000-01-02")


def test_a_single_date_is_a_time_step():
    source = dataset().assign(orog=(("lat", "lon"), np.ones((4, 6)), {"units": "m"}))
    source["lat_bnds"] = (("lat", "bnds"), np.zeros((4, 2)), {"units": "degrees_north"})
    field = open_field(source.isel(time=3), "tas")
    assert field.times.tolist() == source["time"].values[3:4].tolist()
    np.testing.assert_array_equal(field.read()[:, 0], source["tas"][3:4])
    assert set(field.statics) == {"orog"}
    other = open_field(source.convert_calendar("noleap").isel(time=3))
    assert other.calendar == "noleap"
    assert other.names == ("tas",)


def test_the_steps_of_a_forecast_are_its_times():
    """As cfgrib lays one out: a reference time, steps, and the date that each is valid at."""
    source = dataset().rename(time="step")
    valid = source["step"].values
    source = source.assign_coords(
        step=valid - valid[0],
        time=((), valid[0], {"standard_name": "forecast_reference_time"}),
        valid_time=("step", valid, {"standard_name": "time"}),
    )
    field = open_field(source)
    assert field.times.tolist() == valid.tolist()
    np.testing.assert_array_equal(field.read()[:, 0], source["tas"])
    last = open_field(source.isel(step=-1))
    assert last.times.tolist() == valid[-1:].tolist()


def test_time_must_be_there_and_hold_dates():
    assert_refused(dataset().isel(time=0, drop=True), "tas", "no time axis")
    numbers = dataset().assign_coords(time=np.arange(10))
    assert_refused(numbers, "time holds no dates", "days since")


def test_missing_values_are_counted_and_dated():
    source = dataset()
    source["tas"][4, 1, 2] = np.nan
    source["tas"][6, 1, 2] = np.nan
    field = open_field(source)
    with pytest.raises(AleatorError, match=r"2 of 192 cells, first at 2000-01-05"):
        field.read(1, 9)
    assert np.isnan(field.read(allow_missing=True)).sum() == 2
    source["tas"][0, 0, 0] = 1e20
    with pytest.raises(AleatorError, match="_FillValue"):
        open_field(source).read(allow_missing=True)


def test_irregular_latitudes_are_refused():
    lat = ("lat", [50.0, 49.0, 47.0, 40.0], {"units": "degrees_north"})
    source = dataset().assign_coords(lat=lat)
    assert_refused(source, "lat is irregular", "-7", "remap")


def test_a_map_cut_at_greenwich_is_joined():
    degrees = {"units": "degrees_east"}
    whole = dataset(nx=6).assign_coords(lon=("lon", np.arange(-3.0, 3.0), degrees))
    cut = whole.assign_coords(lon=("lon", whole["lon"].values % 360, degrees)).sortby("lon")
    field = open_field(cut)
    np.testing.assert_array_equal(field.read()[:, 0], whole["tas"])
    np.testing.assert_allclose((field.grid.x + 180) % 360 - 180, np.arange(-3.0, 3.0))


def test_other_dimensions_are_named():
    source = dataset().expand_dims(number=3).assign_coords(number=[0, 1, 2])
    assert_refused(source, "3 members along number", "isel")
    field = open_field(source, ensemble=True)
    assert field.members == 3
    assert field.read(0, 2).shape == (3, 2, 1, 4, 6)
    assert_refused(dataset().expand_dims(plev=2), "2 values along plev")
    one = open_field(dataset().expand_dims(height=[2.0]))
    assert one.extras["height"] == 2.0


def test_several_files_of_times_and_of_variables(tmp_path):
    source = dataset().assign(pr=dataset(name="pr", units="mm/day", standard_name="")["pr"])
    source.isel(time=slice(5))[["tas"]].to_netcdf(tmp_path / "tas_1.nc")
    source.isel(time=slice(5, 10))[["tas"]].to_netcdf(tmp_path / "tas_2.nc")
    source[["pr"]].to_netcdf(tmp_path / "pr_1.nc")
    field = open_field(str(tmp_path / "*.nc"), ["pr", "tas"])
    np.testing.assert_array_equal(field.read()[:, 1], source["tas"])
    np.testing.assert_array_equal(field.read()[:, 0], source["pr"])
    assert_refused(str(tmp_path / "*.grib"), "no such file")


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(tmp_path, version):
    source = dataset()
    source.to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=version == 2)
    field = open_field(tmp_path / "a.zarr")
    np.testing.assert_array_equal(field.read()[:, 0], source["tas"])


def test_statics_of_a_file_of_their_own():
    statics, grid = open_statics(sample_path())
    assert statics["orog"].dims == ("y", "x")
    assert grid.shape == (32, 48)
    source = dataset().isel(time=0, drop=True).rename(tas="lsm")
    source["lsm"].attrs = {"units": "1"}
    fraction, _ = open_statics(source, ["sftlf"])
    np.testing.assert_allclose(fraction["sftlf"], source["lsm"] * 100, rtol=1e-6)


def test_coarsening_keeps_the_area_mean():
    field = open_field(sample_path()).isel(time=slice(3))
    coarse = field.coarsen(4)
    assert coarse.shape == (3, 1, 8, 12)
    fine, means = (
        (f.read()[:, 0] * f.grid.area_weights()).mean((1, 2), dtype="f8") for f in (field, coarse)
    )
    np.testing.assert_allclose(means, fine, rtol=1e-6)
    assert coarse.static("orog").shape == (8, 12)
