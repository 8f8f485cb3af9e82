r"""Diffusion models: a weighted regression of the clean example from the noisy one.

    loss(x) = w(t) |x - x̂_0(x_t, t)|² / D,    x_t = α(t) x + σ(t) ε

The weight decides what is learned: "simple" is L_simple of Ho et al. (2020), arXiv:2006.11239,
a plain error in ε; "edm" gives the preconditioned network unit error everywhere (Karras et al.
2022, arXiv:2206.00364); "v" is a plain error in v; "elbo" makes the loss the continuous-time
variational bound (Kingma et al. 2021, arXiv:2107.00630). The full discrete bound, with its
L_0, L_t and L_T, is `Diffusion.elbo`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.coupling import Coupling, make_coupling
from core.errors import AleatorError
from core.model import Context, Density, Loss
from core.path_model import PathModel, per_example_uniform
from core.paths import Path, Point
from core.random import Generators, randn

Weighting = Literal["edm", "simple", "v", "velocity", "elbo"]
Times = Literal["log_normal", "uniform", "logit_normal"]


class Diffusion(PathModel):
    """Diffusion on any Gaussian path."""

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        path: str | Path | dict[str, Any] = "vp",
        weighting: Weighting = "edm",
        times: Times = "log_normal",
        log_sigma_mean: float = -0.8,
        log_sigma_std: float = 1.4,
        variance_weight: float = 1e-3,
        first_log_snr: float | None = None,
        coupling: str | Mapping[str, Any] | Coupling = "independent",
        **options: Any,
    ) -> None:
        """Assemble.

        Args:
            net: the network.
            event_shape: E.
            context_shape: shape of the main context tensor of one example.
            path: the forward process.
            weighting: how errors at different noise levels count; see the module.
            times: how noise levels are drawn: ln(σ/α) normal, t uniform, or logit(t) normal.
            log_sigma_mean: mean of ln(σ/α) (of logit t), in units where the data have std 1.
            log_sigma_std: its standard deviation.
            variance_weight: weight of the bound that trains a learned variance (L_hybrid of
                Nichol and Dhariwal 2021, arXiv:2102.09672; the mean is held fixed in it).
            first_log_snr: cleanest noise level that is trained, where another model takes over
                (see `core.vae.daed`); all down to the path's own if None.
            coupling: of examples and noise in a batch; see `core.coupling`. With any but
                "independent" the readings `velocity` and `x0` are those of the coupled flow, and
                deterministic samplers and densities right; the score is not, nor is what rests
                on it: stochastic samplers, guidance and the variational bound.
            **options: `PathModel`'s.
        """
        super().__init__(net, event_shape, context_shape, path=path, **options)
        for name, value, known in (
            ("weighting", weighting, ("edm", "simple", "v", "velocity", "elbo")),
            ("times", times, ("log_normal", "uniform", "logit_normal")),
        ):
            if value not in known:
                raise AleatorError(f"unknown {name} {value!r}; known: {', '.join(known)}")
        self.weighting = weighting
        self.times = times
        self.log_sigma_mean = log_sigma_mean
        self.log_sigma_std = log_sigma_std
        self.variance_weight = variance_weight
        self.first_log_snr = first_log_snr
        self.coupling = make_coupling(coupling)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Weighted squared error per element of examples x (B, *E), value (B,).

        A context with the key `noise` (B, *E) says which noise goes with which example: the pairs
        of `core.reflow`.
        """
        t = self.draw_times(len(x), generator).to(x)
        context, eps = given_noise(context)
        if eps is None:
            eps = randn(x.shape, generator, device=x.device, dtype=x.dtype)
            eps = self.coupling(x, eps, context)
        point = self.path.at(t, x)
        x_t = point.alpha * x + point.sigma * eps
        posterior = self.denoise(x_t, t, self.drop_context(context, generator))
        error = (posterior.mean - x).square().flatten(1).mean(1)
        weight = error_weight(self.weighting, point, self.denoiser.sigma_data).flatten()
        value = weight * error
        terms = {"mse": error.detach(), "weighted": value.detach()}
        if posterior.variance_fraction is not None:
            from core.elbo import variance_bound

            bound = variance_bound(x, x_t, posterior, self.path, t)
            terms["variance"] = bound.detach()
            value = value + self.variance_weight * bound
        return Loss(value, terms)

    def draw_times(self, batch: int, generator: Generators | None = None) -> Tensor:
        """Noise levels for training, (B,) times."""
        u = per_example_uniform(batch, generator)
        t_min, t_max = self.path.t_min, self.path.t_max
        if self.first_log_snr is not None:
            cleanest = torch.tensor(self.first_log_snr, dtype=torch.float64)
            t_first = self.path.t_from_log_snr(cleanest).item()
            below = self._share_below(t_first)
            u = below + (1 - below) * u
        if self.times == "uniform":
            return t_min + (t_max - t_min) * u
        normal = self.log_sigma_mean + self.log_sigma_std * torch.special.ndtri(
            u.double().clamp(1e-7, 1 - 1e-7)
        )
        if self.times == "logit_normal":
            return t_min + (t_max - t_min) * torch.sigmoid(normal).to(u.dtype)
        log_snr = -2 * (normal + math.log(self.denoiser.sigma_data))
        return self.path.t_from_log_snr(log_snr).clamp(t_min, t_max).to(u.dtype)

    def _share_below(self, t: float) -> float:
        """Probability that `draw_times` draws less than t."""
        share = (t - self.path.t_min) / (self.path.t_max - self.path.t_min)
        if self.times == "uniform":
            return share
        point = self.path.at(t)
        value = math.log(point.sigma / point.alpha / self.denoiser.sigma_data)
        if self.times == "logit_normal":
            value = math.log(share / (1 - share))
        z = (value - self.log_sigma_mean) / self.log_sigma_std
        return 0.5 * math.erfc(-z / math.sqrt(2))

    @torch.no_grad()
    def elbo(
        self,
        x: Tensor,
        context: Context = None,
        *,
        steps: int = 100,
        generator: Generators | None = None,
        **options: Any,
    ) -> Density:
        """Variational lower bound with L_0, L_t, L_T, in nats; see `core.elbo.diffusion_elbo`."""
        from core.elbo import diffusion_elbo

        options.setdefault("prior_std", self.prior_std)
        return diffusion_elbo(
            self.bind(context), x, path=self.path, steps=steps, generator=generator, **options
        ).density


def given_noise(context: Context) -> tuple[Context, Tensor | None]:
    """The context without the noise that it brings, and that noise."""
    if not isinstance(context, Mapping) or "noise" not in context:
        return context, None
    rest = {name: part for name, part in context.items() if name != "noise"}
    return rest or None, context["noise"]


def error_weight(weighting: str, point: Point, sigma_data: float) -> Tensor:
    """What multiplies the squared error in x_0 so that it is an error in the named quantity."""
    a, s, da, ds = point
    if weighting == "simple":  # |ε - ε̂|²
        return (a / s) ** 2
    if weighting == "v":  # |v - v̂|²
        return ((a * a + s * s) / s) ** 2
    if weighting == "velocity":  # |u - û|²: conditional flow matching
        return (da - ds * a / s) ** 2
    if weighting == "elbo":  # -½ dSNR/dt, t uniform
        return (a / s) ** 2 * (ds / s - da / a)
    ratio = s / a
    return (ratio**2 + sigma_data**2) / (ratio * sigma_data) ** 2
