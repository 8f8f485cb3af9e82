r"""The full variational bound of a diffusion model, in nats.

    -ln p(x) ≤ L_T + sum_t L_t + L_0
    L_T = KL(q(x_T | x) ‖ p(x_T))
    L_t = KL(q(x_s | x_t, x) ‖ p(x_s | x_t)),   consecutive times s < t
    L_0 = -ln p(x | x_{t_0})

with p(x_s | x_t) Gaussian around the posterior mean for x̂_0, its variance β̃, β, or learned
between them. With equal variances L_t = |μ̃ - μ_θ|² / (2 σ_t²): the weight is one over twice the
*variance*. L_0 integrates over the bin of a discretised value, or is a density for continuous
data. References: Ho et al. (2020) arXiv:2006.11239; Nichol and Dhariwal (2021) arXiv:2102.09672.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.denoiser import Posterior
from core.errors import AleatorError
from core.model import Density
from core.paths import Path
from core.random import Generators, randn
from core.solvers.base import log_snr_grid
from core.solvers.deterministic import posterior_variance
from core.solvers.stochastic import ancestral_coefficients, forward_variance


@dataclass(frozen=True)
class Elbo:
    """The bound and its parts.

    Attributes:
        density: -(L_T + sum_t L_t + L_0), kind "lower_bound", with its Monte-Carlo error.
        l_0: (B,) nats.
        l_t: (T, B) nats, from the noisiest step to the cleanest.
        l_T: (B,) nats.
    """

    density: Density
    l_0: Tensor
    l_t: Tensor
    l_T: Tensor


def diffusion_elbo(
    denoise: Any,
    x: Tensor,
    *,
    path: Path,
    steps: int = 100,
    variance: str = "posterior",
    prior_std: float = 1.0,
    bin_width: float | None = None,
    log_snr_max: float = 10.0,
    draws: int = 1,
    generator: Generators | None = None,
) -> Elbo:
    """Evaluate the bound, every term of it.

    Args:
        denoise: (x_t, t) -> Posterior, context bound.
        x: (B, *E) examples; for discretised data, bin centres.
        path: the forward process.
        steps: T, times uniform in log-SNR.
        variance: "posterior" (β̃), "forward" (β) or "learned".
        prior_std: standard deviation of p(x_T).
        bin_width: width of the data's bins; None for continuous data.
        log_snr_max: log-SNR of the cleanest latent x_{t_0}.
        draws: noise draws for each term.
        generator: their stream.

    Returns:
        the bound and its terms.
    """
    end = path.t_from_log_snr(torch.tensor(log_snr_max, dtype=torch.float64)).item()
    times = log_snr_grid(path, steps + 1, max(end, path.t_min))
    noise = _Noise(x, path, generator)
    first = path.at(times[0])
    l_T = (
        _gaussian_kl(
            first.alpha * x, math.log(first.sigma**2), torch.zeros_like(x), 2 * math.log(prior_std)
        )
        .flatten(1)
        .sum(1)
    )
    totals, l_t = [], torch.zeros(steps, len(x), dtype=x.dtype, device=x.device)
    l_0 = torch.zeros_like(l_T)
    for _ in range(draws):
        terms = []
        for t, s in itertools.pairwise(times):
            x_t = noise(t)
            terms.append(step_kl(x, x_t, denoise(x_t, t), path, t, s, variance))
        reconstruction = _reconstruction(denoise, x, noise(times[-1]), path, times[-1], bin_width)
        stacked = torch.stack(terms)
        l_t += stacked / draws
        l_0 += reconstruction / draws
        totals.append(-(l_T + stacked.sum(0) + reconstruction))
    values = torch.stack(totals)
    stderr = values.std(0) / math.sqrt(draws) if draws > 1 else None
    return Elbo(Density(values.mean(0), "lower_bound", stderr), l_0, l_t, l_T)


class _Noise:
    """Draws x_t of fixed examples."""

    def __init__(self, x: Tensor, path: Path, generator: Generators | None) -> None:
        self.x, self.path, self.generator = x, path, generator

    def __call__(self, t: float) -> Tensor:
        point = self.path.at(t)
        z = randn(self.x.shape, self.generator, device=self.x.device, dtype=self.x.dtype)
        return point.alpha * self.x + point.sigma * z


def step_kl(
    x: Tensor,
    x_t: Tensor,
    posterior: Posterior,
    path: Path,
    t: float,
    s: float,
    variance: str = "posterior",
) -> Tensor:
    """KL(q(x_s | x_t, x) ‖ p(x_s | x_t)) of each example, (B,) nats."""
    _, on_mean = ancestral_coefficients(path, t, s)
    lower = math.log(posterior_variance(path, t, s))
    upper = math.log(forward_variance(path, t, s))
    if variance == "learned":
        if posterior.variance_fraction is None:
            raise AleatorError("variance='learned' needs a model with learned_variance=True")
        model_log_variance: Tensor | float = lower + posterior.variance_fraction * (upper - lower)
    elif variance in ("posterior", "forward"):
        model_log_variance = lower if variance == "posterior" else upper
    else:
        raise AleatorError(f"unknown variance {variance!r}; known: posterior, forward, learned")
    # Both means share the term in x_t.
    kl = _gaussian_kl(on_mean * x, lower, on_mean * posterior.mean, model_log_variance)
    return kl.flatten(1).sum(1)


def variance_bound(x: Tensor, x_t: Tensor, posterior: Posterior, path: Path, t: Tensor) -> Tensor:
    """L_t per element for training a learned variance, the mean held fixed, (B,) nats.

    The step is from t to half its noise-to-signal ratio; each example has its own.
    """
    values = []
    for i, time in enumerate(t.double().tolist()):
        ratio = torch.tensor(path.at(time).sigma / path.at(time).alpha / 2, dtype=torch.float64)
        s = max(path.t_from_log_snr(-2 * ratio.log()).item(), path.t_min)
        one = slice(i, i + 1)
        fraction = posterior.variance_fraction
        fixed = Posterior(
            posterior.mean[one].detach(),
            x_t[one],
            path.at(time),
            None if fraction is None else fraction[one],
        )
        values.append(step_kl(x[one], x_t[one], fixed, path, time, s, "learned"))
    return torch.cat(values) / math.prod(x.shape[1:])


def _reconstruction(
    denoise: Any, x: Tensor, x_t: Tensor, path: Path, t: float, bin_width: float | None
) -> Tensor:
    """L_0 = -ln p(x | x_{t_0}), (B,) nats; the decoder's width is that of the noise left."""
    point = path.at(t)
    scale = point.sigma / point.alpha
    log_p = discretised_normal(x, denoise(x_t, t).mean, scale, bin_width)
    return -log_p.flatten(1).sum(1)


def discretised_normal(x: Tensor, mean: Tensor, scale: float, bin_width: float | None) -> Tensor:
    """Log of a normal density, or of its mass on the bin around x."""
    z = (x - mean) / scale
    if bin_width is None:
        return -0.5 * z.square() - math.log(scale) - 0.5 * math.log(2 * math.pi)
    half = 0.5 * bin_width / scale
    # By symmetry the difference is taken in the lower tail, where it does not cancel.
    upper, lower = half - z.abs(), -half - z.abs()
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log1p(-(log_lower - log_upper).exp())


def _gaussian_kl(
    mean_q: Tensor, log_var_q: float, mean_p: Tensor, log_var_p: Tensor | float
) -> Tensor:
    """KL(N(mean_q, var_q) ‖ N(mean_p, var_p)), elementwise."""
    log_var = torch.as_tensor(log_var_p, dtype=mean_q.dtype, device=mean_q.device)
    gap = log_var_q - log_var
    return 0.5 * (gap.exp() - 1 - gap + (mean_q - mean_p).square() * (-log_var).exp())
