"""What an ensemble makes of rare events: pooled distributions, yearly maxima, wet neighbourhoods.

Summed over time, a piece at a time, beside what `diagnostics` keeps of the usual ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.distribution import Pool, levels_of, wasserstein
from apps.climate_downscaling.extremes import Maxima, ReturnLevels
from apps.climate_downscaling.fractions import Fractions


@dataclass(frozen=True)
class Rare:
    """What `Tails` found, in the unit of the data.

    Attributes:
        levels: (L,) of the quantiles.
        truth: (L,) quantiles pooled over times and cells.
        members: (L,) the same, and over members.
        wasserstein: W_1 between the two distributions.
        maxima: (H, W) error of the mean yearly maximum; relative for amounts.
        years: how many there are.
        returns: return levels; None for short records.
        spread: (H, W) standard deviation over members, quadratic mean over time; NaN of one.
        thresholds: (K,) of the fractions skill score; empty but for amounts.
        scales: (S,) its windows, cells.
        fractions: (K, S) the score.
        useful: (K,) what is called useful.
    """

    levels: tuple[float, ...]
    truth: np.ndarray
    members: np.ndarray
    wasserstein: float
    maxima: np.ndarray
    years: int
    returns: ReturnLevels | None
    spread: np.ndarray
    thresholds: tuple[float, ...] = ()
    scales: tuple[int, ...] = ()
    fractions: np.ndarray | None = None
    useful: np.ndarray | None = None

    def record(self) -> dict[str, Any]:
        """What results.json keeps of it."""
        found: dict[str, Any] = {
            "wasserstein": self.wasserstein,
            "quantiles": {
                "levels": list(self.levels),
                "truth": self.truth,
                "members": self.members,
            },
            "years": self.years,
            "yearly_maximum_error": float(np.nanmean(self.maxima)),
        }
        if self.returns is not None:
            names = ("periods", "truth", "members", "low", "high")
            found["return_levels"] = {name: getattr(self.returns, name) for name in names}
        if self.fractions is not None:
            found["fractions_skill_score"] = {
                "thresholds": list(self.thresholds),
                "scales_cells": list(self.scales),
                "scores": self.fractions,
                "useful": self.useful,
            }
        return found


class Tails:
    """Sums over time of what `Rare` holds."""

    def __init__(self, shape: tuple[int, int], *, amount: bool) -> None:
        """Start from nothing.

        Args:
            shape: (H, W).
            amount: of precipitation: relative errors, and fractions beyond thresholds.
        """
        self.amount = amount
        self._pools: tuple[Pool, Pool] | None = None
        self._maxima = Maxima()
        self._fractions = Fractions(shape) if amount else None
        self._spread = torch.zeros(2, *shape, dtype=torch.float64)

    def add(self, members: Tensor, truth: Tensor, years: np.ndarray) -> None:
        """Count some times.

        Args:
            members: (M, T, H, W).
            truth: (T, H, W).
            years: (T,) to which year each time belongs.
        """
        valid = ~(truth.isnan() | members.isnan().any(0))
        if self._pools is None:
            known = truth[valid]
            centre = 0.0 if self.amount or not len(known) else round(known.mean().item())
            self._pools = Pool(centre), Pool(centre)
        self._pools[0].add(truth[valid])
        for member in members:
            self._pools[1].add(member[valid])
        self._maxima.add(members, truth, years)
        if self._fractions is not None:
            self._fractions.add(members, truth)
        if len(members) > 1:
            variance = torch.where(valid, members.double().var(0), 0.0)
            self._spread += torch.stack([valid.double().sum(0), variance.sum(0)])

    def result(self) -> Rare:
        """What was found in everything added."""
        assert self._pools is not None
        truth, members = self._pools
        levels = levels_of(truth.size)
        count, variance = self._spread
        fss = self._fractions
        return Rare(
            levels=levels,
            truth=truth.quantiles(levels),
            members=members.quantiles(levels),
            wasserstein=wasserstein(truth, members),
            maxima=self._maxima.error(relative=self.amount),
            years=len(self._maxima.whole_years()),
            returns=self._maxima.return_levels(),
            spread=(variance / count).sqrt().numpy(),
            thresholds=fss.thresholds if fss else (),
            scales=fss.scales if fss else (),
            fractions=fss.scores() if fss else None,
            useful=fss.useful() if fss else None,
        )
