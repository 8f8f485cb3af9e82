"""The intercept of recent years: found where there is drift, left alone where there is none."""

import numpy as np
import torch

from apps.climate_downscaling.drift import FEWEST, Drift, _honest, recent

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
    b = noise().reshape(WINTERS, DAYS, 2, 3, 4).mean(1)[:, 0]
    for k in range(WINTERS):
        own, next_year = b.clone(), b.clone()
        own[k] += 100.0
        torch.testing.assert_close(_honest(own, k, 0.5), _honest(b, k, 0.5))
        if k + 1 < WINTERS:
            next_year[k + 1] += 100.0
            seen = not torch.equal(_honest(next_year, k, 0.5), _honest(b, k, 0.5))
            assert seen == (k < FEWEST)  # only the first years look ahead
    year = torch.arange(WINTERS).repeat_interleave(DAYS)[:, None, None, None]
    drift = Drift.fit(noise() + 0.2 * year, seconds())
    assert drift.memory[0] < 1
    offsets = drift.honest.reshape(WINTERS, DAYS, 2, 3, 4)
    assert offsets.std(1).max() < 1e-6  # one offset a year
    torch.testing.assert_close(
        offsets[7, 0, 0],
        _honest(
            (noise() + 0.2 * year).reshape(WINTERS, DAYS, 2, 3, 4).mean(1)[:, 0],
            7,
            drift.memory[0],
        ),
    )


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
