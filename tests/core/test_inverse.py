"""Guidance by observations, classifiers and masks, on Gaussians and mixtures."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from core.denoiser import Posterior
from core.diffusion import Diffusion
from core.errors import AleatorError
from core.guidance import DPS, Classifier, ExactMask, MomentMatching, PiGDM, RePaint
from core.guidance.inverse import conjugate_gradients
from core.operators import Function, Linear, Mask
from core.random import keyed_generator

F64 = torch.float64
MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=F64)
ROOT = torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.4, 0.3, 0.8]], dtype=F64)
COVARIANCE = ROOT @ ROOT.T
A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=F64)
S = 0.3


class Exact(Diffusion):
    """A diffusion model that knows its data: N(MEAN, COVARIANCE), or any `denoise` given."""

    def __init__(self, path="vp", mean=MEAN, covariance=COVARIANCE, exact=None):
        super().__init__(nn.Linear(1, 1).double(), mean.shape, path=path)
        self.mean, self.covariance, self.exact = mean, covariance, exact

    def denoise(self, x_t, t, context=None):
        if self.exact is not None:
            return self.exact(x_t, t)
        point = self.path.at(t)
        a, s = point.alpha, point.sigma
        total = a**2 * self.covariance + s**2 * torch.eye(len(self.mean), dtype=F64)
        gain = a * torch.linalg.solve(total, self.covariance).T
        return Posterior(self.mean + (x_t - a * self.mean) @ gain.T, x_t, point)


def given(y, mean=MEAN, covariance=COVARIANCE, matrix=A, s=S):
    """p(x | y) of a Gaussian."""
    total = matrix @ covariance @ matrix.T + s**2 * torch.eye(len(matrix), dtype=F64)
    gain = torch.linalg.solve(total, matrix @ covariance).T
    return MultivariateNormal(
        mean + (y - mean @ matrix.T) @ gain.T, covariance - gain @ matrix @ covariance
    )


def points(n=6, seed=0):
    return torch.randn(n, 3, generator=keyed_generator(seed), dtype=F64)


@pytest.mark.exact
@pytest.mark.parametrize("path", ["vp", "edm", "rectified"])
@pytest.mark.parametrize("linear", [True, False])
def test_moment_matching_is_exact_for_gaussians(path, linear):
    """The guided denoiser is that of p(x | y) at every noise level."""
    model, y = Exact(path), torch.tensor([[0.7, -0.2]], dtype=F64)
    operator = Linear(A) if linear else Function(lambda x: x @ A.T)
    guided = MomentMatching(y.expand(6, -1), operator, S).bind(model, None)
    law = given(y)
    exact = Exact(path, law.mean[0], law.covariance_matrix[0])
    for t in (0.05, 0.3, 0.6, 0.9):
        found, expected = guided(points(), t), exact.denoise(points(), t)
        torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.score, expected.score, rtol=0, atol=1e-6)


@pytest.mark.exact
def test_pigdm_is_exact_for_the_prior_that_it_supposes():
    eye, y = torch.eye(3, dtype=F64), torch.tensor([[0.7, -0.2]], dtype=F64)
    model = Exact("vp", 0 * MEAN, eye)
    law = given(y, 0 * MEAN, eye)
    exact = Exact("vp", law.mean[0], law.covariance_matrix[0])
    guided = PiGDM(y.expand(6, -1), Linear(A), S).bind(model, None)
    wrong = PiGDM(y.expand(6, -1), Linear(A), S).bind(Exact("vp"), None)
    for t in (0.1, 0.5, 0.8):
        torch.testing.assert_close(guided(points(), t).mean, exact.denoise(points(), t).mean)
        known = MomentMatching(y.expand(6, -1), Linear(A), S).bind(Exact("vp"), None)
        assert not torch.allclose(wrong(points(), t).mean, known(points(), t).mean, atol=1e-2)


@pytest.mark.exact
def test_dps_is_its_formula():
    """x̂_0 + Cov(x_0 | x_t) Aᵀ (y - A x̂_0) / s²."""
    model, y, t = Exact("vp"), torch.tensor([[0.7, -0.2]], dtype=F64), 0.4
    found = DPS(y.expand(6, -1), Linear(A), S, scale=0.5).bind(model, None)(points(), t).mean
    posterior, point = model.denoise(points(), t), model.path.at(t)
    total = point.alpha**2 * COVARIANCE + point.sigma**2 * torch.eye(3, dtype=F64)
    covariance = COVARIANCE - point.alpha**2 * COVARIANCE @ torch.linalg.solve(total, COVARIANCE)
    step = (y - posterior.mean @ A.T) @ A @ covariance / S**2
    torch.testing.assert_close(found, posterior.mean + 0.5 * step)


@pytest.mark.exact
def test_conjugate_gradients_solve_each_example_by_itself():
    g = keyed_generator(0)
    R = torch.randn(5, 4, 4, generator=g, dtype=F64)
    M = R @ R.mT + 0.1 * torch.eye(4, dtype=F64)
    b = torch.randn(5, 4, generator=g, dtype=F64)
    M[3], b[4] = -M[3], 0.0  # not positive: left alone; nothing to solve: zero
    found = conjugate_gradients(lambda v: torch.einsum("nij,nj->ni", M, v), b, 12)
    exact = torch.linalg.solve(M, b)
    torch.testing.assert_close(found[:3], exact[:3], rtol=1e-6, atol=1e-8)
    assert (found[3:] == 0).all()


@pytest.mark.exact
def test_the_exact_classifier_draws_from_its_class(mixture_3d):
    """Ln p(k | x_t) of an exact mixture: scale 1 gives component k, its mean and covariance."""
    model = Exact("vp", exact=mixture_3d.denoise(Exact("vp").path))

    def log_prob(x_t, t):
        point = model.path.at(t)
        return mixture_3d.components(x_t, point.alpha, point.sigma).log_softmax(1)[:, 1]

    guidance = Classifier(log_prob)
    for t in (0.1, 0.5, 0.9):
        alone = Exact("vp", mixture_3d.means[1], mixture_3d.scales[1] ** 2 * torch.eye(3).double())
        found = guidance.bind(model, None)(points(), t).mean
        torch.testing.assert_close(found, alone.denoise(points(), t).mean)
    walk = {"steps": 30, "name": "2m"}
    drawn = model.sample(
        (4000,),
        guidance=guidance,
        sampler=walk,
        generator=keyed_generator(1),
    )
    assert (drawn.mean(0) - mixture_3d.means[1]).abs().max() < 0.02
    torch.testing.assert_close(
        torch.cov(drawn.T), 0.09 * torch.eye(3, dtype=F64), rtol=0, atol=0.009
    )
    none = Classifier(log_prob, scale=0.0).bind(model, None)(points(), 0.5).mean
    torch.testing.assert_close(none, model.denoise(points(), 0.5).mean)
    with pytest.raises(AleatorError, match=r"log_prob of shape \(6, 3\)"):
        Classifier(lambda x, t: x).bind(model, None)(points(), 0.5)


MASK = torch.tensor([True, False, True])
KNOWN = torch.tensor([1.2, math.nan, -0.4], dtype=F64)


def open_part():
    """p(x_1 | x_0, x_2): mean and variance."""
    law = given(KNOWN[MASK][None], matrix=torch.eye(3, dtype=F64)[MASK], s=1e-6)
    return law.mean[0, 1].item(), law.covariance_matrix[0, 1, 1].item()


@pytest.mark.exact
def test_repaint_comes_nearer_with_repeats():
    mean, variance = open_part()
    errors = []
    for repeats in (1, 20):
        sampler = RePaint(known=KNOWN, mask=MASK, steps=60, repeats=repeats)
        x = Exact("vp").sample((4000,), sampler=sampler, generator=keyed_generator(2))
        assert (x[:, MASK] == KNOWN[MASK]).all()
        errors.append(abs(x[:, 1].mean().item() - mean))
        last = x[:, 1].var().item()
    assert errors[1] < 0.04
    assert errors[1] < errors[0] / 3
    assert last == pytest.approx(variance, rel=0.15)


@pytest.mark.exact
def test_an_exact_mask_holds_to_the_last_bit():
    guidance = ExactMask(KNOWN, MASK)
    x = Exact("vp").sample((50,), guidance=guidance, generator=keyed_generator(3))
    assert (x[:, MASK] == KNOWN[MASK]).all()
    assert x.isfinite().all()
    precise = MomentMatching(KNOWN[MASK].expand(2000, -1), Mask(MASK), 1e-3)
    walk = {"steps": 60}
    x = Exact("vp").sample((2000,), sampler=walk, guidance=precise, generator=keyed_generator(3))
    mean, variance = open_part()
    assert x[:, 1].mean().item() == pytest.approx(mean, abs=0.03)
    assert x[:, 1].var().item() == pytest.approx(variance, rel=0.1)
    assert (x[:, MASK] - KNOWN[MASK]).abs().max() < 0.01


def test_mistakes_are_named():
    y = torch.zeros(6, 2, dtype=F64)
    with pytest.raises(AleatorError, match="noise=0"):
        MomentMatching(y, Linear(A), 0.0)
    with pytest.raises(AleatorError, match=r"observations of shape \(6, 1\); .* gives \(6, 2\)"):
        MomentMatching(y[:, :1], Linear(A), S).bind(Exact(), None)(points(), 0.5)
    with pytest.raises(AleatorError, match="RePaint needs `known`"):
        RePaint(known=KNOWN)
    with pytest.raises(AleatorError, match="repeats=0"):
        RePaint(known=KNOWN, mask=MASK, repeats=0)
    with pytest.raises(AleatorError, match="DPS knows white noise only"):
        DPS(y, Linear(A), S, covariance=lambda v: v).bind(Exact(), None)(points(), 0.5)
