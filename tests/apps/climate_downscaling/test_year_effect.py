"""What a year's errors share: found where it is, none where there is none, drawn once a year."""

import numpy as np
import torch

from apps.climate_downscaling import scratch as scratch_module
from apps.climate_downscaling.drift import YEAR, Drift
from apps.climate_downscaling.year_effect import YearEffect, _break

WINTERS, DAYS = 200, 90
VALID = torch.ones(3, 4, dtype=torch.bool)


def seconds(winters=WINTERS, first=330):
    starts = np.arange(winters)[:, None] * 365.2425 + first
    return ((starts + np.arange(DAYS)[None]).ravel() * 86400).astype(np.int64)


def errors(spread, winters=WINTERS):
    """(T, 2, 3, 4) days of unit variance, and an effect of each winter common to cells."""
    g = torch.Generator().manual_seed(0)
    days = torch.randn(winters * DAYS, 2, 3, 4, generator=g)
    years = torch.randn(winters, 1, 1, 1, generator=g) * torch.tensor(spread)[:, None, None]
    return days + years.repeat_interleave(DAYS, 0)


def test_the_variance_between_years_is_found_and_chance_is_not():
    found = YearEffect.fit(errors((0.3, 0.0)), seconds(), VALID)
    strong, none = found.spread(VALID)
    assert abs(strong - 0.3) < 0.03
    assert none < 0.03  # the mean of 90 days of unit variance varies by 0.105
    expected = 1 - 0.09 / 1.09
    assert (found.daily[0].square() - expected).abs().max() < 0.03


def test_neighbouring_days_that_are_alike_are_no_year_effect():
    g = torch.Generator().manual_seed(1)
    steps = torch.randn(WINTERS * DAYS, 1, 3, 4, generator=g)
    rows = [steps[0]]
    for row in steps[1:]:
        rows.append(0.7 * rows[-1] + (1 - 0.49) ** 0.5 * row)
    (found,) = YearEffect.fit(torch.stack(rows), seconds(), VALID).spread(VALID)
    assert found < 0.08  # means over 90 such days vary by 0.25


def test_draws_are_one_a_year_and_member_and_vary_as_years_do():
    fitted = YearEffect.fit(errors((0.3, 0.3)), seconds(), VALID)
    keys = seconds(3)
    first, last = int(keys[0]), int(keys[DAYS - 1])
    drawn = fitted.draw(0, range(4000), first)
    assert drawn.shape == (4000, 1, 2, 3, 4)
    assert torch.equal(fitted.draw(0, range(4000), last), drawn)  # the same winter
    for other in (fitted.draw(1, range(4000), first), fitted.draw(0, range(4000), int(keys[-1]))):
        pairs = torch.stack([drawn[:, 0, 0, 0, 0], other[:, 0, 0, 0, 0]])
        assert abs(torch.corrcoef(pairs)[0, 1]) < 0.08
    assert torch.equal(fitted.draw(0, range(7, 9), first), drawn[7:9])
    assert (drawn.std(0)[0] - 0.3).abs().max() < 0.04
    cells = torch.corrcoef(drawn[:, 0, 0].flatten(1).T)
    assert cells.min() > 0.8  # together over the domain
    both = torch.corrcoef(torch.stack([drawn[:, 0, 0, 0, 0], drawn[:, 0, 1, 0, 0]]))[0, 1]
    assert both > 0.7  # and between variables


def test_the_variance_of_a_single_day_is_what_it_was():
    error = errors((0.5, 0.2))
    fitted = YearEffect.fit(error, seconds(), VALID)
    total = fitted.maps.square().sum(0) + fitted.daily.square() * error.square().mean(0)
    torch.testing.assert_close(total, error.square().mean(0), rtol=1e-4, atol=0)


def test_an_effect_found_in_pieces_is_that_of_the_whole(monkeypatch):
    error, keys = errors((0.3, 0.1), 30), seconds(30)
    whole, drift = YearEffect.fit(error, keys, VALID), Drift.fit(error, keys, VALID)
    monkeypatch.setattr(scratch_module, "PIECE_BYTES", 7 * 4 * error[0].numel())
    parts, steps = YearEffect.fit(error, keys, VALID), Drift.fit(error, keys, VALID)
    for name, value in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], value)
    assert steps.rules == drift.rules
    torch.testing.assert_close(steps.offset, drift.offset)
    days = torch.arange(100, 300, 7)
    torch.testing.assert_close(steps.honest(days), drift.honest(slice(None))[days])


def test_few_years_have_no_effect():
    fitted = YearEffect.fit(errors((0.5, 0.5), 5), seconds(5), VALID)
    assert not len(fitted.maps)
    assert (fitted.daily == 1).all()
    drawn = fitted.draw(0, range(3), 0)
    assert drawn.shape == (3, 1, 2, 3, 4)
    assert not drawn.any()
    assert fitted.spread(VALID) == [0.0, 0.0]


def test_a_year_breaks_where_there_are_no_data():
    keys = seconds(5)
    start = _break(keys)
    assert start < keys[0]
    year = np.floor((keys - start) / YEAR).astype(int)
    assert [len(set(year[i : i + DAYS])) for i in range(0, len(keys), DAYS)] == [1] * 5
    assert len(set(year.tolist())) == 5
    margin = np.mod(keys - start, YEAR)
    assert margin.min() > 100 * 86400
    assert margin.max() < YEAR - 100 * 86400
