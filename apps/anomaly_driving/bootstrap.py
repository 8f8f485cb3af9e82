r"""How much would a figure move with other frames? Image-level bootstrap, paired across scores.

Pixels of a frame come and go together, so frames are redrawn, not pixels: with ten images AP moves
by eight points either way. Two scores are compared on the *same* draws of frames, which takes out
what is common to both. Each frame is kept as a histogram on a grid common to all frames, of equal
shares of the anomalous and of the known pixels: memory grows by some kilobytes a frame. The grid
is laid when the first `WARM_UP` frames are in. Reference: Efron and Tibshirani (1993), chapter 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from apps.anomaly_driving.pixel_metrics import BINS, TPR
from core.errors import AleatorError
from core.random import rand

GRID = 2048
WARM_UP = 64
BLOCK = 256
"""Frames that are summed at a time."""


class FrameCounts:
    """Histograms of the frames, (2, ≤ GRID) each, coarser than float16 but on a shared grid."""

    def __init__(self, grid: int = GRID, warm_up: int = WARM_UP) -> None:
        self.grid, self.warm_up = grid, warm_up
        self.cells: np.ndarray | None = None
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self.kept: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.waiting) + len(self.kept)

    def add(self, counts: np.ndarray) -> None:
        """Keep (2, 65 536) counts of a frame, see `pixel_metrics.frame_counts`."""
        ranks = np.flatnonzero(counts.any(0))
        self.waiting.append((ranks, counts[:, ranks]))
        if self.cells is not None or len(self.waiting) >= self.warm_up:
            self._settle()

    def array(self) -> np.ndarray:
        """(N, 2, M) counts of all frames on the grid, scores descending."""
        self._settle()
        stacked = np.stack(self.kept).astype(np.float64)
        return stacked[:, :, ::-1]

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """Sums of the frames (2, D, M) with weights (D, N), scores descending, block by block."""
        self._settle()
        total = np.zeros((2, len(weights), self.kept[0].shape[1]))
        for first in range(0, len(self.kept), BLOCK):
            block = np.stack(self.kept[first : first + BLOCK]).astype(np.float64)
            part = weights[:, first : first + BLOCK].astype(np.float64)
            for k in (0, 1):
                total[k] += part @ block[:, k, ::-1]
        return total

    def _settle(self) -> None:
        if self.cells is None:
            pooled = np.zeros((2, BINS))
            for ranks, counts in self.waiting:
                pooled[:, ranks] += counts
            self.cells = _cells(pooled, self.grid)
        width = int(self.cells[-1]) + 1
        for ranks, counts in self.waiting:
            cell = self.cells[ranks]
            self.kept.append(
                np.stack([np.bincount(cell, row, width) for row in counts]).astype(np.uint32)
            )
        self.waiting.clear()


def _cells(pooled: np.ndarray, grid: int) -> np.ndarray:
    """Cell (65 536,) of each rank: equal shares of the anomalous and of the known pixels.

    Exact (each occupied rank its own cell) where no more than `grid` ranks are occupied.
    """
    occupied = pooled.any(0)
    if occupied.sum() <= grid:
        return np.maximum(np.cumsum(occupied) - 1, 0)
    shares = sum(np.cumsum(row) / max(row.sum(), 1.0) for row in pooled)
    cells = np.floor(shares * grid / 2.0 * (1 - 1e-12)).astype(np.int64)
    return np.unique(cells, return_inverse=True)[1].reshape(-1)


@dataclass(frozen=True)
class Difference:
    """A metric's difference between two scores (or the metric of one).

    Attributes:
        value: on all frames.
        low: end of the percentile interval.
        high: the other end.
        above: share of the draws in which it is above zero.
        draws: that count; draws without anomalies or known pixels are left out.
    """

    value: float
    low: float
    high: float
    above: float
    draws: int


def intervals(
    frames: Mapping[str, FrameCounts],
    metric: str = "ap",
    *,
    against: str | None = None,
    level: float = 0.9,
    draws: int = 1000,
    generator: torch.Generator | None = None,
) -> dict[str, Difference]:
    """Percentile intervals of a metric of each score, or of its difference from one of them.

    Args:
        frames: score -> histograms of the same frames in the same order.
        metric: "ap" or "fpr95".
        against: the score that the others are compared with; plain intervals if None.
        level: probability of the interval.
        draws: redrawn sets of frames, the same for every score.
        generator: randomness.

    Raises:
        AleatorError: one frame alone, unequal numbers of frames, an unknown metric or score.
    """
    if metric not in _METRICS:
        raise AleatorError(f"no metric {metric!r} to bootstrap; known: {', '.join(_METRICS)}")
    if against is not None and against not in frames:
        raise AleatorError(f"no score {against!r} to compare with; there are {', '.join(frames)}")
    sizes = {len(counts) for counts in frames.values()}
    if len(sizes) != 1:
        raise AleatorError(f"scores of {sorted(sizes)} frames: a paired comparison needs the same")
    (n,) = sizes
    if n < 2:
        raise AleatorError("one frame alone has no image-level interval; give more frames")
    weights = _weights(n, draws, generator)
    drawn = {name: _evaluate(counts, weights, metric) for name, counts in frames.items()}
    whole = {name: _evaluate(c, np.ones((1, n)), metric)[0] for name, c in frames.items()}
    base, base_whole = (drawn[against], whole[against]) if against else (0.0, 0.0)
    tails = ((1 - level) / 2, (1 + level) / 2)
    found = {}
    for name in frames:
        if name == against:
            continue
        values = drawn[name] - base
        values = values[np.isfinite(values)]
        if not len(values):
            raise AleatorError("no redrawn set of frames has both kinds of pixels; add frames")
        low, high = np.quantile(values, tails)
        found[name] = Difference(
            float(whole[name] - base_whole),
            float(low),
            float(high),
            float((values > 0).mean()),
            len(values),
        )
    return found


def _weights(n: int, draws: int, generator: torch.Generator | None) -> np.ndarray:
    """(draws, n) how often each frame is drawn."""
    index = (rand((draws, n), generator, dtype=torch.float64) * n).long().clamp_max(n - 1).numpy()
    weights = np.zeros((draws, n), np.float32)  # small integers
    np.add.at(weights, (np.arange(draws)[:, None], index), 1.0)
    return weights


def _evaluate(counts: FrameCounts, weights: np.ndarray, metric: str) -> np.ndarray:
    """The metric (draws,) of the weighted sums of frames; NaN where it is undefined."""
    false, true = np.cumsum(counts.weighted(weights), axis=2)
    return _METRICS[metric](true, false)


def _ap(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    total = true[:, -1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(true > 0, true / (true + false), 0.0)
        area = (np.diff(true, axis=1, prepend=0.0) * precision).sum(1) / total[:, 0]
    return np.where((total[:, 0] > 0) & (false[:, -1] > 0), area, np.nan)


def _fpr95(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    reached = (true >= (TPR - 1e-12) * true[:, -1:]).argmax(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = false[np.arange(len(false)), reached] / false[:, -1]
    return np.where((true[:, -1] > 0) & (false[:, -1] > 0), rate, np.nan)


_METRICS = {"ap": _ap, "fpr95": _fpr95}
