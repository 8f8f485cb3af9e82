"""What the numbers in label files mean: a known class, an anomaly, or nothing to judge by.

Every data set has its own ids. A map turns them into two arrays: `anomaly` (0 known, 1 anomaly,
255 ignored) and, where the set tells classes apart, `classes` (their index in `names`, 255 for
none). An id that the map does not list is refused: read as a class by mistake, a few void pixels
move every figure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from core.errors import AleatorError

IGNORED = 255


@dataclass(frozen=True)
class LabelMap:
    """Meaning of the ids in the label files of one data set.

    Attributes:
        name: of the map, for messages.
        known: id -> class; one class alone means that the set does not tell classes apart.
        anomalies: ids of what a model must call unexpected.
        void: ids of pixels that are left out of every metric.
    """

    name: str
    known: Mapping[int, str]
    anomalies: frozenset[int] = frozenset()
    void: frozenset[int] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Known classes in the order of their indices in `classes`."""
        return tuple(dict.fromkeys(self.known.values()))

    @property
    def has_classes(self) -> bool:
        """Whether known classes are told apart."""
        return len(self.names) > 1

    @property
    def ids(self) -> frozenset[int]:
        """All ids that the map lists."""
        return frozenset(self.known) | self.anomalies | self.void

    def hold_out(self, names: Collection[str]) -> LabelMap:
        """The map with some known classes as the anomaly.

        Raises:
            AleatorError: a class that the map does not have.
        """
        for name in names:
            if name not in self.names:
                raise AleatorError(
                    f"no class {name!r} in {self.name} to hold out; it has {', '.join(self.names)}"
                )
        held = {i for i, name in self.known.items() if name in names}
        kept = {i: name for i, name in self.known.items() if i not in held}
        return replace(self, known=kept, anomalies=self.anomalies | held)

    def covers(self, raw: np.ndarray) -> bool:
        """Whether the map lists every id of an array."""
        return bool(self._listed()[raw].all())

    def translate(self, raw: np.ndarray, where: object) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids (H, W) uint8 -> anomaly (H, W) in 0, 1, 255, and classes (H, W) or None.

        Args:
            raw: ids as in the file.
            where: the file, for the message.

        Raises:
            AleatorError: an id that the map does not list.
        """
        listed = self._listed()
        if not listed[raw].all():
            unknown = np.unique(raw[~listed[raw]])
            shown = ", ".join(map(str, unknown[:6])) + (", …" if len(unknown) > 6 else "")
            raise AleatorError(
                f"{where}: label ids {shown} are not in the map of {self.name} "
                f"({_ranges(self.ids)}); choose another --layout or write ids of this map"
            )
        anomaly = np.full(256, IGNORED, np.uint8)
        anomaly[list(self.known)] = 0
        anomaly[list(self.anomalies)] = 1
        if not self.has_classes:
            return anomaly[raw], None
        classes = np.full(256, IGNORED, np.uint8)
        for i, name in self.known.items():
            classes[i] = self.names.index(name)
        return anomaly[raw], classes[raw]

    def _listed(self) -> np.ndarray:
        listed = np.zeros(256, bool)
        listed[list(self.ids)] = True
        return listed


def _ranges(ids: Collection[int]) -> str:
    """E.g. "0-11, 255"."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


CITYSCAPES_CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""In the order of the train ids."""

_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)

CITYSCAPES = LabelMap(
    "Cityscapes (labelIds)",
    dict(zip(_CITYSCAPES_IDS, CITYSCAPES_CLASSES, strict=True)),
    void=frozenset(range(34)) - frozenset(_CITYSCAPES_IDS) | {255},  # -1 is stored as 255
)
CITYSCAPES_TRAIN = LabelMap(
    "Cityscapes (labelTrainIds)",
    dict(enumerate(CITYSCAPES_CLASSES)),
    void=frozenset({255}),
)
CAMVID = LabelMap(
    "CamVid (SegNet's 11 classes)",
    dict(
        enumerate(
            (
                "sky",
                "building",
                "pole",
                "road",
                "pavement",
                "tree",
                "sign",
                "fence",
                "car",
                "pedestrian",
                "bicyclist",
            )
        )
    ),
    void=frozenset({11}),
)
STREET_HAZARDS = LabelMap(
    "StreetHazards",
    {
        1: "sky",  # "unlabeled" in the colour table; it is the sky, and a class in all protocols
        2: "building",
        3: "fence",
        5: "pedestrian",
        6: "pole",
        7: "road line",
        8: "road",
        9: "sidewalk",
        10: "vegetation",
        11: "car",
        12: "wall",
        13: "traffic sign",
    },
    anomalies=frozenset({14}),
    void=frozenset({0, 4}),
)
LOST_AND_FOUND = LabelMap(
    "LostAndFound (labelIds)",
    {1: "free space"},
    anomalies=frozenset(range(2, 44)),
    void=frozenset({0, 255}),
)
LOST_AND_FOUND_TRAIN = LabelMap(
    "LostAndFound (labelTrainIds)",
    {1: "free space"},
    anomalies=frozenset({2}),
    void=frozenset({0, 255}),
)
ROAD_ANOMALY = LabelMap("Road Anomaly", {0: "known", 1: "known"}, frozenset({2}), frozenset({255}))
BDD_ANOMALY = replace(
    CITYSCAPES_TRAIN.hold_out(("train", "motorcycle", "bicycle")), name="BDD-Anomaly"
)
BINARY = LabelMap(
    "0 known, 1 anomaly, 255 ignored", {0: "known"}, frozenset({1}), frozenset({255})
)
