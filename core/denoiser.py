r"""One network, five readings.

What a network says about the clean example behind x_t = α x_0 + σ ε can be read as

    x_0       E[x_0 | x_t]                        eps    (x_t - α x_0) / σ
    score     ∇ ln p_t(x_t) = -eps / σ            v      α eps - σ x_0
    velocity  α' x_0 + σ' eps  (dx/dt of the probability flow)

each an affine function of the others, so that any sampler runs on any network. The score of the
*marginal* is the posterior mean of the conditional one (Tweedie): eps here is E[ε | x_t].
References: Efron (2011) doi:10.1198/jasa.2011.tm11181; Salimans and Ho (2022) arXiv:2202.00512;
Karras et al. (2022) arXiv:2206.00364 (preconditioning).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from core.errors import AleatorError
from core.model import Context
from core.paths import Path, Point, path_from_config

Prediction = Literal["edm", "x0", "eps", "score", "v", "velocity"]


@dataclass(frozen=True, eq=False, slots=True)
class Posterior:
    """What is known of x_0 given x_t.

    Attributes:
        mean: (B, *E) E[x_0 | x_t].
        x_t: (B, *E) the noisy example.
        point: the path's coefficients at t.
        variance_fraction: (B, *E) in [0, 1], where between the two extreme variances of a
            reverse step (0: β̃, 1: β, in the logarithm) a network with learned variance puts it.
    """

    mean: Tensor
    x_t: Tensor
    point: Point
    variance_fraction: Tensor | None = None

    @property
    def x0(self) -> Tensor:
        """The posterior mean itself."""
        return self.mean

    @property
    def eps(self) -> Tensor:
        """E[ε | x_t]."""
        return (self.x_t - self.point.alpha * self.mean) / self.point.sigma

    @property
    def score(self) -> Tensor:
        """∇ ln p_t(x_t)."""
        return -self.eps / self.point.sigma

    @property
    def v(self) -> Tensor:
        """α eps - σ x_0."""
        return self.point.alpha * self.eps - self.point.sigma * self.mean

    @property
    def velocity(self) -> Tensor:
        """dx/dt of the probability-flow ODE."""
        return self.point.d_alpha * self.mean + self.point.d_sigma * self.eps


def mean_from(prediction: str, output: Tensor, x_t: Tensor, point: Point) -> Tensor:
    """E[x_0 | x_t] from what a network of the given kind puts out; inverse of the readings."""
    a, s, da, ds = point
    if prediction == "x0":
        return output
    if prediction == "eps":
        return (x_t - s * output) / a
    if prediction == "score":
        return (x_t + s * s * output) / a
    if prediction == "v":
        return (a * x_t - s * output) / (a * a + s * s)
    if prediction == "velocity":
        return (s * output - ds * x_t) / (da * s - ds * a)
    raise AleatorError(f"unknown prediction {prediction!r}; known: {get_args(Prediction)}")


class Denoiser(nn.Module):
    r"""A network on a path, with preconditioning.

    The network sees x_t scaled to unit variance and c_noise = ln(σ/α) / 4. With
    prediction "edm" (the default) its output F is mixed as

        mean = c_skip x_t/α + c_out F,   c_skip = d² / (s² + d²),  c_out = s d / sqrt(s² + d²)

    with s = σ/α and d the standard deviation of the data: EDM's preconditioning on any path.
    """

    def __init__(
        self,
        net: nn.Module,
        path: str | Path | dict[str, Any] = "vp",
        prediction: Prediction = "edm",
        sigma_data: float = 1.0,
        learned_variance: bool = False,
    ) -> None:
        """Wrap a network.

        Args:
            net: (x (B, *E), c_noise (B,), context) -> (B, *E), or twice the channels (first
                event axis) when the variance is learned; it must not write into x.
            path: the forward process.
            prediction: how the network's output is read.
            sigma_data: standard deviation of the data, per element.
            learned_variance: the second half of the output is the variance fraction.

        Raises:
            AleatorError: unknown prediction or path.
        """
        super().__init__()
        if prediction not in get_args(Prediction):
            known = ", ".join(get_args(Prediction))
            raise AleatorError(f"unknown prediction {prediction!r}; known: {known}")
        self.net = net
        self.path = path_from_config(path)
        self.prediction = prediction
        self.sigma_data = float(sigma_data)
        self.learned_variance = learned_variance

    def forward(self, x_t: Tensor, t: Tensor | float, context: Context = None) -> Posterior:
        """Posterior of x_0.

        Args:
            x_t: (B, *E) noisy examples.
            t: (B,) times, or one number for the whole batch.
            context: condition, batch B.
        """
        if isinstance(t, Tensor):
            point = self.path.at(t, x_t)
            c_in, c_noise, c_skip, c_out = _coefficients(point, self.sigma_data)
            c_noise = c_noise.reshape(-1)
        else:
            point, coefficients = _numbers(self.path, t, self.sigma_data)
            c_in, c_noise, c_skip, c_out = coefficients
            c_noise = x_t.new_full((x_t.shape[0],), c_noise)
        scaled = x_t if c_in is None else c_in * x_t
        net: Any = self._modules.get("net") or self.net  # the first is the quicker look-up
        output = net(scaled, c_noise, context)
        fraction = None
        if self.learned_variance:
            output, raw = output.chunk(2, dim=1)
            fraction = torch.sigmoid(raw)
        if self.prediction != "edm":
            return Posterior(mean_from(self.prediction, output, x_t, point), x_t, point, fraction)
        return Posterior(_mixed(c_skip, x_t, c_out, output), x_t, point, fraction)


def _mixed(c_skip: Any, x_t: Tensor, c_out: Any, output: Tensor) -> Tensor:
    """c_skip x_t + c_out F; with numbers, by operations that take them without making tensors."""
    if isinstance(c_out, Tensor) or output.dtype != x_t.dtype:
        return c_skip * x_t + c_out * output
    return torch.lerp(output, x_t, c_skip).add_(output, alpha=c_out - (1 - c_skip))


def _coefficients(point: Point, d: float) -> tuple[Any, Any, Any, Any]:
    """c_in, c_noise, c_skip, c_out for x_t itself: EDM's for x_t/α, with the α folded in."""
    a, s, *_ = point
    total = s * s + (a * d) ** 2
    root = total**0.5
    log = torch.log if isinstance(a, Tensor) else math.log
    return 1 / root, (log(s) - log(a)) / 4, a * d * d / total, s * d / root


@functools.lru_cache(maxsize=4096)
def _numbers(path: Path, t: float, d: float) -> tuple[Point, tuple[Any, Any, Any, Any]]:
    """The path's coefficients and the preconditioning at one time, remembered between calls.

    Data of unit variance keep it on a variance-preserving path: c_in is then None, not 1.
    """
    point = path.at(t)
    c_in, *others = _coefficients(point, d)
    return point, (None if abs(c_in - 1) < 1e-14 else c_in, *others)
