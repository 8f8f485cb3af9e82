"""The intercept of recent years: found where there is drift, left alone where there is none."""

import numpy as np
import torch

from apps.climate_downscaling.drift import Drift, recent

WINTERS, DAYS = 16, 90


def seconds():
    starts = np.arange(WINTERS)[:, None] * 365.2425
    return ((starts + np.arange(DAYS)[None]).ravel() * 86400).astype(np.int64)


def noise(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(WINTERS * DAYS, 2, 3, 4, generator=generator)


def test_a_drift_is_followed_and_noise_is_not():
    year = torch.arange(WINTERS).repeat_interleave(DAYS).float()
    slope = torch.tensor([0.1, 0.0])[:, None, None]
    error = noise() + slope * (year - year.mean())[:, None, None, None]
    drift = Drift.fit(error, seconds())
    assert drift.memory[0] <= 0.6
    assert drift.memory[1] >= 0.9
    next_year = 0.1 * (WINTERS - (WINTERS - 1) / 2)
    assert abs(drift.offset[0].mean() - next_year) < 0.25
    assert drift.offset[1].abs().max() < 0.1
    after = (error - drift.honest)[:, 0]
    assert after.square().mean() < 0.9 * error[:, 0].square().mean()


def test_honest_offsets_do_not_see_their_own_year():
    error = noise()
    other = error.clone()
    other[5 * DAYS : 6 * DAYS] += 100.0
    rows = slice(5 * DAYS, 6 * DAYS)
    for memory in (0.5, 0.9):
        b = [e.reshape(WINTERS, DAYS, 2, 3, 4).mean(1)[:, 0] for e in (error, other)]
        for k, first in ((5, True), (2, False)):
            one, two = (
                recent(x[:k], memory) if first else recent(x[k + 1 :].flip(0), memory) for x in b
            )
            assert torch.equal(one, two) == first
    drift = Drift.fit(error, seconds())
    assert drift.honest[rows].std(0).max() == 0  # one offset a year


def test_weights_fall_by_the_memory():
    b = torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    expected = (0.25 * 1 + 0.5 * 2 + 4) / 1.75
    torch.testing.assert_close(recent(b, 0.5), torch.full((1, 1), expected))
    assert recent(b, 1.0).item() == 0


def test_too_few_years_are_left_alone():
    keys = np.arange(500) * 86400
    drift = Drift.fit(torch.randn(500, 1, 2, 2) + 3, keys)
    assert drift.memory == (1.0,)
    assert not drift.offset.any()
    assert not drift.honest.any()
