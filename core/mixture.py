r"""A mixture of Gaussians with parameters: ln p(z) = ln Σ_k w_k N(z; m_k, Σ_k).

As the noise of a flow: clusters have gaps between them; to map them to one Gaussian a flow must
stretch the gaps, which few rows do not teach it. Here the noise has clusters itself, found by
expectation-maximisation in the noise of the training rows, and learned on with the rest: a flow
near the identity starts as the mixture, and goes on from there.
As the prior of a VAE: it starts at random and is learned with the rest.
References: Dempster et al. (1977); Izmailov et al. (2020) arXiv:1912.13025 (flows); Jiang et al.
(2017) arXiv:1611.05148, Tomczak and Welling (2018) arXiv:1705.07120 (VAEs).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from core.errors import AleatorError
from core.random import Generators, rand, randn

SPREAD = 0.4
"""Standard deviation of components that start at random; their means have 1."""


class Mixture(nn.Module):
    """Gaussians with full covariances, Σ_k^{-1} = U_k U_kᵀ with U_k upper triangular."""

    ready: Tensor

    def __init__(self, dims: int, components: int) -> None:
        """`dims`: D; `components`: how many, K. `fit` or `scatter` it before use."""
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(torch.zeros(components, dims))
        self.upper = nn.Parameter(torch.zeros(components, dims, dims))
        self.log_scale = nn.Parameter(torch.zeros(components, dims))
        self.register_buffer("ready", torch.tensor(False))

    @torch.no_grad()
    def fit(self, z: Tensor, *, seed: int = 0, floor: float = 1e-6) -> None:
        """Expectation-maximisation from k-means (scikit-learn).

        Args:
            z: (N, D) noise of training rows.
            seed: of k-means.
            floor: added to the diagonals of the covariances.

        Raises:
            AleatorError: fewer rows than components, or a covariance that is singular.
        """
        from sklearn.mixture import GaussianMixture

        components = len(self.logits)
        if len(z) < components:
            raise AleatorError(f"{len(z)} rows are too few for {components} components")
        try:
            found = GaussianMixture(components, random_state=seed, reg_covar=floor).fit(
                z.double().cpu().numpy()
            )
        except ValueError as error:
            raise AleatorError(
                f"the mixture of {components} cannot be fitted ({error}); take fewer components "
                "or a larger floor"
            ) from error
        factor = torch.as_tensor(found.precisions_cholesky_)
        self.logits.copy_(torch.as_tensor(found.weights_).log())
        self.mean.copy_(torch.as_tensor(found.means_))
        self.upper.copy_(factor.triu(1))
        self.log_scale.copy_(factor.diagonal(dim1=1, dim2=2).log())
        self.ready.fill_(True)

    @torch.no_grad()
    def scatter(self) -> None:
        """Round components about standard normal means (global stream), to be learned from there.

        The mixture then has about the moments of a standard normal.
        """
        self.logits.zero_()
        self.mean.copy_(math.sqrt(1 - SPREAD**2) * torch.randn_like(self.mean))
        self.upper.zero_()
        self.log_scale.fill_(-math.log(SPREAD))
        self.ready.fill_(True)

    def _factors(self) -> Tensor:
        return self.upper.triu(1) + torch.diag_embed(self.log_scale.exp())

    def log_prob(self, z: Tensor) -> Tensor:
        """Ln p(z), (B,), of z (B, D).

        Raises:
            AleatorError: nothing was fitted yet.
        """
        self._must_be_ready()
        factors = self._factors()
        shift = torch.einsum("kd,kde->ke", self.mean, factors)
        e = torch.einsum("bd,kde->kbe", z, factors) - shift[:, None]
        log_weight = self.logits.log_softmax(0) + self.log_scale.sum(1)
        log_p = log_weight[:, None] - 0.5 * e.square().sum(2)
        return log_p.logsumexp(0) - 0.5 * z.shape[1] * math.log(2 * math.pi)

    @torch.no_grad()
    def sample(self, count: int, generator: Generators | None = None) -> Tensor:
        """Draws (count, D).

        Raises:
            AleatorError: nothing was fitted yet.
        """
        options = {"device": self.mean.device, "dtype": self.mean.dtype}
        luck = rand((count,), generator, **options)  # type: ignore[arg-type]
        e = randn((count, self.mean.shape[1]), generator, **options)  # type: ignore[arg-type]
        return self.place(luck, e)

    def place(self, luck: Tensor, e: Tensor) -> Tensor:
        """Draws (B, D) from uniform `luck` (B,), which chooses components, and normal e (B, D).

        Raises:
            AleatorError: nothing was fitted yet.
        """
        self._must_be_ready()
        edges = self.logits.softmax(0).cumsum(0)[:-1]
        which, factors, z = torch.bucketize(luck, edges, right=True), self._factors(), e.clone()
        for k in which.unique().tolist():
            rows = which == k  # z = m + e U^{-1}
            z[rows] = self.mean[k] + torch.linalg.solve_triangular(
                factors[k], e[rows], upper=True, left=False
            )
        return z

    def _must_be_ready(self) -> None:
        if not self.ready:
            raise AleatorError("the mixture was not fitted: call fit_noise first")


def mixture_or_none(dims: int, components: int) -> Mixture | None:
    """A mixture of so many components in D dimensions; None, a standard normal, for 0.

    Raises:
        AleatorError: not a whole number, or a negative one.
    """
    if not isinstance(components, int) or components < 0:
        raise AleatorError(f"components={components!r}: a whole number >= 0 is needed")
    return Mixture(dims, components) if components else None
