"""Means over time as a condition: exact for Gaussian days, kept by members, read from files."""

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.downscale import Downscaler, ensemble
from apps.climate_downscaling.preprocessing import Transforms
from apps.climate_downscaling.stations import Seen
from apps.climate_downscaling.time_means import (
    Period,
    TimeMeans,
    draw_period,
    fill_periods,
    read_time_means,
)
from core.diffusion import Diffusion
from core.errors import AleatorError
from core.random import keyed_generator
from pipelines.climate import app as climate

DAYS, SIDE = 6, 40


class Zero(torch.nn.Module):
    """White noise of unit variance: EDM's preconditioning is then the whole denoiser."""

    def forward(self, x, noise, context=None):
        return 0 * x


class White:
    """Fields μ + s r of independent cells, r white."""

    def __init__(self, trained, mean, scale):
        self.trained, self.facts = trained, (mean, scale, None)

    def conditions(self, coarse, clock):
        return self.facts

    def inflated(self, residual):
        return residual

    def finished(self, z, coarse, conserve):
        return z

    def sampler(self, over=None):
        return {"name": "2m", "steps": 32, **(over or {})}


@pytest.mark.exact
def test_days_of_a_gaussian_prior_are_drawn_from_their_joint_posterior():
    """Cells are independent: one draw of 40 × 40 cells is 1600 draws of a series of six days."""
    prior = Diffusion(Zero(), (1, SIDE, SIDE), path={"name": "edm"})
    mean = 280 + torch.arange(DAYS).float()[:, None, None, None].expand(-1, 1, SIDE, SIDE)
    s, e, known = 2.0, 0.5, 284.0
    model = White(prior, mean, torch.full_like(mean, s))
    cells = np.arange(SIDE**2)
    seen = Seen(cells, np.full(len(cells), known), np.full(len(cells), e))
    noise = [keyed_generator(0, t) for t in range(DAYS)]
    drawn = draw_period(model, torch.empty(0), torch.empty(0), seen, noise, conserve=False)
    y = drawn[:, 0].flatten(1).double()
    prior_mean, prior_variance = 280 + (DAYS - 1) / 2, s**2 / DAYS
    gain = prior_variance / (prior_variance + e**2)
    shift = gain * (known - prior_mean)
    assert y.mean(0).mean().item() == pytest.approx(prior_mean + shift, abs=0.05)
    assert y.mean(0).std().item() == pytest.approx(e * gain**0.5, rel=0.08)
    for t in range(DAYS):  # every day takes its share of the news
        assert y[t].mean().item() == pytest.approx(280 + t + shift, abs=0.2)
    assert y.var(1).mean().item() == pytest.approx(s**2 * (1 - gain / DAYS), rel=0.05)


@pytest.mark.exact
def test_a_mean_and_an_observation_of_a_day_are_conditions_of_one_draw():
    """Six normal days of a cell, their mean known, and the third: a linear Gaussian posterior."""
    prior = Diffusion(Zero(), (1, SIDE, SIDE), path={"name": "edm"})
    mean = torch.full((DAYS, 1, SIDE, SIDE), 280.0)
    s, e, known, sigma, observed = 2.0, 0.5, 281.0, 1.0, 283.0
    model = White(prior, mean, torch.full_like(mean, s))
    model.transforms = Transforms.of(("tas",))
    cells = np.arange(SIDE**2)
    seen = Seen(cells, np.full(len(cells), known), np.full(len(cells), e))
    there = {2: Seen(cells, np.full(len(cells), observed), np.full(len(cells), sigma))}
    noise = [keyed_generator(3, t) for t in range(DAYS)]
    drawn = draw_period(
        *(model, torch.empty(0), torch.empty(0), seen, noise), conserve=False, stations=there
    )
    rows = np.stack([np.full(DAYS, 1 / DAYS), np.eye(DAYS)[2]])
    precision = np.eye(DAYS) / s**2 + rows.T @ np.diag([1 / e**2, 1 / sigma**2]) @ rows
    covariance = np.linalg.inv(precision)
    news = (np.array([known, observed]) - 280) / [e**2, sigma**2]
    expected = 280 + covariance @ (rows.T @ news)
    y = drawn[:, 0].flatten(1).double().numpy()
    np.testing.assert_allclose(y.mean(1), expected, atol=0.2)
    np.testing.assert_allclose(np.cov(y), covariance, atol=0.4)  # 3.3 standard errors
    assert np.cov(y)[2, 2] == pytest.approx(covariance[2, 2], rel=0.1)


