r"""Joint-VAE: a continuous and a categorical latent, disentangled by capacities.

    q(z, c | x) = N(z; μ, σ²) Cat(c; π),   p(z, c) = N(0, I) · 1/K
    -loss = E ln p(x | z, c̃) - γ |KL_z - C_z(t)| - γ |KL_c - C_c(t)|
    c̃ = softmax((ln π + g) / τ),  g Gumbel: one-hot with probabilities π as τ → 0

The capacities C rise linearly in training, so that information enters bit by bit; without them
the loss is the negative ELBO. The bound in `log_prob` knows no relaxation: it sums over all c.
References: Dupont (2018) arXiv:1804.00104; Jang et al. (2017) arXiv:1611.01144.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from core.distributions import Law
from core.errors import AleatorError
from core.model import Context, Loss
from core.random import Generators, rand, randn
from core.vae.base import (
    LatentModel,
    make_net,
    repeat_context,
    repeat_rows,
    run_net,
    sum_event,
)
from core.vae.likelihoods import Likelihood
from core.vae.vae import kl_to_standard_normal


class JointVAE(LatentModel):
    """A VAE with a continuous and a categorical latent."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "posterior": "its categorical latent has no gradient; take a plain VAE"
    }

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        latent_dim: int = 8,
        categories: int = 10,
        likelihood: str | Mapping[str, Any] | Likelihood = "gaussian",
        encoder: nn.Module | Mapping[str, Any] | None = None,
        decoder: nn.Module | Mapping[str, Any] | None = None,
        temperature: float = 0.67,
        gamma: float | None = None,
        capacities: tuple[float, float] = (5.0, 2.0),
        warmup: int = 1000,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            latent_dim: D, the length of z.
            categories: K, the values of c.
            likelihood: p(x | z, c).
            encoder: features of x -> (B, 2 D + K): mean and log-variance of z, logits of c.
            decoder: (z, one-hot c) (B, D + K) -> outputs of the likelihood.
            temperature: τ.
            gamma: γ; None for the plain ELBO.
            capacities: C_z and C_c at the end, nats; C_c of at most ln K.
            warmup: training steps over which they rise from 0.

        Raises:
            AleatorError: an option out of range, an unknown likelihood or network.
        """
        super().__init__(event_shape, context_shape, likelihood)
        if latent_dim < 1 or categories < 2 or temperature <= 0 or warmup < 0:
            raise AleatorError(
                f"joint vae: latent_dim={latent_dim}, categories={categories}, "
                f"temperature={temperature}, warmup={warmup} out of range"
            )
        if gamma is not None and (gamma <= 0 or min(capacities) < 0):
            raise AleatorError(f"joint vae: gamma={gamma}, capacities={capacities} out of range")
        self.latent_dim, self.categories = latent_dim, categories
        self.temperature, self.gamma, self.warmup = temperature, gamma, warmup
        self.capacities = (capacities[0], min(capacities[1], math.log(categories)))
        e, inside = self.event_shape, latent_dim + categories
        self.encoder = make_net(encoder, e, (2 * latent_dim + categories,))
        self.decoder = make_net(decoder, (inside,), (self.likelihood.outputs * e[0], *e[1:]))

    def encode(self, x: Tensor, context: Context = None) -> Independent:
        """q(z | x, context) of examples (B, *E), over (D,)."""
        self.check(x, context)
        return self._laws(x, self.with_library(context, x))[0]

    def classify(self, x: Tensor, context: Context = None) -> Tensor:
        """Log-probabilities ln q(c | x, context), (B, K)."""
        self.check(x, context)
        return self._laws(x, self.with_library(context, x))[1]

    def _laws(self, x: Tensor, context: Context) -> tuple[Independent, Tensor]:
        output = run_net(self.encoder, self.likelihood.features(x), context)
        mean, log_variance, logits = output.split(
            [self.latent_dim, self.latent_dim, self.categories], 1
        )
        scale = (0.5 * log_variance.clamp(-30.0, 30.0)).exp()
        q = Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)
        return q, logits.log_softmax(1)

    def decode(self, z: Tensor, c: Tensor, context: Context = None) -> Law:
        """p(x | z, c, context) for latents (N, D) and (relaxed) one-hot categories (N, K)."""
        output = run_net(self.decoder, torch.cat([z, c], 1), context)
        return self.likelihood(output, self.library_of(context))

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Negative ELBO, or its form with capacities, of examples x (B, *E), (B,) nats."""
        self.check(x, context)
        context = self.with_library(context, x)
        q, log_pi = self._laws(x, context)
        eps = randn(q.mean.shape, generator, device=x.device, dtype=q.mean.dtype)
        c = relaxed_one_hot(log_pi, self.temperature, generator)
        law = self.decode(q.mean + q.stddev * eps, c, context)
        reconstruction = -sum_event(law.log_prob(x))
        kl_z, kl_c = kl_to_standard_normal(q).sum(1), kl_to_uniform(log_pi)
        share = self.ramp(self.warmup)
        if self.gamma is None:
            value = reconstruction + kl_z + kl_c
        else:
            over_z = (kl_z - share * self.capacities[0]).abs()
            over_c = (kl_c - share * self.capacities[1]).abs()
            value = reconstruction + self.gamma * (over_z + over_c)
        terms = {"reconstruction": reconstruction, "kl_z": kl_z, "kl_c": kl_c}
        return Loss(value, {name: term.detach() for name, term in terms.items()})

    def log_weights(  # noqa: D102
        self, x: Tensor, context: Context, draws: int, generator: Generators | None
    ) -> Tensor:
        context = self.with_library(context, x)
        q, _ = self._laws(x, context)
        shape = (len(x), draws, self.latent_dim)
        eps = randn(shape, generator, device=x.device, dtype=q.mean.dtype)
        z = q.mean[:, None] + q.stddev[:, None] * eps
        flat, many = z.flatten(0, 1), repeat_rows(x, draws)
        repeated, parts = repeat_context(context, draws), []
        for k in range(self.categories):
            c = flat.new_zeros(len(flat), self.categories)
            c[:, k] = 1
            parts.append(sum_event(self.decode(flat, c, repeated).log_prob(many)))
        log_p = torch.stack(parts, 1).logsumexp(1) - math.log(self.categories)
        log_ratio = 0.5 * (eps.square() - z.square()).sum(2) + q.stddev.log().sum(1)[:, None]
        return log_p.reshape(-1, draws) + log_ratio

    @property
    def latent_sizes(self) -> tuple[int, ...]:
        """(D, K)."""
        return self.latent_dim, self.categories

    def generate(self, context: Context, noise: Sequence[Tensor]) -> Law:
        """p(x | z, c) for z (N, D) and the category with the greatest of normal noise (N, K)."""
        c = F.one_hot(noise[1].argmax(1), self.categories).to(noise[0])
        return self.decode(noise[0], c, context)


def relaxed_one_hot(
    log_pi: Tensor, temperature: float, generator: Generators | None = None
) -> Tensor:
    """Gumbel-softmax draws (B, K) of log-probabilities (B, K), differentiable in them."""
    u = rand(log_pi.shape, generator, device=log_pi.device, dtype=log_pi.dtype)
    tiny = torch.finfo(log_pi.dtype).tiny
    gumbel = -(-(u.clamp(min=tiny)).log()).clamp(min=tiny).log()
    return ((log_pi + gumbel) / temperature).softmax(1)


def kl_to_uniform(log_pi: Tensor) -> Tensor:
    """KL(Cat(π) ‖ uniform) of log-probabilities (B, K), (B,) nats."""
    return (log_pi.exp() * (log_pi + math.log(log_pi.shape[1]))).sum(1)
