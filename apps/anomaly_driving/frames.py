"""Training frames: images and label maps of a folder, checked and kept in memory as bytes.

    FOLDER/images/NAME.jpg|png|webp    FOLDER/labels/NAME.png (one channel, a class id a pixel)

A folder that has `train/images` (as CamVid here does) stands for that part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.anomaly_driving.files import read_image, read_label
from core.errors import AleatorError

Bytes = NDArray[np.uint8]
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Frames:
    """Labelled frames of one size.

    Attributes:
        images: (N, H, W, 3) RGB.
        labels: (N, H, W) class ids; `void` where there is none.
        names: N file stems.
        classes: names of the K classes.
        void: id of pixels without a class.
    """

    images: Bytes
    labels: Bytes
    names: tuple[str, ...]
    classes: tuple[str, ...]
    void: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shares(self) -> NDArray[np.float64]:
        """(K,) share of each class among the pixels that have one."""
        counts = np.bincount(self.labels.ravel(), minlength=256)[: len(self.classes)]
        return counts / max(counts.sum(), 1)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of images and labels."""
        digest = hashlib.sha256(self.images.tobytes())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]

    def every(self, step: int) -> Frames:
        """The first frame and every `step`-th after it."""
        part = slice(None, None, step)
        kept = (self.images[part], self.labels[part], self.names[part])
        return Frames(*kept, self.classes, self.void)

    def without(self, name: str | None) -> Frames:
        """The frames in which a class does not occur at all, and the classes without it.

        To leave out its pixels alone would show the network its surroundings.

        Raises:
            AleatorError: no such class, or it is everywhere.
        """
        voided = self.without_ids(name)
        if name is None:
            return voided
        free = ~(self.labels == self.classes.index(name)).any(axis=(1, 2))
        if not free.any():
            raise AleatorError(f"{name} occurs in every frame: nothing is left to train on")
        names = tuple(n for n, keep in zip(self.names, free, strict=True) if keep)
        return Frames(self.images[free], voided.labels[free], names, voided.classes, self.void)

    def without_ids(self, name: str | None) -> Frames:
        """All frames, with the pixels of a class as void and the ids of the others closed up."""
        if name is None:
            return self
        if name not in self.classes:
            raise AleatorError(f"held-out class {name!r}; known: {', '.join(self.classes)}")
        kept = tuple(c for c in self.classes if c != name)
        table = np.full(256, self.void, np.uint8)
        for old, known in enumerate(self.classes):
            if known != name:
                table[old] = kept.index(known)
        return Frames(self.images, table[self.labels], self.names, kept, self.void)


def read_frames(
    folder: Path, classes: Sequence[str], void: int, *, height: int | None = None
) -> Frames:
    """Read and check all labelled frames of a folder.

    Args:
        folder: see the module.
        classes: names of the ids 0 to K - 1.
        void: id of pixels without a class.
        height: rows to resize to (labels by the nearest pixel); as stored if None.

    Raises:
        AleatorError: an empty folder, a file that is no image or cut short, an image without
            labels, another size of image and labels, or of two frames, or an unknown id.
    """
    pairs = _pairs(_root(Path(folder)))
    with ThreadPoolExecutor(max_workers=4) as pool:
        read = list(pool.map(lambda pair: _read(pair, len(classes), void, height), pairs))
    first = read[0][0].shape
    for (path, _), (image, _) in zip(pairs, read, strict=True):
        if image.shape != first:
            raise AleatorError(
                f"{path}: {_size(image)} pixels, but {pairs[0][0].name} has {first[1]}x{first[0]};"
                " training needs frames of one size: resize them"
            )
    images = np.stack([image for image, _ in read])
    labels = np.stack([label for _, label in read])
    names = tuple(path.stem for path, _ in pairs)
    return Frames(images, labels, names, tuple(classes), void)


def read_ids(path: Path, classes: int, void: int) -> Bytes:
    """A label map (H, W).

    Raises:
        AleatorError: not an image of one channel, or ids that are neither a class nor void.
    """
    pixels = read_label(path)
    there = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))
    if unknown := [int(v) for v in there if v >= classes and v != void]:
        raise AleatorError(
            f"{path}: label ids {', '.join(map(str, unknown[:5]))} are neither one of the "
            f"{classes} classes (0 to {classes - 1}) nor void ({void})"
        )
    return pixels


def image_files(folder: Path) -> list[Path]:
    """Images of a folder, sorted.

    Raises:
        AleatorError: no such folder, none in it, or two of one name.
    """
    if not folder.is_dir():
        raise AleatorError(f"{folder}: no such folder")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGES)
    if not found:
        raise AleatorError(f"{folder}: no images ({', '.join(IMAGES)}) in it")
    seen: dict[str, Path] = {}
    for path in found:
        if path.stem in seen:
            raise AleatorError(f"{path} and {seen[path.stem].name}: two files of one name")
        seen[path.stem] = path
    return found


def training_files(folder: Path) -> list[Path]:
    """The images that `read_frames` reads of a folder; none if there are none."""
    images = _root(folder) / "images"
    return image_files(images) if images.is_dir() else []


def _root(folder: Path) -> Path:
    return folder / "train" if (folder / "train" / "images").is_dir() else folder


def _pairs(root: Path) -> list[tuple[Path, Path]]:
    if not (root / "images").is_dir() or not (root / "labels").is_dir():
        raise AleatorError(f"{root}: expected the folders images/ and labels/ (or train/) in it")
    pairs = []
    for image in image_files(root / "images"):
        label = root / "labels" / f"{image.stem}.png"
        if not label.is_file():
            raise AleatorError(f"{image}: no labels; {label} is missing")
        pairs.append((image, label))
    return pairs


def _read(
    pair: tuple[Path, Path], classes: int, void: int, height: int | None
) -> tuple[Bytes, Bytes]:
    import cv2

    image_path, label_path = pair
    image, labels = read_image(image_path).pixels, read_ids(label_path, classes, void)
    if image.shape[:2] != labels.shape:
        raise AleatorError(
            f"{image_path}: {_size(image)} pixels, but its labels have {_size(labels)}"
        )
    if height is not None and height != image.shape[0]:
        size = (round(image.shape[1] * height / image.shape[0]), height)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    return image, labels


def _size(pixels: NDArray[np.generic]) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"
