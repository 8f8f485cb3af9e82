"""Training frames: read whole and checked, or refused in one line that names the file."""

import cv2
import numpy as np
import pytest

from apps.anomaly_driving.frames import Frames, image_files, read_frames
from core.errors import AleatorError

CLASSES = ("road", "sky", "car")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for name in "abc":
        image = rng.integers(0, 256, (32, 48, 3), np.uint8)
        labels = rng.choice([0, 1, 2, 255], (32, 48)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"images/{name}.png"), image[..., ::-1])
        cv2.imwrite(str(tmp_path / f"labels/{name}.png"), labels)
    return tmp_path


def read(folder, **options):
    return read_frames(folder, CLASSES, 255, **options)


def test_pixels_and_labels_are_those_of_the_files(folder):
    frames = read(folder)
    stored = cv2.imread(str(folder / "images/b.png"))[..., ::-1]
    assert frames.names == ("a", "b", "c")
    assert np.array_equal(frames.images[1], stored)
    assert np.array_equal(frames.labels[2], cv2.imread(str(folder / "labels/c.png"), -1))
    assert frames.shares.sum() == pytest.approx(1.0)


def test_resizing_makes_no_new_labels(folder):
    frames = read(folder, height=16)
    assert frames.images.shape == (3, 16, 24, 3)
    assert set(np.unique(frames.labels)) <= {0, 1, 2, 255}


def test_train_folder_is_found(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    folder.rename(root / "train")
    assert len(read(root)) == 3


def test_fingerprint_follows_the_pixels(folder):
    before = read(folder).fingerprint()
    labels = cv2.imread(str(folder / "labels/a.png"), -1)
    labels[0, 0] = (labels[0, 0] + 1) % 3
    cv2.imwrite(str(folder / "labels/a.png"), labels)
    assert read(folder).fingerprint() != before


def test_every_second_frame(folder):
    frames = read(folder).every(2)
    assert frames.names == ("a", "c")
    assert np.array_equal(frames.labels[1], read(folder).labels[2])


def test_held_out_class_takes_its_frames_with_it():
    labels = np.array([[[0, 1]], [[0, 2]], [[1, 255]]], np.uint8)
    frames = Frames(np.zeros((3, 1, 2, 3), np.uint8), labels, ("a", "b", "c"), CLASSES, 255)
    left = frames.without("sky")
    assert left.names == ("b",)
    assert left.classes == ("road", "car")
    assert left.labels.tolist() == [[[0, 1]]]
    assert frames.without_ids("sky").labels.tolist() == [[[0, 255]], [[0, 1]], [[255, 255]]]
    assert frames.without(None) is frames
    with pytest.raises(AleatorError, match="held-out class 'boat'"):
        frames.without("boat")


def spoil_size(folder):
    cv2.imwrite(str(folder / "labels/b.png"), np.zeros((8, 8), np.uint8))


def spoil_ids(folder):
    cv2.imwrite(str(folder / "labels/b.png"), np.full((32, 48), 7, np.uint8))


def spoil_colour(folder):
    colours = np.random.default_rng(0).integers(0, 3, (32, 48, 3), np.uint8)
    cv2.imwrite(str(folder / "labels/b.png"), colours)


def spoil_missing(folder):
    (folder / "labels/b.png").unlink()


def spoil_twice(folder):
    cv2.imwrite(str(folder / "images/b.jpg"), np.zeros((32, 48, 3), np.uint8))


def spoil_mixed(folder):
    cv2.imwrite(str(folder / "images/b.png"), np.zeros((40, 40, 3), np.uint8))
    cv2.imwrite(str(folder / "labels/b.png"), np.zeros((40, 40), np.uint8))


def spoil_text(folder):
    (folder / "images/b.png").write_text("not a picture")


def spoil_deep(folder):
    cv2.imwrite(str(folder / "images/b.png"), np.zeros((32, 48, 3), np.uint16))


def spoil_cut(folder):
    (folder / "images/b.png").unlink()
    path = folder / "images/b.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:400])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_size, "48x32 pixels, but its labels have 8x8"),
        (spoil_ids, "label ids 7 are neither one of the 3 classes"),
        (spoil_colour, "one 8-bit channel"),
        (spoil_missing, "no labels"),
        (spoil_twice, "two files of one name"),
        (spoil_mixed, "frames of one size"),
        (spoil_text, "b.png"),
        (spoil_deep, "8 bits"),
        (spoil_cut, "b.jpg"),
    ],
)
def test_bad_files_are_named(folder, spoil, words):
    spoil(folder)
    with pytest.raises(AleatorError, match=words):
        read(folder)


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(AleatorError, match="expected the folders"):
        read(tmp_path)
    with pytest.raises(AleatorError, match="no images"):
        image_files(tmp_path)
    with pytest.raises(AleatorError, match="no such folder"):
        image_files(tmp_path / "none")
