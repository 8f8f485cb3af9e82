r"""Two pooled distributions, value by value, in memory that does not grow with what is pooled.

A float's bit pattern, read as an integer, has the order of the floats themselves: its leading 20
bits are a histogram of 2^20 bins, each 1/2048 of its value wide whatever the range. Quantiles and
the Wasserstein distance

    W_1 = ∫ |F(x) - G(x)| dx

follow from two of them, to that precision of the distance from `centre`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_BITS = 12
"""Trailing bits of a float32 that are left out."""
_HALF = 1 << (31 - _BITS)
LEVELS = (
    *(0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    *(0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999),
)
"""Of the quantile–quantile plot; those beyond one value in ten are left out."""


class Pool:
    """A histogram of everything that was added.

    Attributes:
        centre: subtracted first, so that 280 K is told from 280.01 K.
        counts: (2^20,) int64.
    """

    def __init__(self, centre: float = 0.0) -> None:
        """Start from nothing."""
        self.centre = centre
        self.counts = torch.zeros(2 * _HALF, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count values of any shape; NaN does not count."""
        x = values.detach().flatten()
        x = (x[~x.isnan()].double() - self.centre).float()
        bits = x.contiguous().view(torch.int32)
        ordered = torch.where(bits < 0, ~(bits & 0x7FFFFFFF), bits) >> _BITS
        self.counts += torch.bincount(ordered.long() + _HALF, minlength=2 * _HALF)

    @property
    def size(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())

    def quantiles(self, levels: Sequence[float]) -> np.ndarray:
        """(L,) the middle of the bin that holds each quantile; NaN of nothing."""
        if not self.size:
            return np.full(len(levels), np.nan)
        below = self.counts.cumsum(0)
        wanted = torch.tensor(levels, dtype=torch.float64) * self.size
        place = torch.searchsorted(below, wanted.ceil().clamp(1, self.size).long())
        return _middles(place) + self.centre


def wasserstein(a: Pool, b: Pool) -> float:
    """W_1 of two pools with one centre; NaN if one is empty."""
    if not a.size or not b.size:
        return float("nan")
    bins = torch.nonzero((a.counts > 0) | (b.counts > 0))[:, 0]
    between = a.counts[bins].cumsum(0) / a.size - b.counts[bins].cumsum(0) / b.size
    return float(np.abs(between.numpy()[:-1]) @ np.diff(_middles(bins)))


def levels_of(size: int) -> tuple[float, ...]:
    """The levels that `size` values can say something about."""
    return tuple(p for p in LEVELS if round(min(p, 1 - p) * size, 6) >= 10)


def _middles(place: Tensor) -> np.ndarray:
    """The values in the middle of bins, float64."""
    ordered = ((place - _HALF) << _BITS) + (1 << (_BITS - 1))
    bits = torch.where(ordered < 0, ~ordered | -0x80000000, ordered).to(torch.int32)
    zero = (place == _HALF) | (place == _HALF - 1)
    return torch.where(zero, 0.0, bits.view(torch.float32).double()).numpy()
