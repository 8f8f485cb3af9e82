"""What is written beside the numbers: CF attributes, times, bounds, and the input's own extras."""

import datetime
import warnings

import cftime
import netCDF4
import numpy as np
import pytest
import xarray as xr

from apps.climate_downscaling.cf import QUANTITIES
from apps.climate_downscaling.data import open_field, sample_path
from apps.climate_downscaling.grid import Grid, match
from apps.climate_downscaling.output import create_store, to_netcdf
from apps.climate_downscaling.template import OOD, Encoder, template
from core.errors import AleatorError


def coarse_file(variables=None, times=None, **attributes):
    """A coarse file of 3 x 4 cells; variables are name -> units."""
    times = xr.date_range("2001-01-01", periods=4).values if times is None else times
    shape = (len(times), 3, 4)
    arrays = {
        name: (("time", "lat", "lon"), np.full(shape, 1.0, np.float32), {"units": units})
        for name, units in (variables or {"tas": "K"}).items()
    }
    coordinates = {
        "time": ("time", times),
        "lat": ("lat", 50.0 - np.arange(3), {"units": "degrees_north"}),
        "lon": ("lon", 5.0 + np.arange(4), {"units": "degrees_east"}),
    }
    return xr.Dataset(arrays, coordinates, attributes)


def written(tmp_path, field, members=2, **options):
    """The template as NetCDF, opened with warnings as errors."""
    described = template(field, field.grid.refine(2), members, **options)
    create_store(described, tmp_path / "out.zarr")
    to_netcdf(tmp_path / "out.zarr", tmp_path / "out.nc")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_dataset(tmp_path / "out.nc", decode_timedelta=False) as found:
            return found.load()


def test_variables_say_what_they_are(tmp_path):
    source = coarse_file({"t2m": "degC", "tp": "mm/day", "msl": "hPa", "index": "1"})
    source["t2m"].attrs["cell_methods"] = "time: mean (interval: 1 hour)"
    found = written(tmp_path, open_field(source))
    assert found["t2m"].attrs == {
        "standard_name": "air_temperature",
        "long_name": "near-surface air temperature",
        "units": "degC",
        "units_metadata": "temperature: on_scale",
        "cell_methods": "time: mean (interval: 1 hour)",
    }
    # a depth per time is not a flux: CF has another name for it
    assert found["tp"].attrs["standard_name"] == "lwe_precipitation_rate"
    assert found["tp"].attrs["units"] == "mm/day"
    assert found["msl"].attrs["standard_name"] == "air_pressure_at_mean_sea_level"
    assert found["index"].attrs == {"long_name": "index", "units": "1"}
    assert np.isnan(found["t2m"].encoding["_FillValue"])


@pytest.mark.parametrize(
    ("name", "given", "spelled"),
    [("tas", "C", "degC"), ("psl", "mb", "hPa"), ("sfcWind", "kt", "knot"), ("hurs", "pct", "%")],
)
def test_units_are_spelled_as_udunits_reads_them(name, given, spelled):
    field = open_field(coarse_file({name: given}))
    encoder = Encoder.of(field, field.grid.refine(2))
    assert encoder.variables[0].source_units == spelled
    # the numbers are those of the file again
    values = field.read()[None].repeat(2, -2).repeat(2, -1)
    np.testing.assert_allclose(encoder(values)[name], 1.0, rtol=3e-5)


def test_variables_that_the_model_knows_better():
    """The model's variable takes the file's name and units; one of the model alone has CF's."""
    field = open_field(coarse_file({"t2m": "degC"}))
    trained = open_field(coarse_file({"tas": "K", "pr": "mm/day"})).variables
    encoder = Encoder.of(field, field.grid.refine(2), trained)
    assert encoder.names == ("t2m", "pr")
    assert [v.source_units for v in encoder.variables] == ["degC", "mm/day"]
    nameless = [v.__class__(name="pr", units="mm day-1") for v in trained[1:]]
    encoder = Encoder.of(field, field.grid.refine(2), nameless)
    assert encoder.variables[0].source_units == QUANTITIES["pr"].file_units
    values = np.full((1, 1, 1, 6, 8), 86400.0, np.float32)
    np.testing.assert_allclose(encoder(values)["pr"], 1.0, rtol=1e-6)  # mm s-1


