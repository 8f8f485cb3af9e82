"""The dispersion model finds what made the errors, and nothing where nothing did."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from apps.climate_downscaling.dispersion import FEATURES, Dispersion
from apps.climate_downscaling.loglinear import _maximum_likelihood
from apps.climate_downscaling.mean import upsample

STEPS, H, W, FACTOR = 400, 4, 6, 2


def sample(weight, seed=0):
    """Errors whose log scale depends on the anomaly of the coarse field with the given weight."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(STEPS, 1, H, W, generator=g)
    mean = upsample(coarse, FACTOR) + 0.1 * torch.randn(
        STEPS, 1, H * FACTOR, W * FACTOR, generator=g
    )
    leverage = torch.rand(STEPS, H, W, generator=g) + 0.1
    usual = torch.linspace(0.5, 2, H * FACTOR * W * FACTOR).reshape(1, H * FACTOR, W * FACTOR)
    log = weight * upsample(coarse, FACTOR, "bilinear") + usual.log()
    error = log.exp() * torch.randn(log.shape, generator=g)
    return error, coarse, coarse, mean, leverage, usual


def test_it_finds_the_feature_that_matters():
    error, coarse, standard, mean, leverage, _ = sample(0.5)
    found = Dispersion.fit(error, coarse, standard, mean, leverage, blocks=4, gap=5)
    slope = found.weights[0] / found.spread[0]
    anomaly = FEATURES.index("anomaly")
    assert slope[anomaly].item() == pytest.approx(0.5, abs=0.03)
    others = [i for i in range(len(FEATURES)) if i != anomaly]
    assert found.weights[0][others].abs().max() < 0.03
    z = error / found(coarse, standard, mean, leverage)
    assert z.square().mean().item() == pytest.approx(1, abs=1e-3)
    dry, wet = (z[coarse_side(coarse, side)].std().item() for side in (-1, 1))
    assert dry == pytest.approx(wet, rel=0.06)


def coarse_side(coarse, side):
    """Cells whose coarse anomaly is far on one side."""
    return side * upsample(coarse, FACTOR, "bilinear") > 0.5


def test_constant_errors_need_no_feature():
    error, coarse, standard, mean, leverage, usual = sample(0.0)
    found = Dispersion.fit(error, coarse, standard, mean, leverage, blocks=4, gap=5)
    assert found.weights.abs().max() < 0.03
    torch.testing.assert_close(found.scale, usual, rtol=0.15, atol=0)


def test_the_features_of_another_one_are_taken_and_their_weights_fitted():
    error, *known, _ = sample(0.5)
    chosen = Dispersion.fit(error, *known, blocks=4, gap=5)
    again = Dispersion.fit(error, *known, blocks=4, gap=5, like=chosen)
    torch.testing.assert_close(again.weights, chosen.weights, rtol=0, atol=0)
    other, *seen, _ = sample(0.3, seed=1)
    one = torch.zeros_like(chosen.weights)
    one[0, FEATURES.index("anomaly")] = 9.0
    found = Dispersion.fit(
        other, *seen, blocks=4, gap=5, like=dataclasses.replace(chosen, weights=one)
    )
    assert ((found.weights != 0) == (one != 0)).all()
    slope = (found.weights / found.spread)[0, FEATURES.index("anomaly")].item()
    assert slope == pytest.approx(0.3, abs=0.03)
    none = Dispersion.fit(
        other, *seen, blocks=4, gap=5, like=dataclasses.replace(chosen, weights=0 * one)
    )
    assert not none.weights.any()


@pytest.mark.exact
def test_maximum_likelihood_agrees_with_a_general_optimiser():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(50, 2, 2, 2, generator=g)
    error = torch.exp(0.4 * x[..., 0] - 0.2 * x[..., 1]) * torch.randn(50, 2, 2, generator=g)
    b, log_scale = _maximum_likelihood(error, x)
    e, f = error.double().numpy(), x.double().numpy()

    def negative(parameters):
        log = f @ parameters[:2] + parameters[2:].reshape(2, 2)
        return (log + 0.5 * (e * np.exp(-log)) ** 2).sum() + 0.5e-3 * 200 * (
            parameters[:2] ** 2
        ).sum()

    best = minimize(negative, np.zeros(6), tol=1e-12).x
    np.testing.assert_allclose(b.numpy(), best[:2], atol=2e-3)
    np.testing.assert_allclose(log_scale.flatten().numpy(), best[2:], atol=5e-3)
