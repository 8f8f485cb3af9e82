r"""Are generated showers copies of training showers? Nearest neighbours say.

    ratio = median_i  d(x_i, nearest of the training showers) / d(x_i, nearest of unseen showers)

over as many unseen showers as training showers: 1 if the generator does not know one set better
than the other, near 0 if it replays. Distances are of √(E / E_inc) per layer and ring: no turn,
reflection or rescaling hides a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apps.hep_simulation.features import padded
from apps.hep_simulation.geometry import Geometry

BLOCK = 512


@dataclass(frozen=True)
class Neighbours:
    """What was found.

    Attributes:
        ratio: median of nearest training over nearest unseen distance.
        replayed: share of generated showers closer to a training shower than all but one in a
            hundred unseen showers are; .01 is chance.
        compared: training showers, and unseen ones, that were searched.
    """

    ratio: float
    replayed: float
    compared: int


def fingerprints(showers: np.ndarray, energies: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(N, L R) square roots of the share of E_inc in each layer and ring."""
    rings = padded(showers, geometry).sum(2, dtype=np.float64).reshape(len(showers), -1)
    return np.sqrt(rings / energies[:, None]).astype(np.float32)


def nearest(x: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """(N,) distance of each of x (N, F) to the nearest of pool (M, F)."""
    squares = (pool**2).sum(1)
    found = []
    for start in range(0, len(x), BLOCK):
        part = x[start : start + BLOCK]
        squared = (part**2).sum(1)[:, None] + squares - 2 * part @ pool.T
        found.append(np.sqrt(squared.min(1).clip(min=0)))
    return np.concatenate(found)


def neighbours(generated: np.ndarray, train: np.ndarray, unseen: np.ndarray) -> Neighbours:
    """Compare fingerprints (N, F) with those of training and of unseen showers."""
    count = min(len(train), len(unseen))
    random = np.random.default_rng(0)
    train = train[random.permutation(len(train))[:count]]
    unseen = unseen[random.permutation(len(unseen))[:count]]
    to_train, to_unseen = nearest(generated, train), nearest(generated, unseen)
    usual = np.quantile(nearest(unseen, train), 0.01)
    ratio = np.median(to_train / np.maximum(to_unseen, 1e-9))
    return Neighbours(float(ratio), float((to_train < usual).mean()), count)
