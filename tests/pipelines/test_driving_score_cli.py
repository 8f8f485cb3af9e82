"""`score`, `benchmark`, `calibrate`, `export` as a user meets them; one line a mistake."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import cv2
import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from apps.anomaly_driving.scores import DEFAULT
from pipelines.driving_score import app
from tests.pipelines.mistakes import the_error

SIZE = (64, 96)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def assert_refused(*arguments):
    """The one line that a mistake ends with."""
    return the_error(invoke(*arguments))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network with random weights; classes of CamVid's."""
    from apps.anomaly_driving.model import AnomalyModel, ModelConfig
    from apps.anomaly_driving.segmenter import SegmenterConfig

    folder = tmp_path_factory.mktemp("cli") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        segmenter = SegmenterConfig(arch="unet", encoder="resnet18", depth=3)
        config = ModelConfig(classes=("sky", "road", "car"), segmenter=segmenter, longer_side=96)
        AnomalyModel(config).eval().save(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A plain folder of five frames, each with an object."""
    root = tmp_path_factory.mktemp("cli") / "streets"
    rng = np.random.default_rng(0)
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    for i in range(5):
        image = cv2.GaussianBlur(rng.integers(0, 256, (*SIZE, 3), np.uint8), (9, 9), 0)
        label = np.zeros(SIZE, np.uint8)
        label[20:40, 10 * i + 10 : 10 * i + 35] = 1
        label[:, :4] = 255
        image[label == 1] = 255 - image[label == 1]
        cv2.imwrite(str(root / f"images/{i}.png"), image)
        cv2.imwrite(str(root / f"labels/{i}.png"), label)
    return root


def test_help_is_instant():
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipelines.driving_score", "--help"]
    subprocess.run(command, check=True, capture_output=True)
    assert time.perf_counter() - started < 5  # loaded machines; 0.3 s alone
    for word in ("--scores", "--score-files", "--validation", "--closed", "--hold-out"):
        assert word in invoke("benchmark", "--help").output


def test_score_then_judge_the_files(model, folder, tmp_path):
    out = tmp_path / "scores"
    found = invoke("score", folder, "-o", out, "--model", model, "--scores", "energy,hybrid")
    assert found.exit_code == 0, found.output
    with h5py.File(out / "energy/0.hdf5") as file:
        assert file["value"].shape == SIZE
        assert file["value"].dtype == np.float16
    assert cv2.imread(str(out / "hybrid/4.png")).shape == (*SIZE, 3)
    reports = []
    for name, source in (("net", ("--model", model)), ("files", ("--score-files", out))):
        report = tmp_path / name
        said = invoke(
            *("benchmark", folder, "-o", report, "--scores", "energy,hybrid", "--draws", 50),
            *source,
        )
        assert said.exit_code == 0, said.output
        assert "AP %" in said.stdout
        assert "energy" in said.stdout
        assert "frames" in said.stdout
        reports.append(json.loads((report / "results.json").read_text()))
        assert (report / "precision_recall.png").stat().st_size > 5000
        assert len(list((report / "worst").iterdir())) == 5
        assert "AP of energy" in (report / "report.md").read_text()
    ours, theirs = (
        [{k: v for k, v in row.items() if k != "images_per_second"} for row in r["rows"]]
        for r in reports
    )
    assert ours == theirs  # what is judged is what is written
    assert reports[0]["model"]["classes"] == ["sky", "road", "car"]
    assert set(reports[0]["differences"]) == {"hybrid"}
    assert "exists; choose another folder" in assert_refused(
        "benchmark", folder, "-o", tmp_path / "net", "--model", model
    )


def test_calibrate_covers_the_score_that_score_gives_by_default(model, folder, tmp_path):
    from apps.anomaly_driving.model import load

    own = tmp_path / "model"
    load(model).save(own, card={"score": "jsd@smooth"})
    said = invoke("calibrate", folder, "--model", own, "--fpr", 0.1)
    assert said.exit_code == 0, said.output
    kept = json.loads((own / "thresholds.json").read_text())["thresholds"]
    assert set(kept) == {"jsd@smooth", *DEFAULT}
    said = invoke("score", folder, "-o", tmp_path / "out", "--model", own, "--open-set")
    assert said.exit_code == 0, said.output
    assert (tmp_path / "out" / "0_classes.png").exists()


def test_calibrate_then_use_the_threshold(model, folder, tmp_path):
    own = tmp_path / "model"
    shutil.copytree(model, own)
    said = invoke(
        *("calibrate", folder, "--model", own, "--fpr", 0.1, "--fit", folder / "images"),
        *("--scores", "energy,energy+max_logit,mahalanobis"),
    )
    assert said.exit_code == 0, said.output
    assert "FPR 0.1 on 5 frames" in said.stdout
    kept = json.loads((own / "thresholds.json").read_text())["thresholds"]
    assert set(kept) == {"energy", "energy+max_logit", "mahalanobis"}
    assert kept["energy"]["realised"] <= 0.1
    report = tmp_path / "report"
    said = invoke("benchmark", folder, "-o", report, "--model", own, "--scores", "energy,msp")
    assert said.exit_code == 0, said.output
    rows = json.loads((report / "results.json").read_text())["rows"]
    assert rows[0]["frozen_threshold"] == kept["energy"]["value"]
    assert rows[0]["frozen_fpr"] == pytest.approx(kept["energy"]["realised"])
    assert "frozen_f1" not in rows[1]
    out = tmp_path / "out"
    said = invoke("score", folder, "-o", out, "--model", own, "--scores", "energy", "--open-set")
    assert said.exit_code == 0, said.output
    classes = cv2.imread(str(out / "0_classes.png"), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(classes)) <= {0, 1, 2, 3}
    assert 3 in classes
    assert "--open-set needs a threshold of msp" in assert_refused(
        "score", folder, "-o", tmp_path / "b", "--model", own, "--scores", "msp", "--open-set"
    )


def test_thresholds_frozen_on_validation_and_closed_miou(model, folder, tmp_path):
    closed = tmp_path / "camvid" / "val"
    for part in ("images", "labels"):
        (closed / part).mkdir(parents=True)
    shutil.copy(folder / "images/0.png", closed / "images/0.png")
    label = np.repeat(np.array([0, 3, 8, 11], np.uint8), 24)
    cv2.imwrite(str(closed / "labels/0.png"), np.tile(label, (64, 1)))
    other = tmp_path / "other"  # the same pixels in other files: what is judged is refused
    shutil.copytree(folder, other)
    for path in (other / "images").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path)), [cv2.IMWRITE_PNG_COMPRESSION, 0])
    report = tmp_path / "report"
    judge = ("benchmark", folder, "-o", report, "--model", model, "--scores", "energy")
    assert "thresholds are frozen on; judge on others" in assert_refused(
        *judge, "--validation", folder
    )
    said = invoke(
        *judge,
        *("--validation", other, "--closed", closed, "--track", "obstacle", "--draws", 0),
    )
    assert said.exit_code == 0, said.output
    (row,) = json.loads((report / "results.json").read_text())["rows"]
    assert row["frozen_f1"] == pytest.approx(row["f1"])  # the same frames
    assert 0 <= row["closed_miou"] <= 1
    assert "at least 50 predicted and 10 true" in said.stdout
    assert "closed mIoU %" in said.stdout


def test_mistakes_are_one_line(model, folder, tmp_path):
    out = tmp_path / "out"
    bench = ("benchmark", folder, "-o", out, "--model", model)
    assert "near names: energy" in assert_refused(*bench, "--scores", "enregy")
    assert "no such file or folder" in assert_refused(
        "benchmark", tmp_path / "x", "--model", model
    )
    assert "no such model; `train` makes one" in assert_refused(
        "benchmark", folder, "-o", out, "--model", tmp_path / "none"
    )
    assert "--track road: known are anomaly, obstacle" in assert_refused(*bench, "--track", "road")
    assert "--against knn: not among" in assert_refused(*bench, "--against", "knn")
    assert "unknown layout 'kitti'" in assert_refused(*bench, "--layout", "kitti")
    assert "images without labels" in assert_refused(
        "benchmark", folder / "images", "-o", out, "--model", model
    )
    assert "knn has to be fitted" in assert_refused(*bench, "--scores", "knn")
    assert "exclude each other" in assert_refused(
        "calibrate", folder, "--model", model, "--fpr", 0.1, "--tpr", 0.9
    )
    assert "must lie between 0 and 1" in assert_refused(
        "calibrate", folder, "--model", model, "--tpr", 1.5
    )
    assert "multiples of 32" in assert_refused(*bench, "--tile", 100)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model.json").write_text('{"format": 1, "app": "climate", "config": {}}')
    assert "a model of climate, not of anomaly_driving" in assert_refused(
        "score", folder, "-o", out, "--model", tmp_path / "other"
    )
    (tmp_path / "cut").mkdir()
    data = (folder / "images/0.png").read_bytes()
    (tmp_path / "cut/0.png").write_bytes(data[: len(data) // 2])
    assert "cut short" in assert_refused("score", tmp_path / "cut", "-o", out, "--model", model)
    assert not out.exists()
    out.write_text("a file")
    for command in ("score", "benchmark"):
        said = assert_refused(command, folder, "-o", out / "below", "--model", model)
        assert "is a file; name a folder" in said
    assert "--draws -1" in assert_refused(*bench[:2], "--model", model, "--draws", -1)
    assert "closed mIoU needs labels of the model's classes" in assert_refused(
        "benchmark", folder, "-o", tmp_path / "o", "--model", model, "--closed", folder
    )


def test_export_is_scored_like_the_model(model, folder, tmp_path):
    said = invoke("export", "--model", model, "-o", tmp_path / "m.onnx", "--size", "64x96")
    assert said.exit_code == 0, said.output
    assert "largest difference" in said.stderr
    for name, source in (("ours", model), ("onnx", tmp_path / "m.onnx")):
        found = invoke(
            *("score", folder, "-o", tmp_path / name, "--model", source, "--scores", "energy")
        )
        assert found.exit_code == 0, found.output
    with h5py.File(tmp_path / "ours/0.hdf5") as a, h5py.File(tmp_path / "onnx/0.hdf5") as b:
        ours, theirs = a["value"][...].astype(float), b["value"][...].astype(float)
    assert np.abs(ours - theirs).max() < 5e-3  # a step of float16
    assert "no outlier head" in assert_refused(
        *("score", folder, "-o", tmp_path / "x", "--model", tmp_path / "m.onnx"),
        *("--scores", "hybrid"),
    )


def test_a_film_flickers_less_when_smoothed(model, tmp_path):
    film = tmp_path / "drive.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE[::-1])
    rng = np.random.default_rng(0)
    still = cv2.GaussianBlur(rng.integers(0, 256, (*SIZE, 3), np.uint8), (9, 9), 0)
    for _ in range(5):
        writer.write(np.clip(still + rng.normal(0, 12, still.shape), 0, 255).astype(np.uint8))
    writer.release()
    arguments = ("score", film, "--model", model, "--scores", "energy", "-o", tmp_path / "out")
    found = invoke(*arguments, "--smooth", 0.3)
    assert found.exit_code == 0, found.output
    before, after = map(float, re.findall(r"flicker ([\d.]+) .* ([\d.]+) as", found.stderr)[0])
    assert after < 0.7 * before
    with h5py.File(tmp_path / "out/000004.hdf5") as file:
        assert file["value"].shape == SIZE
        assert file["value"].attrs["smooth"] == "0.3"
    assert (tmp_path / "out/000004.png").exists()
    assert "exists; choose another folder" in assert_refused(*arguments)
    assert "weight of the newest frame" in assert_refused(*arguments, "--overwrite", "--smooth", 0)


def test_images_are_not_smoothed(model, folder, tmp_path):
    assert "--smooth is for films" in assert_refused(
        "score", folder, "--model", model, "-o", tmp_path / "o", "--smooth", 0.3
    )


def test_the_bundled_photographs_are_scored_with_the_bundled_weights(tmp_path):
    found = invoke("score", "-o", tmp_path / "demo")
    assert found.exit_code == 0, found.output
    maps = sorted(path.stem for path in (tmp_path / "demo").glob("*.hdf5"))
    assert maps == ["solidWhiteCurve", "test1", "test2_chair", "test3"]
    with h5py.File(tmp_path / "demo/test2_chair.hdf5") as file:
        value = file["value"][...].astype(np.float32)
    chair, road = value[290:360, 435:490], value[290:360, 590:645]
    assert np.quantile(chair, 0.9) > np.quantile(road, 0.9)  # the road at its right
    said = assert_refused("calibrate", tmp_path / "demo", "--scores", "energy")
    assert "the bundled model is not changed" in said
