"""Every layout on a miniature of its archive; what does not fit together is refused."""

from __future__ import annotations

import shutil
import time

import cv2
import numpy as np
import pytest

from apps.anomaly_driving.adapters import LAYOUTS
from apps.anomaly_driving.adapters import label_maps as maps
from apps.anomaly_driving.data import open_data, prefetch, to_tensor
from core.errors import AleatorError

# miniature, layout, labelled, unlabelled, classes, track, anomaly values, classes of the columns
CASES = [
    ("cityscapes", "cityscapes", 2, 0, 19, "anomaly", {0, 255}, [0, 2, 13, 255]),
    ("camvid", "camvid", 3, 0, 11, "anomaly", {0, 255}, [0, 3, 10, 255]),
    ("camvid_segnet", "camvid", 3, 0, 11, "anomaly", {0, 255}, [0, 3, 8, 255]),
    ("street_hazards", "street_hazards", 2, 0, 12, "anomaly", {0, 1, 255}, [0, 6, 255, 255]),
    ("lost_and_found", "lost_and_found", 2, 0, 0, "obstacle", {0, 1, 255}, None),
    ("fishyscapes_laf", "fishyscapes_laf", 1, 1, 0, "obstacle", {0, 1, 255}, None),
    ("fishyscapes_static", "fishyscapes_static", 1, 0, 0, "anomaly", {0, 1, 255}, None),
    ("pebal_static", "fishyscapes_static", 1, 0, 0, "anomaly", {0, 1, 255}, None),
    ("anomaly_track", "road_anomaly21", 1, 1, 0, "anomaly", {0, 1, 255}, None),
    ("obstacle_track", "road_obstacle21", 1, 0, 0, "obstacle", {0, 1, 255}, None),
    ("road_anomaly", "road_anomaly", 1, 0, 0, "anomaly", {0, 1}, None),
    ("bdd_anomaly", "bdd_anomaly", 2, 0, 16, "anomaly", {0, 1, 255}, [0, 13, 255, 255]),
    ("plain", "plain", 2, 0, 0, "anomaly", {0, 1, 255}, None),
]


@pytest.mark.parametrize(
    ("name", "layout", "labelled", "others", "classes", "track", "values", "columns"), CASES
)
def test_layouts(draw, tmp_path, name, layout, labelled, others, classes, track, values, columns):
    data = open_data(getattr(draw, name)(tmp_path / "data"))
    assert data.layout == layout
    assert len(data) == labelled + others
    assert len(data.labelled()) == labelled
    assert len(data.classes) == classes
    assert data.track == track
    sample = next(iter(data.labelled()))
    assert sample.image.shape == (24, 36, 3)
    assert set(np.unique(sample.anomaly)) == values
    if columns is None:
        assert sample.classes is None
    else:
        assert sample.classes[0, ::9].tolist() == columns


def test_every_layout_has_a_miniature():
    assert {case[1] for case in CASES} == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize(
    "name", ["cityscapes", "lost_and_found", "street_hazards", "anomaly_track"]
)
def test_a_folder_above_is_found_too(draw, tmp_path, name):
    below = getattr(draw, name)(tmp_path / "archive" / "unpacked")
    inner, outer = open_data(below), open_data(tmp_path / "archive")
    assert [f.image for f in inner.frames] == [f.image for f in outer.frames]
    assert inner.layout == outer.layout


def test_splits_are_chosen_by_name(draw, tmp_path):
    root = draw.camvid(tmp_path / "camvid")
    assert [f.key for f in open_data(root, split="val").frames] == ["val/0001TP_006690"]
    assert open_data(root / "val").layout == "camvid"
    with pytest.raises(AleatorError, match=r"no split 'vall'.*it has test, train, val"):
        open_data(root, split="vall")
    with pytest.raises(AleatorError, match="it has none"):
        open_data(draw.plain(tmp_path / "p"), split="val")


def test_a_plain_folder_called_val_is_not_camvid(draw, tmp_path):
    assert open_data(draw.plain(tmp_path / "val")).layout == "plain"
    assert open_data(tmp_path / "val", layout="plain").layout == "plain"
    with pytest.raises(AleatorError, match="label ids 255 are not in the map of CamVid"):
        list(open_data(tmp_path / "val", layout="camvid"))


def test_the_official_archive_prefers_label_ids(draw, tmp_path):
    root = draw.cityscapes(tmp_path / "c")
    assert open_data(root).frames[0].map is maps.CITYSCAPES
    for path in root.rglob("*_labelIds.png"):
        path.unlink()
    data = open_data(root)
    assert data.frames[0].map is maps.CITYSCAPES_TRAIN
    assert next(iter(data)).classes[0, ::9].tolist() == [0, 2, 13, 255]


def test_a_known_class_can_be_held_out(draw, tmp_path):
    data = open_data(draw.camvid(tmp_path / "c"), hold_out=["bicyclist"])
    sample = next(iter(data))
    assert sample.anomaly[0, ::9].tolist() == [0, 0, 1, 255]
    assert sample.classes[0, ::9].tolist() == [0, 3, 255, 255]
    assert len(data.classes) == 10
    with pytest.raises(AleatorError, match=r"no class 'bike'.*bicyclist"):
        open_data(tmp_path / "c", hold_out=["bike"])


