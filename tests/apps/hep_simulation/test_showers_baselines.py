"""What users would pick instead."""

import numpy as np
import pytest

from apps.hep_simulation.baselines import FrozenLibrary, Parametrised
from core.random import keyed_generator


def _streams(count):
    return [keyed_generator(1, i) for i in range(count)]


def test_the_library_plays_back_the_nearest_shower_rescaled(small, toy):
    showers, energies, particles = toy(small, 50)
    library = FrozenLibrary(showers, energies, particles, small, turns=False)
    found = library.sample(energies[:5] * 1.0001, particles[:5], _streams(5))
    assert found == pytest.approx(showers[:5] * 1.0001, rel=1e-4)


def test_a_turned_library_keeps_layers_and_rings(small, toy):
    showers, energies, particles = toy(small, 50)
    library = FrozenLibrary(showers, energies, particles, small)
    found = library.sample(energies[:20], particles[:20], _streams(20))
    rings = [x.reshape(20, 5, 4, 3).sum(2) for x in (found, showers[:20])]
    assert rings[0] == pytest.approx(rings[1], rel=1e-4)
    assert not np.array_equal(found, showers[:20])


def test_the_parametrised_shower_has_the_mean_response_and_depth(small, toy):
    showers, energies, particles = toy(small, 600)
    fitted = Parametrised.fit(showers, energies, particles, small)
    found = fitted.sample(energies, particles, _streams(600))
    assert (found >= 0).all()
    response = [(x.sum(1) / energies).mean() for x in (found, showers)]
    assert response[0] == pytest.approx(response[1], rel=0.05)
    depth = [
        (x.reshape(600, 5, 12).sum(2) @ np.arange(5) / x.sum(1)).mean() for x in (found, showers)
    ]
    assert depth[0] == pytest.approx(depth[1], abs=0.3)
