"""Pictures show what they say: brighter is more unexpected, lines are where calls are."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from apps.anomaly_driving.pixel_metrics import Curve
from apps.anomaly_driving.plots import (
    WIDTH,
    heat,
    outlined,
    overlay,
    precision_recall,
    worst_frame,
)

GREEN = np.array([0, 255, 0])


def brightness(coloured):
    return cv2.cvtColor(coloured, cv2.COLOR_RGB2GRAY).astype(int)


@pytest.fixture
def ramp():
    """A score that rises from left to right."""
    return np.tile(np.linspace(-30, 5, 200, dtype=np.float16), (50, 1))


def test_brighter_is_more_unexpected(ramp):
    for threshold in (None, -25.0, 4.0, 100.0):
        row = brightness(heat(ramp, threshold))[25]
        assert (np.diff(row) >= -2).all()
        assert row[-1] > row[0]


def test_the_middle_colour_is_at_the_threshold(ramp):
    middle = brightness(heat(np.tile(np.linspace(0, 1, 201), (9, 1))))[4, 100]
    at = int(np.argmin(np.abs(ramp[0].astype(float) + 25)))
    assert brightness(heat(ramp, -25.0))[25, at] == pytest.approx(middle, abs=3)


def test_a_constant_score_has_a_picture():
    assert heat(np.zeros((8, 9), np.float16)).shape == (8, 9, 3)


def test_a_line_goes_round_what_is_called(ramp):
    image = np.zeros((50, 200, 3), np.uint8)
    drawn = overlay(image, ramp, threshold=-10.0)
    edge = int(np.argmax(ramp[0] >= np.float16(-10)))
    assert (drawn[25, edge] == 255).all()
    assert not (drawn[25, edge - 3 : edge] == 255).all(-1).any()
    assert not (overlay(image, ramp)[25] == 255).all(-1).any()


def test_labels_are_outlined_and_the_ignored_dimmed():
    image = np.full((60, 400, 3), 90, np.uint8)
    label = np.zeros((60, 400), np.uint8)
    label[20:40, 100:150] = 1
    label[:, 350:] = 255
    drawn = outlined(image, label)
    assert (drawn[20, 120] == GREEN).all()
    assert (drawn[30, 125] == 90).all()
    assert (drawn[5, 380] == 30).all()
    assert (image == 90).all()


def test_a_worst_frame_has_both_pictures_and_a_line_of_text(ramp):
    image = np.full((50, 200, 3), 90, np.uint8)
    label = (ramp > 0).astype(np.uint8)
    drawn = worst_frame(image, label, ramp, -10.0, "frame 7")
    assert drawn.shape == (24 + 160, 2 * WIDTH, 3)
    assert (drawn[:24] > 100).any()


def test_precision_over_recall_is_a_figure(tmp_path):
    rng = np.random.default_rng(0)
    label = (rng.random(5000) < 0.1).astype(np.uint8)
    curves = {f"s{k}": Curve.exact(rng.random(5000) + k * label, label) for k in range(3)}
    precision_recall(curves, tmp_path / "pr.png", "test")
    figure = cv2.imread(str(tmp_path / "pr.png"))
    assert figure.shape[0] > 400
    assert len(np.unique(figure.reshape(-1, 3), axis=0)) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["pr.png"]
