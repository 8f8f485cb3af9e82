"""Sums of constituents against plain four-vectors, and the laws that jets keep."""

import numpy as np
import pytest

from apps.hep_simulation.clouds.kinematics import axis, centred, closed

RANDOM = np.random.default_rng(1)
MASK = np.arange(9) < np.array([9, 4, 2, 1])[:, None]
POINTS = RANDOM.normal(size=(4, 9, 3)) * 0.2 * MASK[:, :, None]
POINTS[:, :, 2] = np.abs(POINTS[:, :, 2]) + 0.01


@pytest.mark.exact
def test_the_axis_is_that_of_the_sum_of_four_momenta():
    found = axis(POINTS, MASK)
    for row in range(4):
        eta, phi, pt = POINTS[row, MASK[row]].T
        p = np.array(
            [pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)]
        ).sum(1)
        assert found.mass[row] == pytest.approx(
            np.sqrt(max(0, p[0] ** 2 - (p[1:] ** 2).sum())), abs=1e-7
        )
        assert found.pt[row] == pytest.approx(np.hypot(p[1], p[2]))
        assert found.phi[row] == pytest.approx(np.arctan2(p[2], p[1]))
        assert found.rapidity[row] == pytest.approx(np.arctanh(p[3] / p[0]))


@pytest.mark.exact
def test_closed_clouds_have_the_momentum_and_the_mass_that_were_asked_for():
    wanted = np.array([0.2, 0.05, 0.31, 0.5])
    found = axis(closed(POINTS, MASK, wanted), MASK)
    np.testing.assert_allclose(found.pt, 1, atol=1e-12)
    np.testing.assert_allclose(found.rapidity, 0, atol=1e-12)
    np.testing.assert_allclose(found.phi, 0, atol=1e-12)
    np.testing.assert_allclose(found.mass[:3], wanted[:3], rtol=1e-6)
    assert found.mass[3] < 1e-7  # one massless particle has no mass


def test_what_keeps_the_laws_already_is_left_alone():
    real = centred(POINTS, MASK)
    np.testing.assert_allclose(centred(real, MASK), real, atol=1e-12)
    again = closed(real, MASK, axis(real, MASK).mass)
    np.testing.assert_allclose(again, real, atol=1e-6)
    assert (again[~MASK] == 0).all()


def test_angles_are_scaled_and_shares_only_normalised():
    real = centred(POINTS, MASK)[:2]
    wide = closed(real, MASK[:2], 1.05 * axis(real, MASK[:2]).mass)
    inside = MASK[:2]
    ratio = wide[:, :, :2][inside] / real[:, :, :2][inside]
    assert np.abs(np.median(ratio) - 1.05) < 0.01
    shares = wide[:, :, 2][inside] / real[:, :, 2][inside]
    assert shares.std() < 0.01
