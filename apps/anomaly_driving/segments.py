"""Segments of an image, and scores averaged over them: objects have edges, scores blur them.

Segments grow from a regular grid of seeds until they meet, along the flattest way (a watershed of
the smoothed colours), so that their borders lie on edges of the image. The mean over a segment
takes out single pixels that stand out and keeps what fills an object. Reference: Neubert and
Protzel (2014), "Compact watershed and preemptive SLIC".
"""

from __future__ import annotations

import numpy as np

from core.errors import AleatorError


def segments(image: np.ndarray, spacing: int = 12) -> np.ndarray:
    """Numbers (H, W) int32 of segments, 0, 1, ….

    Args:
        image: (H, W, 3) uint8 RGB.
        spacing: pixels between seeds, about the root of a segment's area.

    Raises:
        AleatorError: a spacing below two.
    """
    import cv2

    if spacing < 2:
        raise AleatorError(f"segments with seeds {spacing} apart: at least two pixels are needed")
    height, width = image.shape[:2]
    rows = np.arange(spacing // 2, max(height, spacing // 2 + 1), spacing).clip(max=height - 1)
    columns = np.arange(spacing // 2, max(width, spacing // 2 + 1), spacing).clip(max=width - 1)
    markers = np.zeros((height, width), np.int32)
    grid = np.arange(1, len(rows) * len(columns) + 1, dtype=np.int32)
    markers[np.ix_(rows, columns)] = grid.reshape(len(rows), len(columns))
    # OpenCV takes the outermost pixels for a border, whatever seed is there
    smooth = cv2.copyMakeBorder(cv2.GaussianBlur(image, (3, 3), 0), 1, 1, 1, 1, 1)
    found = cv2.watershed(smooth, np.pad(markers, 1))[1:-1, 1:-1]
    return _without_borders(found) - 1


def _without_borders(found: np.ndarray) -> np.ndarray:
    """The lines between segments (-1), given to a neighbour: the one with the highest number."""
    import cv2

    while (open_ := found < 1).any():
        grown = cv2.dilate(found.astype(np.float32), np.ones((3, 3), np.uint8)).astype(np.int32)
        found = np.where(open_, grown, found)
    return found


def segment_means(score: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Each pixel's score (H, W) replaced by the mean over its segment, float32."""
    flat = numbers.ravel()
    size = np.bincount(flat)
    total = np.bincount(flat, score.ravel().astype(np.float64))
    return (total / np.maximum(size, 1)).astype(np.float32)[numbers]
