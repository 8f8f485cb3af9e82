r"""Attacks on a VAE's latent space, and the defence by Markov chains.

    attack    max over |δ|_∞ ≤ r of SKL[q(z | x + δ), q(z | x)],   SKL symmetrised, by ascent
    defence   HMC on p(z | x + δ) from z ~ q(z | x + δ)

A small change of x moves the encoder far, but the true posterior hardly: chains that start at the
attacked code walk back to where the decoder explains x. References: Kuzina et al. (2022)
arXiv:2203.09940 (the defence); Madry et al. (2018) arXiv:1706.06083 (projected ascent).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent

from core.errors import AleatorError
from core.mcmc import Chains, hmc
from core.model import Context
from core.random import Generators, rand, randn
from core.vae.base import repeat_context, repeat_rows, sum_event
from core.vae.vae import VAE


def symmetric_kl(p: Independent, q: Independent) -> Tensor:
    """½ KL(p ‖ q) + ½ KL(q ‖ p) of diagonal Gaussians, (B,) nats."""
    gap = (p.mean - q.mean).square()
    ratio = p.variance / q.variance
    terms = ratio + 1 / ratio - 2 + gap * (1 / p.variance + 1 / q.variance)
    return 0.25 * terms.sum(1)


def latent_attack(
    model: VAE,
    x: Tensor,
    context: Context = None,
    *,
    radius: float,
    steps: int = 50,
    step: float | None = None,
    limits: Sequence[float] | None = None,
    generator: Generators | None = None,
) -> Tensor:
    """Examples near x whose codes are far from those of x.

    Args:
        model: under attack; its encoder has to be differentiable in x.
        x: (B, *E).
        context: condition, batch B.
        radius: largest change of any element.
        steps: of projected sign ascent.
        step: length of one; 2.5 radius / steps if None.
        limits: least and greatest value that an element may take, e.g. (0, 1).
        generator: the random start within the ball, where the gradient is not zero.

    Returns:
        (B, *E), the best point that each example's ascent came by.

    Raises:
        AleatorError: an option out of range, or bad examples.
    """
    if radius <= 0 or steps < 1:
        raise AleatorError(f"attack: radius={radius}, steps={steps}; both must be positive")
    step = 2.5 * radius / steps if step is None else step
    with torch.no_grad():
        q = model.encode(x, context)
    low, high = x - radius, x + radius
    if limits is not None:
        low, high = low.clamp(min=limits[0]), high.clamp(max=limits[1])
    start = 2 * rand(x.shape, generator, device=x.device, dtype=x.dtype) - 1
    attacked = (x + radius * start).clamp(low, high)
    best, most = x.clone(), x.new_zeros(len(x))
    known = model.with_library(context, x)
    for k in range(steps + 1):
        with torch.enable_grad():
            attacked = attacked.detach().requires_grad_()
            distance = symmetric_kl(model.posterior_law(attacked, known), q)
            (gradient,) = torch.autograd.grad(distance.sum(), attacked)
        better = distance.detach() > most
        most = torch.where(better, distance.detach(), most)
        best = torch.where(better.reshape(-1, *[1] * (x.dim() - 1)), attacked.detach(), best)
        if k < steps:
            attacked = (attacked.detach() + step * gradient.sign()).clamp(low, high)
    return best


def defend(
    model: VAE,
    x: Tensor,
    context: Context = None,
    *,
    chains: int = 1,
    steps: int = 100,
    warmup: int = 50,
    generator: Generators | None = None,
    **options: Any,
) -> Chains:
    """Chains on p(z | x) that start from the encoder's guess.

    Args:
        model: the VAE.
        x: (B, *E), attacked or not.
        context: condition, batch B.
        chains: for each example, B-major.
        steps: trajectories after warm-up.
        warmup: trajectories over which the step size is adapted.
        generator: starts and momenta; one stream, or B · chains of them.
        options: further ones of `core.mcmc.hmc`.

    Returns:
        chains over z, states (B · chains, D).
    """
    model.check(x, context)
    known = model.with_library(context, x)
    many, repeated = repeat_rows(x, chains), repeat_context(known, chains)
    with torch.no_grad():
        q = model.posterior_law(many, repeated)
    eps = randn(q.mean.shape, generator, device=x.device, dtype=q.mean.dtype)

    def log_p(z: Tensor) -> Tensor:
        likelihood = sum_event(model.decode(z, repeated).log_prob(many))
        return likelihood - 0.5 * z.square().sum(1)

    options = {"step": 0.1, "length": 10, **options}
    return hmc(
        log_p,
        q.mean + q.stddev * eps,
        steps=steps,
        warmup=warmup,
        generator=generator,
        **options,
    )
