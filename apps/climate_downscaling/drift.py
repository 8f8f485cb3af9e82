r"""Observations drift against reanalyses: the intercept of a regression is that of recent years.

Stations move, networks grow, and what a reanalysis assimilates changes. Errors b_k of whole years
that a regression has not seen show it; the correction of the next year is their average, the
recent ones weighing more,

    o = Σ_k λ^(K-k) b_k / Σ_k λ^(K-k),

with the memory λ of each variable chosen by how well o predicts the years that follow. λ = 1
corrects nothing: the mean error is zero already. The correction is a constant of the model: inputs
of another century are not extrapolated, and differences between two periods are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

YEAR = 365.2425 * 86400
MEMORIES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
FEWEST = 4
"""Years from which one is predicted; with fewer than twice as many nothing is corrected."""


@dataclass(frozen=True)
class Drift:
    """What cross-fitted errors say about the years to come.

    Attributes:
        offset: (V, H, W) to add to the regression.
        memory: (V,) λ.
        honest: (T, V, H, W) offsets of the training times, each from other years only.
    """

    offset: Tensor
    memory: tuple[float, ...]
    honest: Tensor

    @classmethod
    def fit(cls, error: Tensor, keys: np.ndarray) -> Drift:
        """Choose λ and estimate the offsets.

        Args:
            error: (T, V, H, W) truth minus cross-fitted mean, in order of time.
            keys: (T,) seconds.
        """
        year = np.floor((keys[-1] - keys) / YEAR).astype(int)
        years = np.unique(year)[::-1]  # the oldest first
        rows = [torch.from_numpy(np.flatnonzero(year == k)) for k in years]
        count = error.shape[1]
        if len(rows) < 2 * FEWEST:
            nothing = torch.zeros_like(error)
            return cls(nothing[0], (1.0,) * count, nothing)
        b = torch.stack([error[r].mean(0) for r in rows])
        memory = tuple(_memory(b[:, v]) for v in range(count))
        per_year = torch.stack(
            [
                torch.stack([_honest(b[:, v], k, memory[v]) for v in range(count)])
                for k in range(len(rows))
            ]
        )
        honest = torch.zeros_like(error)
        for r, o in zip(rows, per_year, strict=True):
            honest[r] = o
        offset = torch.stack([recent(b[:, v], memory[v]) for v in range(count)])
        return cls(offset, memory, honest)


def recent(b: Tensor, memory: float) -> Tensor:
    """Average of b (K, H, W), oldest first, with weights λ^(K-k); zero for λ = 1."""
    if memory == 1:
        return torch.zeros_like(b[0])
    weight = memory ** torch.arange(len(b) - 1, -1, -1, dtype=b.dtype)
    return torch.einsum("k,k...->...", weight / weight.sum(), b)


def _memory(b: Tensor) -> float:
    """The λ that has predicted best so far."""

    def error(memory: float) -> float:
        ahead = [b[k] - recent(b[:k], memory) for k in range(FEWEST, len(b))]
        return torch.stack(ahead).square().mean().item()

    return min(MEMORIES, key=error)


def _honest(b: Tensor, k: int, memory: float) -> Tensor:
    """The offset of year k from the years before it; of the first ones, from those after."""
    return recent(b[:k], memory) if k >= FEWEST else recent(b[k + 1 :].flip(0), memory)
