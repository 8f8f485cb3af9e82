r"""Deterministic samplers: solvers of the probability-flow ODE dx/dt = α' x̂_0 + σ' ε̂.

With ℓ = ln(α/σ) = λ/2 the ODE is solved exactly but for the integral of x̂_0,

    x_s = (σ_s/σ_t) x_t + σ_s ∫_{ℓ_t}^{ℓ_s} e^ℓ x̂_0 dℓ,

so exponential integrators (DDIM, 2M, UniPC) only approximate a slowly varying function. All end
with one denoising at the last grid point, which counts as an evaluation. References: Song et al.
(2021) arXiv:2010.02502 (DDIM); Lu et al. (2022) arXiv:2211.01095 (2M); Zhao et al. (2023)
arXiv:2302.04867 (UniPC); Karras et al. (2022) arXiv:2206.00364 (Heun).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.paths import Path
from core.random import Generators, randn
from core.solvers.base import Denoise, GridSampler
from core.solvers.ode import odeint


def half_log_snr(path: Path, t: float) -> float:
    """ℓ(t) = ln(α/σ)."""
    point = path.at(t)
    return math.log(point.alpha / point.sigma)


@dataclass(frozen=True)
class DDIM(GridSampler):
    """DDIM: eta = 0 is the exponential Euler method, eta = 1 the ancestral variance β̃.

    Attributes:
        eta: how much of the noise of a reverse diffusion step is drawn afresh.
    """

    eta: float = 0.0

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        times = self.times(path, self.steps)
        for t, s in itertools.pairwise(times):
            mean = denoise(x_t, t).mean
            on_x, on_mean, noise = ddim_coefficients(path, t, s, self.eta)
            x_t = torch.add(on_x * x_t, mean, alpha=on_mean)
            if noise:
                z = randn(x_t.shape, generator, device=x_t.device, dtype=x_t.dtype)
                x_t = torch.add(x_t, z, alpha=noise)
        return denoise(x_t, times[-1]).mean


def ddim_coefficients(path: Path, t: float, s: float, eta: float) -> tuple[float, float, float]:
    """Coefficients of x_t, of x̂_0 and of fresh noise in the step from t to s < t."""
    at, to = path.at(t), path.at(s)
    noise = eta * math.sqrt(posterior_variance(path, t, s)) if eta else 0.0
    on_eps = math.sqrt(max(to.sigma**2 - noise**2, 0.0))
    on_x = on_eps / at.sigma
    return on_x, to.alpha - on_x * at.alpha, noise


def posterior_variance(path: Path, t: float, s: float) -> float:
    r"""β̃: variance of q(x_s | x_t, x_0) = σ_s²/σ_t² (σ_t² - (α_t/α_s)² σ_s²)."""
    at, to = path.at(t), path.at(s)
    return to.sigma**2 * (1 - (at.alpha * to.sigma / (to.alpha * at.sigma)) ** 2)


@dataclass(frozen=True)
class TwoM(GridSampler):
    """Second-order multistep exponential integrator on x̂_0: the default.

    One evaluation a step; the previous evaluation gives the slope of x̂_0 in ℓ.
    """

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        times = self.times(path, self.steps)
        previous, h_previous = None, 0.0
        for t, s in itertools.pairwise(times):
            mean = denoise(x_t, t).mean
            at, to = path.at(t), path.at(s)
            h = half_log_snr(path, s) - half_log_snr(path, t)
            weight = -to.alpha * math.expm1(-h)
            x_t = (to.sigma / at.sigma) * x_t
            if previous is None:
                x_t = x_t.add_(mean, alpha=weight)
            else:
                slope = 0.5 * h / h_previous
                x_t = x_t.add_(mean, alpha=weight * (1 + slope))
                x_t = x_t.add_(previous, alpha=-weight * slope)
            previous, h_previous = mean, h
        return denoise(x_t, times[-1]).mean


@dataclass(frozen=True)
class UniPC(GridSampler):
    """UniPC of order 2 (B_2(h) = e^{-h} - 1, data prediction): 2M's predictor, then a corrector.

    The corrector re-uses the evaluation made at the predicted point, so a step costs one.
    """

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        times = self.times(path, self.steps)
        means = [denoise(x_t, times[0]).mean]
        h_previous = None
        for t, s in itertools.pairwise(times):
            at, to = path.at(t), path.at(s)
            h = half_log_snr(path, s) - half_log_snr(path, t)
            phi_1 = math.expm1(-h)
            base = torch.add((to.sigma / at.sigma) * x_t, means[-1], alpha=-to.alpha * phi_1)
            slope = None
            predicted = base
            if h_previous is not None:
                slope = (means[-2] - means[-1]) / (-h_previous / h)
                predicted = torch.add(base, slope, alpha=-to.alpha * phi_1 * 0.5)
            new = denoise(predicted, s).mean
            on_slope, on_new = _corrector_weights(h, h_previous)
            x_t = torch.add(base, new - means[-1], alpha=-to.alpha * phi_1 * on_new)
            if slope is not None:
                x_t = torch.add(x_t, slope, alpha=-to.alpha * phi_1 * on_slope)
            means = [means[-1], new]
            h_previous = h
        # The evaluation at the last point was made before its correction: it is taken as x̂_0.
        return means[-1]


def _corrector_weights(h: float, h_previous: float | None) -> tuple[float, float]:
    """Weights of the backward and of the new difference in UniC; (0, 1/2) at the first step."""
    if h_previous is None:
        return 0.0, 0.5
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1.0
    b_1 = phi_2 / phi_1
    b_2 = 2.0 * (phi_2 / -h - 0.5) / phi_1
    r = -h_previous / h
    on_slope = (b_1 - b_2) / (1 - r)
    return on_slope, b_1 - on_slope


@dataclass(frozen=True)
class Euler(GridSampler):
    """Explicit Euler on the ODE in time: first order, one evaluation a step."""

    grid: str = "uniform"

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        times = self.times(path, self.steps)
        for t, s in itertools.pairwise(times):
            x_t = torch.add(x_t, denoise(x_t, t).velocity, alpha=s - t)
        return denoise(x_t, times[-1]).mean


@dataclass(frozen=True)
class Heun(GridSampler):
    """Heun's method in the clock s = σ/α on y = x/α, as EDM does; two evaluations a step.

    `steps` counts evaluations: (steps + 1) // 2 grid points.
    """

    grid: str = "karras"

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        times = self.times(path, (self.steps + 1) // 2)
        for t, s in itertools.pairwise(times):
            at, to = path.at(t), path.at(s)
            dt = to.sigma / to.alpha - at.sigma / at.alpha
            y = x_t / at.alpha
            slope = denoise(x_t, t).eps  # dy/d(σ/α) = ε̂
            predicted = torch.add(y, slope, alpha=dt)
            again = denoise(to.alpha * predicted, s).eps
            x_t = to.alpha * torch.add(y, slope + again, alpha=0.5 * dt)
        return denoise(x_t, times[-1]).mean


@dataclass(frozen=True)
class ProbabilityFlow(GridSampler):
    """The probability-flow ODE by a general integrator, in time.

    Attributes:
        method: "dopri5" (adaptive; `steps` is then ignored), or "euler", "midpoint", "rk4" with
            `steps` steps.
        rtol: relative tolerance of dopri5.
        atol: absolute tolerance of dopri5.
    """

    grid: str = "uniform"
    method: str = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        times = self.times(path, 2)
        options: dict[str, Any] = {"method": self.method, "steps": self.steps}
        options |= {"rtol": self.rtol, "atol": self.atol}
        x_t = odeint(lambda t, x: denoise(x, t).velocity, x_t, times[0], times[-1], **options)
        return denoise(x_t, times[-1]).mean