def test_amounts_are_averaged_as_amounts():
    """Not in the space of the model: the mean of squares is what is known."""
    prior = Diffusion(Zero(), (1, SIDE, SIDE), path={"name": "edm"})

    class Squares(White):
        def finished(self, z, coarse, conserve):
            return z.square()

    mean = torch.full((DAYS, 1, SIDE, SIDE), 3.0)
    model = Squares(prior, mean, torch.full_like(mean, 0.5))
    seen = Seen(np.arange(SIDE**2), np.full(SIDE**2, 11.0), np.full(SIDE**2, 0.1))
    noise = [keyed_generator(1, t) for t in range(DAYS)]
    drawn = draw_period(model, torch.empty(0), torch.empty(0), seen, noise)
    assert drawn.mean(0).mean().item() == pytest.approx(11.0, abs=0.1)
    assert drawn.mean(0).std() < 0.25  # free, it is 1.2
    assert drawn.std(0).mean() > 2  # days remain days


@pytest.fixture
def opened(small_model, climate_files):
    downscaler = Downscaler.load(small_model, "cpu")
    return downscaler.model, downscaler.field(climate_files / "coarse.nc"), downscaler


def day(field, first, seen):
    return Period(int(field.time_keys()[first]), int(field.time_keys()[first]) + 12 * 3600, seen)


def test_members_agree_with_the_mean_and_keep_the_coarse_fields(opened):
    model, field, _ = opened
    free = ensemble(model, field, 0, 20, members=3, seed=1)
    wanted = float(free[:, 2:14, 0, 3, 4].mean()) + 0.3
    seen = Seen(np.array([3 * 12 + 4]), np.array([wanted]), np.array([0.02]))
    means = TimeMeans("means", (day(field, 2, seen),))
    assert "1 periods, 1 values" in means.describe(field)
    given = ensemble(model, field, 0, 20, members=3, seed=1, means=means)
    before, after = (np.abs(f[:, 2:14, 0, 3, 4].mean(1) - wanted) for f in (free, given))
    assert before.min() > 0.15
    assert after.max() < 0.08
    for outside in (slice(0, 2), slice(14, 20)):
        np.testing.assert_array_equal(given[:, outside], free[:, outside])
    blocks = [f.reshape(3, 20, 1, 4, 2, 6, 2).mean((4, 6)) for f in (free, given)]
    np.testing.assert_allclose(blocks[0], blocks[1], atol=2e-3)
    # whatever chunk of the period is asked for
    parts = [
        ensemble(model, field, *rows, members=3, seed=1, means=means) for rows in ((0, 7), (7, 20))
    ]
    np.testing.assert_array_equal(np.concatenate(parts, 1), given)


def test_only_steps_of_periods_are_filled():
    out = np.zeros((2, 4, 1))
    drawn = []

    def draw(days, seen, member):
        drawn.append((days, member))
        return np.arange(days.start, days.stop)[:, None] + 100.0 * member

    blocks = [(slice(0, 3), None), (slice(3, 6), None), (slice(8, 9), None)]
    left = fill_periods(blocks, 2, out, draw)
    assert left.tolist() == [False, False, False, False]
    assert out[1, :, 0].tolist() == [102, 103, 104, 105]
    assert len(drawn) == 4


def file_of(field, path, bounds, value=281.0, **more):
    """Means of all cells of the small model, one for each pair of hours."""
    times = field.times[0] + np.array(bounds) * np.timedelta64(3600, "s")
    shape = (len(bounds), 8, 12)
    dataset = xr.Dataset(
        {
            "tas": (("time", "lat", "lon"), np.full(shape, value, np.float32), {"units": "K"}),
            "time_bnds": (("time", "b"), times),
        },
        {
            "time": ("time", times[:, 0], {"bounds": "time_bnds"}),
            "lat": ("lat", 50.0 - 0.25 * np.arange(8), {"units": "degrees_north"}),
            "lon": ("lon", 5.0 + 0.25 * np.arange(12), {"units": "degrees_east"}),
        },
    )
    dataset.assign(**more).to_netcdf(path)
    return path


def test_periods_are_the_bounds_or_else_months(opened, tmp_path):
    _, field, downscaler = opened
    start = int(field.time_keys()[0])
    means = downscaler.time_means(file_of(field, tmp_path / "m.nc", [(0, 24), (24, 48)]))
    spans = [(p.first - start, p.last - start) for p in means.periods]
    assert spans == [(0, 86400), (86400, 2 * 86400)]
    assert len(means.periods[0].seen.cells) == 96
    assert means.periods[0].seen.errors[0] == 0.1
    table = tmp_path / "m.csv"
    table.write_text("time,lat,lon,tas [degC]\n2001-02-15,50,5,8\n2001-01-03,50,5,7\n")
    months = downscaler.time_means(table, {"tas": 0.3})
    spans = [np.array([p.first, p.last], "datetime64[s]").astype(str) for p in months.periods]
    assert [s[0][:10] for s in spans] == ["2001-01-01", "2001-02-01"]
    assert [s[1][:10] for s in spans] == ["2001-02-01", "2001-03-01"]
    assert months.periods[0].seen.values.tolist() == pytest.approx([280.15])
    assert months.periods[0].seen.errors.tolist() == [0.3]
    with pytest.raises(AleatorError, match="no period of its 2 is wholly in the input"):
        months.describe(field)  # a hundred hours
    assert means.fingerprint() != months.fingerprint()


