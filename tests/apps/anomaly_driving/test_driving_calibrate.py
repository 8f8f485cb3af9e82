"""Thresholds hold their rate, and the intervals what they promise, on frames like those."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apps.anomaly_driving.calibrate import (
    FILE,
    Calibration,
    load_thresholds,
    save_thresholds,
)
from apps.anomaly_driving.pixel_metrics import frame_counts
from core.errors import AleatorError


def frames(n, seed, pixels=600):
    """Frames that differ from one another: each shifts its scores."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        label = (rng.random((1, pixels)) < 0.1).astype(np.uint8)
        score = rng.standard_normal((1, pixels)) + 0.5 * rng.standard_normal() + 2 * label
        yield score.astype(np.float16), label


def calibrated(n=60, seed=0):
    found = Calibration("energy")
    for score, label in frames(n, seed):
        found.add(frame_counts(score, label))
    return found


def rates(threshold, data, row):
    return [float((s >= np.float16(threshold))[label == row].mean()) for s, label in data]


@pytest.mark.parametrize(("target", "wanted"), [("fpr", 0.01), ("fpr", 0.2), ("tpr", 0.9)])
def test_the_rate_is_what_was_wanted(target, wanted):
    found = calibrated().threshold(target, wanted)
    data = list(frames(60, 0))
    row = 0 if target == "fpr" else 1
    score = np.concatenate([s[label == row] for s, label in data])
    realised = (score >= np.float16(found.value)).mean()
    assert found.realised == pytest.approx(realised, abs=1e-9)
    slack = 3 / len(score)
    if target == "fpr":
        assert wanted - slack <= realised <= wanted
    else:
        assert wanted <= realised <= wanted + 20 * slack


@pytest.mark.parametrize(("target", "wanted", "row"), [("fpr", 0.05, 0), ("tpr", 0.9, 1)])
def test_nine_of_ten_new_frames_are_in_the_interval(target, wanted, row):
    inside = []
    for seed in range(25):
        found = calibrated(60, seed).threshold(target, wanted, draws=50)
        new = rates(found.value, frames(80, 1000 + seed), row)
        inside += [found.frame_low <= rate <= found.frame_high for rate in new]
    assert 0.87 <= np.mean(inside) <= 0.96  # 2 000 frames, of 25 calibrations


def test_nine_of_ten_new_drives_are_in_the_interval():
    inside = []
    for seed in range(60):
        found = calibrated(40, seed).threshold("fpr", 0.05, draws=200)
        data = list(frames(40, 5000 + seed))
        pooled = np.concatenate([s[label == 0] for s, label in data])
        rate = (pooled >= np.float16(found.value)).mean()
        inside.append(found.drive_low <= rate <= found.drive_high)
    assert np.mean(inside) >= 0.78  # nominal 0.9, three standard errors below


def test_few_frames_promise_little():
    found = calibrated(10).threshold("fpr", 0.05)
    assert (found.frame_low, found.frame_high) == (0.0, 1.0)
    alone = calibrated(1).threshold("fpr", 0.05)
    assert alone.frame_low is None
    assert alone.drive_low is None


def test_the_best_f1_is_the_curves():
    found = calibrated()
    chosen = found.threshold("f1")
    assert (chosen.realised, chosen.value) == found.pixels.curve().best_f1


def test_an_fpr_needs_no_anomalies():
    found = Calibration("energy")
    for score, label in frames(30, 0):
        found.add(frame_counts(score, np.where(label == 1, 255, 0)))
    assert found.threshold("fpr", 0.01).realised <= 0.01
    with pytest.raises(AleatorError, match="no anomalous pixel"):
        found.threshold("tpr", 0.95)


def test_rates_that_cannot_be():
    found = calibrated(5)
    for rate in (0.0, 1.0, -0.1, 3, None):
        with pytest.raises(AleatorError, match="must lie between 0 and 1"):
            found.threshold("fpr", rate)
    with pytest.raises(AleatorError, match="an interval of level 1"):
        found.threshold("fpr", 0.1, level=1.0)
    saturated = Calibration("d_out")
    label = np.zeros((1, 100), np.uint8)
    label[0, :10] = 1
    saturated.add(frame_counts(np.minimum(np.arange(100), 50).astype(np.float16)[None], label))
    with pytest.raises(AleatorError, match=r"d_out: 55.6 % of the known pixels share the highest"):
        saturated.threshold("fpr", 0.01)
    nothing = Calibration("x")
    nothing.add(frame_counts(np.zeros((1, 5), np.float16), np.full((1, 5), 255, np.uint8)))
    with pytest.raises(AleatorError, match="no known pixel"):
        nothing.threshold("fpr", 0.01)


def test_thresholds_are_kept_with_their_model(tmp_path):
    a, b = calibrated(30).threshold("fpr", 0.05), calibrated(30, 1).threshold("f1")
    assert load_thresholds(tmp_path, "m") == {}
    save_thresholds(tmp_path, {"energy": a}, "m")
    save_thresholds(tmp_path, {"msp": b}, "m")
    assert load_thresholds(tmp_path, "m") == {"energy": a, "msp": b}
    with pytest.raises(AleatorError, match="thresholds of another model"):
        load_thresholds(tmp_path, "other")
    save_thresholds(tmp_path, {"energy": a}, "other")  # a new model begins anew
    assert load_thresholds(tmp_path, "other") == {"energy": a}
    (tmp_path / FILE).write_text(json.dumps({"model": "m"}))
    with pytest.raises(AleatorError, match="damaged; delete it"):
        load_thresholds(tmp_path, "m")