def test_member_and_score(tmp_path):
    found = written(tmp_path, open_field(coarse_file()), members=3)
    assert found["member"].attrs["standard_name"] == "realization"
    np.testing.assert_array_equal(found["member"], [0, 1, 2])
    assert found[OOD].dims == ("time",)
    assert found[OOD].attrs["units"] == "1"
    assert "training" in found[OOD].attrs["long_name"]


def test_axes_and_bounds(tmp_path):
    found = written(tmp_path, open_field(coarse_file()))
    assert found["lat"].attrs == {
        "standard_name": "latitude",
        "long_name": "latitude",
        "units": "degrees_north",
        "axis": "Y",
        "bounds": "lat_bnds",
    }
    assert found["lon"].attrs["standard_name"] == "longitude"
    np.testing.assert_allclose(found["lat"], 50.25 - np.arange(6) / 2)
    np.testing.assert_allclose(found["lat_bnds"][0], [50.5, 50.0])
    np.testing.assert_allclose(found["lon_bnds"][-1], [8.0, 8.5])
    assert found["time"].attrs["units_metadata"] == "leap_seconds: none"
    # bounds and the projection are not data that "coordinates" should list
    for name in ("tas", OOD):
        assert "bnds" not in found[name].encoding.get("coordinates", "")


def test_polar_cells_end_at_the_pole():
    grid = Grid(np.arange(-75.0, 80, 30), np.arange(0.0, 360, 30))
    data = np.zeros((1, 6, 12), np.float32)
    source = xr.Dataset(
        {"tas": (("time", "lat", "lon"), data, {"units": "K"})},
        {"time": xr.date_range("2001", periods=1).values, "lat": grid.y, "lon": grid.x},
    )
    source["lat"].attrs["units"], source["lon"].attrs["units"] = "degrees_north", "degrees_east"
    found = template(open_field(source), grid.refine(3), 1)
    assert found["lat_bnds"].min() == -90
    assert found["lat_bnds"].max() == 90


def test_projected_metres_and_curvilinear_cells(tmp_path):
    cells = np.arange(2.0)
    lat, lon = np.meshgrid(50 + cells, 5 + cells, indexing="ij")
    two = {
        "lat": (("y", "x"), lat, {"units": "degrees_north"}),
        "lon": (("y", "x"), lon, {"units": "degrees_east"}),
    }
    data = {"tas": (("time", "y", "x"), np.zeros((1, 2, 2)), {"units": "K"})}
    time = {"time": xr.date_range("2001", periods=1).values}
    finer = {name: np.kron(v, np.ones((2, 2))) for name, v in (("lat", lat), ("lon", lon))}

    metres = {axis: (axis, 1e3 * cells, {"units": "m"}) for axis in ("y", "x")}
    field = open_field(xr.Dataset(data, {**time, **two, **metres}))
    fine = Grid(*(250 + 500 * (np.arange(4.0) - 1),) * 2, "y", "x", "projected", "m", **finer)
    found = template(field, fine, 1)
    assert found["y"].attrs["standard_name"] == "projection_y_coordinate"
    assert found["x"].attrs["units"] == "m"
    np.testing.assert_allclose(found["x_bnds"][0], [-500, 0])

    field = open_field(xr.Dataset(data, {**time, **two}))
    lat, lon = (50 + np.arange(-0.25, 1.5, 0.5), 5 + np.arange(-0.25, 1.5, 0.5))
    lat, lon = np.meshgrid(lat, lon, indexing="ij")
    fine = Grid(np.arange(4), np.arange(4), "y", "x", "projected", "1", lat=lat, lon=lon)
    coarse = fine.coarsen(2)
    found = template(match(field, coarse), fine, 1)
    assert "y" not in found.coords  # cell numbers are no coordinates
    np.testing.assert_allclose(found["lat"], lat)
    found.to_netcdf(tmp_path / "curvilinear.nc")
    assert open_field(tmp_path / "curvilinear.nc", ensemble=True).grid.same_as(fine)


