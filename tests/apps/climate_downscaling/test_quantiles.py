"""Quantile mapping and quantile delta mapping on climates whose adjustment is known."""

import numpy as np
import pytest

from apps.climate_downscaling.quantiles import adjust
from core.errors import AleatorError

DAYS = np.arange(3650) % 365 / 365


def normal(mean, sd, seed, shape=(3650, 2)):
    return mean + sd * np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("method", ["qm", "qdm"])
def test_history_becomes_the_reference(method):
    history, reference = normal(5, 3, 0), normal(8, 1, 1)
    found = adjust(history, history, reference, (DAYS,) * 3, method=method)
    for level in (0.01, 0.25, 0.5, 0.9, 0.99):
        wanted = np.quantile(reference, level, axis=0)
        np.testing.assert_allclose(np.quantile(found, level, axis=0), wanted, atol=0.15)
    assert np.corrcoef(found[:, 0], history[:, 0])[0, 1] > 0.98  # days keep their order


def test_delta_mapping_keeps_the_change_and_mapping_scales_it():
    history, reference = normal(5, 2, 0), normal(8, 1, 1)
    warm = normal(5, 2, 2) + 4
    kept, scaled = (
        adjust(warm, history, reference, (DAYS,) * 3, method=m).mean() - reference.mean()
        for m in ("qdm", "qm")
    )
    assert kept == pytest.approx(4, abs=0.1)
    assert scaled < 3.6  # the spread of the reference is half that of the model


def test_amounts_keep_their_ratio_and_their_dry_days():

    def rain(mean, wet, seed):
        g = np.random.default_rng(seed)
        return g.exponential(mean, (3650, 2)) * (g.random((3650, 2)) < wet)

    history, reference = rain(4.0, 0.7, 1), rain(6.0, 0.4, 2)
    more = rain(4.0, 0.7, 3) * 1.3
    found = adjust(more, history, reference, (DAYS,) * 3, threshold=0.1)
    assert (found >= 0).all()
    assert (found > 0.1).mean() == pytest.approx((reference > 0.1).mean(), abs=0.03)
    assert found.mean() / reference.mean() == pytest.approx(1.3, abs=0.06)
    same = adjust(more, history, reference, (DAYS,) * 3, threshold=0.1)
    np.testing.assert_array_equal(found, same)


def test_seasons_are_adjusted_each_on_its_own():
    cycle = 10 * np.cos(2 * np.pi * DAYS)[:, None]
    history, reference = normal(0, 1, 0) + cycle, normal(0, 1, 1) - cycle
    found = adjust(history, history, reference, (DAYS,) * 3, window=0.1)
    summer = np.abs(DAYS - 0.5) < 0.02
    assert found[summer].mean() == pytest.approx(reference[summer].mean(), abs=1.0)


def test_values_beyond_history_go_as_far_beyond():
    history, reference = normal(0, 1, 0), normal(0, 1, 1)
    record = np.full((1, 2), 9.0)
    found = adjust(record, history, reference, (DAYS[:1], DAYS, DAYS), method="qm", window=2.0)
    assert (found > 7).all()


def test_mistakes_are_named():
    x = normal(0, 1, 0)
    with pytest.raises(AleatorError, match="unknown method 'eqm'"):
        adjust(x, x, x, (DAYS,) * 3, method="eqm")
    winter = np.zeros(len(x))
    with pytest.raises(AleatorError, match="no days within"):
        adjust(x, x, x, (DAYS, DAYS, winter))
