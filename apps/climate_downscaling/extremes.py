r"""The most in each year, and how often more than that is to be expected.

Maxima x of blocks of a year follow a generalised extreme value distribution,

    F(x) = exp( -(1 - κ (x - ξ) / α)^{1/κ} ),      x_T = ξ + α/κ (1 - (-ln(1 - 1/T))^κ),

fitted cell by cell by L-moments; x_T is exceeded once in T years. Members are years of the same
climate: together they have a tail that the truth alone is too short to show.
Reference: Hosking, Wallis and Wood (1985), Technometrics 27, 251-261.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import gamma
from torch import Tensor

PERIODS = (2, 5, 10, 20, 50, 100)
"""Years."""
LEAST_YEARS = 5
"""Fewer do not make a fit."""
BEYOND = 4
"""Longest return period, in lengths of the record."""
_EULER = 0.5772156649015329


@dataclass(frozen=True)
class ReturnLevels:
    """Means over the cells of return levels, in the unit of the data.

    Attributes:
        years: how many the truth has.
        periods: (P,) years.
        truth: (P,).
        members: (P,) of all members' years together.
        low: (P,) 5 % quantile over members, each fitted by itself; NaN of one member.
        high: (P,) 95 %.
    """

    years: int
    periods: tuple[int, ...]
    truth: np.ndarray
    members: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Maxima:
    """The most in each year, per cell and member."""

    def __init__(self) -> None:
        self._truth: dict[int, Tensor] = {}
        self._members: dict[int, Tensor] = {}
        self._count: dict[int, int] = {}

    def add(self, members: Tensor, truth: Tensor, years: Sequence[int] | np.ndarray) -> None:
        """Count some times.

        Args:
            members: (M, T, H, W).
            truth: (T, H, W); cells that are NaN here or in a member do not count.
            years: (T,) to which year each time belongs; see `season_years`.
        """
        unknown = truth.isnan() | members.isnan().any(0)
        years = np.asarray(years)
        for year in np.unique(years).tolist():
            here = torch.from_numpy(years == year)
            for values, kept in ((truth, self._truth), (members, self._members)):
                most = values[..., here, :, :].masked_fill(unknown[here], -torch.inf)
                found = most.amax(-3)
                kept[year] = torch.maximum(kept[year], found) if year in kept else found
            self._count[year] = self._count.get(year, 0) + int(here.sum())

    def whole_years(self) -> list[int]:
        """Those with at least half as many times as the fullest."""
        most = max(self._count.values(), default=0)
        return sorted(year for year, n in self._count.items() if 2 * n >= most)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """(Y, H, W) of the truth and (M, Y, H, W) of the members; NaN of unknown cells."""
        years = self.whole_years()
        truth = torch.stack([self._truth[year] for year in years])
        members = torch.stack([self._members[year] for year in years], 1)
        return _known(truth), _known(members)

    def error(self, *, relative: bool) -> np.ndarray:
        """(H, W) mean of the members' maxima less that of the truth's, or their ratio less 1."""
        truth, members = self.stacked()
        known, found = truth.mean(0), members.mean((0, 1))
        return (found / known - 1 if relative else found - known).numpy()

    def return_levels(self) -> ReturnLevels | None:
        """None for records shorter than five years."""
        truth, members = self.stacked()
        count, years = members.shape[:2]
        if years < LEAST_YEARS:
            return None
        periods = tuple(p for p in PERIODS if p <= BEYOND * years)
        each = np.stack([mean_levels(member, periods) for member in members])
        low, high = np.quantile(each, [0.05, 0.95], axis=0)
        if count == 1:
            low = high = np.full(len(periods), np.nan)
        pooled = mean_levels(members.flatten(0, 1), periods)
        return ReturnLevels(years, periods, mean_levels(truth, periods), pooled, low, high)


def _known(maxima: Tensor) -> Tensor:
    return maxima.masked_fill(maxima.isinf(), torch.nan)


def mean_levels(maxima: Tensor, periods: Sequence[float]) -> np.ndarray:
    """(P,) mean over the cells of the return levels of maxima (Y, H, W)."""
    values = maxima.double().flatten(1).numpy()
    values = values[:, np.isfinite(values).all(0)]
    return np.nanmean(return_level(*gev(values), np.asarray(periods)[:, None]), -1)


def l_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First L-moment, second, and the third over the second, of x (Y, ...) along the first axis.

    Unbiased estimators by probability-weighted moments.
    """
    n = len(x)
    x = np.sort(x, 0)
    rank = np.arange(n, dtype=float).reshape(-1, *[1] * (x.ndim - 1))
    b0 = x.mean(0)
    b1 = (rank / (n - 1) * x).mean(0)
    b2 = (rank * (rank - 1) / ((n - 1) * (n - 2)) * x).mean(0)
    second = 2 * b1 - b0
    third = 6 * b2 - 6 * b1 + b0
    safe = np.where(second > 0, second, 1.0)
    return b0, second, np.where(second > 0, third / safe, 0.0)


def gev(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ξ, α and κ of maxima x (Y, ...); scipy's genextreme(c=κ, loc=ξ, scale=α)."""
    first, second, skew = l_moments(x)
    c = 2 / (3 + skew) - math.log(2) / math.log(3)
    shape = 7.8590 * c + 2.9554 * c**2
    flat = np.abs(shape) < 1e-6  # Gumbel
    k = np.where(flat, 1.0, shape)
    scale = np.where(flat, second / math.log(2), second * k / ((1 - 2.0**-k) * gamma(1 + k)))
    centre = np.where(flat, first - _EULER * scale, first - scale / k * (1 - gamma(1 + k)))
    return centre, scale, np.where(flat, 0.0, shape)


def return_level(
    centre: np.ndarray, scale: np.ndarray, shape: np.ndarray, period: np.ndarray | float
) -> np.ndarray:
    """x_T, exceeded once in `period` years; arguments are broadcast."""
    reduced = -np.log1p(-1 / np.asarray(period, dtype=float))
    k = np.where(shape == 0, 1.0, shape)
    return np.where(
        shape == 0, centre - scale * np.log(reduced), centre + scale / k * (1 - reduced**k)
    )
