"""A data set as frames: found by its layout, decoded in threads, checked one by one.

`open_data` finds the frames; iterating a `Driving` gives samples in order while the next ones are
decoded in worker threads (OpenCV releases the lock), so that only a few are in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from apps.anomaly_driving.adapters import Frame, LabelMap, discover
from apps.anomaly_driving.adapters.layouts import SUFFIXES
from apps.anomaly_driving.files import read_image, read_label
from core.errors import AleatorError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Sample:
    """A decoded frame.

    Attributes:
        frame: where it comes from.
        image: (H, W, 3) uint8, RGB.
        anomaly: (H, W) uint8: 0 known, 1 anomaly, 255 ignored; None without a label.
        classes: (H, W) uint8: index in the map's `names`, 255 for none; None where the data set
            does not tell classes apart.
        note: what was converted.
    """

    frame: Frame
    image: np.ndarray
    anomaly: np.ndarray | None = None
    classes: np.ndarray | None = None
    note: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def tensor(self) -> Tensor:
        """(3, H, W) float32 in [0, 1]."""
        return to_tensor(self.image)


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div_(255.0)


def read_sample(frame: Frame) -> Sample:
    """Decode a frame.

    Raises:
        AleatorError: a bad file, an id outside the map, or image and label of different size.
    """
    picture = read_image(frame.image)
    if frame.label is None:
        return Sample(frame, picture.pixels, note=picture.note)
    raw = read_label(frame.label)
    if raw.shape != picture.pixels.shape[:2]:
        (h, w), (rows, columns) = raw.shape, picture.pixels.shape[:2]
        raise AleatorError(
            f"{frame.label}: label of {h}×{w} for an image of {rows}×{columns} (rows × columns); "
            "resize the label with nearest neighbours, or the image"
        )
    anomaly, classes = frame.map.translate(raw, frame.label)
    return Sample(frame, picture.pixels, anomaly, classes, picture.note)


@dataclass(frozen=True)
class Driving:
    """Frames of a data set.

    Attributes:
        root: folder or file it was found in.
        layout: name of the layout; "images" without labels.
        frames: in order.
        track: "anomaly" or "obstacle", for the segment metrics.
    """

    root: Path
    layout: str
    frames: tuple[Frame, ...]
    track: str = "anomaly"

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Sample]:
        return self.samples()

    @property
    def classes(self) -> tuple[str, ...]:
        """Known classes; empty if they are not told apart."""
        found = self.frames[0].map
        return found.names if found.has_classes else ()

    def samples(
        self, *, workers: int = 2, ahead: int = 4, say: Callable[[str], None] | None = None
    ) -> Iterator[Sample]:
        """Decoded frames in order.

        Args:
            workers: threads that decode.
            ahead: frames decoded in advance; memory grows with it.
            say: told once of every kind of conversion.
        """
        told: set[str] = set()
        for sample in prefetch(read_sample, self.frames, workers=workers, ahead=ahead):
            if say and sample.note and sample.note not in told:
                told.add(sample.note)
                say(f"{sample.frame.image}: {sample.note} (said once)")
            yield sample

    def labelled(self) -> Driving:
        """Only the frames that have a label.

        Raises:
            AleatorError: there is none.
        """
        frames = tuple(frame for frame in self.frames if frame.label is not None)
        if not frames:
            raise AleatorError(
                f"{self.root}: images without labels; a plain folder has images/ and labels/ "
                "(PNG of 0 known, 1 anomaly, 255 ignored) with equal names"
            )
        return replace(self, frames=frames)

    def hold_out(self, names: Collection[str]) -> Driving:
        """The same frames with some classes as the anomaly; see `LabelMap.hold_out`."""
        maps: dict[str, LabelMap] = {}
        frames = []
        for frame in self.frames:
            held = maps.setdefault(frame.map.name, frame.map.hold_out(names))
            frames.append(replace(frame, map=held))
        return replace(self, frames=tuple(frames))

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the names and sizes of all files."""
        digest = hashlib.sha256()
        for frame in self.frames:
            sizes = [p.stat().st_size for p in (frame.image, frame.label) if p is not None]
            digest.update(f"{frame.key} {sizes} {frame.map.name}".encode())
        return digest.hexdigest()[:16]


def open_data(
    path: Path | str,
    *,
    layout: str | None = None,
    split: str | None = None,
    hold_out: Collection[str] = (),
) -> Driving:
    """Find the frames of a data set, of a folder of images, or of one image.

    Args:
        path: folder or image file.
        layout: one of the layouts; found out if None.
        split: "train", "val", …, where the layout has splits.
        hold_out: known classes to be taken as the anomaly.

    Raises:
        AleatorError: see `adapters.discover`.
    """
    root = Path(path)
    if not root.exists():
        raise AleatorError(f"{root}: no such file or folder")
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise AleatorError(
                f"{root}: not an image by its name ({', '.join(SUFFIXES)}); rename or convert it"
            )
        return Driving(root, "images", (Frame(root.stem, root),))
    found, frames = discover(root, read_label, layout, split)
    data = Driving(
        root,
        found.name if found else "images",
        tuple(frames),
        found.track if found else "anomaly",
    )
    return data.hold_out(hold_out) if hold_out else data


def prefetch(
    function: Callable[[T], R], items: Collection[T], *, workers: int = 2, ahead: int = 4
) -> Iterator[R]:
    """`map` in threads, in order, at most `ahead` results in advance."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
