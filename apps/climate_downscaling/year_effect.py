r"""What a year's errors have in common: members that are off for a whole winter, as models are.

    e_t = w_{year(t)} + d_t,    w = √φ Σ_k ξ_k b_k / √K,    ξ ~ N(0, 1),    Var d = Var e − Var w

b_k are the mean errors of K years that the regression has not seen, corrected for drift; w is a
random mixture of them, one a year and member, and has their covariance between cells and
variables. φ takes off what means over a year's times vary by chance,

    φ = 1 − mean_k Var(e) (1 + ρ) / (n_k (1 − ρ)) / mean b²,

ρ being the correlation of the errors of neighbouring times. The variance of a single time is what
it was: what w adds, d lacks.
Reference: Laird and Ware (1982), doi:10.2307/2529876, for random effects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.drift import FEWEST, YEAR
from apps.climate_downscaling.scratch import mean_over, pieces, run_of
from core.random import keyed_generator

_KEY = -7
_MOST = 0.9
"""Share of the variance that a year can explain, at most."""


@dataclass(frozen=True)
class YearEffect:
    """The fitted effect.

    Attributes:
        maps: (K, V, H, W) √(φ / K) b_k; K = 0 if years have nothing in common.
        daily: (V, H, W) factor on the rest, √(1 − Var w / Var e).
        start: (1,) seconds since 1970 at which a year begins, in the emptiest part of it.
    """

    maps: Tensor
    daily: Tensor
    start: Tensor

    @classmethod
    def fit(cls, error: Tensor, keys: np.ndarray, valid: Tensor) -> YearEffect:
        """Estimate it.

        Args:
            error: (T, V, H, W) cross-fitted errors, corrected for drift, in order of time;
                looked at in pieces.
            keys: (T,) seconds.
            valid: (H, W) cells that have data.
        """
        start = _break(keys)
        year = np.floor((keys - start) / YEAR).astype(int)
        rows = [torch.from_numpy(np.flatnonzero(year == k)) for k in np.unique(year)]
        begin = torch.tensor([start], dtype=torch.float64)
        if len(rows) < 2 * FEWEST:
            return cls(error[:0], torch.ones_like(error[0]), begin)
        b, power = torch.stack([mean_over(error, r) for r in rows]), _power(error)
        share = _beyond_chance(b, power, _lag_one(error, keys, valid), rows, valid)
        maps = b * (share / len(b)).sqrt()[:, None, None]
        explained = maps.square().sum(0) / power.clamp_min(1e-30)
        maps = maps * (_MOST / explained.clamp_min(_MOST)).sqrt()
        return cls(maps, (1 - explained.clamp_max(_MOST)).sqrt(), begin)

    def draw(self, seed: int, members: range, key: int) -> Tensor:
        """W (M, 1, V, H, W) of some members in the year of a time, `key` seconds since 1970."""
        year = int(np.floor((key - self.start.item()) / YEAR))
        weights = [
            torch.randn(len(self.maps), generator=keyed_generator(seed, member, year, _KEY))
            for member in members
        ]
        each = [(w[:, None, None, None] * self.maps).sum(0) for w in weights]  # one by one: no
        return torch.stack(each)[:, None]  # member's digits depend on how many there are

    def spread(self, valid: Tensor) -> list[float]:
        """Standard deviation of w of each variable, over valid cells (H, W)."""
        return self.maps.square().sum(0)[:, valid].mean(-1).sqrt().tolist()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        return dict(vars(self))


def _break(keys: np.ndarray) -> float:
    """A time in the middle of the part of the year that has the fewest data, before them all."""
    phase = np.sort(np.unique(np.mod(keys, YEAR)))
    gaps = np.diff(np.append(phase, phase[0] + YEAR))
    widest = int(gaps.argmax())
    middle = phase[widest] + gaps[widest] / 2
    return float(keys[0] - np.mod(keys[0] - middle, YEAR))


def _beyond_chance(
    b: Tensor, power: Tensor, lag: Tensor, rows: list[Tensor], valid: Tensor
) -> Tensor:
    """φ (V,) within [0, 1]."""
    times = torch.tensor([len(r) for r in rows], dtype=b.dtype)
    chance = power[:, valid].mean(-1) * (1 + lag) / (1 - lag) * (1 / times).mean()
    found = b[..., valid].square().mean((0, 2)).clamp_min(1e-30)
    return (1 - chance / found).clamp(0, 1)


def _power(error: Tensor) -> Tensor:
    """(V, H, W) mean square."""
    total = torch.zeros(error.shape[1:], dtype=torch.float64)
    for rows in map(run_of, pieces(len(error), error)):
        total += error[rows].double().square().sum(0)
    return (total / len(error)).to(error.dtype)


def _lag_one(error: Tensor, keys: np.ndarray, valid: Tensor) -> Tensor:
    """(V,) correlation of the errors of neighbouring times."""
    steps = np.diff(keys)
    pairs = torch.from_numpy(np.flatnonzero(steps == np.median(steps)))
    sums = torch.zeros(3, error.shape[1], dtype=torch.float64)
    for rows in pieces(pairs, error):
        now, then = (error[run_of(r)][..., valid].double() for r in (rows, rows + 1))
        sums += torch.stack(
            [(a * b).sum((0, 2)) for a, b in ((now, then), (now, now), (then, then))]
        )
    return (sums[0] / (sums[1] * sums[2]).sqrt().clamp_min(1e-30)).clamp(0, 0.95).to(error.dtype)
