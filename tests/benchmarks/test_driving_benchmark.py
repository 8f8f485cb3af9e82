"""The benchmark: counts become metrics, gains are paired, nothing is made twice."""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from apps.anomaly_driving.bootstrap import FrameCounts
from apps.anomaly_driving.pixel_metrics import PixelCounts, frame_counts

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "driving.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def frames(strength, count=6):
    """Scores (H, W) float16 and labels of frames; anomalies are `strength` higher."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        labels = (rng.random((20, 30)) < 0.1).astype(np.uint8)
        noise = rng.normal(size=labels.shape)
        yield (noise + strength * labels).astype(np.float16), labels


def counted(bench, strength):
    pixels, by_frame = PixelCounts(), FrameCounts()
    for score, labels in frames(strength):
        found = frame_counts(score, labels)
        pixels.add(found)
        by_frame.add(found)
    return bench.Counts(pixels.counts, by_frame.array())


@pytest.mark.exact
def test_counts_become_sklearns_metrics(bench):
    scores, labels = (
        np.concatenate([a.ravel() for a in part]) for part in zip(*frames(1.5), strict=True)
    )
    found = counted(bench, 1.5).metrics()
    assert found["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


def test_tables_of_a_set(bench):
    rows = {"none": "no negatives", "flow": "flow, joint"}
    found = {
        (row, 0): {name: counted(bench, strength) for name in bench.DEFAULT}
        for row, strength in (("none", 0.5), ("flow", 2.0))
    }
    ap, fpr95, auroc, gain = bench.set_tables("a_set", rows, [0], found)
    assert ap.rows[1]["energy"] > ap.rows[0]["energy"] + 20
    assert fpr95.rows[1]["msp"] < fpr95.rows[0]["msp"]
    assert auroc.rows[1]["jsd"] > 90
    assert "d_out" not in ap.rows[0]  # its head was never trained
    (line,) = gain.rows
    value, low = line["energy"].split()[0], line["energy"].split("[")[1].split(",")[0]
    assert float(value) == pytest.approx(ap.rows[1]["energy"] - ap.rows[0]["energy"], abs=1.0)
    assert float(low) > 0


def test_rows_differ_in_their_negatives_alone(bench, tmp_path):
    (tmp_path / "coco_cutouts" / "nc").mkdir(parents=True)
    plain = bench.row_config("none", tmp_path, tmp_path / "models", 9).to_dict()
    for name in bench.ROWS:
        row = bench.row_config(name, tmp_path, tmp_path / "models", 9).to_dict()
        differing = {key for key in row if row[key] != plain[key]}
        assert differing <= {"negatives"}
        assert row["fit"]["steps"] == 9
        kept = {"placement", "patch", "temperature"}
        assert all(row["negatives"][key] == plain["negatives"][key] for key in kept)


def test_what_is_trained_and_scored_is_not_made_again(bench, tmp_path):
    folder = bench.model_folder(tmp_path, "none", 0, 9)
    for made in (tmp_path / "base", folder):
        made.mkdir(parents=True)
        (made / "model.json").write_text("{}")
    assert bench.train_row("none", 0, tmp_path / "no_data", tmp_path, 9) == folder
    arrays = {f"{name}/pooled": np.eye(2) for name in bench.DEFAULT}
    arrays |= {f"{name}/frames": np.ones((3, 2, 4)) for name in bench.DEFAULT}
    np.savez_compressed(folder / "counts_a_set_own.npz", **arrays)
    options = argparse.Namespace(models=tmp_path, steps=9, longer_side=None, data=tmp_path)
    found = bench.counts("none", 0, "a_set", options)
    assert set(found) == set(bench.DEFAULT)
    assert len(found["jsd"]) == 3
