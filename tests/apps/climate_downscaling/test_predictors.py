"""Predictors from several files: one grid, common times, neighbours, clear refusals."""

import numpy as np
import pytest
import xarray as xr

from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.predictors import (
    PredictorConfig,
    base_name,
    open_predictors,
    same_times,
    with_lags,
)
from core.errors import AleatorError

UNITS = {"tas": "K", "psl": "Pa", "pr": "mm day-1"}
DAYS = np.datetime64("2001-01-01", "ns") + np.arange(12) * np.timedelta64(1, "D")


def dataset(names, lat, lon, times=DAYS, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        n: (
            ("time", "lat", "lon"),
            rng.random((len(times), len(lat), len(lon))).astype(np.float32),
            {"units": UNITS[n]},
        )
        for n in names
    }
    coords = {
        "time": times,
        "lat": ("lat", lat, {"units": "degrees_north"}),
        "lon": ("lon", lon, {"units": "degrees_east"}),
    }
    return xr.Dataset(arrays, coords)


COARSE = np.arange(40.0, 46, 2), np.arange(0.0, 8, 2)
OTHER = np.arange(39.5, 46.5, 1.5), np.arange(-1.0, 8, 1.5)


def test_two_files_on_the_grid_of_the_first():
    a, b = dataset(["psl"], *COARSE), dataset(["tas", "pr"], *OTHER, seed=1)
    field = open_predictors([a, b])
    assert field.names == ("psl", "tas", "pr")
    assert field.grid.shape == (3, 4)
    np.testing.assert_array_equal(field.read()[:, 0], a["psl"].values)
    theirs = b["tas"].interp(lat=a["lat"], lon=a["lon"])
    np.testing.assert_allclose(field.read()[:, 1], theirs, atol=1e-5)


def test_variables_can_be_chosen_and_ordered():
    a, b = dataset(["psl"], *COARSE), dataset(["tas", "pr"], *OTHER)
    assert open_predictors([a, b], ["pr", "psl"]).names == ("pr", "psl")
    with pytest.raises(
        AleatorError, match=r"no variable hus850, which the model needs; there are psl$"
    ):
        open_predictors([a], ["psl", "hus850"])
    with pytest.raises(AleatorError, match=r"tas is in .* and in"):
        open_predictors([b, b])
    with pytest.raises(AleatorError, match="none of the model's predictors; it has tas, pr"):
        open_predictors([a, b], ["psl"])


def test_times_are_those_that_all_have_by_the_day():
    noon = DAYS[3:] + np.timedelta64(12, "h")
    field = open_predictors([dataset(["psl"], *COARSE), dataset(["tas"], *COARSE, times=noon)])
    np.testing.assert_array_equal(field.times, DAYS[3:])
    fine = open_field(dataset(["tas"], *OTHER, times=noon[:5]))
    ours, theirs = same_times(field, fine)
    np.testing.assert_array_equal(ours.times, DAYS[3:8])
    np.testing.assert_array_equal(theirs.times, noon[:5])
    later = dataset(["tas"], *COARSE, times=DAYS + np.timedelta64(365, "D"))
    with pytest.raises(AleatorError, match="have no time in common"):
        open_predictors([dataset(["psl"], *COARSE), later])


def test_neighbours_stop_at_gaps_and_reach_beyond_the_range_asked_for():
    gap = np.concatenate([DAYS[:6], DAYS[6:] + np.timedelta64(200, "D")])
    source = dataset(["tas"], *COARSE, times=gap)
    values = source["tas"].values
    field = with_lags(open_predictors([source]), (-1, 0, 1))
    assert field.names == ("tas[-1]", "tas", "tas[+1]")
    assert {base_name(name) for name in field.names} == {"tas"}
    before, now, after = field.read().transpose(1, 0, 2, 3)
    np.testing.assert_array_equal(now, values)
    np.testing.assert_array_equal(before, values[[0, 0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10]])
    np.testing.assert_array_equal(after, values[[1, 2, 3, 4, 5, 5, 7, 8, 9, 10, 11, 11]])
    part = open_predictors([source], lags=(-1, 0, 1), time_range="2001-01-03:2001-01-04")
    np.testing.assert_array_equal(part.read(), field.read(2, 4))


def test_an_ensemble_and_strange_lags_are_refused():
    several = dataset(["tas"], *COARSE).expand_dims(member=[0, 1])
    with pytest.raises(AleatorError, match="member"):
        open_predictors([several])
    with pytest.raises(AleatorError, match="with 0 among them"):
        PredictorConfig(lags=(-1, 1))
    with pytest.raises(AleatorError, match="positive candidates"):
        PredictorConfig(strengths=())
