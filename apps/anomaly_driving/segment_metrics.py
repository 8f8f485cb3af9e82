r"""Segment metrics: is each unexpected object found as an object, and is each alarm about one?

Objects and alarms are 8-connected components. For a ground-truth component k and the union P of
the predicted components that touch it, the adjusted IoU does not count against k what of P lies on
other ground truth G:

    sIoU(k) = |k ∩ P| / (|k ∪ P| - |P ∩ (G \ k)|),      PPV(p) = |p ∩ G| / |p|

For t = 0.25, 0.30, ..., 0.75: TP = components with sIoU >= t, FN the others, FP = predictions
with PPV < t; the mean F1 is that of 2 TP / (2 TP + FN + FP) over the eleven t. Ignored pixels
belong to no component; predicted components below a size are dropped, and the pixels of
ground-truth ones below a size are ignored. Reference: Chan et al. (2021) arXiv:2104.14812.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from core.errors import AleatorError

LEVELS = np.linspace(0.25, 0.75, 11)


@dataclass(frozen=True)
class Sizes:
    """Components smaller than this, in pixels, do not count.

    Attributes:
        predicted: alarms below it are dropped.
        truth: objects below it are ignored.
    """

    predicted: int = 500
    truth: int = 100

    def __post_init__(self) -> None:
        if min(self.predicted, self.truth) < 0:
            raise AleatorError(f"segment sizes {self}: pixels cannot be negative")


TRACKS = {"anomaly": Sizes(500, 100), "obstacle": Sizes(50, 10)}
"""Sizes of the two tracks of SegmentMeIfYouCan."""


@dataclass(frozen=True)
class Segments:
    """What one frame adds.

    Attributes:
        siou: (G,) adjusted IoU of each ground-truth component.
        ppv: (P,) precision of each predicted component.
    """

    siou: np.ndarray
    ppv: np.ndarray


def segments(mask: np.ndarray, label: np.ndarray, sizes: Sizes) -> Segments:
    """Compare predicted and true components of a frame.

    Args:
        mask: (H, W) bool, pixels called anomalous.
        label: (H, W) uint8: 0 known, 1 anomaly, anything else ignored.
        sizes: least sizes of components.
    """
    truth, true_sizes = _components(label == 1)
    predicted, predicted_sizes = _components(mask & (label <= 1))
    predicted = _without_small(predicted, predicted_sizes, sizes.predicted)
    judged = label <= 1
    small = true_sizes < sizes.truth
    small[0] = False
    if small.any():
        judged &= ~small[truth]
    return _compare(truth[judged], predicted[judged])


def _compare(truth: np.ndarray, predicted: np.ndarray) -> Segments:
    """Component numbers of the judged pixels, (N,), 0 for none -> metrics of each component."""
    rows, columns = int(truth.max(initial=0)) + 1, int(predicted.max(initial=0)) + 1
    pairs = truth.astype(np.int64) * columns + predicted
    overlap = np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
    true_size, predicted_size = overlap.sum(1), overlap.sum(0)
    hit = overlap[1:, 1:]
    touches = hit > 0
    on_truth = hit.sum(0)  # of each prediction, on any ground truth
    intersection = hit.sum(1)
    of_predictions = (touches * predicted_size[1:]).sum(1)
    on_others = (touches * on_truth).sum(1) - intersection
    union = true_size[1:] + of_predictions - intersection - on_others
    there, said = true_size[1:] > 0, predicted_size[1:] > 0
    return Segments(intersection[there] / union[there], on_truth[said] / predicted_size[1:][said])


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (H, W) of 8-connected components, 0 for none, and their sizes by number."""
    import cv2

    _, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return numbers, stats[:, cv2.CC_STAT_AREA]


def _without_small(numbers: np.ndarray, sizes: np.ndarray, least: int) -> np.ndarray:
    kept = np.arange(len(sizes), dtype=numbers.dtype)
    kept[sizes < least] = 0
    kept[0] = 0
    return kept[numbers]


@dataclass
class SegmentMetrics:
    """Pooled over frames; memory grows with components, not with pixels."""

    sizes: Sizes = field(default_factory=Sizes)
    siou: list[np.ndarray] = field(default_factory=list)
    ppv: list[np.ndarray] = field(default_factory=list)

    def add(self, mask: np.ndarray, label: np.ndarray) -> Segments:
        """Count a frame; arguments as of `segments`."""
        found = segments(mask, label, self.sizes)
        self.siou.append(found.siou)
        self.ppv.append(found.ppv)
        return found

    def metrics(self) -> dict[str, float | int | None]:
        """Mean sIoU over objects, mean PPV over alarms and mean F1; None where undefined."""
        siou = np.concatenate([np.empty(0), *self.siou])
        ppv = np.concatenate([np.empty(0), *self.ppv])
        return {
            "siou": float(siou.mean()) if len(siou) else None,
            "ppv": float(ppv.mean()) if len(ppv) else None,
            "mean_f1": mean_f1(siou, ppv),
            "objects": len(siou),
            "alarms": len(ppv),
        }


def mean_f1(siou: np.ndarray, ppv: np.ndarray) -> float | None:
    """F1 averaged over the eleven levels; None without objects."""
    if not len(siou):
        return None
    hits = (siou[:, None] >= LEVELS).sum(0)
    misses = len(siou) - hits
    false = (ppv[:, None] < LEVELS).sum(0)
    return float((2 * hits / (2 * hits + misses + false)).mean())
