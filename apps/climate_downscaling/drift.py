r"""Observations drift against reanalyses: the intercept of a regression is that of the next year.

Stations move, networks grow, and what a reanalysis assimilates changes. Errors b_k of whole years
that a regression has not seen show it; the correction of the next year is their average, the
recent ones weighing more,

    o = Σ_k λ^(K-k) b_k / Σ_k λ^(K-k),

or the same with its mean over the domain replaced by the straight line through the means of the
years, one year on. The memory λ, and whether there is a line, are chosen for each variable by how
well o predicts the years that follow. λ = 1 alone corrects nothing: the mean error is zero
already. The correction is a constant of the model: inputs of another century are not
extrapolated, and differences between two periods are left alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.scratch import mean_over

YEAR = 365.2425 * 86400
MEMORIES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
FEWEST = 4
"""Years from which one is predicted; with fewer than twice as many nothing is corrected."""


@dataclass(frozen=True)
class Rule:
    """How a year's error is predicted from those of other years.

    Attributes:
        memory: λ.
        trend: whether the mean over the domain follows a straight line.
    """

    memory: float = 1.0
    trend: bool = False

    def predict(self, b: Tensor, time: Tensor, weights: Tensor) -> Tensor:
        """Error (H, W) of the year 0.

        Args:
            b: (K, H, W) of other years, the nearest last.
            time: (K,) those years.
            weights: (H, W) of the cells in the mean over the domain; they sum to 1.
        """
        found = recent(b, self.memory)
        if not self.trend:
            return found
        means = (b * weights).sum((1, 2))
        return found - (found * weights).sum() + line(means, time)

    def describe(self, offset: float) -> str:
        """In words, with the offset that it found; empty where nothing is corrected."""
        if self == Rule():
            return ""
        how = "for the trend of the years" if self.trend else "for recent years"
        return f"{offset:+.3f} {how}; "


@dataclass(frozen=True)
class Drift:
    """What cross-fitted errors say about the years to come.

    Attributes:
        offset: (V, H, W) to add to the regression.
        rules: V of them.
        yearly: (K, V, H, W) offsets of the training years, each from other years only.
        year: (T,) which of them a training time is in.
    """

    offset: Tensor
    rules: tuple[Rule, ...]
    yearly: Tensor
    year: Tensor

    def honest(self, times: slice | Tensor) -> Tensor:
        """Offsets (N, V, H, W) of some training times, from other years than their own."""
        return self.yearly[self.year[times]]

    @classmethod
    def fit(cls, error: Tensor, keys: np.ndarray, valid: Tensor | None = None) -> Drift:
        """Choose the rules and estimate the offsets.

        Args:
            error: (T, V, H, W) truth minus cross-fitted mean, in order of time; looked at in
                pieces.
            keys: (T,) seconds.
            valid: (H, W) cells that count; all if None.
        """
        year = np.floor((keys[-1] - keys) / YEAR).astype(int)
        years = np.unique(year)[::-1]  # the oldest first
        rows = [torch.from_numpy(np.flatnonzero(year == k)) for k in years]
        count = error.shape[1]
        if len(rows) < 2 * FEWEST:
            nothing = torch.zeros_like(error[:1])
            return cls(nothing[0], (Rule(),) * count, nothing, torch.zeros(len(error)).long())
        kept = torch.ones(error.shape[-2:]) if valid is None else valid.to(error.dtype)
        weights = kept / kept.sum()
        time = -torch.from_numpy(years.copy()).to(error.dtype)
        b = torch.stack([mean_over(error, r) for r in rows])
        rules = tuple(_chosen(b[:, v], time, weights) for v in range(count))
        yearly = torch.zeros_like(b)
        for k, v in itertools.product(range(len(b)), range(count)):
            yearly[k, v] = _honest(b[:, v], time, k, rules[v], weights)
        offset = [rules[v].predict(b[:, v], time - 1, weights) for v in range(count)]
        place = torch.from_numpy(len(years) - 1 - np.searchsorted(years[::-1], year))
        return cls(torch.stack(offset), rules, yearly, place)


def recent(b: Tensor, memory: float) -> Tensor:
    """Average of b (K, H, W), oldest first, with weights λ^(K-k); zero for λ = 1."""
    if memory == 1:
        return torch.zeros_like(b[0])
    weight = memory ** torch.arange(len(b) - 1, -1, -1, dtype=b.dtype)
    return torch.einsum("k,k...->...", weight / weight.sum(), b)


def line(means: Tensor, time: Tensor) -> Tensor:
    """What the least-squares line through means (K,) at times (K,) is at time 0."""
    centre = time - time.mean()
    slope = (centre * means).sum() / centre.square().sum()
    return means.mean() - slope * time.mean()


def _chosen(b: Tensor, time: Tensor, weights: Tensor) -> Rule:
    """The rule that has predicted best so far; the plainest of equals."""

    def error(rule: Rule) -> float:
        ahead = [
            b[k] - rule.predict(b[:k], time[:k] - time[k], weights) for k in range(FEWEST, len(b))
        ]
        return (torch.stack(ahead).square() * weights).sum().item()

    rules = [Rule(memory, trend) for trend, memory in itertools.product((False, True), MEMORIES)]
    return min(rules, key=error)


def _honest(b: Tensor, time: Tensor, k: int, rule: Rule, weights: Tensor) -> Tensor:
    """The offset of year k from the years before it; of the first ones, from those after."""
    if k >= FEWEST:
        return rule.predict(b[:k], time[:k] - time[k], weights)
    return rule.predict(b[k + 1 :].flip(0), time[k + 1 :].flip(0) - time[k], weights)
