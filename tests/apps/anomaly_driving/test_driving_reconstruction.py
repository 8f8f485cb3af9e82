"""A VAE of patches draws known texture again, and does not draw what it has never seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from apps.anomaly_driving.data import open_data
from apps.anomaly_driving.fits import fit_scores, load_fits, save_fits
from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.network import Scorer, open_network
from apps.anomaly_driving.reconstruction import PATCH, Reconstruction, known_patches
from apps.anomaly_driving.scores import parse
from core.errors import AleatorError


def street(seed, size=(64, 96)):
    """Smooth waves of random phase: what is known."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    wave = np.sin(rows / 9 + rng.uniform(0, 6)) + np.sin(columns / 11 + rng.uniform(0, 6))
    return torch.tensor(0.5 + 0.2 * wave[None].repeat(3, 0), dtype=torch.float32)[None]


@pytest.fixture(scope="module")
def score(tmp_path_factory):
    everywhere = torch.ones(1, 64, 96, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    patches = [known_patches(street(i), everywhere, generator) for i in range(20)]
    return Reconstruction.of(torch.cat(patches), tmp_path_factory.mktemp("vae"), 0, steps=120)


def test_what_was_never_seen_is_not_drawn_again(score):
    image = street(100)
    noise = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(1))
    image[0, :, 20:44, 30:54] = noise
    found = score.of_image(image)
    assert found.shape == (1, 64, 96)
    label = np.zeros((64, 96), int)
    label[20:44, 30:54] = 1
    assert roc_auc_score(label.ravel(), found.flatten().numpy()) > 0.95


def test_errors_are_those_of_the_patches(score):
    """Away from borders, the score is the mean over the four patches with the pixel."""
    image = street(100, (48, 48))
    found = score.of_image(image)[0]
    mean, std = score.state["mean"], score.state["std"]
    errors = []
    for top in (8, 16):
        for left in (16, 24):
            patch = image[:, :, top : top + PATCH, left : left + PATCH]
            with torch.no_grad():
                again = score.vae.decode(score.vae.encode((patch - mean) / std).mean).mean
            error = (patch - again * std - mean).abs().mean(1)[0]
            errors.append(error[20 - top, 28 - left].item())
    assert found[20, 28].item() == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize("size", [(33, 47), (64, 64), (50, 90)])
def test_any_size(score, size):
    found = score.of_image(street(3, size))
    assert found.shape == (1, *size)
    assert (found >= 0).all()
    assert found.isfinite().all()


def test_only_patches_that_are_known_all_over():
    known = torch.zeros(1, 64, 96, dtype=torch.bool)
    known[:, :, :40] = True
    image = torch.zeros(1, 3, 64, 96)
    image[..., 40:] = 1.0
    found = known_patches(image, known, torch.Generator().manual_seed(0))
    assert len(found) == 7 * 4
    assert (found == 0).all()


def test_is_fitted_kept_and_asked_for_by_name(driving_model, draw, tmp_path, monkeypatch):
    monkeypatch.setattr(Reconstruction, "STEPS", 10)
    data = open_data(draw.plain(tmp_path / "p", 0, 0, 1, 255, size=(64, 96)))
    network = open_network(driving_model)
    fits = fit_scores(network, data.samples, ("reconstruction",))
    save_fits(tmp_path, fits, "m")
    image = next(iter(data)).image
    found = [
        Scorer(network, ("reconstruction",), f)(image).scores["reconstruction"]
        for f in (fits, load_fits(tmp_path, "m"))
    ]
    assert (found[0] == found[1]).all()
    assert found[0].std() > 0
    with pytest.raises(AleatorError, match="cannot be a member of an ensemble"):
        parse("energy+reconstruction")
    with pytest.raises(AleatorError, match="from the image"):
        fits["reconstruction"](Outputs(torch.zeros(1, 2, 4, 4), None, torch.empty(0)))
