r"""Pixel metrics of anomaly scores: average precision, FPR at 95 % TPR, AuROC and best F1.

All of them are functions of two counts at each distinct score: how many anomalous pixels have it,
and how many known ones. Scores are stored as float16, of which there are 65 536: a histogram over
them is *exact* for stored scores, needs one megabyte whatever the number of frames, and ties are
what they are. `Curve` has the metrics; `PixelCounts` fills it frame by frame.

    AP = sum_k (R_k - R_{k-1}) P_k     over distinct scores, descending (no interpolation)

Reference: Chan et al. (2021) arXiv:2104.14812, and scikit-learn's `average_precision_score`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from core.errors import AleatorError

BINS = 1 << 16
"""All float16, in the order of their values."""

TPR = 0.95


def bin_of(score: np.ndarray) -> np.ndarray:
    """Rank of float16 scores among all float16 values, uint16; -0 and 0 are equal.

    The bits of a positive float are in its order already, those of a negative one in reverse.
    """
    bits = np.ascontiguousarray(score + np.float16(0)).view(np.uint16)  # -0 + 0 = 0
    return bits ^ np.where(bits & 0x8000, np.uint16(0xFFFF), np.uint16(0x8000))


def value_of(bins: np.ndarray) -> np.ndarray:
    """The float16 scores of ranks, as float64; the inverse of `bin_of`."""
    bins = np.asarray(bins, np.uint16)
    bits = bins ^ np.where(bins & 0x8000, np.uint16(0x8000), np.uint16(0xFFFF))
    return bits.view(np.float16).astype(np.float64)


def frame_counts(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Pixels of each rank of one frame, (2, 65 536) int64: known in row 0, anomalous in row 1.

    Args:
        score: (H, W) float16, higher = more unexpected.
        label: (H, W) uint8: 0 known, 1 anomaly; all else is left out.
    """
    ranks = bin_of(score)
    return np.stack([np.bincount(ranks[label == k], minlength=BINS) for k in (0, 1)])


