"""A bottom-up VAE whose encoder is a diffusion's forward chain has the bound of diffusion."""

import itertools
import math

import pytest
import torch
from torch import nn

import core.elbo
from core.denoiser import Posterior
from core.elbo import diffusion_elbo
from core.paths import path_from_config
from core.solvers.base import log_snr_grid
from core.solvers.deterministic import posterior_variance
from core.solvers.stochastic import ancestral_coefficients
from core.vae import BottomUpVAE
from core.vae.likelihoods import GaussianLikelihood

F64 = torch.float64


class Fixed(nn.Module):
    """x -> (mean(x), ln variance): one Gaussian kernel of a chain."""

    def __init__(self, mean, variance):
        super().__init__()
        self.mean, self.log_variance = mean, math.log(variance)

    def forward(self, x, level, context=None):
        return torch.cat([self.mean(x), torch.full_like(x, self.log_variance)], 1)


class Mean(nn.Module):
    """x -> mean(x)."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    def forward(self, x, level, context=None):
        return self.mean(x)


def gaussian(scale, shape=(1,)):
    likelihood = GaussianLikelihood(shape, scale=1.0, learned="no", least=1e-9).double()
    likelihood.log_scale.fill_(math.log(scale))
    likelihood.least = 1e-9
    return likelihood


def diffusion_as_chain(denoise, path, times):
    """The bottom-up VAE whose encoder is the path's forward chain, times from clean to noisy."""

    def forward_kernel(s, t):
        at, to = path.at(t), path.at(s) if s is not None else None
        if to is None:
            return Fixed(lambda x, a=at.alpha: a * x, at.sigma**2)
        ratio = at.alpha / to.alpha
        return Fixed(lambda x, a=ratio: a * x, at.sigma**2 - ratio**2 * to.sigma**2)

    def reverse_kernel(s, t):
        on_x, on_mean = ancestral_coefficients(path, t, s)
        return Fixed(
            lambda x: on_x * x + on_mean * denoise(x, t).mean, posterior_variance(path, t, s)
        )

    pairs = list(itertools.pairwise(times))
    first = path.at(times[0])
    return BottomUpVAE(
        (1,),
        latent_dims=[1] * len(times),
        likelihood=gaussian(first.sigma / first.alpha),
        encoder=[forward_kernel(None, times[0]), *[forward_kernel(s, t) for s, t in pairs]],
        decoder=[
            Mean(lambda x: denoise(x, times[0]).mean),
            *[reverse_kernel(s, t) for s, t in pairs],
        ],
    )


@pytest.mark.exact
@pytest.mark.parametrize("name", ["vp", "cosine"])
def test_the_chain_with_fixed_encoder_has_the_bound_of_diffusion(name, monkeypatch):
    """Expectations by Gauss–Hermite quadrature on both sides, with a nonlinear denoiser.

    The chain's bound averages log-ratios over whole trajectories; the diffusion's averages
    closed-form divergences over one latent at a time.
    """
    path = path_from_config(name)

    def denoise(x_t, t):
        return Posterior(torch.tanh(0.8 * x_t) - 0.1 * t, x_t, path.at(t))

    steps = 2
    times = log_snr_grid(path, steps + 1, path.t_from_log_snr(torch.tensor(0.5, dtype=F64)).item())
    nodes, weights = (torch.tensor(v, dtype=F64) for v in _hermite(60))
    model = diffusion_as_chain(denoise, path, times[::-1])
    for value in (-0.7, 1.3):
        x = torch.full((60, 1), value, dtype=F64)
        monkeypatch.setattr(core.elbo, "randn", lambda *a, **k: nodes[:, None])
        parts = diffusion_elbo(denoise, x, path=path, steps=steps, log_snr_max=0.5)
        monkeypatch.undo()
        expected = -(weights @ parts.l_0 + (parts.l_t @ weights).sum() + parts.l_T[0])

        grid = torch.cartesian_prod(*[nodes] * (steps + 1))
        mass = torch.cartesian_prod(*[weights] * (steps + 1)).prod(1)
        done = model(x[:1].expand(len(grid), 1), None, list(grid[:, :, None].unbind(1)))
        found = mass @ (done.log_p - done.log_ratio.sum(1))
        assert found.item() == pytest.approx(expected.item(), abs=1e-8)


@pytest.mark.exact
def test_a_long_linear_chain_has_the_bound_of_diffusion(monkeypatch):
    """Up to T = 80: quadratic in the noise, so that its mean is exact from symmetric points."""
    path = path_from_config("vp")

    def denoise(x_t, t):  # exact for data N(0.3, 0.5²)
        point = path.at(t)
        gain = point.alpha * 0.25 / (point.alpha**2 * 0.25 + point.sigma**2)
        return Posterior(0.3 + gain * (x_t - point.alpha * 0.3), x_t, point)

    x, gaps = torch.tensor([[1.1]], dtype=F64), []
    end = path.t_from_log_snr(torch.tensor(6.0, dtype=F64)).item()
    evidence = torch.distributions.Normal(0.3, 0.5).log_prob(x).item()
    point = torch.tensor([[0.0], [1.0], [-1.0]], dtype=F64)
    monkeypatch.setattr(core.elbo, "randn", lambda *a, **k: point)
    for steps in (5, 20, 80):
        model = diffusion_as_chain(denoise, path, log_snr_grid(path, steps + 1, end)[::-1])
        unit = torch.eye(steps + 1, dtype=F64)
        noise = torch.cat([torch.zeros(1, steps + 1, dtype=F64), unit, -unit])
        done = model(x.expand(len(noise), 1), None, list(noise[:, :, None].unbind(1)))
        found = _mean_of_quadratic(done.log_p - done.log_ratio.sum(1)).item()
        parts = diffusion_elbo(denoise, x.expand(3, 1), path=path, steps=steps, log_snr_max=6.0)
        terms = torch.cat([parts.l_t, parts.l_0[None]])
        expected = -sum(_mean_of_quadratic(row) for row in terms) - parts.l_T[0]
        assert found == pytest.approx(expected.item(), abs=1e-8)
        gaps.append(evidence - found)
    assert 0 < gaps[2] < gaps[1] / 2 < gaps[0] / 4


def _hermite(n):
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


def _mean_of_quadratic(values):
    """E f(ε) of a quadratic f from f(0), f(e_i), f(-e_i)."""
    n = (len(values) - 1) // 2
    return values[0] + 0.5 * (values[1 : n + 1] + values[n + 1 :] - 2 * values[0]).sum()
