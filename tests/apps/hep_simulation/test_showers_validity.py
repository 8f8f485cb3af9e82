"""What is outside of training is found; what is not, is not."""

import numpy as np
import pytest

from apps.hep_simulation.validity import FALSE_ALARMS, fit_validity, outside, summaries
from core.errors import AleatorError


@pytest.fixture(scope="module")
def fitted(toy):
    from apps.hep_simulation.geometry import Geometry, Layer

    geometry = Geometry("electron", 11, tuple(Layer(i, (0.0, 1.0, 3.0, 6.0), 4) for i in range(5)))
    parts = [_ordered(toy(geometry, 1500, seed)) for seed in (0, 1)]
    return fit_validity(*parts, geometry), geometry


def _ordered(found):
    showers, energies, particles = found
    return showers, energies, particles


def test_conditions_outside_are_all_found():
    energies = np.array([900.0, 1000.0, 5000.0, 64000.0, 70000.0, 5000.0])
    particles = np.array([11, 11, 22, 11, 11, 211])
    found = outside(energies, particles, (1000.0, 64000.0), (11, 22))
    assert found.tolist() == [True, False, False, False, True, True]


def test_summaries_of_a_known_shower(small):
    shower = np.zeros((1, 60))
    shower[0, 12] = 30.0  # layer 1, first ring
    shower[0, 36 + 2] = 10.0  # layer 3, last ring
    found = summaries(shower, np.array([80.0]), small)[0]
    wanted = [np.log(0.5), 1.5, np.sqrt(0.75), np.log((30 * 0.5 + 10 * 4.5) / 40 + 0.1)]
    assert found == pytest.approx([*wanted, np.log(3), np.log(0.75)])


def test_false_alarms_are_what_is_stated(fitted, toy):
    validity, geometry = fitted
    showers, energies, particles = toy(geometry, 6000, 7)
    away = validity.deviations(showers, energies, particles, geometry)
    share = validity.flags(away).mean()
    assert share == pytest.approx(FALSE_ALARMS, abs=0.012)
    files = [validity.p_value(away[i : i + 50]) < 0.01 for i in range(0, 6000, 50)]
    assert np.mean(files) < 0.06


def test_another_detector_is_recognised_by_a_file_and_by_many_showers(fitted, toy):
    validity, geometry = fitted
    showers, energies, particles = toy(geometry, 400, 8)
    deeper = np.roll(showers.reshape(-1, 5, 12), 1, 1).reshape(400, -1)
    away = validity.deviations(deeper, energies, particles, geometry)
    assert validity.flags(away).mean() > 0.5
    weaker = validity.deviations(0.9 * showers, energies, particles, geometry)
    assert validity.p_value(weaker[:50]) < 1e-4
    assert validity.p_value(validity.deviations(showers, energies, particles, geometry)) > 1e-4


def test_too_few_showers_of_a_particle_are_refused(small, toy):
    showers, energies, particles = toy(small, 100)
    particles[:] = 11
    particles[0] = 22
    with pytest.raises(AleatorError, match="1 showers of particle 22"):
        fit_validity((showers, energies, particles), (showers, energies, particles), small)