@pytest.mark.parametrize(
    ("bounds", "errors", "message"),
    [
        ([(0, 24), (12, 36)], {}, "overlap"),
        ([(0, 24)], {"pr": 1.0}, "the model's variables are tas"),
        ([(0, 24)], {"tas": -1.0}, "positive"),
    ],
)
def test_unclear_periods_and_errors_are_refused(opened, tmp_path, bounds, errors, message):
    _, field, downscaler = opened
    with pytest.raises(AleatorError, match=message):
        downscaler.time_means(file_of(field, tmp_path / "m.nc", bounds), errors)


def test_bad_files_are_refused(opened, tmp_path):
    model, field, downscaler = opened
    with pytest.raises(AleatorError, match="no such file"):
        downscaler.time_means(tmp_path / "none.nc")
    twice = tmp_path / "twice.csv"
    twice.write_text("time,lat,lon,tas [K]\n2001-01-03,50,5,280\n2001-01-04,50,5,280\n")
    with pytest.raises(AleatorError, match="several means in a month"):
        downscaler.time_means(twice)
    empty = file_of(field, tmp_path / "empty.nc", [(0, 24)], value=np.nan)
    with pytest.raises(AleatorError, match="no mean in any cell"):
        downscaler.time_means(empty)
    with xr.open_dataset(file_of(field, tmp_path / "m.nc", [(0, 24)])) as known:
        known.isel(lat=slice(0, 4)).to_netcdf(tmp_path / "half.nc")
        known.rename(tas="zg").to_netcdf(tmp_path / "other.nc")
    with pytest.raises(AleatorError, match="grid"):
        downscaler.time_means(tmp_path / "half.nc")
    with pytest.raises(AleatorError):
        read_time_means(
            tmp_path / "other.nc", model.variables, model.fine_grid, model.valid.numpy()
        )


def test_other_families_are_refused(opened):
    model = White(torch.nn.Identity(), None, None)
    model.config = opened[0].config
    with pytest.raises(AleatorError, match="diffusion or flow matching"):
        draw_period(model, torch.empty(0), torch.empty(0), None, [])


def test_the_command_takes_them(small_model, climate_files, opened, tmp_path, capfd):
    _, field, downscaler = opened
    free = ensemble(downscaler.model, field, 0, 100, members=2)
    value = float(free[:, :12, 0, 3, 4].mean()) + 0.2
    means = tmp_path / "means.nc"
    file_of(field, means, [(0, 12)], value=np.nan)
    with xr.open_dataset(means) as known:
        known = known.load()
    known["tas"][0, 3, 4] = value
    known.to_netcdf(means)
    common = [str(climate_files / "coarse.nc"), "--model", str(small_model), "--members", "2"]
    common += ["--no-figure", "--device", "cpu", "--time-means", str(means)]
    out = tmp_path / "out.nc"
    given = ["downscale", *common, "-o", str(out), "--time-mean-error", "tas=0.02"]
    climate(given, standalone_mode=False)
    assert "means of 1 periods, 1 values" in capfd.readouterr().err
    with xr.open_dataset(out) as found:
        mean = found["tas"][:, :12, 3, 4].mean("time").values
    np.testing.assert_allclose(mean, value, atol=0.08)
    # a station beside them, in another cell on one of the days
    when = np.datetime_as_string(field.times[5], unit="s")
    lat, lon = (float(axis[1, 9]) for axis in downscaler.model.fine_grid.geographic())
    observed = float(free[0, 5, 0, 1, 9]) + 0.4
    table = tmp_path / "stations.csv"
    table.write_text(f"time,lat,lon,tas [K]\n{when},{lat},{lon},{observed}\n")
    both = ["--observations", str(table), "--observation-error", "tas=0.05", "--no-conserve"]
    both += ["-o", str(tmp_path / "b.nc"), "--time-mean-error", "tas=0.02"]
    climate(["downscale", *common, *both], standalone_mode=False)
    shown = capfd.readouterr().err
    assert "1 observations" in shown
    assert "1 values" in shown
    with xr.open_dataset(tmp_path / "b.nc") as found:
        mean = found["tas"][:, :12, 3, 4].mean("time").values
        there = found["tas"][:, 5, 1, 9].values
    np.testing.assert_allclose(mean, value, atol=0.08)
    np.testing.assert_allclose(there, observed, atol=0.2)
