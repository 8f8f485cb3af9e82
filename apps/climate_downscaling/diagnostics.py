r"""Where, at which scales and in which way an ensemble is wrong: what the figures show.

Everything is summed over time, a piece at a time. Coverage follows from the ranks: the PIT is
uniform within the bin of the truth's rank r, so that an interval [a, b] holds it with probability

    sum_r f_r |[a, b] ∩ [r, r + 1] / (M + 1)| (M + 1)

with f_r the frequency of rank r; keeping ranks by time gives both their sampling errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.spectra import radial_power
from core.evaluation import Interval, block_bootstrap, crps_ensemble, rank_histogram
from core.random import keyed_generator

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Nominal levels of central intervals."""
GROUPS = 10
"""Classes of spread, equally populated."""

_PER_DECADE, _LEAST, _DECADES = 100, -8, 16
"""Bins of the spread's logarithm, from 1e-8: two per cent wide each."""


@dataclass(frozen=True)
class Diagnosis:
    """What `Diagnostics` found, in the unit of the data.

    Attributes:
        members: M.
        ranks: (T, M + 1) relative frequency of the truth's ranks at each time.
        spread: (G,) spread of cells grouped by it, inflated by 1 + 1/M.
        skill: (G,) root-mean-square error of the ensemble mean in these cells.
        spectra: "truth", "members", "mean" -> (K,) mean power.
        crps: (H, W) mean over time; NaN where nothing is known.
        bias: (H, W) mean over time.
    """

    members: int
    ranks: np.ndarray
    spread: np.ndarray
    skill: np.ndarray
    spectra: dict[str, np.ndarray]
    crps: np.ndarray
    bias: np.ndarray

    def covered(self, levels: Sequence[float] = LEVELS) -> np.ndarray:
        """(T, L) how often the truth is in the central intervals, at each time."""
        count = self.members + 1
        edges = np.arange(count + 1) / count
        low, high = ((1 + s * np.asarray(levels)[:, None]) / 2 for s in (-1, 1))
        overlap = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        return self.ranks @ (overlap.clip(0) * count).T


class Diagnostics:
    """Sums over time of what `Diagnosis` holds."""

    def __init__(self) -> None:
        self._ranks: list[Tensor] = []
        self._bins = torch.zeros(3, _PER_DECADE * _DECADES, dtype=torch.float64)
        self._power: dict[str, Tensor] = {}
        self._maps = torch.zeros(0)
        self._fields = 0

    def add(self, members: Tensor, truth: Tensor, keys: Sequence[int]) -> None:
        """Count some times.

        Args:
            members: (M, T, H, W).
            truth: (T, H, W).
            keys: T numbers, one a time, that the drawing of ranks among ties goes by.
        """
        self.members = len(members)
        valid = ~(truth.isnan() | members.isnan().any(0))
        truth = truth.where(valid, torch.nan)
        some = valid.flatten(1).any(1)
        for t in torch.arange(len(truth))[some].tolist():
            ranks = rank_histogram(members[:, t], truth[t], keyed_generator(int(keys[t])))
            self._ranks.append(ranks / ranks.sum())
        error = members.double() - truth.double()
        mean_error = error.mean(0)
        sums = torch.stack(
            [valid.double(), crps_ensemble(members, truth).double(), mean_error]
        ).nan_to_num(0.0)
        self._maps = (self._maps if self._maps.numel() else 0.0) + sums.sum(1)
        if self.members > 1:
            self._add_spread(error.var(0)[valid], mean_error[valid])
        self._add_spectra(members[:, some], truth[some], valid[some])

    def _add_spread(self, variance: Tensor, error: Tensor) -> None:
        variance = (1 + 1 / self.members) * variance
        place = (variance.clamp_min(1e-300).log10() / 2 - _LEAST) * _PER_DECADE
        index = place.long().clamp(0, self._bins.shape[1] - 1)
        for row, values in enumerate((torch.ones_like(error), variance, error.square())):
            self._bins[row].index_add_(0, index, values)

    def _add_spectra(self, members: Tensor, truth: Tensor, valid: Tensor) -> None:
        if not len(truth):
            return
        mask = None if valid.all() else valid
        self._fields += len(truth)
        fields = [("truth", truth), *(("members", member) for member in members)]
        if self.members > 1:
            fields.append(("mean", members.double().mean(0)))
        for name, values in fields:
            power = radial_power(values, mask).sum(0)
            power = power / self.members if name == "members" else power
            self._power[name] = self._power.get(name, 0.0) + power

    def result(self) -> Diagnosis:
        """What was found in everything added."""
        count, crps, error = self._maps
        spread, skill = self._groups()
        return Diagnosis(
            members=self.members,
            ranks=torch.stack(self._ranks).numpy(),
            spread=spread,
            skill=skill,
            spectra={name: (power / self._fields).numpy() for name, power in self._power.items()},
            crps=(crps / count).numpy(),
            bias=(error / count).numpy(),
        )

    def _groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Bins of spread joined into classes of about equal population."""
        count, variance, squared = self._bins.numpy()
        total = count.sum()
        if not total:
            return np.zeros(0), np.zeros(0)
        middle = (count.cumsum() - count / 2) / total
        group = np.minimum((GROUPS * middle).astype(int), GROUPS - 1)
        sums = [np.bincount(group, v, GROUPS) for v in (count, variance, squared)]
        kept = sums[0] > 0
        n, v, s = (values[kept] for values in sums)
        return np.sqrt(v / n), np.sqrt(s / n)


def interval(series: np.ndarray | Tensor, *, draws: int = 1000) -> Interval | None:
    """95 % interval of a mean over time; None for fewer than four times.

    Blocks are as long as the series remembers; see `block_length`.
    """
    values = torch.as_tensor(series).double()
    if len(values) < 4:
        return None
    length = block_length(values)
    return block_bootstrap(values, block=length, draws=draws, generator=keyed_generator(0))


def block_length(series: Tensor) -> int:
    r"""Times per block: twice the integrated autocorrelation time, at least T^(1/3), at most T/4.

        τ = 1 + 2 sum_{k ≥ 1} ρ_k     up to the first ρ_k ≤ 0

    Args:
        series: (T,) scores in order of time; NaN counts as the mean.
    """
    x = (series - series.nanmean()).nan_to_num()
    count = len(x)
    total = 1.0
    if x.square().sum() > 0:
        power = torch.fft.rfft(x, 2 * count).abs().square()
        rho = torch.fft.irfft(power, 2 * count)[: count // 2]
        rho = rho / rho[0]
        stop = int((rho <= 0).long().argmax()) if (rho <= 0).any() else len(rho)
        total += 2 * rho[1:stop].sum().item()
    return int(min(max(1, count // 4), max(round(count ** (1 / 3)), round(2 * total), 1)))
