r"""Stochastic samplers: the reverse Markov chain, and the reverse SDE.

    x_s ~ N(mean of q(x_s | x_t, x̂_0), variance)                     (ancestral; Ho et al. 2020)
    dx = [f x - g² ∇ ln p_t] dt + g dw̄,  f = α'/α,  g² = 2 σ² (σ'/σ - α'/α)   (Anderson 1982)

References: arXiv:2006.11239; arXiv:2011.13456; Nichol and Dhariwal (2021) arXiv:2102.09672 for
the variance learned between β̃ and β.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import AleatorError
from core.paths import Path
from core.random import Generators, randn
from core.solvers.base import Denoise, LinearSampler, Step
from core.solvers.deterministic import posterior_variance


@dataclass(frozen=True)
class Ancestral(LinearSampler):
    """The reverse chain of DDPM on any path and grid.

    Attributes:
        variance: "posterior" (β̃), "forward" (β), or "learned" (the network's fraction between
            them, in the logarithm).
    """

    steps: int = 200
    variance: str = "posterior"

    def table(self, path: Path, times: list[float]) -> Iterator[Step]:  # noqa: D102
        if self.variance not in ("posterior", "forward"):
            raise AleatorError(
                f"unknown variance {self.variance!r}; known: posterior, forward, learned"
            )
        variance = posterior_variance if self.variance == "posterior" else forward_variance
        for t, s in itertools.pairwise(times):
            on_x, on_mean = ancestral_coefficients(path, t, s)
            yield Step(t, on_x, (on_mean,), math.sqrt(variance(path, t, s)))

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        if self.variance != "learned":
            return super().__call__(denoise, x_t, path=path, generator=generator)
        times = self.times(path, self.steps)
        for t, s in itertools.pairwise(times):
            posterior = denoise(x_t, t)
            on_x, on_mean = ancestral_coefficients(path, t, s)
            z = randn(x_t.shape, generator, device=x_t.device, dtype=x_t.dtype)
            scale = learned_scale(path, t, s, posterior.variance_fraction)
            x_t = on_x * x_t + on_mean * posterior.mean + scale * z
        return denoise(x_t, times[-1]).mean


def learned_scale(path: Path, t: float, s: float, fraction: Tensor | None) -> Tensor:
    """Standard deviation of a step: between those of β̃ and β, in the logarithm."""
    if fraction is None:
        raise AleatorError("variance='learned' needs a model with learned_variance=True")
    lower = 0.5 * math.log(posterior_variance(path, t, s))
    upper = 0.5 * math.log(forward_variance(path, t, s))
    return torch.exp(lower + fraction * (upper - lower))


def ancestral_coefficients(path: Path, t: float, s: float) -> tuple[float, float]:
    """Coefficients of x_t and x̂_0 in the mean of q(x_s | x_t, x_0)."""
    at, to = path.at(t), path.at(s)
    on_x = (at.alpha / to.alpha) * (to.sigma / at.sigma) ** 2
    return on_x, to.alpha - on_x * at.alpha


def forward_variance(path: Path, t: float, s: float) -> float:
    r"""β: variance of q(x_t | x_s), σ_t² - (α_t/α_s)² σ_s²: right when x_0 is N(0, I)."""
    at, to = path.at(t), path.at(s)
    return at.sigma**2 - (at.alpha / to.alpha) ** 2 * to.sigma**2


@dataclass(frozen=True)
class EulerMaruyama(LinearSampler):
    """Euler–Maruyama on the reverse SDE, uniform in log-SNR unless told otherwise."""

    steps: int = 200

    def table(self, path: Path, times: list[float]) -> Iterator[Step]:  # noqa: D102
        for t, s in itertools.pairwise(times):
            at, dt = path.at(t), t - s
            f = at.d_alpha / at.alpha
            g_squared = 2 * at.sigma**2 * (at.d_sigma / at.sigma - f)
            on_score = g_squared * dt / at.sigma**2  # σ² ∇ ln p_t = α x̂_0 - x_t
            on_x = 1 - f * dt - on_score
            yield Step(t, on_x, (on_score * at.alpha,), math.sqrt(g_squared * dt))
