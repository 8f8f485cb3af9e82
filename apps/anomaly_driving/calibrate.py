r"""Thresholds at a wanted rate, from frames that were set aside, and how far the rate may stray.

The threshold is chosen on the pooled pixels of the calibration frames. Two intervals say what to
expect of it elsewhere, as long as new frames are like these (exchangeable with them):

* of the next *frame*: leave-one-out conformal. Each frame is judged at the threshold of the
  others; the k-th smallest and largest of the n rates, k = floor((n + 1) (1 - level) / 2),
  enclose the rate of a new frame with probability `level`.
* of a *drive* of as many frames: the rate of redrawn frames at the threshold of other redrawn
  frames, percentiles of many draws; it has the uncertainty of both. Runs of n^(1/3) neighbours are
  redrawn together, since those of one drive resemble each other.

Another city is not exchangeable with this one: there the intervals are too narrow. References:
Vovk, Gammerman and Shafer (2005); Barber et al. (2021) arXiv:1905.02928; Politis and Romano (1992)
for runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from apps.anomaly_driving.bootstrap import FrameCounts
from apps.anomaly_driving.pixel_metrics import Curve, PixelCounts
from core.errors import AleatorError
from core.random import keyed_generator, rand
from core.report import write_text

Target = Literal["fpr", "tpr", "f1"]
FILE = "thresholds.json"
GRID = 8192
"""Cells of the frames' histograms: rates are resolved to about 2 / GRID."""


@dataclass(frozen=True)
class Threshold:
    """A threshold (score >= it is called unexpected) and what is known of it.

    Attributes:
        score: name.
        value: the threshold.
        target: what was wanted: a rate of known pixels, of anomalies, or the best F1.
        wanted: the rate; None for the best F1.
        realised: the rate on the calibration frames.
        frame_low: interval of the rate of the next frame.
        frame_high: its other end.
        drive_low: interval of the pooled rate of as many new frames.
        drive_high: its other end.
        level: probability of the intervals.
        frames: that had pixels to judge.
        data: fingerprint of the calibration data.
        longer_side: of the network's input.
    """

    score: str
    value: float
    target: Target
    wanted: float | None
    realised: float
    frame_low: float | None = None
    frame_high: float | None = None
    drive_low: float | None = None
    drive_high: float | None = None
    level: float = 0.9
    frames: int = 0
    data: str = ""
    longer_side: int = 0


class Calibration:
    """Counts of the calibration frames for one score."""

    def __init__(self, score: str) -> None:
        self.score = score
        self.pixels, self.frames = PixelCounts(), FrameCounts(GRID)

    def add(self, counts: np.ndarray) -> None:
        """Add a frame; see `pixel_metrics.frame_counts`."""
        self.pixels.add(counts)
        self.frames.add(counts)

    def threshold(
        self,
        target: Target,
        wanted: float | None = None,
        *,
        level: float = 0.9,
        draws: int = 1000,
        seed: int = 0,
        data: str = "",
        longer_side: int = 0,
    ) -> Threshold:
        """Choose a threshold.

        Args:
            target: "fpr", "tpr" or "f1".
            wanted: the rate, in (0, 1).
            level: probability of the intervals, in (0, 1).
            draws: of the drive's interval.
            seed: of the draws.
            data: fingerprint of the calibration data, for the record.
            longer_side: of the network's input, for the record.

        Raises:
            AleatorError: rates out of range, no pixels of the kind, a rate that cannot be reached.
        """
        if target != "f1" and (wanted is None or not 0 < wanted < 1):
            raise AleatorError(f"a {target.upper()} of {wanted}: it must lie between 0 and 1")
        if not 0 < level < 1:
            raise AleatorError(f"an interval of level {level}: it must lie between 0 and 1")
        curve = self._curve(target)
        if target == "f1":
            best, value = curve.best_f1
            return Threshold(
                self.score,
                value,
                target,
                None,
                best,
                frames=self.pixels.frames,
                data=data,
                longer_side=longer_side,
            )
        assert wanted is not None
        row = 0 if target == "fpr" else 1
        rates = curve.fall_out if row == 0 else curve.recall
        if target == "fpr" and rates[0] > wanted:
            raise AleatorError(
                f"score {self.score}: {100 * rates[0]:.3g} % of the known pixels share the "
                f"highest score, so an FPR of {100 * wanted:.3g} % cannot be reached; raise it "
                "or choose another score"
            )
        value = (curve.threshold_for_fpr if row == 0 else curve.threshold_for_tpr)(wanted)
        array = self.frames.array()[:, row]
        array = array[array.sum(1) > 0]
        frame = _next_frame(array, target, wanted, level)
        drive = _next_drive(array, target, wanted, level, draws, seed)
        return Threshold(
            self.score,
            value,
            target,
            wanted,
            float(rates[np.searchsorted(-curve.values, -value, side="right") - 1]),
            frame_low=frame[0],
            frame_high=frame[1],
            drive_low=drive[0],
            drive_high=drive[1],
            level=level,
            frames=len(array),
            data=data,
            longer_side=longer_side,
        )

    def _curve(self, target: Target) -> Curve:
        counts = self.pixels.counts
        if target == "fpr" and not counts[1].any():
            if not counts[0].any():
                raise AleatorError("calibration: no known pixel (label 0) in any frame")
            return Curve.of_counts(counts)
        return self.pixels.curve("calibration")


