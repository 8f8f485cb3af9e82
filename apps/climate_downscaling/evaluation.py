r"""Scores of downscaled ensembles, in the terms of the field.

CRPS and spread–skill say whether the ensemble is calibrated where it stands, the log-spectral
distance whether a member looks like nature at every scale; a score alone rewards blur (RMSE) or
noise (spectra). Deterministic forecasts are ensembles of one: their CRPS is the absolute error.
All scores come from sums over time, so that a `Tally` needs one piece of a long file at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apps.climate_downscaling.blocks import coarsen
from apps.climate_downscaling.spectra import distance, log_spectral_distance, radial_power
from core.errors import AleatorError
from core.evaluation import coverage, crps_ensemble
from core.report import Table

__all__ = ["EXTREME", "WET_DAY", "Tally", "log_spectral_distance", "scores", "table"]

WET_DAY = 1.0
"""mm day-1: the usual threshold of a wet day."""
EXTREME = 0.999
"""Level of the extreme quantile, pooled over members, times and cells."""
INTERVAL = 0.9
"""Level of the central interval whose coverage is reported."""

_PIECE = 1 << 24
"""Values of an ensemble that `scores` works on at once."""


def scores(
    members: Tensor,
    truth: Tensor,
    *,
    amount: bool = False,
    factor: int | None = None,
    weights: Tensor | None = None,
) -> dict[str, float]:
    r"""All scores of one variable; cells that are NaN in the truth or a member do not count.

        spread_skill = sqrt( (1 + 1/M) mean var_m x / mean (x̄ - y)² )
        coarse_error = sqrt( mean (A x - A y)² ) / sd(A y),       A the block mean

    Args:
        members: (M, T, H, W).
        truth: (T, H, W).
        amount: the variable is precipitation, mm day-1: errors of the extreme quantile are
            relative, and wet days are counted.
        factor: if given, the error of block means of that many cells a side is added.
        weights: (H, W) of the cells in the averages; all alike if None. Quantiles and spectra
            take all cells alike.

    Returns:
        rmse, mae and bias of the ensemble mean, crps (fair), spread_skill, lsd (dB, of member 0),
        coverage_90, q999, wet_days (amounts), coarse_error (with a factor); units of the data
        where not said otherwise. What needs several members is NaN for one.

    Raises:
        AleatorError: shapes do not match, or nothing is left to score.
    """
    if members.dim() != 4 or members.shape[1:] != truth.shape or not len(members):
        raise AleatorError(
            f"scores: members {tuple(members.shape)} and truth {tuple(truth.shape)} do not match; "
            "expected (M, T, H, W) and (T, H, W)"
        )
    tally = Tally(truth.numel() * len(members), amount=amount, factor=factor, weights=weights)
    step = max(1, _PIECE // max(1, members[:, :1].numel()))
    for start in range(0, len(truth), step):
        tally.add(members[:, start : start + step], truth[start : start + step])
    return tally.scores()


class Tally:
    """Sums over time from which all scores follow, exactly, however the times are split.

    Attributes:
        per_time: name -> one (T',) tensor a piece: sums over the cells of each time.
    """

    def __init__(
        self,
        most: int,
        *,
        amount: bool = False,
        factor: int | None = None,
        weights: Tensor | None = None,
    ) -> None:
        """Start from nothing.

        Args:
            most: an upper bound of the values (members x times x cells) that will be added.
            amount: as for `scores`.
            factor: as for `scores`.
            weights: as for `scores`.
        """
        self.amount, self.factor = amount, factor
        self.weights = None if weights is None else weights.detach().double().cpu()
        self.members = 0
        self.per_time: dict[str, list[Tensor]] = {}
        self._covered = 0.0
        self._power = [torch.zeros(()).double(), torch.zeros(()).double()]
        self._blocks = _Blocks(weights=self.weights)
        self._tops = [_Top(most), _Top(most)]

    def add(self, members: Tensor, truth: Tensor) -> None:
        """Count some times.

        Args:
            members: (M, T, H, W).
            truth: (T, H, W).
        """
        members, truth = members.detach().cpu(), truth.detach().cpu()
        self.members = len(members)
        if not truth.numel():
            return
        valid = ~(truth.isnan() | members.isnan().any(0))
        weights = valid.double() if self.weights is None else valid * self.weights
        self._add_errors(members, truth, valid, weights)
        total = weights.sum().item()
        if self.members > 1 and total:
            self._covered += total * coverage(members, truth, (INTERVAL,), weights).item()
        some = valid.flatten(1).any(1)
        for i, fields in enumerate((members[0], truth)):
            if some.any():
                power = radial_power(fields[some], None if valid.all() else valid[some])
                self._power[i] = self._power[i] + power.sum(0)
        self._tops[0].add(members[:, valid])
        self._tops[1].add(truth[valid])
        if self.factor is not None:
            self._blocks.add(members, truth.where(valid, torch.nan), self.factor)

    def _add_errors(self, members: Tensor, truth: Tensor, valid: Tensor, weights: Tensor) -> None:
        def count(name: str, values: Tensor) -> None:
            kept = torch.where(valid & (weights != 0), values.double() * weights, 0.0)
            self.per_time.setdefault(name, []).append(kept.sum((-2, -1)))

        differences = members - truth  # centred first: float32 near 280 K has few digits left
        error = differences.double().mean(0)
        count("weight", torch.ones_like(error))
        count("bias", error)
        count("mae", error.abs())
        count("square", error.square())
        count("crps", crps_ensemble(members, truth))
        if self.members > 1:
            count("variance", differences.double().var(0))
        if self.amount:
            wet = (members > WET_DAY).double().mean(0) - (truth > WET_DAY).double()
            count("wet_days", wet)

    def series(self, name: str) -> Tensor:
        """(T,) mean over the cells of each time: bias, mae, square, crps, variance, wet_days."""
        return torch.cat(self.per_time[name]) / torch.cat(self.per_time["weight"])

    def _mean(self, name: str) -> float:
        sums = (torch.cat(self.per_time[key]).sum().item() for key in (name, "weight"))
        return next(sums) / next(sums)

    def scores(self) -> dict[str, float]:
        """The scores of everything added; see `scores` of this module.

        Raises:
            AleatorError: nothing was added, or nothing but missing cells.
        """
        if not self.per_time or not torch.cat(self.per_time["weight"]).sum():
            raise AleatorError("scores: nothing to score, every cell is missing")
        several = self.members > 1
        weight = torch.cat(self.per_time["weight"]).sum().item()
        rmse = self._mean("square") ** 0.5
        found = {
            "rmse": rmse,
            "mae": self._mean("mae"),
            "bias": self._mean("bias"),
            "crps": self._mean("crps"),
            "spread_skill": self._spread() / rmse if several and rmse else math.nan,
            "lsd": distance(*self._power),
            "coverage_90": self._covered / weight if several else math.nan,
            "q999": self._extreme_error(),
        }
        if self.amount:
            found["wet_days"] = self._mean("wet_days")
        if self.factor is not None:
            found["coarse_error"] = self._blocks.error()
        return found

    def _spread(self) -> float:
        return ((1 + 1 / self.members) * self._mean("variance")) ** 0.5

    def _extreme_error(self) -> float:
        found, known = (top.quantile() for top in self._tops)
        if not self.amount:
            return found - known
        return found / known - 1 if known > 0 else math.nan


class _Top:
    """The largest values of a stream, from which its extreme quantile is exact."""

    def __init__(self, most: int) -> None:
        self.size = int((1 - EXTREME) * most) + 3
        self.count = 0
        self.values = torch.zeros(0)

    def add(self, values: Tensor) -> None:
        flat = values.flatten()
        self.count += len(flat)
        pooled = torch.cat([self.values.to(flat.dtype), flat])
        self.values = pooled.topk(min(self.size, len(pooled))).values

    def quantile(self) -> float:
        """By linear interpolation of order statistics, as NumPy's default."""
        place = EXTREME * (self.count - 1)
        below = int(place)
        low = self.values[self.count - below - 1].double()
        high = self.values[max(0, self.count - below - 2)].double()
        return torch.lerp(low, high, place - below).item()


class _Blocks:
    """Sums for the error of block means; blocks with a missing cell do not count."""

    def __init__(self, weights: Tensor | None) -> None:
        self.weights = weights
        self.squared, self.members = 0.0, 0
        self.count, self.mean, self.scatter = 0, 0.0, 0.0

    def add(self, members: Tensor, truth: Tensor, factor: int) -> None:
        known = coarsen(truth.double(), factor, self.weights)
        valid = ~known.isnan()
        known = known[valid]
        for member in members:
            found = coarsen(member.double(), factor, self.weights)[valid]
            self.squared += (found - known).square().sum().item()
        self.members = len(members)
        if not len(known):
            return
        # mean and scatter of the union (Chan et al., 1979): exact near 280 K, unlike raw sums
        count, mean = len(known), known.mean().item()
        total, apart = self.count + count, mean - self.mean
        self.scatter += (known - mean).square().sum().item()
        self.scatter += apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    def error(self) -> float:
        if self.count < 2 or not self.scatter:
            return math.nan
        squared = self.squared / (self.count * self.members)
        return math.sqrt(squared / (self.scatter / (self.count - 1)))


def table(
    rows: Sequence[Mapping[str, Any]], *, amount: bool, units: str, title: str = ""
) -> Table:
    """Rows of `scores`, each with a `method`, as a table; scores that no row has are left out.

    Args:
        rows: what to show; a `crps_interval` in words may stand beside the scores.
        amount: of precipitation.
        units: of the variable; said in the title.
        title: what the scores are of.
    """
    columns = {
        "method": "method",
        "crps": "CRPS",
        "crps_interval": "95 % interval",
        "rmse": "RMSE",
        "mae": "MAE",
        "bias": "bias",
        "spread_skill": "spread/skill",
        "coverage_90": "90 % covers",
        "lsd": "LSD (dB)",
        "q999": "q99.9, rel." if amount else "q99.9",
        "wet_days": "wet days",
        "coarse_error": "coarse/sd",
    }
    columns = {k: v for k, v in columns.items() if k == "method" or any(k in row for row in rows)}
    digits = _decimals(rows)
    formats = {"crps": f".{digits}f", "spread_skill": ".2f", "coverage_90": ".2f", "lsd": ".2f"}
    formats |= dict.fromkeys(("rmse", "mae"), f".{max(0, digits - 1)}f")
    formats |= dict.fromkeys(("bias", "q999"), f"+.{max(0, digits - 1)}f")
    formats |= {"wet_days": "+.3f", "coarse_error": ".1e"} | ({"q999": "+.2f"} if amount else {})
    best: dict[str, Any] = dict.fromkeys(("crps", "rmse", "mae", "lsd", "coarse_error"), "min")
    best |= {"bias": 0.0, "spread_skill": 1.0, "coverage_90": 0.9, "q999": 0.0, "wet_days": 0.0}
    said = f"{title}; errors in {units}" if title else f"errors in {units}"
    return Table(
        list(rows),
        columns,
        {key: shown for key, shown in formats.items() if key in columns},
        {key: wanted for key, wanted in best.items() if key in columns},
        said,
    )


def _decimals(rows: Sequence[Mapping[str, Any]]) -> int:
    """Decimals that show the least CRPS to four digits, whatever the unit."""
    found = [float(row.get("crps", 0.0)) for row in rows]
    least = min((v for v in found if v > 0), default=0.1)
    return min(9, max(0, 3 - math.floor(math.log10(least))))
