"""Pictures: a score over its image, precision against recall, the frames that went worst."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from apps.anomaly_driving.pixel_metrics import Curve
from core.report import replacing

WIDTH = 640
"""Pixels of one picture in a row of pictures."""


def heat(score: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Colours (H, W, 3) uint8 of a score, from dark (expected) to bright (unexpected).

    The scale is the image's own, 1st to 99.9th percentile, and only for looking at; with a
    threshold the middle colour is there, so that brighter than that is what is called.
    """
    import cv2

    values = score.astype(np.float32)
    low, high = np.percentile(values, (1.0, 99.9))
    middle = (low + high) / 2 if threshold is None else threshold
    points = [min(low, middle - 1e-6), middle, max(high, middle + 1e-6)]
    level = np.interp(values, points, [0.0, 0.5, 1.0])
    coloured = cv2.applyColorMap((255 * level).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB)


def overlay(image: np.ndarray, score: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """The image in grey with the score's colours over it; a white line where it is called.

    Args:
        image: (H, W, 3) uint8 RGB.
        score: (H, W).
        threshold: of calling a pixel unexpected; no line if None.
    """
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, 2)
    mixed = cv2.addWeighted(grey, 0.45, heat(score, threshold), 0.55, 0)
    if threshold is not None:
        called = (score >= np.float16(threshold)).astype(np.uint8)
        edges, _ = cv2.findContours(called, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(mixed, edges, -1, (255, 255, 255), 1)
    return mixed


def outlined(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The image with ignored pixels dimmed and a green line round the labelled anomalies."""
    import cv2

    drawn = image.copy()
    drawn[label > 1] //= 3
    edges, _ = cv2.findContours(
        (label == 1).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(drawn, edges, -1, (0, 255, 0), max(1, image.shape[1] // 400))
    return drawn


def worst_frame(
    image: np.ndarray, label: np.ndarray, score: np.ndarray, threshold: float, text: str
) -> np.ndarray:
    """Image with its label beside image with its score, and a line of text, (h, 2 w, 3) uint8."""
    import cv2

    height = max(1, round(image.shape[0] * WIDTH / image.shape[1]))
    pair = [outlined(image, label), overlay(image, score, threshold)]
    row = np.hstack([cv2.resize(p, (WIDTH, height), interpolation=cv2.INTER_AREA) for p in pair])
    strip = np.zeros((24, row.shape[1], 3), np.uint8)
    cv2.putText(strip, text, (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, 16)
    return np.vstack([strip, row])


def precision_recall(curves: Mapping[str, Curve], path: Path, title: str) -> None:
    """Precision against recall of each score, with AP in the legend and chance as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    ordered = sorted(curves.items(), key=lambda pair: -pair[1].average_precision)
    for name, curve in ordered:
        recall, precision = _thinned(curve)
        label = f"{name}  AP {100 * curve.average_precision:.1f} %"
        axes.step(recall, precision, where="pre", label=label, linewidth=1.4)
    first = ordered[0][1]
    share = first.true_positives[-1] / (first.true_positives[-1] + first.false_positives[-1])
    axes.axhline(share, color="grey", linestyle=":", label=f"chance {100 * share:.2g} %")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.legend(fontsize=8)
    with replacing(path) as draft:
        figure.savefig(draft, format=path.suffix[1:], dpi=130)


def _thinned(curve: Curve, points: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at so many thresholds at most."""
    index = np.unique(np.linspace(0, len(curve.values) - 1, points).astype(int))
    return curve.recall[index], curve.precision[index]