def _pick(pooled: np.ndarray, target: str, wanted: float) -> np.ndarray:
    """Cell (…,) whose score is the threshold, of counts (…, M), scores descending; -1: none.

    FPR: the last cell at which the share is at most what is wanted; TPR: the first at which it is
    reached.
    """
    share = np.cumsum(pooled, -1) / pooled.sum(-1, keepdims=True)
    if target == "fpr":
        return (share <= wanted).sum(-1) - 1
    return (share < wanted - 1e-12).sum(-1)


def _rate(counts: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Share (N,) of counts (N, M) at or above each cell (N,)."""
    reached = np.append(np.zeros((len(counts), 1)), np.cumsum(counts, -1), axis=1)
    return reached[np.arange(len(counts)), cells + 1] / reached[:, -1]


def _next_frame(
    array: np.ndarray, target: str, wanted: float, level: float
) -> tuple[float, float] | tuple[None, None]:
    """Conformal interval of a frame's rate, from (n, M) counts; None with one frame."""
    n = len(array)
    if n < 2:
        return None, None
    total = array.sum(0)
    cells = np.array([_pick(total - row, target, wanted) for row in array])
    rates = np.sort(_rate(array, cells))
    k = math.floor((n + 1) * (1 - level) / 2 + 1e-9)
    if k < 1:
        return 0.0, 1.0
    return float(rates[k - 1]), float(rates[n - k])


def _next_drive(
    array: np.ndarray, target: str, wanted: float, level: float, draws: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """Interval of the pooled rate of n redrawn frames at the threshold of n others."""
    n = len(array)
    if n < 2:
        return None, None
    rates = []
    step = max(1, 4_000_000 // array.shape[1])
    generator = keyed_generator(seed, 1)
    for first in range(0, draws, step):
        count = min(step, draws - first)
        chosen, judged = (_redrawn(array, count, generator) for _ in range(2))
        rates.append(_rate(judged, _pick(chosen, target, wanted)))
    low, high = np.quantile(np.concatenate(rates), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _redrawn(array: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
    """(count, M) sums of n redrawn frames, in runs of neighbours that go round the end."""
    n = len(array)
    run = max(1, round(n ** (1 / 3)))
    starts = rand((count, math.ceil(n / run), 1), generator, dtype=torch.float64) * n
    index = ((starts.long() + torch.arange(run)) % n).flatten(1)[:, :n].numpy()
    weights = np.zeros((count, n))
    np.add.at(weights, (np.arange(count)[:, None], index), 1.0)
    return weights @ array


def save_thresholds(folder: Path, thresholds: Mapping[str, Threshold], model: str) -> Path:
    """Add thresholds to those kept with a model; older ones of the same scores are replaced."""
    kept = {**load_thresholds(folder, model, stale=True), **thresholds}
    text = {"model": model, "thresholds": {name: asdict(t) for name, t in kept.items()}}
    write_text(folder / FILE, json.dumps(text, indent=1) + "\n")
    return folder / FILE


def load_thresholds(folder: Path, model: str, *, stale: bool = False) -> dict[str, Threshold]:
    """Thresholds kept with a model; empty if there are none.

    Args:
        folder: of the model.
        model: its fingerprint.
        stale: leave out those of another model instead of refusing them.

    Raises:
        AleatorError: damaged, or of another model.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
        found = {name: Threshold(**entry) for name, entry in text["thresholds"].items()}
        same = text["model"] == model
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise AleatorError(f"{path}: damaged; delete it and run calibrate again") from None
    if same:
        return found
    if stale:
        return {}
    raise AleatorError(
        f"{path}: thresholds of another model than the one in {folder}; run calibrate again"
    )
