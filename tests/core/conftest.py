"""Oracles: a Gaussian mixture whose noised marginals, posteriors and quantiles are exact."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from core.denoiser import Posterior
from core.paths import Path, path_from_config
from core.random import keyed_generator


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k w_k N(m_k, s_k² I) in D dimensions, on any path."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    scales: Tensor  # (K,)

    def marginal(self, alpha, sigma) -> tuple[Tensor, Tensor]:
        return alpha * self.means, (alpha**2 * self.scales**2 + sigma**2).sqrt()

    def components(self, x: Tensor, alpha=1.0, sigma=0.0) -> Tensor:
        """Log of w_k N(x; ...), shape (B, K)."""
        means, scales = self.marginal(alpha, sigma)
        normal = torch.distributions.Normal(means, scales[:, None])
        return normal.log_prob(x[:, None]).sum(-1) + self.weights.log()

    def log_prob(self, x: Tensor, alpha=1.0, sigma=0.0) -> Tensor:
        return self.components(x, alpha, sigma).logsumexp(-1)

    def denoise(self, path: Path):
        """The exact E[x_0 | x_t] as a sampler's `denoise`."""

        def exact(x: Tensor, t, context=None) -> Posterior:
            point = path.at(t, x)
            a, s = point.alpha, point.sigma
            if isinstance(t, Tensor):
                a, s = a[..., None], s[..., None]  # (B, 1, 1) against (B, K, D)
            variance = a**2 * self.scales[:, None] ** 2 + s**2
            offset = x[:, None] - a * self.means
            log_normal = -0.5 * (offset**2 / variance + variance.log()).expand_as(offset).sum(-1)
            responsibility = (log_normal + self.weights.log()).softmax(-1)
            means = self.means + a * self.scales[:, None] ** 2 / variance * offset
            return Posterior((responsibility[..., None] * means).sum(1), x, point)

        return exact

    def cdf(self, x: Tensor, alpha=1.0, sigma=0.0) -> Tensor:
        """Of a one-dimensional mixture, x (B, 1) -> (B,)."""
        means, scales = self.marginal(alpha, sigma)
        return (torch.special.ndtr((x - means[:, 0]) / scales) * self.weights).sum(-1)

    def quantile_map(self, x_t: Tensor, alpha, sigma) -> Tensor:
        """F_0^{-1}(F_t(x_t)) by bisection: where the probability flow takes x_t, (B, 1)."""
        target = self.cdf(x_t, alpha, sigma)
        low, high = torch.full_like(x_t, -50.0), torch.full_like(x_t, 50.0)
        for _ in range(80):
            middle = (low + high) / 2
            below = (self.cdf(middle) < target)[:, None]
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.scales[k, None] * z


@pytest.fixture
def two_modes() -> GaussianMixture:
    """The one-dimensional two-mode mixture that samplers are judged on."""
    tensors = ([0.35, 0.65], [[-1.0], [0.7]], [0.3, 0.2])
    return GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in tensors))


@pytest.fixture
def gaussian_3d() -> GaussianMixture:
    """A single Gaussian in three dimensions."""
    tensors = ([1.0], [[0.5, -1.0, 2.0]], [0.7])
    return GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in tensors))


@pytest.fixture
def mixture_3d() -> GaussianMixture:
    """Two Gaussians in three dimensions."""
    tensors = ([0.4, 0.6], [[0.5, -1.0, 0.0], [-0.5, 0.3, 0.8]], [0.5, 0.3])
    return GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in tensors))


@pytest.fixture(params=["vp", "cosine", "edm", "rectified"])
def path(request) -> Path:
    return path_from_config(request.param)


@pytest.fixture
def clusters() -> Tensor:
    """Points (600, 2) of three clusters of different shapes, in the plane, float64."""
    count = 600
    generator = keyed_generator(0)
    z = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    which = torch.arange(count) % 3
    turn = torch.tensor([[[1, 0.5], [0, 0.3]], [[0.2, 0], [0, 1]], [[0.4, 0], [0.3, 0.4]]])
    centre = torch.tensor([[-3.0, 0], [3, 1], [0, -3]])
    return torch.einsum("nd,nde->ne", z, turn[which].double()) + centre[which]
