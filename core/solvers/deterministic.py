r"""Deterministic samplers: solvers of the probability-flow ODE dx/dt = α' x̂_0 + σ' ε̂.

With ℓ = ln(α/σ) = λ/2 the ODE is solved exactly but for the integral of x̂_0,

    x_s = (σ_s/σ_t) x_t + σ_s ∫_{ℓ_t}^{ℓ_s} e^ℓ x̂_0 dℓ,

so exponential integrators (DDIM, 2M, UniPC) only approximate a slowly varying function. All end
with one denoising at the last grid point, which counts as an evaluation. References: Song et al.
(2021) arXiv:2010.02502 (DDIM); Lu et al. (2022) arXiv:2211.01095 (2M); Zhao et al. (2023)
arXiv:2302.04867 (UniPC); Karras et al. (2022) arXiv:2206.00364 (Heun); Salimans and Ho (2022)
arXiv:2202.00512 (the angle and v).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from core.errors import AleatorError
from core.paths import Path
from core.random import Generators
from core.solvers.base import Denoise, GridSampler, LinearSampler, Step
from core.solvers.ode import odeint


def half_log_snr(path: Path, t: float) -> float:
    """ℓ(t) = ln(α/σ)."""
    point = path.at(t)
    return math.log(point.alpha / point.sigma)


@dataclass(frozen=True)
class DDIM(LinearSampler):
    """DDIM: eta = 0 is the exponential Euler method, eta = 1 the ancestral variance β̃.

    Attributes:
        eta: how much of the noise of a reverse diffusion step is drawn afresh.
    """

    eta: float = 0.0

    def table(self, path: Path, times: list[float]) -> Iterator[Step]:  # noqa: D102
        for t, s in itertools.pairwise(times):
            on_x, on_mean, noise = ddim_coefficients(path, t, s, self.eta)
            yield Step(t, on_x, (on_mean,), noise)


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
class TwoM(LinearSampler):
    """Second-order multistep exponential integrator on x̂_0: the default.

    One evaluation a step; the previous evaluation gives the slope of x̂_0 in ℓ.
    """

    def table(self, path: Path, times: list[float]) -> Iterator[Step]:  # noqa: D102
        h_previous = None
        for t, s in itertools.pairwise(times):
            at, to = path.at(t), path.at(s)
            h = half_log_snr(path, s) - half_log_snr(path, t)
            ratio = 0.0 if h_previous is None else h / h_previous
            weight = -to.alpha * math.expm1(-h)
            on_means = (weight * (1 + ratio / 2), -weight * ratio / 2)
            yield Step(t, to.sigma / at.sigma, on_means)
            h_previous = h


@dataclass(frozen=True)
class UniPC(LinearSampler):
    """UniPC of order 2 (B_2(h) = e^{-h} - 1, data prediction): 2M's predictor, then a corrector.

    The corrector re-uses the evaluation made at the predicted point, so a step costs one. It is
    linear too: the walk goes over the *predicted* points, and each step first makes good what
    the corrector says of the one it leaves. The last point is denoised before its correction.
    """

    def table(self, path: Path, times: list[float]) -> Iterator[Step]:  # noqa: D102
        h_previous, correction = None, (0.0, 0.0, 0.0)
        for t, s in itertools.pairwise(times):
            at, to = path.at(t), path.at(s)
            h = half_log_snr(path, s) - half_log_snr(path, t)
            ratio = 0.0 if h_previous is None else h / h_previous
            on_x, weight = to.sigma / at.sigma, -to.alpha * math.expm1(-h)
            predictor = (weight * (1 + ratio / 2), -weight * ratio / 2, 0.0)
            on_means = (p + on_x * c for p, c in zip(predictor, correction, strict=True))
            yield Step(t, on_x, tuple(on_means))
            on_slope, on_new = _corrector_weights(h, h_previous)
            change = weight * ratio * (on_slope - 0.5)
            correction = (weight * on_new, change - weight * on_new, -change)
            h_previous = h


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
class Euler(LinearSampler):
    """Explicit Euler on the ODE in time: first order, one evaluation a step."""

    grid: str = "uniform"

    def table(self, path: Path, times: list[float]) -> Iterator[Step]:  # noqa: D102
        for t, s in itertools.pairwise(times):
            alpha, sigma, d_alpha, d_sigma = path.at(t)
            on_mean = d_alpha - d_sigma * alpha / sigma  # dx/dt = on_mean x̂_0 + (σ'/σ) x_t
            yield Step(t, 1 + (s - t) * d_sigma / sigma, ((s - t) * on_mean,))


@dataclass(frozen=True)
class Angle(LinearSampler):
    r"""Euler in the angle φ = arctan(σ / α d): for very few steps.

    y = x_t / √(α² d² + σ²) is cos φ x_0/d + sin φ ε, and dy/dφ = v. Of Gaussian data of standard
    deviation d the expected v is zero: one step or many, they keep their spread exactly, where a
    step of DDIM multiplies it by cos Δφ. With a handful of steps on data whose directions vary
    about alike this keeps more of the spread than methods of higher order do.

    Attributes:
        spread: d.
    """

    spread: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.spread > 0:
            raise AleatorError(f"angle: spread={self.spread}; a positive one is needed")

    def table(self, path: Path, times: list[float]) -> Iterator[Step]:  # noqa: D102
        for t, s in itertools.pairwise(times):
            at, to = path.at(t), path.at(s)
            angle = math.atan2(at.sigma, at.alpha * self.spread)
            step = math.atan2(to.sigma, to.alpha * self.spread) - angle
            norm, new = (math.hypot(p.alpha * self.spread, p.sigma) for p in (at, to))
            on_mean = -step / math.sin(angle) * new / self.spread
            yield Step(t, (1 + step / math.tan(angle)) * new / norm, (on_mean,))


@dataclass(frozen=True)
class Heun(LinearSampler):
    """Heun's method in the clock σ/α on y = x/α, as EDM does; two evaluations a step.

    dy/d(σ/α) = ε̂, so that the predictor is DDIM's step, and ε̂_t can be read off the point p
    that it reaches: p = α_s x̂_0 + σ_s ε̂_t. `steps` counts evaluations: (steps + 1) // 2 points.
    """

    grid: str = "karras"

    @property
    def points(self) -> int:  # noqa: D102
        return (self.steps + 1) // 2

    def table(self, path: Path, times: list[float]) -> Iterator[Step]:  # noqa: D102
        for t, s in itertools.pairwise(times):
            at, to = path.at(t), path.at(s)
            on_x, on_mean, _ = ddim_coefficients(path, t, s, 0.0)
            yield Step(t, on_x, (on_mean,))
            dt = to.sigma / to.alpha - at.sigma / at.alpha
            half = 0.5 * dt * to.alpha**2 / to.sigma  # x_s = p + α_s dt (ε̂_s - ε̂_t) / 2
            yield Step(s, 1.0, (-half, half))


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
