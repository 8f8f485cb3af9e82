"""The commands train, synthesize and info: what they write, and one line on stderr if not."""

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from apps.anomaly_driving.using import BUNDLED_MODEL
from pipelines.driving import app

SMALL = ["augment.height=48", "augment.width=64", "fit.batch_size=2", "void=255"]
SMALL = [*SMALL, 'classes=["road","sky","car"]', "negatives.patch=16", "negatives.bank=2"]
OPTIONS = [word for pair in SMALL for word in ("--set", pair)]


@pytest.fixture
def frames(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "frames"
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for name in "ab":
        labels = rng.integers(0, 3, (6, 8), np.uint8).repeat(10, 0).repeat(10, 1)
        image = rng.integers(0, 256, (60, 80, 3), np.uint8)
        cv2.imwrite(str(root / f"images/{name}.png"), image)
        cv2.imwrite(str(root / f"labels/{name}.png"), labels)
    return root


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_train_info_and_synthesize_from_what_was_trained(frames, tmp_path):
    flow = [*OPTIONS, "--set", "negatives.fit.steps=2", "--set", 'negatives.model={"width": 8}']
    model = tmp_path / "m"
    encoder = ("--encoder", "tu-resnet10t")
    done = run("train", frames, "-o", model, "--steps", 1, *encoder, "--negatives", "flow", *flow)
    assert done.exit_code == 0, done.output
    told = run("info", model)
    assert "deeplabv3plus with tu-resnet10t" in told.output
    assert "negatives: flow" in told.output
    out = tmp_path / "pictures"
    done = run("synthesize", frames, "-o", out, "--model", model, "--count", 2, *OPTIONS)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (out / "labels").iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--encoder", "resnet19"], "near names: resnet18"),
        (["--arch", "unett"], "near names: unet"),
        (["--negatives", "gan"], "unknown negatives 'gan'"),
        (["--negatives", "paste"], "need a folder"),
        (["--set", "segmenter.encoder_weights=imagenet"], "would need a download"),
        (["--weights", "none.safetensors"], "no such file of weights"),
        (["--start", "nowhere"], "not a model folder"),
        (["--hold-out", "boat"], "held-out class 'boat'"),
        (["--steps", "0"], "at least 1"),
        (["--device", "tpu"], "device 'tpu'; known"),
    ],
)
def test_mistakes_are_one_line(frames, tmp_path, words, said):
    done = run("train", frames, "-o", tmp_path / "m", *OPTIONS, *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "m" / "model.json").exists()


def test_help_names_the_commands():
    done = run("--help")
    assert done.exit_code == 0
    assert all(name in done.output for name in ("train", "synthesize", "info"))


def test_info_tells_how_the_bundled_weights_look():
    told = run("info", BUNDLED_MODEL).output
    assert "480 pixels on the longer side, at 1, 0.667 of it, with 0.4 of their colours" in told
    assert "default score: energy+jsd@smooth" in told
