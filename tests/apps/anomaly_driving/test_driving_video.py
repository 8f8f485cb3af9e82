"""Smoothing along the motion, on films whose motion is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from apps.anomaly_driving.video import Flicker, Motion, Smoother, motion, read_video
from core.errors import AleatorError

SIZE = (96, 128)


def texture(seed=0, size=(160, 260)):
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def panned(i, step=3):
    """Frame i of a camera that moves to the right."""
    return texture()[20 : 20 + SIZE[0], step * i : step * i + SIZE[1]].copy()


def test_the_flow_leads_back_to_where_a_pixel_was():
    found = motion(panned(4), panned(3))
    inner = (slice(16, -16), slice(16, -24))
    assert np.median(found.flow[inner][..., 0]) == pytest.approx(3, abs=0.2)
    assert np.median(found.flow[inner][..., 1]) == pytest.approx(0, abs=0.2)
    assert found.seen[inner].mean() > 0.9
    assert not found.seen[:, -2:].any()  # what has just come into view


def test_a_map_is_carried_with_the_motion():
    flow = np.zeros((*SIZE, 2), np.float32)
    flow[..., 0] = 3
    before = np.random.default_rng(0).standard_normal(SIZE).astype(np.float32)
    carried = Motion(flow, np.ones(SIZE, bool)).carried(before)
    assert carried[:, :-3] == pytest.approx(before[:, 3:])


def films(weight, frames=8):
    """Flicker before and after smoothing, and the error of both, of a noisy moving score."""
    truth = texture(5)[..., 0].astype(np.float32) / 60
    rng = np.random.default_rng(1)
    smoother, raw, smooth = Smoother(weight), Flicker(), Flicker()
    errors, last = [], None
    for i in range(frames):
        moved = None if last is None else motion(panned(i), last)
        last = panned(i)
        true = truth[20 : 20 + SIZE[0], 3 * i : 3 * i + SIZE[1]]
        noisy = true + 0.5 * rng.standard_normal(SIZE).astype(np.float32)
        value = smoother(noisy, moved)
        raw.add(noisy, moved)
        smooth.add(value, moved)
        errors.append((np.abs(noisy - true).mean(), np.abs(value - true).mean()))
    return raw.value(), smooth.value(), np.array(errors)[frames // 2 :].mean(0)


def test_smoothing_takes_out_flicker_and_not_the_objects():
    raw, smooth, (noisy, smoothed) = films(0.3)
    assert smooth < 0.5 * raw
    assert smoothed < 0.7 * noisy  # nearer to the truth, although everything moves


def test_a_weight_of_one_changes_nothing():
    score = np.random.default_rng(0).standard_normal(SIZE).astype(np.float16)
    smoother = Smoother(1.0)
    still = Motion(np.zeros((*SIZE, 2), np.float32), np.ones(SIZE, bool))
    assert (smoother(score, None) == score).all()
    assert (smoother(-score, still) == -score).all()


def test_a_still_film_is_an_exponential_average():
    still = Motion(np.zeros((*SIZE, 2), np.float32), np.ones(SIZE, bool))
    smoother = Smoother(0.25)
    scores = np.random.default_rng(0).standard_normal((5, *SIZE)).astype(np.float32)
    wanted = scores[0]
    found = smoother(scores[0], None)
    for score in scores[1:]:
        wanted = 0.25 * score + 0.75 * wanted
        found = smoother(score, still)
    assert found.astype(float) == pytest.approx(wanted, abs=2e-3)


def test_what_was_not_seen_has_no_memory():
    seen = np.ones(SIZE, bool)
    seen[:, :10] = False
    moved = Motion(np.zeros((*SIZE, 2), np.float32), seen)
    smoother = Smoother(0.2)
    smoother(np.zeros(SIZE), None)
    found = smoother(np.ones(SIZE), moved)
    assert (found[:, :10] == 1).all()
    assert (found[:, 10:] == np.float16(0.2)).all()


def test_films_are_read_frame_by_frame(tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE[::-1])
    for i in range(4):
        writer.write(panned(i)[..., ::-1])
    writer.release()
    frames = list(read_video(path))
    assert len(frames) == 4
    assert np.abs(frames[2].astype(int) - panned(2)).mean() < 12  # RGB, but for the codec
    (tmp_path / "bad.mp4").write_bytes(b"junk")
    with pytest.raises(AleatorError, match="not a film"):
        list(read_video(tmp_path / "bad.mp4"))
    with pytest.raises(AleatorError, match="no such file"):
        list(read_video(tmp_path / "none.mp4"))


def test_refusals():
    for weight in (0, -1, 1.2):
        with pytest.raises(AleatorError, match=r"in \(0, 1\]"):
            Smoother(weight)
    flicker = Flicker()
    flicker.add(np.zeros(SIZE), None)
    with pytest.raises(AleatorError, match="needs two frames"):
        flicker.value()
    flicker.add(np.zeros(SIZE), Motion(np.zeros((*SIZE, 2), np.float32), np.ones(SIZE, bool)))
    with pytest.raises(AleatorError, match="the same at every pixel"):
        flicker.value()
