r"""Conditions that were not trained for: y = A(x) + s ε, for diffusion and flow matching alike.

    x̂_0(x_t, y) = x̂_0 + σ²/α ∇ ln p(y | x_t),   p(y | x_t) ≈ N(A x̂_0, s² I + A V Aᵀ)

By Tweedie σ²/α ∂x̂_0/∂x_t is the covariance of x_0 given x_t. The methods differ in V, what they
take that covariance for:

    DPS               0: right at the very end only, far too sure before
    PiGDM             r² I, that of a prior N(0, d² I): r² = d² σ² / (α² d² + σ²)
    moment matching   the true one, by products with the Jacobian: exact for Gaussian priors

References: Chung et al. (2023) arXiv:2209.14687 (DPS); Song et al. (2023), "Pseudoinverse-guided
diffusion models for inverse problems" (PiGDM); Rozet et al. (2024) arXiv:2405.13712.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.denoiser import Posterior
from core.errors import AleatorError
from core.model import Context
from core.operators import Operator
from core.paths import Point


@dataclass(frozen=True, eq=False)
class InverseGuidance:
    """Guidance by an observation.

    Attributes:
        y: (N, *M) observations, one for each example that is drawn.
        operator: A.
        noise: s > 0.
        covariance: v -> C v (N, *M), of a further error of y with covariance C.
    """

    y: Tensor
    operator: Operator
    noise: float
    covariance: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not self.noise > 0:
            raise AleatorError(f"noise={self.noise}: an observation needs a positive one")

    def bind(self, model: Any, context: Context) -> Any:
        """`denoise(x_t, t)` given y."""

        def denoise(x_t: Tensor, t: Any) -> Posterior:
            with torch.enable_grad():
                x_t = x_t.detach().requires_grad_()
                posterior = model.denoise(x_t, t, context)
                mean, point = posterior.mean, posterior.point
                seen = self.operator(mean)
                if seen.shape != self.y.shape:
                    raise AleatorError(
                        f"observations of shape {tuple(self.y.shape)}; the operator gives "
                        f"{tuple(seen.shape)}"
                    )
                gain = point.sigma**2 / point.alpha

                def spread(v: Tensor) -> Tensor:
                    """Cov(x_0 | x_t) Aᵀ v."""
                    (product,) = torch.autograd.grad(seen, x_t, v, retain_graph=True)
                    return gain * product

                v = self.whitened(self.y - seen.detach(), mean.detach(), point, spread, model)
                shifted = mean.detach() + spread(v)
            fraction = posterior.variance_fraction
            fraction = None if fraction is None else fraction.detach()
            return Posterior(shifted, x_t.detach(), posterior.point, fraction)

        return denoise

    def of_noise(self, v: Tensor) -> Tensor:
        """The noise's covariance times v."""
        own = self.noise**2 * v
        return own if self.covariance is None else own + self.covariance(v)

    @abstractmethod
    def whitened(
        self,
        residual: Tensor,
        mean: Tensor,
        point: Point,
        spread: Callable[[Tensor], Tensor],
        model: Any,
    ) -> Tensor:
        """Solve (s² I + A V Aᵀ) v = residual (N, *M)."""


@dataclass(frozen=True, eq=False)
class DPS(InverseGuidance):
    """Diffusion posterior sampling: p(y | x_t) taken for p(y | x̂_0).

    Attributes:
        scale: of the guidance; below 1 where it is unstable, as with little noise it is.
    """

    scale: float = 1.0

    def whitened(self, residual: Tensor, *others: Any) -> Tensor:  # noqa: D102
        if self.covariance is not None:
            raise AleatorError("DPS knows white noise only; take moment matching")
        return self.scale * residual / self.noise**2


@dataclass(frozen=True, eq=False)
class PiGDM(InverseGuidance):
    """Pseudoinverse guidance: x_0 given x_t is taken for isotropic.

    Attributes:
        iterations: of the conjugate gradients; one is enough for masks and average pooling.
    """

    iterations: int = 5

    def whitened(  # noqa: D102
        self,
        residual: Tensor,
        mean: Tensor,
        point: Point,
        spread: Callable[[Tensor], Tensor],
        model: Any,
    ) -> Tensor:
        d = model.denoiser.sigma_data
        r2 = (d * point.sigma) ** 2 / ((point.alpha * d) ** 2 + point.sigma**2)

        def matrix(v: Tensor) -> Tensor:
            back = self.operator.adjoint(mean, v)
            return self.of_noise(v) + self.operator.tangent(mean, r2 * back)

        return conjugate_gradients(matrix, residual, self.iterations)


@dataclass(frozen=True, eq=False)
class MomentMatching(InverseGuidance):
    """Moment matching posterior sampling.

    Attributes:
        iterations: of the conjugate gradients; as many as there are observed elements solve the
            system exactly, a few do in practice.
    """

    iterations: int = 5

    def whitened(  # noqa: D102
        self,
        residual: Tensor,
        mean: Tensor,
        point: Point,
        spread: Callable[[Tensor], Tensor],
        model: Any,
    ) -> Tensor:
        def matrix(v: Tensor) -> Tensor:
            return self.of_noise(v) + self.operator.tangent(mean, spread(v))

        return conjugate_gradients(matrix, residual, self.iterations)


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """Solve `matrix(v) = b` (N, *M) for each example by itself.

    An example stops when its residual is small, or when the matrix is seen not to be positive
    there (an imperfect network's Jacobian), and keeps what it has.
    """

    def dot(a: Tensor, c: Tensor) -> Tensor:
        return (a * c).flatten(1).sum(1).reshape(-1, *[1] * (a.dim() - 1))

    v, r = torch.zeros_like(b), b
    p, squared = b, dot(b, b)
    enough = tolerance**2 * squared
    for _ in range(iterations):
        product = matrix(p)
        curvature = dot(p, product)
        active = (squared > enough) & (curvature > 0)
        step = torch.where(active, squared / torch.where(active, curvature, 1.0), 0.0)
        v, r = v + step * p, r - step * product
        renewed = dot(r, r)
        p = torch.where(active, r + renewed / squared.clamp(min=1e-300) * p, 0.0)
        squared = torch.where(active, renewed, squared)
        if not active.any():
            break
    return v
