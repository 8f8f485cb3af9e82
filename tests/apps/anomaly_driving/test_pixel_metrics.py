"""Pixel metrics against scikit-learn, and the histogram against the definition of float16."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from apps.anomaly_driving.pixel_metrics import (
    BINS,
    Curve,
    PixelCounts,
    bin_of,
    frame_counts,
    value_of,
)
from core.errors import AleatorError


def reference(scores, labels):
    """The metrics as scikit-learn gives them."""
    scores, labels = scores[labels < 2].astype(np.float64), labels[labels < 2]
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return {
        "ap": average_precision_score(labels, scores),
        "fpr95": fpr[np.searchsorted(tpr, 0.95)],
        "auroc": roc_auc_score(labels, scores),
        "f1": f1.max(),
    }


def pixels(prevalence, n=40_000, seed=0, ignored=0.1):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(np.uint8)
    labels[:2] = 0, 1
    scores = rng.standard_normal(n) * 3 - 8 + 4 * labels
    labels[rng.random(n) < ignored] = 255
    labels[:2] = 0, 1
    return scores.astype(np.float32), labels


def streamed(scores, labels, frames=7):
    counts = PixelCounts()
    for s, t in zip(np.array_split(scores, frames), np.array_split(labels, frames), strict=True):
        counts.add(frame_counts(s.astype(np.float16)[None], t[None]))
    return counts.curve()


def test_ranks_are_the_order_of_all_finite_float16():
    values = np.arange(BINS, dtype=np.uint16).view(np.float16)
    finite = values[np.isfinite(values)]
    ordered = np.sort(finite.astype(np.float64))
    ranks = bin_of(finite[np.argsort(finite.astype(np.float64), kind="stable")])
    assert (np.diff(ranks.astype(int)) >= 0).all()
    assert ((np.diff(ranks.astype(int)) == 0) == (np.diff(ordered) == 0)).all()
    assert (value_of(bin_of(finite)) == finite).all()
    assert bin_of(np.float16([-0.0])) == bin_of(np.float16([0.0]))


@pytest.mark.parametrize("prevalence", [0.5, 0.02, 0.001])
def test_exact_equals_sklearn(prevalence):
    scores, labels = pixels(prevalence)
    found, wanted = Curve.exact(scores, labels).metrics(), reference(scores, labels)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


@settings(max_examples=40, deadline=None)
@given(
    prevalence=st.floats(0.0005, 0.9),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 999),
)
def test_streamed_equals_sklearn_at_any_prevalence(prevalence, scale, seed):
    scores, labels = pixels(prevalence, 8000, seed)
    scores = scores * np.float32(scale)
    stored = scores.astype(np.float16)
    found, of_stored = streamed(scores, labels).metrics(), reference(stored, labels)
    for name, value in of_stored.items():  # the histogram itself loses nothing
        assert found[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("prevalence", [0.2, 0.02, 0.002])
def test_float16_moves_the_metrics_by_less_than_a_thousandth(prevalence):
    scores, labels = pixels(prevalence, 400_000)
    found, wanted = streamed(scores, labels).metrics(), reference(scores, labels)
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-3), name


def test_ties_are_one_threshold():
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 0, 0, 0], np.uint8)
    levels = np.array([1, 1, 2, 2, 3, 3, 3, 0, 0, 1], np.float32)
    for curve in (Curve.exact(levels, labels), streamed(levels, labels, 2)):
        assert curve.values.tolist() == [3, 2, 1, 0]
        assert curve.positives.tolist() == [2, 1, 0, 0]
        assert curve.average_precision == pytest.approx(2 / 3 * 2 / 3 + 1 / 3 * 3 / 5)
        assert curve.best_f1 == (pytest.approx(6 / 8), 2.0)
    constant = streamed(np.zeros(10, np.float32), labels)
    assert constant.average_precision == pytest.approx(0.3)  # not 0.65, as a trapezoid would say
    assert (constant.auroc, constant.fpr_at()) == (0.5, 1.0)


def test_what_is_called_at_a_threshold():
    scores, labels = pixels(0.05)
    curve = streamed(scores, labels)
    stored = scores.astype(np.float16)
    for threshold in (-9.0, -5.0, curve.best_f1[1]):
        called = stored >= np.float16(threshold)
        at = curve.at(threshold)
        assert at["tpr"] == pytest.approx(called[labels == 1].mean())
        assert at["fpr"] == pytest.approx(called[labels == 0].mean())
        assert at["precision"] == pytest.approx((labels[called & (labels < 2)] == 1).mean())
    assert curve.at(curve.best_f1[1])["f1"] == pytest.approx(curve.best_f1[0])
    assert curve.at(1e4) == {"tpr": 0.0, "fpr": 0.0, "precision": 0.0, "f1": 0.0}


def test_thresholds_at_wanted_rates():
    scores, labels = pixels(0.05)
    curve = streamed(scores, labels)
    for wanted in (0.001, 0.01, 0.3):
        t = curve.threshold_for_fpr(wanted)
        below = curve.values[np.flatnonzero(curve.values == t)[0] + 1]
        assert curve.at(t)["fpr"] <= wanted < curve.at(below)["fpr"]
    for wanted in (0.5, 0.95, 1.0):
        t = curve.threshold_for_tpr(wanted)
        above = curve.values[np.flatnonzero(curve.values == t)[0] - 1]
        assert curve.at(above)["tpr"] < wanted <= curve.at(t)["tpr"]
    assert curve.at(curve.threshold_for_fpr(1e-9))["fpr"] == 0.0


def test_counters_do_not_stop_at_16_million():
    counts = np.zeros((2, BINS), np.int64)
    counts[0, 30_000] = 3_000_000_001
    counts[1, 40_000] = 50_000_003
    pooled = PixelCounts()
    for _ in range(4):
        pooled.add(counts)
    curve = pooled.curve()
    assert curve.false_positives[-1] == 12_000_000_004
    assert curve.true_positives[-1] == 200_000_012
    assert (curve.average_precision, curve.fpr_at()) == (1.0, 0.0)


def test_undefined_metrics_are_refused():
    scores = np.zeros((4, 5), np.float16)
    for labels, what in ((0, "no anomalous pixel"), (1, "no known pixel"), (255, "no anomalous")):
        counts = PixelCounts()
        counts.add(frame_counts(scores, np.full((4, 5), labels, np.uint8)))
        with pytest.raises(AleatorError, match=what):
            counts.curve("somewhere")
    with pytest.raises(AleatorError, match="NaN"):
        Curve.exact(np.array([0.0, np.nan]), np.array([0, 1]))