@dataclass(frozen=True)
class Curve:
    """Counts at distinct scores, descending.

    Attributes:
        values: (N,) distinct scores.
        positives: (N,) anomalous pixels with each score.
        negatives: (N,) known pixels with each score.
    """

    values: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    @classmethod
    def exact(cls, scores: np.ndarray, labels: np.ndarray) -> Curve:
        """All scores in memory, of any floating type; labels 0, 1, anything else is left out.

        Raises:
            AleatorError: NaN, or one of the two kinds of pixels is missing.
        """
        judged = labels <= 1
        scores, labels = scores[judged], labels[judged]
        if np.isnan(scores).any():
            raise AleatorError("scores hold NaN; see what made them")
        values, where = np.unique(scores, return_inverse=True)
        positives = np.bincount(where.ravel(), labels.ravel() == 1, len(values))
        negatives = np.bincount(where.ravel(), labels.ravel() == 0, len(values))
        return cls(values[::-1], positives[::-1], negatives[::-1]).checked("the labels")

    @classmethod
    def of_counts(cls, counts: np.ndarray) -> Curve:
        """From (2, 65 536) counts of known and anomalous pixels."""
        ranks = np.flatnonzero(counts.any(0))[::-1]
        return cls(value_of(ranks), counts[1, ranks], counts[0, ranks])

    def checked(self, what: object) -> Curve:
        """The curve itself.

        Raises:
            AleatorError: no anomalies or no known pixels: no metric is defined.
        """
        if not self.positives.sum():
            raise AleatorError(
                f"{what}: no anomalous pixel (label 1) in any frame, so no metric is defined; "
                "is it the right folder, and are anomalies labelled 1?"
            )
        if not self.negatives.sum():
            raise AleatorError(
                f"{what}: no known pixel (label 0) in any frame, so no metric is defined; are all "
                "pixels void (255)?"
            )
        return self

    @cached_property
    def true_positives(self) -> np.ndarray:
        """(N,) anomalies at or above each score."""
        return np.cumsum(self.positives, dtype=np.float64)

    @cached_property
    def false_positives(self) -> np.ndarray:
        """(N,) known pixels at or above each score."""
        return np.cumsum(self.negatives, dtype=np.float64)

    @property
    def recall(self) -> np.ndarray:
        """(N,) share of the anomalies found, the TPR."""
        return self.true_positives / self.true_positives[-1]

    @property
    def fall_out(self) -> np.ndarray:
        """(N,) share of the known pixels called anomalous, the FPR."""
        return self.false_positives / self.false_positives[-1]

    @property
    def precision(self) -> np.ndarray:
        """(N,) share of anomalies among the pixels called so."""
        return self.true_positives / (self.true_positives + self.false_positives)

    @property
    def average_precision(self) -> float:
        """Area under precision over recall, as a step function."""
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))

    @property
    def auroc(self) -> float:
        """Probability that an anomaly scores above a known pixel; ties count half."""
        return float(np.trapezoid(np.append(0.0, self.recall), np.append(0.0, self.fall_out)))

    def fpr_at(self, tpr: float = TPR) -> float:
        """FPR at the highest threshold that finds this share of the anomalies."""
        return float(self.fall_out[self._first(self.recall, tpr)])

    def threshold_for_tpr(self, tpr: float) -> float:
        """The highest threshold t such that score >= t finds this share of the anomalies."""
        return float(self.values[self._first(self.recall, tpr)])

    def threshold_for_fpr(self, fpr: float) -> float:
        """The lowest threshold t such that score >= t calls at most this share of known pixels.

        Just above the highest score if even that alone calls too many.
        """
        allowed = np.flatnonzero(self.fall_out <= fpr)
        if len(allowed):
            return float(self.values[allowed[-1]])
        return float(np.nextafter(np.float16(self.values[0]), np.float16(np.inf)))

    @property
    def f1(self) -> np.ndarray:
        """(N,) 2 TP / (2 TP + FP + FN) at each threshold."""
        tp, fp = self.true_positives, self.false_positives
        return 2 * tp / (tp + fp + tp[-1])

    @property
    def best_f1(self) -> tuple[float, float]:
        """The greatest F1, and the threshold t (score >= t) that gives it: an oracle's."""
        best = int(np.argmax(self.f1))
        return float(self.f1[best]), float(self.values[best])

    def at(self, threshold: float) -> dict[str, float]:
        """TPR, FPR, precision and F1 of calling score >= threshold anomalous."""
        count = int(np.searchsorted(-self.values, -threshold, side="right"))
        if not count:
            return {"tpr": 0.0, "fpr": 0.0, "precision": 0.0, "f1": 0.0}
        i = count - 1
        return {
            "tpr": float(self.recall[i]),
            "fpr": float(self.fall_out[i]),
            "precision": float(self.precision[i]),
            "f1": float(self.f1[i]),
        }

    def metrics(self) -> dict[str, float]:
        """AP, FPR95, AuROC, best F1 and its threshold, as fractions."""
        best, threshold = self.best_f1
        return {
            "ap": self.average_precision,
            "fpr95": self.fpr_at(),
            "auroc": self.auroc,
            "f1": best,
            "threshold": threshold,
        }

    @staticmethod
    def _first(rates: np.ndarray, wanted: float) -> int:
        # rates end at exactly 1; the tolerance is for k / n that rounds below the wanted rate
        return int(np.searchsorted(rates, wanted - 1e-12))


class PixelCounts:
    """Counts of known and anomalous pixels at every float16 score, filled frame by frame."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, BINS), np.int64)
        self.frames = 0

    def add(self, counts: np.ndarray) -> None:
        """Add what `frame_counts` gave for a frame."""
        self.counts += counts
        self.frames += 1

    def curve(self, what: object = "the data") -> Curve:
        """The pooled curve of all frames.

        Raises:
            AleatorError: no anomalies or no known pixels in `what`.
        """
        return Curve.of_counts(self.counts).checked(what)
