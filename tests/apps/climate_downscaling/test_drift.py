"""The intercept of recent years: found where there is drift, left alone where there is none."""

import numpy as np
import torch

from apps.climate_downscaling.drift import FEWEST, Drift, Rule, _honest, line, recent

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
    assert drift.rules[0].trend
    assert drift.rules[1].memory >= 0.9
    assert not drift.rules[1].trend
    next_year = 0.1 * (WINTERS - (WINTERS - 1) / 2)
    assert abs(drift.offset[0].mean() - next_year) < 0.02
    assert drift.offset[1].abs().max() < 0.1
    after = (error - drift.honest(slice(None)))[:, 0]
    assert after.square().mean() < 0.9 * error[:, 0].square().mean()


def test_a_change_of_pattern_is_remembered_without_a_trend():
    pattern = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
    pattern = pattern - pattern.mean()
    year = torch.arange(WINTERS).repeat_interleave(DAYS)
    moved = torch.where(year < 7, -9 / 7, 1.0)[:, None, None] * pattern  # stations moved once
    drift = Drift.fit(noise()[:, :1] + moved[:, None], seconds())
    assert drift.rules[0].memory <= 0.6
    assert (drift.offset[0] - pattern).abs().max() < 0.2


def test_only_cells_with_data_make_the_trend():
    year = torch.arange(WINTERS).repeat_interleave(DAYS).float()
    error = noise()[:, :1] + 0.1 * (year - year.mean())[:, None, None, None]
    valid = torch.ones(3, 4, dtype=torch.bool)
    valid[0] = False
    broken = error.clone()
    broken[..., 0, :] = 50 * torch.randn(len(error), 1, 4, generator=torch.Generator())
    whole, part = Drift.fit(error, seconds(), valid), Drift.fit(broken, seconds(), valid)
    assert whole.rules == part.rules
    torch.testing.assert_close(part.offset[..., valid], whole.offset[..., valid])


def test_a_line_is_continued_across_missing_years():
    time = torch.tensor([-9.0, -8.0, -4.0, -2.0])
    torch.testing.assert_close(line(1.5 + 0.25 * time, time), torch.tensor(1.5))
    b = (1.5 + 0.25 * time)[:, None, None] + torch.tensor([[0.0, 2.0]])
    weights = torch.full((1, 2), 0.5)
    found = Rule(trend=True).predict(b, time, weights)
    torch.testing.assert_close(found, torch.tensor([[2.5, 2.5]]))  # no memory: no pattern
    assert (Rule(0.5, trend=True).predict(b, time, weights)).diff().item() > 1.9


def test_honest_offsets_do_not_see_their_own_year():
    b = noise().reshape(WINTERS, DAYS, 2, 3, 4).mean(1)[:, 0]
    time, weights = torch.arange(WINTERS) - WINTERS + 1.0, torch.full((3, 4), 1 / 12)
    for rule in (Rule(0.5), Rule(0.8, trend=True)):
        for k in range(WINTERS):
            own, next_year = b.clone(), b.clone()
            own[k] += 100.0
            known = _honest(b, time, k, rule, weights)
            torch.testing.assert_close(_honest(own, time, k, rule, weights), known)
            if k + 1 < WINTERS:
                next_year[k + 1] += 100.0
                seen = not torch.equal(_honest(next_year, time, k, rule, weights), known)
                assert seen == (k < FEWEST)  # only the first years look ahead
    year = torch.arange(WINTERS).repeat_interleave(DAYS)[:, None, None, None]
    drift = Drift.fit(noise() + 0.2 * year, seconds())
    offsets = drift.honest(slice(None)).reshape(WINTERS, DAYS, 2, 3, 4)
    assert offsets.std(1).max() < 1e-6  # one offset a year
    b = (noise() + 0.2 * year).reshape(WINTERS, DAYS, 2, 3, 4).mean(1)[:, 0]
    expected = _honest(b, time, 7, drift.rules[0], weights)
    torch.testing.assert_close(offsets[7, 0, 0], expected)


def test_weights_fall_by_the_memory():
    b = torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    expected = (0.25 * 1 + 0.5 * 2 + 4) / 1.75
    torch.testing.assert_close(recent(b, 0.5), torch.full((1, 1), expected))
    assert recent(b, 1.0).item() == 0


def test_too_few_years_are_left_alone():
    keys = np.arange(500) * 86400
    drift = Drift.fit(torch.randn(500, 1, 2, 2) + 3, keys)
    assert drift.rules == (Rule(),)
    assert not drift.offset.any()
    assert not drift.honest(torch.arange(500)).any()
