"""Calibration read from ranks: against counting, closed forms and calibrated ensembles."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from core.errors import AleatorError
from core.evaluation import coverage, pit, rank_histogram, spread_skill


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ensemble(m, n, sigma=1.0, bias=0.0, seed=0):
    """Truth N(0, 1); members N(bias, sigma^2)."""
    g = generator(seed)
    truth = torch.randn(n, generator=g, dtype=torch.float64)
    members = bias + sigma * torch.randn(m, n, generator=g, dtype=torch.float64)
    return members, truth


@pytest.mark.exact
def test_spread_skill_is_its_definition_written_in_numpy():
    x, y = ensemble(5, 300, sigma=0.6, bias=0.2)
    found = spread_skill(x, y)
    variance = np.var(x.numpy(), axis=0, ddof=1)
    error = np.mean(x.numpy(), axis=0) - y.numpy()
    assert found.spread == pytest.approx(math.sqrt(variance.mean() * 6 / 5), rel=1e-12)
    assert found.skill == pytest.approx(math.sqrt(np.square(error).mean()), rel=1e-12)
    assert found.ratio == pytest.approx(found.spread / found.skill, rel=1e-12)


@pytest.mark.exact
@pytest.mark.parametrize("m", [2, 4, 16])
def test_spread_equals_skill_for_exchangeable_members_whatever_m(m):
    x, y = ensemble(m, 200_000, seed=m)
    assert spread_skill(x, y).ratio == pytest.approx(1, abs=0.01)
    over_confident = spread_skill(*ensemble(m, 200_000, sigma=0.5, seed=m))
    exact = 0.5 * math.sqrt((1 + 1 / m) / (1 + 0.25 / m))
    assert over_confident.ratio == pytest.approx(exact, abs=0.01)


def test_spread_of_float32_near_280_kelvin():
    x, y = ensemble(8, 5000)
    warm = spread_skill((280 + 0.01 * x).float(), (280 + 0.01 * y).float())
    cold = spread_skill(0.01 * x, 0.01 * y)
    assert warm.ratio == pytest.approx(cold.ratio, rel=1e-4)


def test_missing_and_masked_cells_are_left_out():
    x, y = ensemble(6, 100, bias=0.5)
    keep = torch.arange(100) >= 30
    expected = spread_skill(x[:, 30:], y[30:])
    ranks = rank_histogram(x[:, 30:], y[30:], generator())
    inside = coverage(x[:, 30:], y[30:], (0.5, 0.9))
    for weights in (keep, keep.double() * 1.0):
        assert spread_skill(x, y, weights) == expected
        assert torch.equal(rank_histogram(x, y, generator(), weights), ranks)
        torch.testing.assert_close(coverage(x, y, (0.5, 0.9), weights), inside)
    x[1, :20], y[20:30] = torch.nan, torch.nan
    assert spread_skill(x, y) == expected
    assert torch.equal(rank_histogram(x, y, generator()), ranks)
    torch.testing.assert_close(coverage(x, y, (0.5, 0.9)), inside)
    assert torch.equal(pit(x, y, generator()).isnan(), ~keep)


@pytest.mark.exact
def test_area_weights_are_repeated_cells():
    x, y = ensemble(4, 50)
    times = torch.arange(50) % 3
    repeated = torch.repeat_interleave(torch.arange(50), times)
    weighted = spread_skill(x, y, times)
    assert weighted.ratio == pytest.approx(spread_skill(x[:, repeated], y[repeated]).ratio)
    counts = rank_histogram(x[:, repeated], y[repeated], generator())
    assert torch.equal(rank_histogram(x, y, generator(), times), counts)


@pytest.mark.exact
def test_rank_histogram_counts_the_members_below():
    x, y = ensemble(7, 500, sigma=0.7)
    expected = np.bincount((x.numpy() < y.numpy()).sum(0), minlength=8)
    assert rank_histogram(x, y, generator()).tolist() == expected.tolist()


def test_ties_are_broken_evenly():
    zeros = torch.zeros(4, 50_000)
    counts = rank_histogram(zeros, zeros[0], generator())
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    half = torch.cat([zeros[:2], zeros[:2] + 1])  # ranks 0 to 2, never above a member at 1
    counts = rank_histogram(half, zeros[0], generator())
    assert counts[3:].sum() == 0
    assert stats.chisquare(counts[:3].numpy()).pvalue > 1e-3


@pytest.mark.parametrize("rounded", [False, True])
def test_a_calibrated_ensemble_is_flat_uniform_and_covered(rounded):
    x, y = ensemble(9, 50_000, seed=3)
    if rounded:  # many ties
        x, y = x.round().clamp(min=0), y.round().clamp(min=0)
    assert stats.chisquare(rank_histogram(x, y, generator()).numpy()).pvalue > 1e-3
    assert stats.kstest(pit(x, y, generator()).numpy(), "uniform").pvalue > 1e-3
    levels = torch.tensor([0.05, 0.5, 0.9, 0.99], dtype=torch.float64)
    assert (coverage(x, y, levels.tolist()) - levels).abs().max() < 4 * 0.5 / 50_000**0.5


@pytest.mark.exact
def test_coverage_of_every_order_of_exchangeable_values_is_the_level():
    orders = torch.tensor(list(itertools.permutations([0.0, 0.0, 1.0, 2.0, 2.0])))
    levels = [0.1, 0.5, 0.77, 0.95]
    found = coverage(orders[:, 1:].T, orders[:, 0], levels)
    torch.testing.assert_close(found, torch.tensor(levels, dtype=torch.float64))


@pytest.mark.exact
def test_coverage_is_the_frequency_inside_weibull_quantiles():
    x, y = ensemble(19, 400, sigma=0.8, bias=0.3)
    levels = [1 - 2 * k / 20 for k in range(1, 10)]
    for level, found in zip(levels, coverage(x, y, levels), strict=True):
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(x.numpy(), tails, axis=0, method="weibull")
        assert found == pytest.approx(np.mean((low < y.numpy()) & (y.numpy() < high)), abs=1e-12)


@pytest.mark.exact
def test_pit_averages_to_the_rank():
    x, y = ensemble(5, 3)
    y[0] = x[2, 0]  # a tie
    draws = pit(x[:, :, None].expand(5, 3, 40_000), y[:, None].expand(3, 40_000), generator())
    below = (x < y).sum(0) + 0.5 * (x == y).sum(0)
    expected = (below + 0.5) / 6
    assert (draws.mean(1) - expected).abs().max() < 4 * (2 / 6) / 12**0.5 / 40_000**0.5


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(0, 10**6), st.floats(-100, 100), st.floats(0.1, 10))
def test_ranks_do_not_see_permutations_nor_increasing_maps(m, seed, shift, scale):
    x, y = ensemble(m, 40, sigma=0.7, seed=seed)
    order = torch.randperm(m, generator=generator(seed))
    for u, v in ((x[order], y), (shift + scale * x, shift + scale * y), (x**3, y**3)):
        assert torch.equal(rank_histogram(u, v, generator(1)), rank_histogram(x, y, generator(1)))
        assert torch.equal(coverage(u, v, [0.3, 0.8]), coverage(x, y, [0.3, 0.8]))
    moved = spread_skill(shift + scale * x, shift + scale * y)
    assert moved.spread == pytest.approx(scale * spread_skill(x, y).spread)
    assert moved.ratio == pytest.approx(spread_skill(x, y).ratio)


def test_what_cannot_be_scored_says_why():
    x, y = ensemble(3, 4)
    with pytest.raises(AleatorError, match="at least two"):
        spread_skill(x[:1], y)
    with pytest.raises(AleatorError, match="every cell is missing"):
        spread_skill(x, y * torch.nan)
    with pytest.raises(AleatorError, match="not all between 0 and 1"):
        coverage(x, y, [0.5, 95])
