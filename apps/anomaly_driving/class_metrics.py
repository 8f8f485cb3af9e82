r"""Mean IoU over known classes, closed and open.

Closed: as if anomalies did not exist; pixels without a known class are left out. Open: a pixel
whose score reaches the threshold is taken from its class ("unknown"), and a class that claims an
anomaly pays for it:

    IoU_k = TP_k / (TP_k + FP_k + FN_k),   open: FP_k with accepted anomalies, FN_k with rejected
    pixels of class k

Reference: Grcić, Bevandić and Šegvić (2022) arXiv:2207.02606, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from core.errors import AleatorError


class ClassMetrics:
    """Confusion of K known classes, with a row for anomalies and a column for the rejected."""

    def __init__(self, classes: Sequence[str]) -> None:
        if len(classes) < 2:
            raise AleatorError(f"mean IoU of {len(classes)} classes: at least two are needed")
        self.classes = tuple(classes)
        k = len(classes)
        self.confusion = np.zeros((k + 1, k + 1), np.int64)

    def add(
        self,
        predicted: np.ndarray,
        classes: np.ndarray,
        anomaly: np.ndarray | None = None,
        rejected: np.ndarray | None = None,
    ) -> None:
        """Count a frame.

        Args:
            predicted: (H, W) class of each pixel, 0 … K-1.
            classes: (H, W) its true class, 255 if none.
            anomaly: (H, W) 1 where an anomaly is; they count as false positives of the class
                that claims them. None leaves them out.
            rejected: (H, W) bool, called unknown.
        """
        k = len(self.classes)
        truth = classes.astype(np.int64)
        if anomaly is not None:
            truth = np.where(anomaly == 1, k, truth)
        said = predicted.astype(np.int64)
        if rejected is not None:
            said = np.where(rejected, k, said)
        judged = truth <= k if anomaly is not None else truth < k
        pairs = truth[judged] * (k + 1) + said[judged]
        self.confusion += np.bincount(pairs, minlength=(k + 1) ** 2).reshape(k + 1, k + 1)

    def iou(self) -> dict[str, float | None]:
        """IoU of each class; None where it neither occurs nor is predicted."""
        k = len(self.classes)
        hit = np.diag(self.confusion)[:k]
        union = self.confusion.sum(0)[:k] + self.confusion.sum(1)[:k] - hit
        return {
            name: float(h / u) if u else None
            for name, h, u in zip(self.classes, hit, union, strict=True)
        }

    def mean(self) -> float | None:
        """Mean over the classes that occur; None if none does."""
        there = [value for value in self.iou().values() if value is not None]
        return float(np.mean(there)) if there else None


def class_index(ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray | None:
    """Lookup (256,) from a data set's class indices to a model's, by name; 255 for the others.

    Returns:
        None if they have fewer than two names in common.
    """
    table = np.full(256, 255, np.uint8)
    for i, name in enumerate(theirs):
        if name in ours:
            table[i] = list(ours).index(name)
    return table if (table < 255).sum() >= 2 else None