CALENDARS = {
    "360_day": "days since 1949-12-01",
    "noleap": "days since 1850-1-1",
    "standard": "hours since 1-1-1 00:00:0.0",
    "proleptic_gregorian": "seconds since 1970-01-01",
    "julian": "days since 2000-01-01",
}


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("step", ["D", "6h", "20min"])
def test_times_of_any_calendar_are_exact(tmp_path, calendar, step):
    times = xr.date_range("2004-02-27", periods=5, freq=step, calendar=calendar)
    half = (times[1] - times[0]) / 2
    source = coarse_file(times=times.values)
    source["time_bnds"] = (("time", "bnds"), np.stack([times - half, times + half], 1))
    source["time"].attrs["bounds"] = "time_bnds"
    units = CALENDARS[calendar]
    source["time"].encoding = {"units": units, "calendar": calendar, "dtype": "float64"}
    source["time"].encoding["units"] = units.replace(" 1-1-1", " 0001-1-1")
    source.to_netcdf(tmp_path / "in.nc")
    with netCDF4.Dataset(tmp_path / "in.nc", "a") as file:
        file["time"].units = units
    found = written(tmp_path, open_field(tmp_path / "in.nc"))
    assert found["time"].encoding["calendar"] == calendar
    np.testing.assert_array_equal(found["time"], times)
    np.testing.assert_array_equal(found["time_bnds"], source["time_bnds"])
    assert found["time"].attrs["bounds"] == "time_bnds"
    told = found["time"].encoding["units"].partition(" since ")
    origins = (int(text.split("-")[0]) for text in (told[2], units.partition(" since ")[2]))
    assert next(origins) == next(origins)
    whole = {"D": {"days", "hours", "seconds"}, "6h": {"hours", "seconds"}, "20min": {"seconds"}}
    if step == "D" and calendar != "standard":  # centres of days are not whole days, edges neither
        whole["D"].discard("days")
    assert told[0] == (units.split()[0] if units.split()[0] in whole[step] else told[0])
    assert found["time"].encoding["dtype"].kind == "i"
    counted = calendar in {"standard", "proleptic_gregorian", "julian"}
    assert ("units_metadata" in found["time"].attrs) == counted


def test_dates_that_nobody_has_decoded_yet(tmp_path):
    times = xr.date_range("2004-02-27", periods=4, calendar="noleap")
    source = coarse_file(times=times.values)
    edges = np.stack([times, times + datetime.timedelta(days=1)], 1)
    source["time_bnds"] = (("time", "bnds"), edges)
    source["time"].attrs["bounds"] = "time_bnds"
    source["time"].encoding["units"] = "days since 2004-01-01"
    source.to_netcdf(tmp_path / "in.nc")
    raw = xr.open_dataset(tmp_path / "in.nc", decode_times=False)
    found = written(tmp_path, open_field(raw))
    np.testing.assert_array_equal(found["time"], times)
    assert found["time_bnds"].values[-1, 1] == cftime.DatetimeNoLeap(2004, 3, 3)


