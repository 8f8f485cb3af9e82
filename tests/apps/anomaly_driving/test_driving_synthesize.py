"""`synthesize` and `info`: what is written is what was pasted, and a function of the seed."""

import dataclasses

import cv2
import numpy as np
import pytest

from apps.anomaly_driving.config import Config
from apps.anomaly_driving.describe import describe
from apps.anomaly_driving.negatives.config import NegativesConfig, PlacementConfig
from apps.anomaly_driving.synthesize import contact_sheet, synthesize
from apps.anomaly_driving.textures import write_textures
from core.errors import AleatorError

CLASSES = ("road", "sky", "car")


def silent(line):
    return None


@pytest.fixture
def scenes(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (tmp_path / "frames" / part).mkdir(parents=True)
    for name in "abc":
        image = rng.integers(100, 120, (48, 64, 3), np.uint8)
        labels = rng.choice([0, 1, 2], (48, 64)).astype(np.uint8)
        labels[:4] = 255
        cv2.imwrite(str(tmp_path / f"frames/images/{name}.png"), image)
        cv2.imwrite(str(tmp_path / f"frames/labels/{name}.png"), labels)
    write_textures(tmp_path / "textures", count=3, size=16)
    return tmp_path


def config(scenes, **placement):
    placed = PlacementConfig(**{"feather": 0.0, "tone": 0.0, "known": 0.0} | placement)
    negatives = NegativesConfig("paste", str(scenes / "textures"), placement=placed)
    return Config(CLASSES, 255, negatives=negatives)


def pictures(folder, kind):
    paths = sorted((folder / kind).glob("*.png"))
    return {path.stem: cv2.imread(str(path), -1) for path in paths}


def test_masks_are_the_changed_pixels(scenes):
    sheet = synthesize(scenes / "frames", scenes / "out", config(scenes), count=3, say=silent)
    before = pictures(scenes / "frames", "images")
    images, labels = pictures(scenes / "out", "images"), pictures(scenes / "out", "labels")
    assert set(images) == set(labels) == {"a", "b", "c"}
    for name, image in images.items():
        changed = (image != before[name]).any(2)
        assert (labels[name] == 1).any()
        assert not changed[labels[name] != 1].any()
        assert set(np.unique(labels[name])) <= {0, 1, 255}
    assert cv2.imread(str(sheet)).shape[1] == 1280


def test_more_pictures_than_scenes_use_them_again_and_the_seed_decides(scenes):
    def run(name, seed):
        out = scenes / name
        synthesize(scenes / "frames", out, config(scenes), count=5, seed=seed, say=silent)
        return pictures(out, "images")

    one, two, other = run("1", 1), run("2", 1), run("3", 2)
    assert sorted(one) == ["a", "a_1", "b", "b_1", "c"]
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not all(np.array_equal(one[name], other[name]) for name in one)


def test_plain_images_need_no_labels(scenes):
    synthesize(scenes / "frames/images", scenes / "o", config(scenes), count=2, say=silent)
    assert len(pictures(scenes / "o", "labels")) == 2


def test_poisson_blending_writes_pictures_too(scenes):
    chosen = config(scenes, blend="poisson")
    synthesize(scenes / "frames", scenes / "o", chosen, count=1, say=silent)
    assert (pictures(scenes / "o", "labels")["a"] == 1).any()


def test_what_is_there_is_not_replaced_unasked(scenes):
    synthesize(scenes / "frames", scenes / "o", config(scenes), count=2, say=silent)
    with pytest.raises(AleatorError, match="holds pictures"):
        synthesize(scenes / "frames", scenes / "o", config(scenes), say=silent)
    chosen = config(scenes)
    synthesize(scenes / "frames", scenes / "o", chosen, count=1, overwrite=True, say=silent)
    assert len(pictures(scenes / "o", "images")) == 1


def test_bad_requests(scenes):
    chosen = config(scenes)
    with pytest.raises(AleatorError, match="at least one picture"):
        synthesize(scenes / "frames", scenes / "o", chosen, count=0, say=silent)
    nothing = dataclasses.replace(chosen, negatives=NegativesConfig())
    with pytest.raises(AleatorError, match="paste nothing"):
        synthesize(scenes / "frames", scenes / "o", nothing, say=silent)
    flow = dataclasses.replace(chosen, negatives=NegativesConfig("flow"))
    with pytest.raises(AleatorError, match="learns from labelled frames"):
        synthesize(scenes / "frames/images", scenes / "o", flow, say=silent)
    with pytest.raises(AleatorError, match="no images"):
        synthesize(scenes, scenes / "o", chosen, say=silent)


def test_sheets_of_one_and_of_many():
    pair = (np.full((10, 20, 3), 9, np.uint8), np.zeros((10, 20), np.uint8))
    assert contact_sheet([pair]).shape == (160, 640, 3)
    assert contact_sheet([pair] * 3).shape == (320, 1280, 3)


def test_frames_in_words(scenes):
    words = describe(scenes / "frames", Config(CLASSES, 255))
    assert "3 labelled frames of 64x48 pixels" in words
    assert "void: 8.3% of all pixels" in words
    with pytest.raises(AleatorError, match="neither a model folder"):
        describe(scenes / "textures", Config())
