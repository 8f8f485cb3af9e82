r"""The law of one split: how an energy E is shared by two parts, with honest zeros.

Either all of it goes to a, or all to b, or both get at least the threshold τ of a voxel:

    E_a = τ + (E - 2 τ) σ(y),   y ~ Σ_k w_k Logistic(μ_k, s_k)

so that parts add up to the whole exactly, and nothing lies between zero and the threshold. One
softmax weighs the two whole outcomes and the K components. The density is that of the mixed
measure: probabilities of the whole outcomes, density in E_a (1/MeV) otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

COMPONENTS = 6
LEAST = 1e-6
"""Least distance of a part from the threshold, in thresholds: data are rounded."""

IMPOSSIBLE = -1e4
"""Logit of what cannot be; finite, for its gradient."""


def width(components: int = COMPONENTS) -> int:
    """Parameters of a split."""
    return 3 * components + 2


def spread_out(bias: Tensor) -> None:
    """Start with components at different places, so that they do not do the same."""
    components = (len(bias) - 2) // 3
    with torch.no_grad():
        bias[components + 2 : 2 * components + 2] = torch.linspace(-3, 3, components)


def mixture(parameters: Tensor, both: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(M, 2 + K) logits (whole to a, whole to b, components), (M, K) means and log-scales."""
    components = (parameters.shape[-1] - 2) // 3
    logits, mean, log_scale = parameters.split([components + 2, components, components], -1)
    barred = torch.zeros_like(logits)
    barred[:, 2:] = torch.where(both, 0.0, IMPOSSIBLE)[:, None]
    return logits + barred, mean, log_scale.clamp(-6.0, 3.0)


def log_prob(parameters: Tensor, a: Tensor, b: Tensor, threshold: float) -> Tensor:
    """Ln p of splits into a and b.

    Args:
        parameters: (M, 3 K + 2).
        a: (M,) energy of the first part, MeV: 0 or at least the threshold.
        b: (M,) of the other.
        threshold: τ > 0, MeV.

    Returns:
        (M,) nats.
    """
    shared = (a > 0) & (b > 0)
    logits, mean, log_scale = mixture(parameters, shared | (a + b >= 2 * threshold))
    least = LEAST * threshold
    log_a, log_b = ((e - threshold).clamp(min=least).log() for e in (a, b))
    z = ((log_a - log_b)[:, None] - mean) * (-log_scale).exp()
    density = -z - log_scale - 2 * F.softplus(-z)
    inside = torch.logsumexp(logits[:, 2:] + density, -1) + torch.logaddexp(-log_a, -log_b)
    whole = torch.where(b > 0, logits[:, 1], logits[:, 0])
    return torch.where(shared, inside, whole) - torch.logsumexp(logits, -1)


def draw(
    parameters: Tensor, energy: Tensor, uniform: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Share energies out.

    Args:
        parameters: (M, 3 K + 2).
        energy: (M,) E > 0, MeV.
        uniform: (M, 2) in [0, 1): the outcome, and where in its component.
        threshold: τ, MeV.

    Returns:
        (M,) E_a and (M,) E_b; they add up to E within rounding.
    """
    logits, mean, log_scale = mixture(parameters, energy >= 2 * threshold)
    steps = logits.softmax(-1).cumsum(-1)
    outcome = (uniform[:, :1] * steps[:, -1:] >= steps).sum(-1, keepdim=True)
    outcome = outcome.clamp(max=logits.shape[-1] - 1)
    component = (outcome - 2).clamp(min=0)
    place = uniform[:, 1:].contiguous().clamp(1e-6, 1 - 1e-6)
    y = torch.logit(place) * log_scale.gather(1, component).exp()
    y = (y + mean.gather(1, component))[:, 0]
    excess, first = energy - 2 * threshold, outcome[:, 0]
    # not torch.sigmoid, which rounds the last few of a batch differently
    a, b = (threshold + excess / (1 + v.exp()) for v in (-y, y))
    a = torch.where(first == 0, energy, torch.where(first == 1, 0.0, a))
    b = torch.where(first == 0, 0.0, torch.where(first == 1, energy, b))
    return a, b
