"""The bootstrap over frames against one that redraws all pixels, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from apps.anomaly_driving.bootstrap import FrameCounts, intervals
from apps.anomaly_driving.pixel_metrics import Curve, frame_counts
from core.errors import AleatorError
from core.random import keyed_generator


def frames(n=24, pixels=900, effect=1.5, seed=0, spread=0.7):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        label = (rng.random(pixels) < rng.uniform(0, 0.1)).astype(np.uint8)
        score = rng.standard_normal(pixels) + (effect + spread * rng.standard_normal()) * label
        yield score.astype(np.float16), label


def filled(data, **options):
    counts = FrameCounts(**options)
    for score, label in data:
        counts.add(frame_counts(score[None], label[None]))
    return counts


def test_the_value_is_that_of_all_pixels():
    data = list(frames(100))  # more than the warm-up
    scores, labels = (np.concatenate(part) for part in zip(*data, strict=True))
    curve = Curve.exact(scores, labels)
    found = intervals({"a": filled(data)}, draws=10, generator=keyed_generator(0))["a"]
    assert found.value == pytest.approx(curve.average_precision, abs=5e-4)
    fpr = intervals({"a": filled(data)}, "fpr95", draws=10, generator=keyed_generator(0))["a"]
    assert fpr.value == pytest.approx(curve.fpr_at(), abs=2e-3)


def test_few_distinct_scores_are_kept_exactly():
    data = [(np.round(score * 4) / 4, label) for score, label in frames()]
    scores, labels = (np.concatenate(part) for part in zip(*data, strict=True))
    found = intervals({"a": filled(data)}, draws=10, generator=keyed_generator(0))["a"]
    assert found.value == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_equals_redrawing_the_pixels():
    data = list(frames(12))
    rng = np.random.default_rng(1)
    brute = []
    for _ in range(400):
        drawn = [data[i] for i in rng.integers(0, len(data), len(data))]
        scores, labels = (np.concatenate(part) for part in zip(*drawn, strict=True))
        brute.append(average_precision_score(labels, scores))
    low, high = np.quantile(brute, (0.05, 0.95))
    found = intervals({"a": filled(data)}, draws=4000, generator=keyed_generator(0))["a"]
    width = high - low
    assert found.low == pytest.approx(low, abs=0.12 * width)
    assert found.high == pytest.approx(high, abs=0.12 * width)


def test_pairing_takes_out_what_frames_have_in_common():
    data = list(frames(20, spread=2.0))
    rng = np.random.default_rng(3)
    slightly_worse = [
        ((s + 0.3 * rng.standard_normal(s.shape)).astype(np.float16), label) for s, label in data
    ]
    counts = {"base": filled(data), "worse": filled(slightly_worse), "same": filled(data)}
    alone = intervals(counts, generator=keyed_generator(0))
    paired = intervals(counts, against="base", generator=keyed_generator(0))
    assert paired["same"].low == paired["same"].high == paired["same"].value == 0.0
    assert paired["worse"].value < 0
    assert paired["worse"].high < 0  # significant, though the intervals alone overlap widely
    assert alone["worse"].high > alone["base"].low
    assert paired["worse"].above < 0.05
    assert "base" not in paired


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    pooled = [np.concatenate(part) for part in zip(*frames(2000, 300, seed=99), strict=True)]
    truth = average_precision_score(pooled[1], pooled[0])
    hits = 0
    for seed in range(60):
        counts = {"a": filled(frames(40, 300, seed=seed), grid=512)}
        found = intervals(counts, draws=200, generator=keyed_generator(seed))["a"]
        hits += found.low <= truth <= found.high
    assert 0.78 <= hits / 60 <= 0.99  # nominal 0.9, three standard errors


def test_refusals():
    one = filled(list(frames(1)))
    two = filled(list(frames(2)))
    with pytest.raises(AleatorError, match="one frame alone"):
        intervals({"a": one})
    with pytest.raises(AleatorError, match=r"scores of \[1, 2\] frames"):
        intervals({"a": one, "b": two})
    with pytest.raises(AleatorError, match="no metric 'siou'"):
        intervals({"a": two}, "siou")
    with pytest.raises(AleatorError, match="no score 'b' to compare with"):
        intervals({"a": two}, against="b")
    nothing = FrameCounts()
    for _ in range(3):
        nothing.add(frame_counts(np.zeros((1, 9), np.float16), np.zeros((1, 9), np.uint8)))
    with pytest.raises(AleatorError, match="both kinds of pixels"):
        intervals({"a": nothing}, generator=keyed_generator(0))
