"""What a cloud generator must beat: replay, and constituents that do not know of each other."""

from __future__ import annotations

import numpy as np

from apps.hep_simulation.clouds.data import Clouds
from apps.hep_simulation.clouds.kinematics import centred

NEAR = 200
"""Jets of like condition that independent constituents are taken from."""
_KIND = 100.0
"""Distance of jets of different kinds: none is near."""


def replay(train: Clouds, wanted: Clouds) -> Clouds:
    """For each wanted jet the constituents of the training jet with the nearest pT, |η| and kind.

    As a frozen library does, with the jet's own pT and η. It replays: see the neighbours.
    """
    nearest = _nearest(train, wanted, 1)[:, 0]
    found = train.rows(nearest)
    return Clouds(wanted.pt, wanted.eta, wanted.kind, found.points, found.mask, found.species)


def independent(train: Clouds, wanted: Clouds, seed: int = 0) -> Clouds:
    """As many constituents as a like training jet has, each from another like training jet."""
    random = np.random.default_rng([seed, 17])
    near = _nearest(train, wanted, min(NEAR, len(train)))
    picks = near[np.arange(len(wanted)), random.integers(near.shape[1], size=len(wanted))]
    counts = train.counts[picks]
    mask = np.arange(int(counts.max())) < counts[:, None]
    points, species = np.zeros((*mask.shape, 3)), np.zeros(mask.shape, np.int64)
    for row, count in enumerate(counts):
        pool = near[row]
        sizes = train.counts[pool]
        owner = random.choice(len(pool), count, p=sizes / sizes.sum())
        place = (random.random(count) * sizes[owner]).astype(int)
        points[row, :count] = train.points[pool[owner], place]
        species[row, :count] = train.species[pool[owner], place]
    order = np.argsort(-points[:, :, 2], 1, kind="stable")
    points = np.take_along_axis(points, order[:, :, None], 1)
    species = np.take_along_axis(species, order, 1)
    return Clouds(wanted.pt, wanted.eta, wanted.kind, centred(points, mask), mask, species)


def _nearest(train: Clouds, wanted: Clouds, count: int) -> np.ndarray:
    """(N, count) training jets of like condition."""
    scale = np.array([np.log(train.pt).std(), np.abs(train.eta).std(), 1.0]).clip(1e-9)
    a, b = (
        np.stack([np.log(c.pt), np.abs(c.eta), _KIND * c.kind], 1) / scale for c in (wanted, train)
    )
    found = []
    for start in range(0, len(a), 512):
        gap = ((a[start : start + 512, None] - b[None]) ** 2).sum(2)
        few = np.argpartition(gap, count - 1, 1)[:, :count]
        found.append(few)
    return np.concatenate(found)
