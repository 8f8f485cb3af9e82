r"""The variational autoencoder, conditional, on any likelihood.

    -loss = E_q ln p(x | z, c) - β KL(q(z | x, c) ‖ p(z)),   z = μ(x, c) + σ(x, c) ε

β ≠ 1 weighs the rate against the distortion (Higgins et al. 2017); free bits leave each latent
dimension that many nats for nothing (Kingma et al. 2016, arXiv:1606.04934); warm-up raises β
from zero over the first steps (Sønderby et al. 2016, arXiv:1602.02282). Whatever was trained,
`log_prob` is a bound on the evidence: it knows neither β nor free bits.

p(z) is standard normal, or a mixture of Gaussians that is learned with the rest. Where data have
clusters, a posterior under N(0, 1) is wider than it need be, and the latents of all data together
are wider still: what is drawn from them has the noise of the data twice (Hoffman and Johnson 2016;
Tomczak and Welling 2018, arXiv:1705.07120).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from core.distributions import Law
from core.errors import AleatorError
from core.mixture import mixture_or_none
from core.model import Context, Density, Loss
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


class VAE(LatentModel):
    """A VAE with a standard normal or mixture prior and a diagonal Gaussian posterior."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        latent_dim: int = 16,
        likelihood: str | Mapping[str, Any] | Likelihood = "gaussian",
        encoder: nn.Module | Mapping[str, Any] | None = None,
        decoder: nn.Module | Mapping[str, Any] | None = None,
        beta: float = 1.0,
        free_bits: float = 0.0,
        warmup: int = 0,
        components: int = 0,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            latent_dim: D, the length of z.
            likelihood: p(x | z); see `core.vae.likelihoods`.
            encoder: (features of x (B, *E), zeros (B,), context) -> (B, 2 D), mean and
                log-variance of q; a module, or the config of a network (by default an MLP).
            decoder: (z (B, D), zeros (B,), context) -> (B, outputs · E_0, ...).
            beta: weight of the KL divergence in the loss.
            free_bits: nats for each latent dimension below which its KL is not reduced further.
            warmup: training steps over which β rises linearly from 0.
            components: Gaussians of a prior that is learned; 0 for the standard normal.

        Raises:
            AleatorError: an option out of range, an unknown likelihood or network.
        """
        super().__init__(event_shape, context_shape, likelihood)
        if latent_dim < 1 or beta < 0 or free_bits < 0 or warmup < 0:
            raise AleatorError(
                f"vae: latent_dim={latent_dim}, beta={beta}, free_bits={free_bits}, "
                f"warmup={warmup}; a positive dimension and no negative weights are needed"
            )
        if components and free_bits:
            raise AleatorError(
                "vae: free_bits are of single dimensions, and a mixture has one divergence for "
                "all of them: leave out free_bits or components"
            )
        self.latent_dim, self.beta = latent_dim, beta
        self.free_bits, self.warmup = free_bits, warmup
        self.prior = mixture_or_none(latent_dim, components)
        if self.prior is not None:
            self.prior.scatter()
        e = self.event_shape
        self.encoder = make_net(encoder, e, (2 * latent_dim,))
        self.decoder = make_net(decoder, (latent_dim,), (self.likelihood.outputs * e[0], *e[1:]))

    def encode(self, x: Tensor, context: Context = None) -> Independent:
        """q(z | x, context) of examples (B, *E): a diagonal Gaussian over (D,)."""
        self.check(x, context)
        return self.posterior_law(x, self.with_library(context, x))

    def posterior_law(self, x: Tensor, context: Context) -> Independent:
        """`encode` without checks; the context holds the library where one is needed."""
        output = run_net(self.encoder, self.likelihood.features(x), context)
        mean, log_variance = output.chunk(2, 1)
        scale = (0.5 * log_variance.clamp(-30.0, 30.0)).exp()
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)

    def decode(self, z: Tensor, context: Context = None) -> Law:
        """p(x | z, context) for latents (N, D)."""
        return self.likelihood(run_net(self.decoder, z, context), self.library_of(context))

    @property
    def latent_sizes(self) -> tuple[int, ...]:
        """(D,), and for a mixture (D, 1): one number more chooses the component."""
        return (self.latent_dim,) if self.prior is None else (self.latent_dim, 1)

    def generate(self, context: Context, noise: Sequence[Tensor]) -> Law:
        """`decode` of standard normal noise (N, D), or of draws of the mixture made of it."""
        z = noise[0]
        if self.prior is not None:
            z = self.prior.place(torch.special.ndtr(noise[1][:, 0]), z)
        return self.decode(z, context)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Negative ELBO with weighted KL of examples x (B, *E), value (B,) nats.

        In training mode each call counts as one step of the warm-up.
        """
        self.check(x, context)
        context = self.with_library(context, x)
        q = self.posterior_law(x, context)
        z = self._draws(q, 1, generator)[:, 0]
        return self.bound(q, z, -sum_event(self.decode(z, context).log_prob(x)))

    def bound(self, q: Independent, z: Tensor, reconstruction: Tensor) -> Loss:
        """Negative ELBO with weighted KL, of q, its draws z (B, D) and -ln p(x | z) (B,), nats."""
        if self.prior is None:
            each = kl_to_standard_normal(q)
            kl, counted = each.sum(1), free_bits(each, self.free_bits)
        else:
            kl = counted = self.divergence(q, z[:, None])
        beta = self.ramp(self.warmup) * self.beta
        value = reconstruction + beta * counted
        terms = {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        terms["elbo"] = -(terms["reconstruction"] + terms["kl"])
        terms["beta"] = torch.full_like(terms["kl"], beta)
        return Loss(value, terms)

    def divergence(self, q: Independent, z: Tensor) -> Tensor:
        """KL(q ‖ p), (B,) nats: in closed form, or the mean over draws z (B, K, D) of q."""
        if self.prior is None:
            return kl_to_standard_normal(q).sum(1)
        return -self._log_ratio(z, q).mean(1)

    @torch.no_grad()
    def elbo(
        self,
        x: Tensor,
        context: Context = None,
        *,
        draws: int = 16,
        generator: Generators | None = None,
    ) -> Density:
        """E_q ln p(x | z) - KL(q ‖ p), see `divergence`; (B,) nats with standard error."""
        self.check(x, context)
        context = self.with_library(context, x)
        q = self.posterior_law(x, context)
        z = self._draws(q, draws, generator)
        log_p = self.log_likelihood(x, z, context)
        value = log_p.mean(1) - self.divergence(q, z)
        stderr = log_p.std(1) / math.sqrt(draws) if draws > 1 else None
        return Density(value, "lower_bound", stderr)

    def log_weights(  # noqa: D102
        self, x: Tensor, context: Context, draws: int, generator: Generators | None
    ) -> Tensor:
        context = self.with_library(context, x)
        q = self.posterior_law(x, context)
        z = self._draws(q, draws, generator)
        return self.log_likelihood(x, z, context) + self._log_ratio(z, q)

    def _draws(self, q: Independent, draws: int, generator: Generators | None) -> Tensor:
        """Latents (B, draws, D) of q."""
        mean, scale = q.mean[:, None], q.stddev[:, None]
        shape = (len(mean), draws, self.latent_dim)
        return mean + scale * randn(shape, generator, device=mean.device, dtype=mean.dtype)

    def _log_ratio(self, z: Tensor, q: Independent) -> Tensor:
        """Log-ratio ln p(z) - ln q(z) of latents (B, K, D), (B, K)."""
        eps = (z - q.mean[:, None]) / q.stddev[:, None]
        spread = q.stddev.log().sum(1)[:, None]
        if self.prior is None:  # the constants cancel
            return 0.5 * (eps.square() - z.square()).sum(2) + spread
        log_p = self.prior.log_prob(z.flatten(0, 1)).reshape(z.shape[:2])
        return log_p + 0.5 * (eps.square() + math.log(2 * math.pi)).sum(2) + spread

    def log_likelihood(self, x: Tensor, z: Tensor, context: Context) -> Tensor:
        """Log-likelihood ln p(x | z) of latents (B, K, D), (B, K)."""
        k = z.shape[1]
        law = self.decode(z.flatten(0, 1), repeat_context(context, k))
        return sum_event(law.log_prob(repeat_rows(x, k))).reshape(-1, k)

    @torch.no_grad()
    def sample_posterior(
        self,
        x: Tensor,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        candidates: int = 1,
        generator: Generators | None = None,
    ) -> Tensor:
        """Latents given examples: draws of q, or nearer to p(z | x) by importance resampling.

        Args:
            x: (B, *E).
            shape: S, draws for each example.
            context: condition, batch B.
            candidates: draws of q from which one is kept in proportion to its importance weight;
                1 gives q itself, many the model's true posterior.
            generator: one stream, or one for each example (B of them).

        Returns:
            (*S, B, D).
        """
        self.check(x, context)
        context = self.with_library(context, x)
        q = self.posterior_law(x, context)
        draws = math.prod(shape)
        z = self._draws(q, draws * candidates, generator)
        if candidates > 1:
            log_w = self.log_likelihood(x, z, context) + self._log_ratio(z, q)
            share = log_w.reshape(len(x), draws, candidates).softmax(2).cumsum(2)
            u = rand((len(x), draws, 1), generator, device=z.device, dtype=z.dtype)
            chosen = (share < u * share[..., -1:]).sum(2, keepdim=True)[..., None]
            z = z.reshape(len(x), draws, candidates, -1)
            z = z.gather(2, chosen.expand(-1, -1, -1, self.latent_dim))[:, :, 0]
        return z.transpose(0, 1).reshape(*shape, len(x), self.latent_dim)


def kl_to_standard_normal(q: Independent) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) of each dimension, (B, D) nats."""
    mean, variance = q.mean, q.variance
    return 0.5 * (mean.square() + variance - 1 - variance.log())


def free_bits(kl: Tensor, free: float) -> Tensor:
    """KL (B, D) summed to (B,); dimensions whose batch mean is below `free` are held at it."""
    if not free:
        return kl.sum(1)
    return torch.where(kl.mean(0) > free, kl, torch.full_like(kl, free)).sum(1)
