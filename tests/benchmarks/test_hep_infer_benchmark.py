"""The toys that inference is measured on have the posterior that is claimed."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


toys = load("hep_infer_toys")
jets = load("hep_infer_jets")
main = load("hep_infer")


@pytest.mark.exact
def test_the_chain_has_the_mean_and_the_covariance_of_its_closed_form():
    u = torch.tensor([[0.3, 0.8]], dtype=torch.float64)
    x = toys.chain().sample((40000,), u, generator=torch.Generator().manual_seed(0))["detector"]
    mean = toys.DETECTOR @ toys.PARTON @ u[0]
    covariance = 0.25 * toys.DETECTOR @ toys.DETECTOR.T + 0.16 * torch.eye(4)
    assert torch.allclose(x[:, 0].mean(0), mean, atol=0.02)
    assert torch.allclose(torch.cov(x[:, 0].T), covariance, atol=0.02)


@pytest.mark.exact
def test_brute_force_is_the_gaussian_where_the_box_is_far():
    """With 400 events the posterior is generalised least squares."""
    sets = toys.simulate(40, 400, 5)
    inside = np.flatnonzero((np.abs(sets.theta - 0.5) < 0.25).all(1))[0]
    x = sets.x[inside].astype(np.float64)
    draws, _ = toys.brute_force(x, 20000, 0)
    slope = (toys.DETECTOR @ toys.PARTON).numpy()
    noise = 0.25 * (toys.DETECTOR @ toys.DETECTOR.T).numpy() + 0.16 * np.eye(4)
    precision = 400 * slope.T @ np.linalg.inv(noise) @ slope
    mean = np.linalg.solve(precision, 400 * slope.T @ np.linalg.inv(noise) @ x.mean(0))
    assert draws.mean(0) == pytest.approx(mean, abs=3e-3)
    assert np.cov(draws.T) == pytest.approx(np.linalg.inv(precision), abs=2e-4)


def test_a_gaussian_that_is_right_has_uniform_ranks():
    rng = np.random.default_rng(0)
    covariance = np.array([[0.02, 0.01], [0.01, 0.03]])
    centre = rng.normal(size=(400, 2))
    truth = centre + rng.multivariate_normal(np.zeros(2), covariance, 400)
    row = main.gaussian_row(centre, covariance, truth)
    entropy = 1 + np.log(2 * np.pi) + 0.5 * np.log(np.linalg.det(covariance))
    assert row["log_q"] == pytest.approx(-entropy, abs=0.15)
    assert row["sbc_p"] > 0.01
    assert row["cover_68"] == pytest.approx(0.68, abs=0.05)


def test_the_classifier_sees_a_shift_and_nothing_where_there_is_nothing():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3000, 3)), rng.normal(size=(3000, 3))
    assert jets.auc(a, b, 0) == pytest.approx(0.5, abs=0.03)
    assert jets.auc(a, b + np.array([0.5, 0, 0]), 0) > 0.58
