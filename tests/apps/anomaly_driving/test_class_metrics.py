"""Closed and open mean IoU against scikit-learn and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from apps.anomaly_driving.class_metrics import ClassMetrics, class_index
from core.errors import AleatorError


def test_closed_equals_sklearn_over_frames():
    rng = np.random.default_rng(0)
    metrics = ClassMetrics(("a", "b", "c", "d"))
    truths, saids = [], []
    for _ in range(5):
        truth = rng.integers(0, 4, (20, 30)).astype(np.uint8)
        said = np.where(rng.random((20, 30)) < 0.6, truth, rng.integers(0, 4, (20, 30)))
        truth[rng.random((20, 30)) < 0.2] = 255
        metrics.add(said.astype(np.uint8), truth)
        truths.append(truth[truth < 255])
        saids.append(said[truth < 255])
    truth, said = np.concatenate(truths), np.concatenate(saids)
    assert list(metrics.iou().values()) == pytest.approx(jaccard_score(truth, said, average=None))
    assert metrics.mean() == pytest.approx(jaccard_score(truth, said, average="macro"))


def test_open_by_hand():
    metrics = ClassMetrics(("road", "car"))
    #  truth road road road car car anomaly anomaly void
    truth = np.array([[0, 0, 0, 1, 1, 255, 255, 255]], np.uint8)
    anomaly = np.array([[0, 0, 0, 0, 0, 1, 1, 255]], np.uint8)
    said = np.array([[0, 0, 1, 1, 1, 0, 1, 0]], np.uint8)
    rejected = np.array([[0, 1, 0, 0, 0, 0, 1, 0]], bool)
    metrics.add(said, truth, anomaly, rejected)
    # road: found 1; claims the anomaly that was accepted; misses the rejected and the confused
    # car: found 2; claims one of road
    assert metrics.iou() == {"road": pytest.approx(1 / 4), "car": pytest.approx(2 / 3)}
    closed = ClassMetrics(("road", "car"))
    closed.add(said, truth)
    assert closed.iou() == {"road": pytest.approx(2 / 3), "car": pytest.approx(2 / 3)}


def test_classes_that_do_not_occur_are_left_out():
    metrics = ClassMetrics(("a", "b", "c"))
    assert metrics.mean() is None
    metrics.add(np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    assert metrics.iou() == {"a": 1.0, "b": None, "c": None}
    assert metrics.mean() == 1.0
    with pytest.raises(AleatorError, match="at least two"):
        ClassMetrics(("a",))


def test_classes_are_matched_by_name():
    table = class_index(("road", "sky", "car"), ("sky", "tree", "road"))
    assert table[:4].tolist() == [1, 255, 0, 255]
    assert class_index(("road", "sky"), ("sky", "tree")) is None
