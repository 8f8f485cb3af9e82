"""Uniform numbers that are a function of (seed, event, object, position), for a million at once.

Philox4x32-10, a counter-based generator: no state, hence no order. A generator object for each
of the jets would cost more than the jets. Reference: Salmon et al. (2011)
doi:10.1145/2063384.2063405.
"""

from __future__ import annotations

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds of Philox4x32.

    Args:
        counter: (4, ...) integers below 2³².
        key: two integers below 2³².

    Returns:
        (4, ...) uint64 that hold 32 random bits each.
    """
    a, b, c, d = (word.astype(np.uint64) for word in counter)
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        first, second = _M0 * a, _M1 * c
        a, b = (second >> _HALF) ^ b ^ k0, second & _LOW
        c, d = (first >> _HALF) ^ d ^ k1, first & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return np.stack([a, b, c, d])


def uniforms(
    seed: int, purpose: int, event: np.ndarray, place: np.ndarray, count: int
) -> np.ndarray:
    """Uniform numbers in (0, 1) on a grid of 2⁻²⁴.

    Args:
        seed: of the run, up to 64 bits.
        purpose: what they are for, below 2³²: other purposes have other numbers.
        event: (N,) number of the event, below 2⁴⁸.
        place: (N,) number of the object in its event, below 2³².
        count: numbers an object.

    Returns:
        (N, count) float32.
    """
    event = np.asarray(event, dtype=np.uint64)
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    high = ((event >> _HALF) << np.uint64(16))[:, None] | blocks
    shape = high.shape
    counter = np.stack(
        [
            np.broadcast_to((event & _LOW)[:, None], shape),
            np.broadcast_to(np.asarray(place, dtype=np.uint64)[:, None], shape),
            high,
            np.full(shape, purpose, dtype=np.uint64),
        ]
    )
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    bits = philox(counter, key) >> np.uint64(8)
    u = (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
    return np.moveaxis(u, 0, 2).reshape(len(event), 4 * len(blocks))[:, :count]
