"""Rare events: pooled distributions, return levels and fractions, against references."""

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

from apps.climate_downscaling.distribution import Pool, levels_of, wasserstein
from apps.climate_downscaling.extremes import Maxima, gev, l_moments, return_level
from apps.climate_downscaling.fractions import Fractions
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.plots_tails import draw_tails
from apps.climate_downscaling.tails import Tails
from apps.climate_downscaling.times import season_years

LEVELS = (0.001, 0.05, 0.5, 0.9, 0.999)


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40_000, generator=generator) for _ in range(2))
    return 5 * a + 280, 6 * b + 281


def pools(*values, centre=280.0):
    """One pool each."""
    filled = [Pool(centre) for _ in values]
    for pool, part in zip(filled, values, strict=True):
        pool.add(part)
    return filled


def test_quantiles_are_numpys_to_the_width_of_a_bin(samples):
    (pool,) = pools(samples[0])
    wanted = np.quantile(samples[0].numpy(), LEVELS, method="inverted_cdf")
    np.testing.assert_allclose(pool.quantiles(LEVELS) - 280, wanted - 280, rtol=1 / 2048)


def test_a_pool_does_not_depend_on_how_it_is_filled(samples):
    (whole,) = pools(samples[0])
    parts = Pool(280.0)
    for part in samples[0].split(777):
        parts.add(part)
    assert torch.equal(whole.counts, parts.counts)


def test_zeros_of_either_sign_and_missing_values():
    (pool,) = pools(torch.tensor([0.0, -0.0, 3.0, -2.0, torch.nan]), centre=0.0)
    assert pool.size == 4
    np.testing.assert_allclose(pool.quantiles([0.1, 0.5, 0.7, 1]), [-2, 0, 0, 3], rtol=1e-3)
    assert np.isnan(Pool().quantiles([0.5])).all()


def test_wasserstein_distance_is_scipys(samples):
    wanted = scipy.stats.wasserstein_distance(*(v.double().numpy() for v in samples))
    assert wasserstein(*pools(*samples)) == pytest.approx(wanted, rel=1e-3)
    assert wasserstein(*pools(samples[0], samples[0])) == 0
    assert np.isnan(wasserstein(Pool(), Pool()))


def test_levels_follow_the_size_of_the_sample():
    assert max(levels_of(100)) == 0.9
    assert max(levels_of(100_000)) == 0.9999


def test_l_moments_of_known_distributions():
    uniform = np.linspace(0, 1, 100_001)
    found = [float(v) for v in l_moments(uniform)]
    assert found == pytest.approx([1 / 2, 1 / 6, 0], abs=1e-4)
    exponential = scipy.stats.expon.ppf((np.arange(100_000) + 0.5) / 100_000)
    assert [float(v) for v in l_moments(exponential)] == pytest.approx([1, 1 / 2, 1 / 3], abs=1e-3)


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.15])
def test_gev_is_scipys(shape):
    law = scipy.stats.genextreme(c=shape, loc=30, scale=5)
    found = gev(law.ppf((np.arange(200_000) + 0.5) / 200_000))
    assert [float(v) for v in found] == pytest.approx([30, 5, shape], rel=5e-3, abs=5e-3)
    levels = [float(return_level(30, 5, np.float64(shape), t)) for t in (2, 20, 100)]
    assert levels == pytest.approx(law.ppf([1 / 2, 19 / 20, 99 / 100]), rel=1e-9)


def test_fractions_skill_score_is_that_of_scores():
    fss_2d = pytest.importorskip("scores.spatial").fss_2d
    generator = torch.Generator().manual_seed(1)
    truth = 8 * torch.rand(6, 20, 24, generator=generator) ** 2
    member = 8 * torch.rand(6, 20, 24, generator=generator) ** 2
    found = Fractions((20, 24), (1.0, 5.0))
    found.add(member[None, :4], truth[:4])
    found.add(member[None, 4:], truth[4:])
    arrays = [xr.DataArray(v.double().numpy(), dims=("time", "y", "x")) for v in (member, truth)]
    for k, threshold in enumerate(found.thresholds):
        for s, size in enumerate(found.scales):
            wanted = fss_2d(
                *arrays,
                event_threshold=threshold,
                window_size=(size, size),
                spatial_dims=("y", "x"),
                reduce_dims=["time"],
            )
            assert found.scores()[k, s] == pytest.approx(float(wanted), abs=1e-9)


