"""The sun against almanacs and the textbook formula; the coast against a straight shore."""

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.derived import RADIUS, coast_distance, derived_fields
from apps.climate_downscaling.downscale import Downscaler
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.model import clock_vector
from apps.climate_downscaling.sun import daily_mean, subsolar, sun_columns, sunshine
from apps.climate_downscaling.train import train
from core.errors import AleatorError


def days(text):
    return (np.datetime64(text, "s") - np.datetime64("2000-01-01T12:00:00", "s")) / np.timedelta64(
        1, "D"
    )


def cosine(text, lat, lon):
    south, west = subsolar(np.array([days(text)]))
    grid = Grid(np.array([lat]), np.array([lon]))
    from apps.climate_downscaling.sphere import unit_vectors

    columns = torch.from_numpy(unit_vectors(south, west).T)
    return sunshine(columns, grid).item()


ALMANAC = {  # geometric zenith distance or declination, degrees
    "solstice": ("2019-06-21T15:54", 23.436),
    "equinox": ("2019-03-20T21:58", 0.0),
    "winter": ("2019-12-22T04:19", -23.436),
    "Meeus, example 25.a": ("1992-10-13T00:00", -7.785),
}


@pytest.mark.parametrize("name", ALMANAC)
def test_declinations_are_those_of_almanacs(name):
    when, declination = ALMANAC[name]
    assert subsolar(np.array([days(when)]))[0][0] == pytest.approx(declination, abs=0.012)


def test_the_equation_of_time_is_that_of_almanacs():
    """Apparent minus mean solar time at noon, minutes: the extremes of the year."""
    for when, minutes in {"2019-11-03T12:00": 16.43, "2019-02-11T12:00": -14.23}.items():
        longitude = subsolar(np.array([days(when)]))[1][0]
        assert -4 * longitude == pytest.approx(minutes, abs=0.06)


def test_the_published_example_of_the_solar_position_algorithm():
    """Reda and Andreas (2004): 17 October 2003, 12:30:30 in Golden, Colorado, zenith 50.128°."""
    got = cosine("2003-10-17T19:30:30", 39.742476, -105.1786)
    assert got == pytest.approx(np.cos(np.deg2rad(50.128)), abs=1e-3)


def test_it_is_the_spherical_formula():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lat, lon = rng.uniform(-90, 90), rng.uniform(-180, 180)
        when = f"20{rng.integers(10, 40)}-{rng.integers(1, 13):02d}-15T{rng.integers(24):02d}:00"
        south, west = (np.deg2rad(v[0]) for v in subsolar(np.array([days(when)])))
        phi, hour = np.deg2rad(lat), np.deg2rad(lon) - west
        known = np.sin(phi) * np.sin(south) + np.cos(phi) * np.cos(south) * np.cos(hour)
        assert cosine(when, lat, lon) == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("lat", [-80.0, -45.0, 0.0, 52.0, 75.0, 90.0])
@pytest.mark.parametrize("delta", [-23.4, 0.01, 12.0, 23.4])
def test_the_daily_mean_is_the_integral(lat, delta):
    phi, d = (torch.tensor(np.deg2rad(v)) for v in (lat, delta))
    hours = torch.linspace(-np.pi, np.pi, 20001, dtype=torch.float64)
    every = phi.sin() * d.sin() + phi.cos() * d.cos() * hours.cos()
    assert daily_mean(phi, d).item() == pytest.approx(every.clamp_min(0).mean().item(), abs=1e-4)


def test_other_calendars_have_the_same_seasons(small_climate):
    fine = small_climate(steps=40)
    times = xr.date_range("2001-03-20", periods=40, freq="D", calendar="360_day", use_cftime=True)
    field = open_field(fine.assign_coords(time=times), "tas")
    declination = np.rad2deg(sun_columns(field, "daily_sun", 0, 40)[0])
    assert (np.diff(declination) > 0.2).all()
    assert abs(declination[0]) < 1.0


def test_distances_to_a_straight_shore():
    grid = Grid(np.arange(-2.0, 3), np.arange(0.0, 10))
    land = np.where(grid.x < 4.5, 100.0, 0.0)[None].repeat(5, 0)
    far = coast_distance(grid, land)
    step = np.deg2rad(1) * RADIUS
    np.testing.assert_allclose(far[2], step * np.array([5, 4, 3, 2, 1, -1, -2, -3, -4, -5]), 1e-6)
    assert (coast_distance(grid, np.full((5, 10), 100.0)) == 0).all()


@pytest.fixture(scope="module")
def shore(small_climate, tmp_path_factory):
    fine = small_climate()
    land = np.where(np.arange(12) < 7, 100.0, 0.0)[None].repeat(8, 0)
    fine["sftlf"] = (("lat", "lon"), land.astype("f4"), {"units": "%"})
    path = tmp_path_factory.mktemp("shore") / "fine.nc"
    fine.to_netcdf(path)
    return path


@pytest.mark.parametrize("context", ["coarse", "static"])
def test_a_model_is_told_of_them(shore, settings, tmp_path, context):
    channels = ["sun", "coast", "latitude"]
    config = settings(residual__channels=channels, residual__context=context)
    train(str(shore), tmp_path / "m", config, say=lambda line: None)
    model = Downscaler.load(tmp_path / "m", "cpu").model
    assert model.clock == ("hour", "sun")
    plain = settings(residual__context=context)
    train(str(shore), tmp_path / "plain", plain, say=lambda line: None)
    known = Downscaler.load(tmp_path / "plain", "cpu").model
    extra = model.residual_config()["net"]["field_channels"]
    assert extra == known.residual_config()["net"]["field_channels"] + 3
    assert model.residual_config()["net"]["vector_dim"] == (2 if context == "coarse" else 0)
    field = open_field(shore, "tas").coarsen(2)
    x = torch.from_numpy(field.read(0, 24))
    clock = clock_vector(field, model.clock, 0, 24)
    assert clock.shape == (24, 5)
    mean = model.mean.predict(model.predictors(x))
    told = model.context(x, model.predictors(x), mean, torch.ones_like(mean), clock)["field"]
    sun = told[:, len(model.statics)]
    lat, lon = model.fine_grid.geographic()
    for t in (0, 9, 15):
        when = np.datetime_as_string(field.times[t], "s")
        assert sun[t, 3, 5].item() == pytest.approx(cosine(when, lat[3, 5], lon[3, 5]), abs=1e-5)
    coarse = Downscaler(model)
    assert coarse.field(xr_of(field)).names == ("tas",)
    fine = coarse.downscale(xr_of(field), members=2, time_range="2001-01-02T00:2001-01-02T03")
    assert fine["tas"].notnull().all()


def xr_of(field):
    array = (("time", "lat", "lon"), field.read()[:, 0], {"units": "K"})
    return xr.Dataset(
        {"tas": array}, {"time": field.times, "lat": field.grid.y, "lon": field.grid.x}
    )


def test_mistakes_have_one_clear_line(small_climate, settings, tmp_path):
    fine = open_field(small_climate(), "tas")
    with pytest.raises(AleatorError, match=r"coast needs the land fraction.*statics=FILE"):
        derived_fields(fine, ("coast",))
    with pytest.raises(AleatorError, match=r"residual\.channels"):
        settings(residual__channels=["moon"])
    nameless = Grid(np.arange(4.0), np.arange(4.0), kind="projected", units="1")
    with pytest.raises(AleatorError, match="latitudes and longitudes of the cells are not known"):
        sunshine(torch.zeros(1, 3), nameless)
