"""Segment metrics against known answers and against an implementation made of sets of pixels."""

from __future__ import annotations

import numpy as np
import pytest

from apps.anomaly_driving.segment_metrics import SegmentMetrics, Sizes, mean_f1, segments
from core.errors import AleatorError

ANY = Sizes(0, 0)


def parts(mask):
    """8-connected components as sets of pixels, by flood fill."""
    left = set(zip(*np.nonzero(mask), strict=True))
    found = []
    while left:
        front, part = [left.pop()], set()
        while front:
            y, x = front.pop()
            part.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(part)
    return found


def straightforward(mask, label, sizes):
    """The definition, word by word, on sets."""
    judged = set(zip(*np.nonzero(label <= 1), strict=True))
    truth = parts(label == 1)
    for part in [p for p in truth if len(p) < sizes.truth]:
        judged -= part
    truth = [p for p in truth if len(p) >= sizes.truth]
    alarms = [p for p in parts(mask & (label <= 1)) if len(p) >= sizes.predicted]
    alarms = [p & judged for p in alarms if p & judged]
    siou = []
    for k in truth:
        touching = [p for p in alarms if p & k]
        union = set().union(*touching)
        others = set().union(*(g for g in truth if g is not k))
        siou.append(len(k & union) / (len(k | union) - len(union & others)))
    every = set().union(*truth)
    ppv = [len(p & every) / len(p) for p in alarms]
    return siou, ppv


def grid(*rows):
    """Labels from text, . known, # anomaly, x ignored; called: o known, @ anomaly, X ignored."""
    text = np.array([list(row) for row in rows])
    label = np.select([np.isin(text, ["#", "@"]), np.isin(text, ["x", "X"])], [1, 255], 0)
    return np.isin(text, ["o", "@", "X"]), label.astype(np.uint8)


def found(*rows, sizes=ANY):
    result = segments(*grid(*rows), sizes)
    return sorted(result.siou.tolist()), sorted(result.ppv.tolist())


def test_a_perfect_call():
    assert found("....", ".@@.", ".@@.") == ([1.0], [1.0])


def test_nothing_called_and_nothing_there():
    assert found("....", ".##.") == ([0.0], [])
    assert found("....", ".oo.") == ([], [0.0])


def test_objects_that_touch_at_a_corner_are_one():
    assert found("@...", ".#..", "..#.") == ([1 / 3], [1.0])


def test_two_predictions_on_one_object_are_taken_together():
    # the object has 6 pixels; two alarms cover 2 each and one of them has 2 outside
    assert found("@@##@@oo") == ([4 / 8], [0.5, 1.0])


def test_one_prediction_on_two_objects_is_not_held_against_either():
    # objects of 2, an alarm of 7 over both: each: 2 / (2 + 7 - 2 - 2)
    assert found("@@ooo@@") == ([2 / 5, 2 / 5], [4 / 7])


def test_the_ignored_border_belongs_to_nothing():
    assert found("x@@x", "X@@X") == ([1.0], [1.0])
    # an alarm that the border cuts in two
    assert found("oXo", "...", "##.") == ([0.0], [0.0, 0.0])


def test_small_parts():
    rows = ("@@...oo", "@@.....", "....#..")
    assert found(*rows) == ([0.0, 1.0], [0.0, 1.0])
    assert found(*rows, sizes=Sizes(3, 0)) == ([0.0, 1.0], [1.0])
    assert found(*rows, sizes=Sizes(0, 2)) == ([1.0], [0.0, 1.0])
    # an alarm on an object that is too small counts neither for nor against
    assert found("@......", sizes=Sizes(0, 2)) == ([], [])
    # the size of an alarm is judged before small objects are taken away
    assert found("@oo", sizes=Sizes(3, 2)) == ([], [0.0])


def test_diagonal_neighbours_are_one_alarm():
    assert found("o..", ".o.", "..@") == ([1.0 / 3.0], [1 / 3])


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_straightforward_one(seed):
    rng = np.random.default_rng(seed)
    shape = (23, 31)

    def blobs(threshold):
        noise = rng.standard_normal(shape)
        smooth = sum(np.roll(noise, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 3
        return smooth > threshold

    label = blobs(0.9).astype(np.uint8)
    label[blobs(1.2)] = 255
    mask = blobs(0.6) ^ (label == 1) & blobs(-0.5)
    for sizes in (ANY, Sizes(6, 3), Sizes(12, 5)):
        ours = segments(mask, label, sizes)
        siou, ppv = straightforward(mask, label, sizes)
        assert sorted(ours.siou) == pytest.approx(sorted(siou), abs=1e-12)
        assert sorted(ours.ppv) == pytest.approx(sorted(ppv), abs=1e-12)


def test_pooled_over_frames():
    pooled = SegmentMetrics(ANY)
    pooled.add(*grid("@@..", "...."))
    pooled.add(*grid("##..", "...o"))
    assert pooled.metrics() == {"siou": 0.5, "ppv": 0.5, "mean_f1": 0.5, "objects": 2, "alarms": 2}
    # by hand: sIoU 0.5 is a hit at 0.25 ... 0.50, six of the eleven levels
    assert mean_f1(np.array([0.5]), np.array([1.0])) == pytest.approx(6 / 11)
    assert mean_f1(np.array([0.62, 0.1]), np.array([0.32])) == pytest.approx(
        (2 * 2 / (2 + 1 + 0) + 6 * 2 / (2 + 1 + 1) + 3 * 0) / 11
    )


def test_undefined_is_none_and_not_zero():
    pooled = SegmentMetrics()
    pooled.add(np.zeros((9, 9), bool), np.zeros((9, 9), np.uint8))
    assert pooled.metrics() == {
        "siou": None,
        "ppv": None,
        "mean_f1": None,
        "objects": 0,
        "alarms": 0,
    }
    with pytest.raises(AleatorError, match="cannot be negative"):
        Sizes(-1, 0)
