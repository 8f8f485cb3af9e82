"""Bundling: a default score that needs known frames comes with its fit."""

import shutil

import cv2
import numpy as np
import pytest

from apps.anomaly_driving.fits import FOLDER
from apps.anomaly_driving.samples.make_model import fit
from apps.anomaly_driving.using import BUNDLED_MODEL, open_scorer
from core.errors import AleatorError


def test_the_default_score_is_fitted_and_older_fits_go(tmp_path):
    model, frames = tmp_path / "model", tmp_path / "frames"
    shutil.copytree(BUNDLED_MODEL, model, ignore=shutil.ignore_patterns(FOLDER))
    frames.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    cv2.imwrite(str(frames / "0.png"), image)
    (model / FOLDER / "of another model").mkdir(parents=True)
    fit(model, ("max_logit+entropy@smooth",), frames)
    assert [path.name for path in (model / FOLDER).iterdir()] == ["max_logit+entropy"]
    (score,) = open_scorer(model, "max_logit+entropy")(image).scores.values()
    assert abs(score.astype(float).mean()) < 0.2  # standardised on this very picture
    fit(model, ("jsd@smooth",), frames)
    with pytest.raises(AleatorError, match="has to be fitted"):
        open_scorer(model, "max_logit+entropy")
