"""How a verified ensemble hangs together beside the truth, from sums over time.

The measures are those of `dependence`; correlations in time come from moments, cell by cell, and
the correlation length from the series of some hundred cells. Of an ensemble the first members
stand for all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.dependence import MOST_CELLS, correlation_length
from apps.climate_downscaling.grid import Grid
from core.report import Table

MEMBERS = 4
"""That are looked at."""


class Moments:
    """Correlation of two series in every cell, from sums over time."""

    def __init__(self) -> None:
        self._origin: tuple[Tensor, Tensor] | None = None
        self._sums = torch.zeros(())

    def add(self, a: Tensor, b: Tensor) -> None:
        """Count some times of a and b (..., T, H, W); a pair with a NaN does not count."""
        if not a.shape[-3]:
            return
        if self._origin is None:  # sums of raw kelvin would lose what they are about
            self._origin = _mean(a), _mean(b)
        x, y = (v.double() - origin for v, origin in zip((a, b), self._origin, strict=True))
        known = ~(x.isnan() | y.isnan())
        x, y = (torch.where(known, v, 0.0) for v in (x, y))
        terms = torch.stack([known.double(), x, y, x * x, y * y, x * y])
        self._sums = self._sums + terms.sum(-3)

    def correlation(self) -> float:
        """Mean over cells (and whatever stands before them); NaN if nothing varies."""
        if not self._sums.dim():
            return math.nan
        n, x, y, xx, yy, xy = self._sums
        norm = ((n * xx - x * x) * (n * yy - y * y)).clamp_min(0).sqrt()
        kept = (n > 2) & (norm > 1e-9 * (n * xx).clamp_min(1e-300))
        return ((n * xy - x * y) / norm)[kept].mean().item()


def _mean(values: Tensor) -> Tensor:
    """Over time; zero where nothing is known yet."""
    return values.double().nanmean(-3, keepdim=True).nan_to_num()


class Structure:
    """Correlation in space, in time and between variables, of members and of the truth."""

    def __init__(self, names: Sequence[str], grid: Grid) -> None:
        """Start from nothing.

        Args:
            names: of the V variables.
            grid: of the cells.
        """
        self.names = tuple(names)
        self.pairs = list(itertools.combinations(range(len(names)), 2))
        count = math.prod(grid.shape)
        cells = np.arange(count)[:: math.ceil(count / MOST_CELLS)]
        self._cells = torch.from_numpy(cells)
        where = grid.geographic()
        self._place = where and (where[0].ravel()[cells], where[1].ravel()[cells])
        self._lag = [[Moments() for _ in names] for _ in range(2)]
        self._between = [[Moments() for _ in self.pairs] for _ in range(2)]
        self._series: list[list[Tensor]] = [[], []]
        self._last: tuple[list[Tensor], int] | None = None
        self._step: int | None = None

    def add(self, members: Tensor, truth: Tensor, keys: Sequence[int]) -> None:
        """Count some times, later ones than before.

        Args:
            members: (M, T, V, H, W).
            truth: (T, V, H, W); NaN where nothing is known.
            keys: (T,) seconds.
        """
        first = members[:MEMBERS]
        truth = truth.where(~first.isnan().any(0), torch.nan)
        first = first.where(~truth.isnan(), torch.nan)
        for kind, fields in enumerate((truth[None], first)):
            for moments, (a, b) in zip(self._between[kind], self.pairs, strict=True):
                moments.add(fields[:, :, a], fields[:, :, b])
            self._series[kind].append(fields[0].flatten(-2)[..., self._cells])
        self._add_lag([truth[None], first], list(keys))

    def _add_lag(self, kinds: list[Tensor], keys: list[int]) -> None:
        if self._last is not None:
            before = self._last[0]
            kinds = [torch.cat(pair, 1) for pair in zip(before, kinds, strict=True)]
            keys = [self._last[1], *keys]
        steps = np.diff(keys)
        if self._step is None and len(steps):
            self._step = int(np.median(steps))
        pairs = np.flatnonzero(steps == self._step)
        for kind, fields in enumerate(kinds):
            for v, moments in enumerate(self._lag[kind]):
                moments.add(fields[:, pairs, v], fields[:, pairs + 1, v])
        self._last = [fields[:, -1:] for fields in kinds], keys[-1]

    def result(self) -> dict[str, Any]:
        """Measure -> variable or pair -> {"truth": value, "members": value}."""
        kinds = ("truth", "members")
        found: dict[str, Any] = {"correlation_length_km": {}, "lag_1": {}, "between": {}}
        for v, name in enumerate(self.names):
            lengths = (self._length(torch.cat(series)[:, v]) for series in self._series)
            found["correlation_length_km"][name] = dict(zip(kinds, lengths, strict=True))
            lags = (moments[v].correlation() for moments in self._lag)
            found["lag_1"][name] = dict(zip(kinds, lags, strict=True))
        for p, (a, b) in enumerate(self.pairs):
            between = (moments[p].correlation() for moments in self._between)
            pair = f"{self.names[a]}–{self.names[b]}"
            found["between"][pair] = dict(zip(kinds, between, strict=True))
        return found

    def _length(self, series: Tensor) -> float:
        known = series.isfinite().all(0)
        if self._place is None or known.sum() < 3 or len(series) < 3:
            return math.nan
        lat, lon = (v[None, known.numpy()] for v in self._place)
        return correlation_length(series[:, None, known], lat, lon)


def structure_table(found: Mapping[str, Any]) -> Table:
    """What `Structure.result` found, a measure a row."""
    words = {
        "correlation_length_km": "correlation length (km)",
        "lag_1": "correlation with the next time",
        "between": "correlation in time",
    }
    rows = [
        {"measure": words[measure], "of": name, **values}
        for measure, entries in found.items()
        for name, values in entries.items()
    ]
    columns = {"measure": "measure", "of": "of", "truth": "truth", "members": "members"}
    return Table(rows, columns, title="How members hang together")
