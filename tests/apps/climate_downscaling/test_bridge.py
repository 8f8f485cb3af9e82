"""The unpaired bridge, against the closed-form transport of Gaussians, and on climates."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from apps.climate_downscaling.adapt import adjusted_values, bridge_of
from apps.climate_downscaling.bridge import (
    Bridge,
    BridgeConfig,
    Unpaired,
    adjust_jointly,
    normal_scores,
    principal_components,
)
from apps.climate_downscaling.dependence import spatial_gap, variable_gap
from core.errors import AleatorError

SOURCE = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]])
TARGET = np.array([[1.0, -0.5, 0.3], [-0.5, 1.0, 0.0], [0.3, 0.0, 1.0]])
EXACT = BridgeConfig(explained=1.0, most=3, jitter=0.0, steps=500, batch_size=256)


def gaussian(covariance, count, seed):
    return np.random.default_rng(seed).multivariate_normal(np.zeros(3), covariance, count)


def monge(source, target):
    """The optimal map between centred Gaussians: S^-½ (S^½ T S^½)^½ S^-½."""
    root = np.real(sqrtm(source))
    inverse = np.linalg.inv(root)
    return inverse @ np.real(sqrtm(root @ target @ root)) @ inverse


@pytest.fixture(scope="module")
def gaussian_bridge():
    days = np.zeros(4000)
    ends = gaussian(SOURCE, 4000, 0), gaussian(TARGET, 4000, 1)
    return Bridge.fit(*ends, days, days, EXACT)


@pytest.mark.exact
def test_between_gaussians_it_reaches_the_target_by_the_monge_map(gaussian_bridge):
    fresh = gaussian(SOURCE, 4000, 2)
    carried = gaussian_bridge(fresh, np.zeros(4000))
    np.testing.assert_allclose(np.cov(carried.T), TARGET, atol=0.12)
    np.testing.assert_allclose(carried.mean(0), 0, atol=0.06)
    # transport is optimal in units of the components, where the flow lives
    to = gaussian_bridge.basis / gaussian_bridge.scale
    back = np.linalg.inv(to)
    exact = fresh @ to @ monge(to.T @ SOURCE @ to, to.T @ TARGET @ to) @ back
    error = np.sqrt(np.square(carried - exact).mean())
    moved = np.sqrt(np.square(fresh - exact).mean())
    assert error < 0.25 * moved


@pytest.mark.exact
def test_days_are_paired_nearly_as_the_monge_map_pairs_them():
    ends = [torch.from_numpy(gaussian(c, 4000, s)).float() for c, s in ((SOURCE, 0), (TARGET, 1))]
    pairs = Unpaired(*ends, np.zeros(4000), np.zeros(4000), EXACT)
    x, context = pairs(0, torch.Generator().manual_seed(0))
    a = torch.from_numpy(monge(SOURCE, TARGET)).float()
    apart = (x - context["noise"] @ a).square().mean()
    random = (x - context["noise"][torch.randperm(len(x))] @ a).square().mean()
    assert apart < 0.2 * random
    # both ends keep their laws: days are drawn, not chosen
    for found, law in ((context["noise"], SOURCE), (x, TARGET)):
        np.testing.assert_allclose(np.cov(found.numpy().T), law, atol=0.3)


def test_days_are_paired_within_the_season():
    season = np.arange(365) / 365
    values = torch.from_numpy(season).float()[:, None]
    near = BridgeConfig(batch_size=64, jitter=0.0)
    x, context = Unpaired(values, values, season, season, near, window=0.1)(
        0, torch.Generator().manual_seed(0)
    )
    angle = torch.atan2(*context["vector"].T) / (2 * torch.pi) % 1
    for days in (x[:, 0], context["noise"][:, 0]):
        apart = ((days - angle + 0.5) % 1 - 0.5).abs()
        assert apart.max() < 0.15
    winter = np.full(30, 0.02)  # a target without summer: the nearest days stand in
    lonely = Unpaired(values, values[:30], season, winter, near)
    assert lonely(1, torch.Generator().manual_seed(0))[0].isfinite().all()


def test_the_season_decides_what_goes_together():
    """Components that correlate in winter and oppose each other in summer."""
    rng = np.random.default_rng(0)
    season = np.arange(4000) % 100 / 100
    sign = np.where(np.abs(season - 0.5) < 0.25, -1.0, 1.0)
    first, other = rng.standard_normal((2, 4000))
    target = np.stack([first, 0.8 * sign * first + 0.6 * other], 1)
    source = rng.standard_normal((4000, 2))
    config = BridgeConfig(explained=1.0, most=2, jitter=0.0, steps=400)
    carried = Bridge.fit(source, target, season, season, config)(source, season)
    for here, wanted in ((np.abs(season - 0.5) < 0.15, -0.8), (season < 0.15, 0.8)):
        assert np.corrcoef(carried[here].T)[0, 1] == pytest.approx(wanted, abs=0.2)


def climate(count, correlation, mean, seed, wet=0.5):
    """Two variables in two cells: a temperature, and rain that goes with it or against it."""
    rng = np.random.default_rng(seed)
    t = rng.standard_normal((count, 1)) + 0.5 * rng.standard_normal((count, 2))
    r = correlation * t + np.sqrt(1 - correlation**2) * rng.standard_normal((count, 2))
    rain = np.where(r > np.quantile(r, 1 - wet), np.exp(r) * 3, 0.0)
    return np.stack([mean + 2 * t, rain], 1)


COUNT = 1460
DAYS = np.arange(COUNT) % 365 / 365
OPTIONS = {"thresholds": [None, 0.1], "config": BridgeConfig(most=4, explained=1.0, jitter=0.1)}


def test_variables_go_together_as_in_the_reference_and_the_change_is_kept():
    history, reference = climate(COUNT, -0.6, 5, 0, wet=0.7), climate(COUNT, 0.6, 8, 1, wet=0.4)
    future = climate(COUNT, -0.6, 5 + 4, 2, wet=0.7)
    days = (DAYS,) * 3
    now = adjust_jointly(history, history, reference, days, **OPTIONS)
    by_cell = adjusted_values(history, history, reference, days, ("tas", "pr"), method="qdm")
    assert variable_gap(by_cell, reference, 0) > 0.6
    assert variable_gap(now, reference, 0) < 0.25
    for level in (0.02, 0.5, 0.98):  # cell by cell it is the reference's climate
        wanted = np.quantile(reference, level, axis=0)
        np.testing.assert_allclose(np.quantile(now, level, axis=0), wanted, rtol=0.05, atol=0.3)
    assert (now[:, 1] > 0.1).mean() == pytest.approx((reference[:, 1] > 0.1).mean(), abs=0.03)
    later = adjust_jointly(future, history, reference, days, **OPTIONS)
    change = (later[:, 0] - now[:, 0]).mean()
    assert change == pytest.approx((future[:, 0] - history[:, 0]).mean(), abs=0.1)
    assert variable_gap(later, reference, 0) < 0.25
    again = adjust_jointly(future, history, reference, days, **OPTIONS)
    np.testing.assert_array_equal(later, again)


@pytest.mark.exact
def test_normal_scores_are_normal_and_principal_components_are_those_of_numpy():
    x = climate(COUNT, 0.5, 3, 0)[:, :1]
    scores = normal_scores(x, DAYS, 1.0)
    np.testing.assert_allclose(np.quantile(scores, [0.1, 0.5, 0.9]), [-1.28, 0, 1.28], atol=0.05)
    for rows in (gaussian(SOURCE, 50, 0), np.random.default_rng(0).standard_normal((5, 40))):
        found = principal_components(rows, BridgeConfig(explained=1.0, most=3))
        wanted = np.linalg.svd(rows - rows.mean(0))[2][:3].T
        np.testing.assert_allclose(np.abs(found.T @ wanted), np.eye(3), atol=1e-6)


@pytest.mark.exact
def test_gaps_of_correlations():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((5000, 3))
    same = np.repeat(rng.standard_normal((5000, 1)), 3, 1)
    assert spatial_gap(same, one) == pytest.approx(1.0, abs=0.03)
    assert spatial_gap(one, one) == 0
    both, apart = np.stack([one, one], 1), np.stack([one, same], 1)
    assert variable_gap(both, apart, 0) == pytest.approx(1.0, abs=0.03)
    assert np.isnan(variable_gap(both[:, :1], both[:, :1], 0))
    assert np.isnan(spatial_gap(one[:, :1], one[:, :1]))


def test_mistakes_are_refused():
    x = climate(COUNT, 0.5, 3, 0)
    with pytest.raises(AleatorError, match="the history has 20 days"):
        adjust_jointly(x, x[:20], x, (DAYS, DAYS[:20], DAYS), **OPTIONS)
    still = np.zeros((100, 1, 2))
    with pytest.raises(AleatorError, match="do not vary"):
        adjust_jointly(still, still, still, (DAYS[:100],) * 3, thresholds=[None])
    summer = 0.4 + DAYS / 10
    with pytest.raises(AleatorError, match="no days within"):
        adjust_jointly(x, x, x, (DAYS, summer, DAYS), **OPTIONS)
    for options in ({"explained": 0}, {"most": 0}, {"jitter": -1}, {"batch_size": 1}):
        with pytest.raises(AleatorError, match="bridge"):
            BridgeConfig(**options)
    assert bridge_of({"bridge": {"steps": 7}}).steps == 7
    for settings, message in (
        ({"fit": {"steps": 3}}, "unknown option fit"),
        ({"bridge": {"stride": 3}}, r"bridge\.stride"),
        ({"bridge": 3}, "bridge"),
    ):
        with pytest.raises(AleatorError, match=message):
            bridge_of(settings)
