"""Fitted scores against NumPy, SciPy and scikit-learn on the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, spearmanr
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from apps.anomaly_driving import feature_scores as fs
from apps.anomaly_driving.model import Outputs
from core.errors import AleatorError


def features(n, seed=0, scale=1.0, classes=3):
    """Vectors (N, 4) of correlated classes far from the origin, and the classes."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(42).standard_normal((4, 4)) + 2 * np.eye(4)
    centres = 20 + 4 * np.random.default_rng(43).standard_normal((classes, 4))
    labels = rng.integers(0, classes, n)
    x = centres[labels] + scale * rng.standard_normal((n, 4)) @ mix
    return torch.tensor(x, dtype=torch.float32), torch.tensor(labels)


def as_outputs(vectors, h, w):
    """Features (N, D) as one image of (h, w) cells, at one pixel a cell."""
    grid = vectors.reshape(h, w, -1).permute(2, 0, 1)[None]
    return Outputs(torch.zeros(1, 3, h, w), None, grid)


def test_moments_of_many_frames_are_those_of_all_pixels():
    x, labels = features(3000)
    moments = fs.Moments(4)  # the fourth class never occurs
    for part, of in zip(x.split(700), labels.split(700), strict=True):
        moments.add(part, of)
    data, of = x.double().numpy(), labels.numpy()
    centres = np.stack([data[of == k].mean(0) for k in range(3)])
    assert moments.mean()[:3].numpy() == pytest.approx(centres, abs=1e-9)
    assert moments.mean()[3].numpy() == pytest.approx(data.mean(0), abs=1e-9)
    stds = np.stack([data[of == k].std(0) for k in range(3)])
    assert moments.std()[:3].numpy() == pytest.approx(stds, abs=1e-9)
    wanted = EmpiricalCovariance(assume_centered=True).fit(data - centres[of]).covariance_
    assert moments.within().numpy() == pytest.approx(wanted, abs=1e-9)


def test_moments_do_not_cancel():
    x = torch.tensor([[1e6], [1e6 + 1], [1e6 + 2]], dtype=torch.float64)
    moments = fs.Moments(1)
    moments.add(x, torch.zeros(3, dtype=torch.long))
    assert moments.std().item() == pytest.approx(np.sqrt(2 / 3), rel=1e-9)


def test_mahalanobis_is_the_distance_to_the_nearest_class():
    x, labels = features(4000)
    moments = fs.Moments(3)
    moments.add(x, labels)
    score = fs.Mahalanobis.of(moments, shrink=0.0)
    tested = features(48, seed=5, scale=2.0)[0]
    found = score(as_outputs(tested, 6, 8)).flatten().double().numpy()
    inverse = np.linalg.inv(moments.within().numpy())
    away = tested.double().numpy()[:, None] - moments.mean().numpy()
    wanted = np.sqrt(np.einsum("nkd,de,nke->nk", away, inverse, away)).min(1)
    assert found == pytest.approx(wanted, rel=2e-4)


def test_knn_equals_sklearn():
    bank, tested = features(500)[0], features(48, seed=5)[0]
    score = fs.Nearest.of(bank)
    found = score(as_outputs(tested, 6, 8)).flatten().numpy()

    def unit(v):
        return v.numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True)

    distances, _ = (
        NearestNeighbors(n_neighbors=fs.Nearest.K).fit(unit(bank)).kneighbors(unit(tested))
    )
    assert found == pytest.approx(distances[:, -1], abs=2e-4)


def test_standardised_max_logit():
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.standard_normal((1, 3, 40, 50)) * [[[[2.0]], [[1.0]], [[3.0]]]][0])
    top, label = logits.max(1)
    moments = fs.Moments(3)
    moments.add(top.flatten()[:, None], label.flatten())
    found = fs.StandardisedMaxLogit.of(moments)(Outputs(logits, None, torch.empty(0)))
    assert found.dtype == torch.float64
    for k in range(3):  # of each predicted class: mean 0, deviation 1
        own = found[label == k]
        assert own.mean().item() == pytest.approx(0, abs=1e-5)
        assert own.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    higher = (top > top.median()) & (label == 0)
    lower = (top <= top.median()) & (label == 0)
    assert found[higher].mean() < found[lower].mean()


def test_the_flow_learns_the_density(tmp_path):
    x = features(4000, classes=1)[0]
    score = fs.FlowDensity.of(x, tmp_path, seed=0, steps=150)
    tested = features(400, seed=5, scale=1.5, classes=1)[0]
    found = score(as_outputs(tested, 20, 20)).flatten().numpy()
    truth = multivariate_normal(x.mean(0).numpy(), np.cov(x.T.numpy()))
    wanted = -truth.logpdf(tested.numpy())
    assert spearmanr(found, wanted).statistic > 0.93
    again = fs.FlowDensity(score.state)
    assert torch.equal(again(as_outputs(tested, 20, 20)), score(as_outputs(tested, 20, 20)))
    far = score(as_outputs(tested + 1e4, 20, 20))
    assert far.isfinite().all()
    assert far.min() > found.max()


def test_the_flow_refuses_what_does_not_vary(tmp_path):
    with pytest.raises(AleatorError, match="do not vary"):
        fs.FlowDensity.of(torch.ones(100, 4), tmp_path, seed=0)


def test_an_ensemble_weighs_its_members_equally():
    logits = torch.randn(1, 3, 30, 30, generator=torch.Generator().manual_seed(0)) * 5
    outputs = Outputs(logits, None, torch.empty(0))
    energy = -logits.logsumexp(1)
    top = -logits.amax(1)
    state = {
        "mean": torch.stack([energy.mean(), top.mean()]),
        "std": torch.stack([energy.std(), top.std()]),
    }
    found = fs.Ensemble(state, "energy+max_logit", {})(outputs)
    wanted = ((energy - energy.mean()) / energy.std() + (top - top.mean()) / top.std()) / 2
    assert torch.allclose(found, wanted, atol=1e-5)


def test_every_pixel_has_the_same_chance_in_the_sample():
    counts = np.zeros(100)
    for seed in range(300):
        reservoir = fs.Reservoir(20, seed)
        for part in torch.arange(100.0)[:, None].split([5, 60, 1, 34]):
            reservoir.add(part)
        rows = reservoir.sample().flatten().long().numpy()
        assert len(set(rows)) == 20
        counts[rows] += 1
    # binomial with 300 draws of chance 0.2: mean 60, deviation 6.9
    assert counts.sum() == 6000
    assert abs(counts - 60).max() < 30
    assert counts[:5].mean() == pytest.approx(60, abs=10)


def test_only_cells_whose_centre_is_known_are_seen():
    outputs = Outputs(
        torch.tensor([0.0, 1.0])[None, :, None, None].expand(1, 2, 8, 8),
        None,
        torch.arange(4.0).reshape(1, 1, 2, 2),
    )
    known = torch.zeros(1, 8, 8, dtype=torch.bool)
    known[:, :4, :4] = True
    known[:, 4:, 4:] = True
    vectors, labels = fs.known_features(outputs, known)
    assert vectors.flatten().tolist() == [0.0, 3.0]
    assert labels.tolist() == [1, 1]


def test_refusals():
    with pytest.raises(AleatorError, match="no known pixel"):
        fs.Reservoir(5, 0).sample()
    with pytest.raises(AleatorError, match="gives logits only"):
        fs.must_have_features(Outputs(torch.zeros(1, 3, 4, 4), None, torch.empty(0)))
