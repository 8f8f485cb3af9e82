r"""Scores of a film: smoothed over time along the motion, and how much they flicker.

    s̄_t(p) = a s_t(p) + (1 - a) s̄_{t-1}(p + f(p))

f is the dense optical flow from frame t to t - 1 (DIS), so that the memory moves with the objects;
where the flow does not lead back to where it came from (something was uncovered, or left the
frame) there is no memory, and a new object is not held back by the road behind it. Flicker is the
mean change of the score along the motion in units of its spread:

    flicker = mean_t,p |s_t(p) - s_{t-1}(p + f(p))| / std(s)

References: Kroeger et al. (2016) arXiv:1603.03590 (DIS); Sundaram et al. (2010) (the check).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import AleatorError

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def read_video(path: Path | str) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 RGB of a film, one at a time.

    Raises:
        AleatorError: missing, not a film, without frames, or of varying size.
    """
    import cv2

    path = Path(path)
    if not path.is_file():
        raise AleatorError(f"{path}: no such file")
    film = cv2.VideoCapture(str(path))
    try:
        if not film.isOpened():
            raise AleatorError(f"{path}: not a film that OpenCV can read, or damaged")
        size, count = None, 0
        while True:
            there, frame = film.read()
            if not there:
                break
            size = size or frame.shape
            if frame.shape != size:
                raise AleatorError(
                    f"{path}: frame {count} is {frame.shape[0]}×{frame.shape[1]}, the first "
                    f"{size[0]}×{size[1]}; cut the film where its size changes"
                )
            count += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        if not count:
            raise AleatorError(f"{path}: no frame in it that can be decoded; copy it again")
    finally:
        film.release()


@dataclass(frozen=True)
class Motion:
    """From a frame back to the one before.

    Attributes:
        flow: (H, W, 2) float32, columns and rows to where each pixel was.
        seen: (H, W) bool, pixels that were visible before.
    """

    flow: np.ndarray
    seen: np.ndarray

    def carried(self, before: np.ndarray) -> np.ndarray:
        """A map (H, W) of the frame before, moved to where its pixels are now."""
        import cv2

        rows, columns = np.indices(before.shape, dtype=np.float32)
        x, y = columns + self.flow[..., 0], rows + self.flow[..., 1]
        return cv2.remap(before.astype(np.float32), x, y, cv2.INTER_LINEAR, None, 1)


def motion(frame: np.ndarray, before: np.ndarray) -> Motion:
    """Dense optical flow from a frame to the one before, with the check back and forth.

    Args:
        frame: (H, W, 3) uint8 RGB.
        before: of the same size.
    """
    import cv2

    grey, old = (cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in (frame, before))
    finder: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    back, forth = finder.calc(grey, old, None), finder.calc(old, grey, None)
    height, width = grey.shape
    rows, columns = np.indices(grey.shape, dtype=np.float32)
    x, y = columns + back[..., 0], rows + back[..., 1]
    returned = back + cv2.remap(forth, x, y, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    length = np.square(back).sum(2) + np.square(forth).sum(2)
    consistent = np.square(returned).sum(2) < 0.01 * length + 0.5
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    return Motion(back, consistent & inside)


class Smoother:
    """Running average of scores along the motion."""

    def __init__(self, weight: float = 0.3) -> None:
        """Begin with the first frame.

        Args:
            weight: a, of the newest frame; 1 leaves the scores as they are.

        Raises:
            AleatorError: not in (0, 1].
        """
        if not 0 < weight <= 1:
            raise AleatorError(f"--smooth {weight}: the weight of the newest frame is in (0, 1]")
        self.weight = weight
        self.before: np.ndarray | None = None

    def __call__(self, score: np.ndarray, moved: Motion | None) -> np.ndarray:
        """The smoothed score (H, W) float16 of the next frame.

        Args:
            score: (H, W).
            moved: from this frame to the one before; None at the first frame or after a cut.
        """
        value = score.astype(np.float32)
        if self.before is not None and moved is not None:
            carried = moved.carried(self.before)
            mixed = self.weight * value + (1 - self.weight) * carried
            value = np.where(moved.seen, mixed, value)
        self.before = value
        return value.astype(np.float16)


class Flicker:
    """Mean change of scores along the motion, in units of their deviation over the film."""

    def __init__(self) -> None:
        self.change = self.total = self.square = 0.0
        self.pairs = self.count = 0
        self.before: np.ndarray | None = None

    def add(self, score: np.ndarray, moved: Motion | None) -> None:
        """Count the next frame; arguments as of `Smoother`."""
        value = score.astype(np.float32)
        if self.before is not None and moved is not None:
            change = np.abs(value - moved.carried(self.before))[moved.seen]
            self.change += float(change.sum(dtype=np.float64))
            self.pairs += change.size
        self.total += float(value.sum(dtype=np.float64))
        self.square += float(np.square(value).sum(dtype=np.float64))
        self.count += value.size
        self.before = value

    def value(self) -> float:
        """The flicker.

        Raises:
            AleatorError: fewer than two frames, or scores that do not vary.
        """
        if not self.pairs:
            raise AleatorError("flicker needs two frames that show the same things")
        mean = self.total / self.count
        spread = np.sqrt(max(self.square / self.count - mean * mean, 0.0))
        if spread == 0:
            raise AleatorError("flicker of a score that is the same at every pixel")
        return self.change / self.pairs / float(spread)
