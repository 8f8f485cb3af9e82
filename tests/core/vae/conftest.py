"""Oracle: probabilistic PCA, whose evidence and posterior are closed forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from core.random import keyed_generator
from core.vae import VAE
from core.vae.likelihoods import GaussianLikelihood


class Affine(nn.Module):
    """A fixed affine network with the signature of all networks, and constant further outputs."""

    def __init__(self, weight: Tensor, bias: Tensor, rest: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.rest = rest

    def forward(self, x, level, context=None):
        out = x @ self.weight.T + self.bias
        return out if self.rest is None else torch.cat([out, self.rest.expand_as(out)], 1)


@dataclass(frozen=True)
class PPCA:
    """x = W z + m + s ε (Tipping and Bishop 1999)."""

    affine: ClassVar = Affine
    W: Tensor  # (D, d)
    m: Tensor  # (D,)
    s: float

    @property
    def evidence(self) -> MultivariateNormal:
        eye = torch.eye(len(self.m), dtype=torch.float64)
        return MultivariateNormal(self.m, self.W @ self.W.T + self.s**2 * eye)

    @property
    def precision(self) -> Tensor:
        """Of p(z | x)."""
        eye = torch.eye(self.W.shape[1], dtype=torch.float64)
        return eye + self.W.T @ self.W / self.s**2

    def posterior(self, x: Tensor) -> MultivariateNormal:
        mean = torch.linalg.solve(self.precision, self.W.T @ (x - self.m).T / self.s**2).T
        return MultivariateNormal(mean, precision_matrix=self.precision)

    def vae(self, shift: float = 0.0, widen: float = 1.0, **options) -> VAE:
        """With the mean-field posterior that is exact where W's columns are orthogonal."""
        gain = torch.linalg.solve(self.precision, self.W.T / self.s**2)
        log_variance = (widen**2 / self.precision.diagonal()).log()
        likelihood = GaussianLikelihood(self.m.shape, scale=self.s, learned="no").double()
        likelihood.log_scale.copy_(torch.tensor(self.s, dtype=torch.float64).log())
        return VAE(
            self.m.shape,
            latent_dim=self.W.shape[1],
            likelihood=likelihood,
            encoder=Affine(gain, shift - gain @ self.m, log_variance),
            decoder=Affine(self.W, self.m),
            **options,
        )


def ppca(orthogonal: bool) -> PPCA:
    generator = keyed_generator(11)
    W = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    if orthogonal:
        W = torch.linalg.qr(W).Q * torch.tensor([1.5, 0.6], dtype=torch.float64)
    return PPCA(W, torch.randn(4, generator=generator, dtype=torch.float64), 0.5)


@pytest.fixture
def orthogonal() -> PPCA:
    return ppca(True)


@pytest.fixture
def correlated() -> PPCA:
    """The true posterior is not diagonal: the ELBO cannot be tight."""
    return ppca(False)
