"""Frames that were trained or chosen on are found in what is judged, under whatever name."""

import shutil

import pytest
import torch

from apps.anomaly_driving.config import read_config
from apps.anomaly_driving.model import load
from apps.anomaly_driving.score_run import Judging, benchmark
from apps.anomaly_driving.shared import SEEN, digests, must_not_share, shared, trained_on
from apps.anomaly_driving.train import train
from apps.anomaly_driving.using import Using
from core.errors import AleatorError

TINY = {
    "classes": ["sky", "road", "car"],
    "segmenter": {"arch": "unet", "encoder": "resnet18", "depth": 3},
    "augment": {"height": 32, "width": 32},
    "fit": {"steps": 1, "batch_size": 2, "validate_every": 0, "warmup": 1},
}


def silent(line):
    return None


def test_copies_are_found_under_other_names(draw, tmp_path):
    one, two = (draw.image(tmp_path / f"{n}.png", n) for n in (1, 2))
    copy = shutil.copy(one, tmp_path / "copy.png")
    assert shared([one, two], digests([copy])) == [one]
    must_not_share([two], [one, copy], "are trained on")
    with pytest.raises(AleatorError, match=r"1\.png: 1 of 2 frames are also .* are trained on"):
        must_not_share([one, two], [copy], "are trained on")


def test_training_refuses_a_validation_frame_that_it_learns_from(draw, tmp_path):
    frames = draw.plain(tmp_path / "frames", 0, 1, 2, size=(40, 48))
    other = draw.plain(tmp_path / "val", 0, 1, 2, size=(40, 48))
    with pytest.raises(AleatorError, match="2 of 2 frames are also among those that are trained"):
        train(frames, tmp_path / "m", read_config(None, TINY), validation=other, say=silent)
    assert not (tmp_path / "m").exists()


def test_benchmark_knows_what_was_trained_and_chosen_on(draw, tmp_path):
    frames = draw.plain(tmp_path / "frames", 0, 1, 2, size=(40, 48))
    with torch.random.fork_rng():
        train(frames, tmp_path / "m", read_config(None, TINY), say=silent)
    test = draw.plain(tmp_path / "test", 0, 0, 1, 255, frames=3, size=(40, 48))
    files = sorted((test / "images").iterdir())
    assert trained_on(tmp_path / "m", files) == files[:2]
    assert trained_on(None, files) == []
    assert load(tmp_path / "m").classes == ("sky", "road", "car")  # the notes are no config

    said = []
    using, judging = Using(tmp_path / "m"), Judging(draws=0)
    benchmark(test, tmp_path / "r", using, "energy", judging=judging, say=said.append)
    assert any("2 of 3 frames were trained on" in line for line in said)
    frozen = Judging(draws=0, validation=test)
    with pytest.raises(AleatorError, match="3 of 3 frames are also among"):
        benchmark(test, tmp_path / "s", using, "energy", judging=frozen, say=silent)


def test_a_model_that_remembers_nothing_is_not_asked(driving_model, draw, tmp_path):
    assert SEEN == "seen"
    assert trained_on(driving_model, [draw.image(tmp_path / "a.png")]) == []
