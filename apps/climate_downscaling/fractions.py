r"""Fractions skill score: is it wet in the right neighbourhood, if not in the right cell?

    FSS = 1 - Σ (P_f - P_o)² / Σ (P_f² + P_o²)

P the fraction of a window of n × n cells beyond the threshold; sums over windows that lie in the
domain, over times, and over members, each of which is a forecast. 0 is no skill, 1 is perfect,
(1 + f) / 2, f the frequency of the event, is what is called useful.
Reference: Roberts and Lean (2008), Mon. Wea. Rev. 136, 78-97, doi:10.1175/2007MWR2123.1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

THRESHOLDS = (1.0, 5.0, 10.0, 20.0)
"""mm day-1."""
SCALES = (1, 3, 5, 9, 17, 33, 65)
"""Cells."""


class Fractions:
    """Sums over time of what the score is made of.

    Attributes:
        thresholds: (K,).
        scales: (S,) window sizes that fit the domain.
    """

    def __init__(self, shape: tuple[int, int], thresholds: tuple[float, ...] = THRESHOLDS) -> None:
        """Start from nothing, on a domain of that many cells."""
        self.thresholds = thresholds
        self.scales = tuple(n for n in SCALES if n <= min(shape))
        self._sums = torch.zeros(2, len(thresholds), len(self.scales), dtype=torch.float64)
        self._events, self._cells = np.zeros(len(thresholds)), 0

    def add(self, members: Tensor, truth: Tensor) -> None:
        """Count some times.

        Args:
            members: (M, T, H, W).
            truth: (T, H, W); cells that are NaN here or in a member do not count.
        """
        valid = ~(truth.isnan() | members.isnan().any(0))
        self._cells += int(valid.sum())
        for k, threshold in enumerate(self.thresholds):
            events = (truth > threshold) & valid
            self._events[k] += int(events.sum())
            for s, size in enumerate(self.scales):
                weight = _windows(valid, size)
                known = weight > 0
                observed = _windows(events, size) / weight
                for member in members:
                    forecast = _windows((member > threshold) & valid, size) / weight
                    apart = (forecast - observed)[known].square().sum()
                    total = (forecast.square() + observed.square())[known].sum()
                    self._sums[0, k, s] += apart
                    self._sums[1, k, s] += total

    def scores(self) -> np.ndarray:
        """(K, S); NaN where there was no event at all."""
        apart, total = self._sums.numpy()
        return 1 - np.divide(apart, total, out=np.full_like(apart, np.nan), where=total > 0)

    def useful(self) -> np.ndarray:
        """(K,) (1 + f) / 2."""
        return (1 + self._events / max(1, self._cells)) / 2


def _windows(cells: Tensor, size: int) -> Tensor:
    """(T, H', W') mean of bool cells in every window of size x size, float64."""
    return avg_pool2d(cells[:, None].double(), size, stride=1)[:, 0]
