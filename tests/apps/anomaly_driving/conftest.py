"""Miniatures of the data sets' folders, as they come out of the archives; a small random model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

SIZE = (24, 36)


def write(path: Path, array: np.ndarray) -> Path:
    """Write pixels with OpenCV; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def image(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    """An RGB image of noise."""
    return write(path, np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def label(path: Path, *ids: int, size: tuple[int, int] = SIZE) -> Path:
    """A label whose columns have these ids in turn, in equal bands."""
    bands = np.repeat(ids, -(-size[1] // len(ids)))[: size[1]]
    return write(path, np.tile(bands.astype(np.uint8), (size[0], 1)))


def cityscapes(root: Path) -> Path:
    for split, city in (("train", "aachen"), ("val", "lindau")):
        name = f"{city}/{city}_000000_000019"
        image(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png")
        label(root / f"gtFine/{split}/{name}_gtFine_labelIds.png", 7, 11, 26, 4)
        label(root / f"gtFine/{split}/{name}_gtFine_labelTrainIds.png", 0, 2, 13, 255)
        image(root / f"gtFine/{split}/{name}_gtFine_color.png")
    return root


def camvid_segnet(root: Path) -> Path:
    for split in ("train", "val", "test"):
        image(root / f"{split}/0001TP_006690.png")
        label(root / f"{split}annot/0001TP_006690.png", 0, 3, 8, 11)
    return root


def camvid(root: Path, size: tuple[int, int] = SIZE) -> Path:
    for split in ("train", "val", "test"):
        image(root / f"{split}/images/0001TP_006690.jpg", size=size)
        label(root / f"{split}/labels/0001TP_006690.png", 0, 3, 10, 11, size=size)
    return root


def street_hazards(root: Path) -> Path:
    for part, split, town in (("train", "training", "t1-3"), ("test", "test", "t5")):
        image(root / f"{part}/images/{split}/{town}/100.png")
        label(root / f"{part}/annotations/{split}/{town}/100.png", 1, 8, 14, 4)
    return root


def lost_and_found(root: Path) -> Path:
    name = "04_Maurener_Weg_8/04_Maurener_Weg_8_000000_000030"
    for split in ("train", "test"):
        image(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png")
        label(root / f"gtCoarse/{split}/{name}_gtCoarse_labelIds.png", 1, 1, 17, 0)
    return root


def fishyscapes_laf(root: Path) -> Path:
    name = "04_Maurener_Weg_8_000000_000030"
    image(root / f"leftImg8bit/test/04_Maurener_Weg_8/{name}_leftImg8bit.png")
    image(root / f"leftImg8bit/test/04_Maurener_Weg_8/{name[:-1]}1_leftImg8bit.png")
    label(root / f"fishyscapes_lostandfound/0000_{name}_labels.png", 0, 0, 1, 255)
    return root


def fishyscapes_static(root: Path) -> Path:
    image(root / "0000_frankfurt_000000_000294_rgb.jpg")
    label(root / "0000_frankfurt_000000_000294_labels.png", 0, 0, 1, 255)
    return root


def pebal_static(root: Path) -> Path:
    image(root / "Static/original/4.png")
    label(root / "Static/labels/4.png", 0, 0, 1, 255)
    return root


def anomaly_track(root: Path) -> Path:
    folder = root / "dataset_AnomalyTrack"
    image(folder / "images/validation0000.jpg")
    image(folder / "images/airplane0000.jpg")  # a test image: its label is not public
    label(folder / "labels_masks/validation0000_labels_semantic.png", 0, 0, 1, 255)
    image(folder / "labels_masks/validation0000_labels_semantic_color.png")
    return folder


def obstacle_track(root: Path) -> Path:
    folder = root / "dataset_ObstacleTrack"
    image(folder / "images/validation_1.webp")
    label(folder / "labels_masks/validation_1_labels_semantic.png", 0, 0, 1, 255)
    return folder


def road_anomaly(root: Path) -> Path:
    image(root / "frames/animals01_Guiding.jpg")
    label(root / "frames/animals01_Guiding.labels/labels_semantic.png", 0, 1, 2, 2)
    return root


def bdd_anomaly(root: Path) -> Path:
    for split in ("train", "val"):
        image(root / f"bdd100k/seg/images/{split}/0004a4c0-d4dff0ad.jpg")
        label(root / f"bdd100k/seg/labels/{split}/0004a4c0-d4dff0ad_train_id.png", 0, 13, 17, 255)
    return root


def plain(root: Path, *ids: int, frames: int = 2, size: tuple[int, int] = SIZE) -> Path:
    """A plain folder: `images/` and `labels/`."""
    for i in range(frames):
        image(root / f"images/{i:03d}.png", i, size)
        label(root / f"labels/{i:03d}.png", *(ids or (0, 0, 1, 255)), size=size)
    return root


MINIATURES = {
    function.__name__: function
    for function in (
        *(cityscapes, camvid, camvid_segnet, street_hazards, lost_and_found, fishyscapes_laf),
        *(fishyscapes_static, pebal_static, anomaly_track, obstacle_track, road_anomaly),
        *(bdd_anomaly, plain),
    )
}


@pytest.fixture(scope="session")
def draw():
    """Functions that write images, labels and whole folders."""
    return SimpleNamespace(write=write, image=image, label=label, **MINIATURES)


@pytest.fixture(scope="session")
def driving_model(tmp_path_factory):
    """Folder of a network with an outlier head and three classes; random weights."""
    from apps.anomaly_driving.model import AnomalyModel, ModelConfig
    from apps.anomaly_driving.segmenter import SegmenterConfig

    folder = tmp_path_factory.mktemp("driving") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        segmenter = SegmenterConfig(arch="unet", encoder="resnet18", depth=3)
        config = ModelConfig(
            classes=("sky", "road", "car"), void=11, segmenter=segmenter, longer_side=96
        )
        AnomalyModel(config).eval().save(folder)
    return folder