def test_the_inputs_extra_coordinates_are_kept(tmp_path):
    hours = np.arange(4).astype("timedelta64[h]").astype("timedelta64[ns]")
    source = coarse_file().assign_coords(
        height=((), 2.0, {"units": "m", "standard_name": "height", "positive": "up"}),
        season=("time", ["winter", "winter", "spring", "spring"]),
        member=((), 7, {"standard_name": "realization"}),
        number=((), 3, {"standard_name": "realization", "units": "1"}),
        step=("time", hours, {"standard_name": "forecast_period"}),
        span=((), 6.0, {"units": "hours"}),
        forecast_reference_time=((), np.datetime64("2000-12-31T12", "ns")),
    )
    source["height"].attrs["bounds"] = "height_bnds"  # which nobody has
    source.to_netcdf(tmp_path / "in.nc")
    found = written(tmp_path, open_field(xr.open_dataset(tmp_path / "in.nc")))
    assert found["height"] == 2
    assert found["height"].attrs == {"units": "m", "standard_name": "height", "positive": "up"}
    np.testing.assert_array_equal(found["season"], source["season"])
    np.testing.assert_array_equal(found["step"], np.arange(4.0))
    assert found["step"].attrs == {"standard_name": "forecast_period", "units": "h"}
    assert found["span"].attrs["units"] == "h"
    assert found["forecast_reference_time"] == np.datetime64("2000-12-31T12")
    # of the two kinds of realization, only the output's own is called so
    assert found["number"] == 3
    assert "standard_name" not in found["number"].attrs
    assert found["member"].size == 2
    assert {"height", "season", "number", "step", "span"} <= set(found["tas"].coords)
    plain = xr.open_dataset(tmp_path / "out.nc")  # no units that read as a duration
    assert plain["span"].dtype == plain["step"].dtype == np.float64


def test_the_file_says_where_it_comes_from(tmp_path):
    source = coarse_file(
        title="A climate",
        history="made yesterday",
        Conventions="CF-1.6",
        institution="Us",
        source="a model",
        tracking_id="123",
        GRIB_centre="ecmf",
    )
    field = open_field(source)
    found = written(tmp_path, field, attributes={"aleator_model": "abc"}, history="downscale x")
    now = datetime.datetime.now(datetime.UTC)
    first, second = found.attrs["history"].splitlines()
    stamp, _, line = first.partition(" ")
    assert abs(datetime.datetime.fromisoformat(stamp) - now).total_seconds() < 60
    assert line == "downscale x"
    assert second == "made yesterday"
    assert found.attrs["Conventions"] == "CF-1.11"
    assert found.attrs["title"] == "Downscaled: A climate"
    assert found.attrs["institution"] == "Us"
    assert found.attrs["source"].endswith("of: a model")
    assert found.attrs["aleator_model"] == "abc"
    assert {"tracking_id", "GRIB_centre"}.isdisjoint(found.attrs)


def test_nothing_is_computed_and_chunks_fit(monkeypatch):
    field = open_field(sample_path()).crop(4).coarsen(4)
    fine = open_field(sample_path()).crop(4).grid
    whole = template(field, fine, 16)
    assert whole["t2m" if "t2m" in whole else "tas"].chunks is not None
    name = next(n for n in whole.data_vars if n != OOD)
    members, steps, ny, nx = whole[name].encoding["chunks"]
    assert (members, ny, nx) == (16, 32, 48)
    assert steps == 2**24 // (4 * 16 * 32 * 48)
    asked = template(field, fine, 16, time_chunk=24)[name].encoding["chunks"]
    assert asked == (16, 24, 32, 48)
    # a map too large for all members at once: fewer members, never parts of maps
    monkeypatch.setattr("apps.climate_downscaling.template.CHUNK_BYTES", 4 * 32 * 48 * 5)
    assert template(field, fine, 16)[name].encoding["chunks"] == (5, 1, 32, 48)


def test_grids_that_do_not_belong_together_are_refused():
    field = open_field(coarse_file())
    fine = field.grid.refine(2)
    with pytest.raises(AleatorError, match=r"not a refinement.*3 x 4 cells"):
        template(field, field.grid.isel(y=slice(2)), 1)
    shifted = Grid(fine.y + 0.5, fine.x)
    with pytest.raises(AleatorError, match="not a refinement"):
        template(field, shifted, 1)
    with pytest.raises(AleatorError, match="members=0"):
        template(field, fine, 0)
