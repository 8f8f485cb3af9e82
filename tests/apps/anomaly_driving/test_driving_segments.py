"""Segments lie on the image's edges, and means over them are means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score

from apps.anomaly_driving.data import open_data
from apps.anomaly_driving.network import Scorer, open_network
from apps.anomaly_driving.scores import parse
from apps.anomaly_driving.segments import segment_means, segments
from core.errors import AleatorError


@pytest.fixture
def scene():
    """A grey road with a red disc on it, some grain, and where the disc is."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((90, 140))
    disc = (rows - 50) ** 2 + (columns - 77) ** 2 < 20**2
    image = np.where(disc[..., None], [180, 40, 40], [110, 110, 115])
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8), disc


def test_every_pixel_has_one_segment(scene):
    numbers = segments(scene[0])
    assert numbers.shape == (90, 140)
    assert numbers.min() == 0
    assert numbers.max() + 1 == len(np.unique(numbers)) == 7 * 12
    assert 80 < np.median(np.bincount(numbers.ravel())) < 200
    assert (segments(scene[0]) == numbers).all()


def test_segments_end_at_edges(scene):
    image, disc = scene
    numbers = segments(image)
    share = ndimage.mean(disc, numbers, np.arange(numbers.max() + 1))
    assert ((share < 0.1) | (share > 0.9)).mean() > 0.95  # of squares it would be about 0.8


def test_means_are_those_of_scipy(scene):
    numbers = segments(scene[0])
    score = np.random.default_rng(1).standard_normal(numbers.shape)
    wanted = ndimage.mean(score, numbers, np.arange(numbers.max() + 1))[numbers]
    assert segment_means(score, numbers) == pytest.approx(wanted, abs=1e-6)


def test_noise_is_taken_out_and_the_object_stays(scene):
    image, disc = scene
    rng = np.random.default_rng(2)
    score = disc + rng.standard_normal(disc.shape)
    smooth = segment_means(score, segments(image))
    before = average_precision_score(disc.ravel(), score.ravel())
    after = average_precision_score(disc.ravel(), smooth.ravel())
    assert after > before + 0.2


def test_small_images_and_bad_spacings(scene):
    assert (segments(scene[0][:3, :4], spacing=50) == 0).all()
    with pytest.raises(AleatorError, match="at least two pixels"):
        segments(scene[0], spacing=1)


def test_a_score_by_segments_is_asked_for_by_name(driving_model, draw, tmp_path):
    draw.image(tmp_path / "a.png", 0, (64, 96))
    image = next(iter(open_data(tmp_path / "a.png"))).image
    names = parse("energy,energy@segments")
    found = Scorer(open_network(driving_model), names)(image).scores
    numbers = segments(image)
    wanted = segment_means(found["energy"], numbers)
    assert found["energy@segments"].astype(float) == pytest.approx(wanted, abs=4e-3)
    with pytest.raises(AleatorError, match="can only be @segments or @smooth"):
        parse("energy@pixels")
    with pytest.raises(AleatorError, match="unknown score 'enrgy'"):
        parse("enrgy@segments")


def test_a_score_is_smoothed_by_name(driving_model, draw, tmp_path):
    draw.image(tmp_path / "a.png", 0, (64, 96))
    image = next(iter(open_data(tmp_path / "a.png"))).image
    names = parse("energy,energy@smooth")
    found = Scorer(open_network(driving_model), names)(image).scores
    wanted = gaussian_filter(found["energy"].astype(float), 96 / 120, mode="mirror", truncate=2.5)
    assert found["energy@smooth"].astype(float) == pytest.approx(wanted, abs=6e-3)
    assert found["energy@smooth"].std() < found["energy"].std()
    with pytest.raises(AleatorError, match="unknown score 'enrgy'"):
        parse("enrgy@smooth")
