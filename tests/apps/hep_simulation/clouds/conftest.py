"""Jets that are made up: a few constituents each, of which all that matters is known."""

import numpy as np
import pytest

from apps.hep_simulation.clouds.data import Clouds
from apps.hep_simulation.clouds.features import relative


def made_up(count, seed=0, most=14):
    """Jets whose constituents keep the laws of jets; harder ones are narrower and have more."""
    random = np.random.default_rng(seed)
    pt = 100 * 5 ** random.random(count)
    counts = random.integers(3, most + 1, count)
    mask = np.arange(most) < counts[:, None]
    z = np.where(mask, random.gamma(0.7, size=(count, most)) + 0.01, 0)
    width = 0.15 * (100 / pt) ** 0.5
    points = random.normal(size=(count, most, 3)) * width[:, None, None]
    points[:, :, 2] = -np.sort(-z / z.sum(1, keepdims=True), 1)
    species = random.integers(1, 4, (count, most)) * mask
    kind = random.choice([1, 21], count)
    eta = random.uniform(-2, 2, count)
    return relative(Clouds(pt, eta, kind, points * mask[:, :, None], mask, species))


@pytest.fixture(scope="session")
def jets():
    """Six hundred of them."""
    return made_up(600)