def test_fractions_of_a_perfect_forecast_and_of_none():
    field = torch.zeros(2, 9, 9)
    field[:, 3:5, 3:5] = 7.0
    found = Fractions((9, 9), (5.0, 20.0))
    found.add(field[None], field)
    np.testing.assert_allclose(found.scores()[0], 1)
    assert np.isnan(found.scores()[1]).all()
    assert found.useful()[0] == pytest.approx((1 + 4 / 81) / 2)


def daily(start, stop):
    return np.arange(start, stop, dtype="datetime64[D]").astype("datetime64[ns]")


def test_a_winter_belongs_to_one_year():
    times = daily("1998-12-01", "2000-03-01")
    winter = times[np.isin(times.astype("datetime64[M]").astype(int) % 12, (11, 0, 1))]
    assert season_years(winter).tolist() == [1999] * 90 + [2000] * 91
    assert set(season_years(daily("1999-01-01", "2001-01-01"))) == {1999, 2000}
    cf = xr.date_range("1999-12-01", periods=90, calendar="360_day", use_cftime=True).values
    assert set(season_years(cf)) == {2000}


def test_maxima_by_hand():
    truth = torch.tensor([1.0, 5.0, 2.0, 8.0]).reshape(4, 1, 1)
    members = torch.stack([truth + 1, truth + 3])
    found = Maxima()
    found.add(members[:, :2], truth[:2], [1, 1])
    found.add(members[:, 2:], truth[2:], [2, 2])
    assert found.error(relative=False).item() == pytest.approx(2)
    assert found.error(relative=True).item() == pytest.approx(8.5 / 6.5 - 1)
    assert found.return_levels() is None


def test_return_levels_of_members_alike_to_the_truth():
    rng = np.random.default_rng(0)
    years, days = 40, 30
    draws = rng.gumbel(20, 4, (1 + 3, years * days, 6, 6)).astype("f4")
    found = Maxima()
    found.add(*map(torch.from_numpy, (draws[1:], draws[0])), np.repeat(np.arange(years), days))
    levels = found.return_levels()
    assert levels.periods == (2, 5, 10, 20, 50, 100)
    exact = scipy.stats.gumbel_r(20 + 4 * np.log(days), 4).ppf(1 - 1 / np.array(levels.periods))
    np.testing.assert_allclose(levels.members, exact, rtol=0.02)
    np.testing.assert_allclose(levels.truth, exact, rtol=0.03)
    assert (levels.low <= levels.high).all()


@pytest.mark.parametrize("amount", [True, False])
def test_pieces_of_time_do_not_change_what_is_found(amount, tmp_path):
    rng = np.random.default_rng(2)
    draws = torch.from_numpy(rng.gamma(0.5, 6, (4, 60, 12, 14)).astype("f4"))
    draws[0, 5, :3] = torch.nan
    years = np.repeat(np.arange(6), 10)
    whole, parts = (Tails((12, 14), amount=amount) for _ in range(2))
    whole.add(draws[1:], draws[0], years)
    for start in range(0, 60, 7):
        here = slice(start, start + 7)
        parts.add(draws[1:, here], draws[0, here], years[here])
    a, b = whole.result(), parts.result()
    for name in ("truth", "members", "maxima", "spread"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-2)
    np.testing.assert_allclose(a.maxima, b.maxima, rtol=1e-6)
    assert a.returns.truth == pytest.approx(b.returns.truth)
    assert ("fractions_skill_score" in a.record()) == amount
    grid = Grid(np.arange(12.0), np.arange(14.0))
    from apps.climate_downscaling.field import Variable

    variable = Variable("pr", "mm day-1") if amount else Variable("tas", "K")
    (picture,) = draw_tails(tmp_path, a, grid, variable)
    assert picture.stat().st_size > 10_000