def test_images_alone_and_one_image(draw, tmp_path):
    draw.image(tmp_path / "drive/a/0.png")
    draw.image(tmp_path / "drive/b/0.jpg")
    data = open_data(tmp_path / "drive")
    assert (data.layout, [f.key for f in data.frames]) == ("images", ["a/0", "b/0"])
    with pytest.raises(AleatorError, match="images without labels"):
        data.labelled()
    assert len(open_data(tmp_path / "drive/a/0.png")) == 1
    draw.image(tmp_path / "drive/a/0.jpg")
    with pytest.raises(AleatorError, match="same output; rename one"):
        open_data(tmp_path / "drive")


def test_what_does_not_pair_is_named(draw, tmp_path):
    root = draw.plain(tmp_path / "p", frames=3)
    (root / "labels/001.png").unlink()
    with pytest.raises(AleatorError, match=r"001.png has no label .*3 images, 2 labels"):
        open_data(root)
    draw.label(root / "labels/001.png", 0, 1)
    draw.label(root / "labels/007.png", 0, 1)
    with pytest.raises(AleatorError, match=r"007.png has no image"):
        open_data(root)
    (root / "labels/007.png").unlink()
    draw.image(root / "images/000.jpg")
    with pytest.raises(AleatorError, match="both frame 000; keep one"):
        open_data(root)


def test_bad_folders_are_refused(draw, tmp_path):
    with pytest.raises(AleatorError, match="no such file or folder"):
        open_data(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AleatorError, match=r"no images in it \(none of \.jpg"):
        open_data(tmp_path / "empty")
    with pytest.raises(AleatorError, match="unknown layout 'cityscape'; known: cityscapes"):
        open_data(tmp_path, layout="cityscape")
    draw.plain(tmp_path / "p")
    with pytest.raises(AleatorError, match="not laid out as road_anomaly"):
        open_data(tmp_path / "p", layout="road_anomaly")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(AleatorError, match="not an image by its name"):
        open_data(tmp_path / "notes.txt")


def test_bad_labels_are_refused(draw, tmp_path):
    root = draw.plain(tmp_path / "p", 0, 2, 7)
    with pytest.raises(AleatorError, match=r"000.png: label ids 2, 7 are not .* \(0-1, 255\)"):
        list(open_data(root))
    draw.label(root / "labels/000.png", 0, 1, size=(12, 36))
    with pytest.raises(AleatorError, match=r"000.png: label of 12×36 for an image of 24×36"):
        list(open_data(root))
    draw.write(root / "labels/000.png", np.random.default_rng(0).integers(0, 9, (24, 36, 3)))
    with pytest.raises(AleatorError, match="colour or palette"):
        list(open_data(root))
    draw.write(root / "labels/000.png", np.zeros((24, 36), np.uint16))
    with pytest.raises(AleatorError, match="uint16 labels"):
        list(open_data(root))
    shutil.copy(root / "images/001.png", root / "labels/000.png")
    (root / "labels/000.png").write_bytes((root / "labels/000.png").read_bytes()[:200])
    with pytest.raises(AleatorError, match="a PNG that was cut short"):
        list(open_data(root))


def test_conversions_are_said_once(draw, tmp_path):
    for i in range(3):
        draw.write(tmp_path / f"grey{i}.png", np.full((40, 40), 90, np.uint8))
    said: list[str] = []
    samples = list(open_data(tmp_path).samples(say=said.append))
    assert len(said) == 1
    assert "grey0.png: grey" in said[0]
    assert (samples[0].image == 90).all()


def test_colours_are_rgb_and_in_the_unit_interval(tmp_path):
    bgr = np.zeros((40, 50, 3), np.uint8)
    bgr[..., 2] = 255  # red
    cv2.imwrite(str(tmp_path / "red.png"), bgr)
    tensor = next(iter(open_data(tmp_path))).tensor
    assert tensor.shape == (3, 40, 50)
    assert tensor[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert to_tensor(np.full((2, 2, 3), 51, np.uint8))[0, 0, 0].item() == pytest.approx(0.2)


def test_the_fingerprint_changes_with_the_files(draw, tmp_path):
    root = draw.plain(tmp_path / "p")
    before = open_data(root).fingerprint()
    assert open_data(root).fingerprint() == before
    draw.image(root / "images/000.png", seed=9, size=(24, 35))
    assert open_data(root).fingerprint() != before


def test_prefetch_keeps_order_and_bounds_what_waits():
    running, most = set(), 0

    def slow(i):
        nonlocal most
        running.add(i)
        most = max(most, max(running) - min(running) + 1)
        time.sleep(0.002 * (i % 3))
        return i

    for i in prefetch(slow, range(30), workers=3, ahead=4):
        assert i == min(running)
        running.discard(i)
    assert most <= 6
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda i: 1 // i, [1, 0]))
