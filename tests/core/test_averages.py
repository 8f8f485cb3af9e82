"""Means over what is there, and bootstrap intervals that know about autocorrelation."""

import numpy as np
import pytest
import torch

from core.errors import AleatorError
from core.evaluation import block_bootstrap, nan_mean


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ar1(times, phi, seed):
    noise = torch.randn(times + 200, generator=generator(seed), dtype=torch.float64).numpy()
    x = np.zeros_like(noise)
    for t in range(1, len(x)):
        x[t] = phi * x[t - 1] + noise[t]
    return torch.from_numpy(x[200:])


@pytest.mark.exact
def test_nan_mean_is_numpys_masked_average():
    s = torch.randn(4, 5, 6, generator=generator())
    s[0, 1], s[2] = torch.nan, torch.nan
    area = torch.rand(6, generator=generator(1))
    masked = np.ma.masked_invalid(s.numpy())
    for dim, axis in ((None, None), (0, 0), ((1, 2), (1, 2))):
        weights = np.broadcast_to(area.numpy(), s.shape)
        expected = np.ma.average(masked, axis=axis, weights=weights)
        found = nan_mean(s, area, dim).numpy()
        np.testing.assert_allclose(found, np.ma.filled(expected, np.nan), rtol=1e-5)


def test_nan_mean_ignores_even_infinity_under_the_mask():
    s = torch.tensor([1.0, torch.inf, 3.0])
    assert nan_mean(s, torch.tensor([True, False, True])) == 2
    assert nan_mean(s) == torch.inf
    assert nan_mean(s, torch.zeros(3, dtype=torch.bool)).isnan()


def test_nan_mean_of_many_float32_is_exact():
    s = torch.full((3_000_000,), 0.1)
    assert nan_mean(s).item() == s[0].item()


@pytest.mark.exact
@pytest.mark.parametrize("block", [1, 5])
def test_interval_has_the_width_of_the_circular_block_variance(block):
    scores = ar1(400, 0.7, seed=2)
    # the variance of the redrawn mean is that of a uniformly placed circular block, over T / block
    wrapped = torch.cat([scores, scores[:block]])
    means = torch.stack([wrapped[i : i + block].mean() for i in range(400)])
    sd = (means - scores.mean()).square().mean().div(400 / block).sqrt()
    found = block_bootstrap(scores, block=block, draws=20_000, generator=generator())
    assert found.mean == pytest.approx(scores.mean().item())
    width = (found.high - found.low) / (2 * 1.959964)
    assert width == pytest.approx(sd.item(), rel=0.03)


@pytest.mark.exact
@pytest.mark.parametrize("place", [0, 3, 24, 49])
def test_every_time_is_drawn_equally_often_even_at_the_ends(place):
    # a spike is in each of the 5 blocks with probability 1/5: its count is binomial
    scores = torch.zeros(50)
    scores[place] = 1
    found = block_bootstrap(scores, block=10, level=0.9, draws=20_000, generator=generator())
    assert (found.low, found.high) == (0, 3 / 50)  # P(count <= 2) = 0.942 < 0.95 < 0.993


def test_blocks_hold_the_true_mean_as_often_as_promised_where_single_times_do_not():
    hits = {1: 0, 25: 0}
    for seed in range(150):
        scores = ar1(600, 0.8, seed)
        for block in hits:
            found = block_bootstrap(scores, block=block, draws=300, generator=generator(seed))
            hits[block] += found.low <= 0 <= found.high
    assert hits[1] / 150 < 0.7
    assert 0.85 < hits[25] / 150 < 0.99


def test_missing_times_are_left_out_and_seeds_repeat():
    scores = ar1(90, 0.5, seed=0)
    scores[7] = torch.nan
    first = block_bootstrap(scores, generator=generator(4))
    assert first == block_bootstrap(scores, generator=generator(4))
    assert first.mean == pytest.approx(scores[~scores.isnan()].mean().item())
    assert first.low < first.mean < first.high


def test_long_series_are_redrawn_a_few_at_a_time():
    scores = ar1(100_000, 0.0, seed=0)  # 40 series at a time
    found = block_bootstrap(scores, block=1, draws=200, generator=generator())
    assert (found.high - found.low) == pytest.approx(2 * 1.96 / 100_000**0.5, rel=0.2)


def test_what_cannot_be_redrawn_says_why():
    with pytest.raises(AleatorError, match="average them"):
        block_bootstrap(torch.zeros(3, 4))
    with pytest.raises(AleatorError, match="at least two blocks"):
        block_bootstrap(torch.zeros(10), block=6)
    with pytest.raises(AleatorError, match="level 95"):
        block_bootstrap(torch.zeros(10), level=95)
