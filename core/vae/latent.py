r"""Latent diffusion and latent flow matching: a prior learned in a VAE's latent space.

    p(x | c) = ∫ p(x | z, c) p(z | c) dz,     p(z | c): any family, over standardised latents
    loss     = VAE(x) + prior(z),  z ~ q(z | x, c) without gradient

The autoencoder is shaped by its own loss alone (a small β keeps the latents informative and of
unit order), the prior by the latents that it happens to have: two trainings in one. Given a
trained autoencoder and `train="prior"`, it is the usual second stage. The bound

    ln p(x | c) ≥ E_q [ln p(x | z, c) + ln p(z | c) - ln q(z | x, c)]

holds for every prior with a density. References: Rombach et al. (2022) arXiv:2112.10752; Vahdat
et al. (2021) arXiv:2106.05931; Chen et al. (2017) arXiv:1611.02731 (flow priors).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Independent

from core.errors import AleatorError
from core.model import Context, Density, GenerativeModel, Loss
from core.random import Generators, randn
from core.vae.base import draw, importance_bound, repeat_context
from core.vae.vae import VAE


class LearnedPrior(GenerativeModel):
    """A VAE whose prior is a model of its own; subclasses say of which family by default."""

    takes_net = False
    family: ClassVar[str]
    mean: Tensor
    scale: Tensor
    seen: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        autoencoder: VAE | Mapping[str, Any] | None = None,
        prior: GenerativeModel | Mapping[str, Any] | None = None,
        latent_shape: Sequence[int] | None = None,
        train: Literal["both", "prior"] = "both",
        output: Literal["data", "mean"] = "data",
        momentum: float = 0.02,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            autoencoder: a VAE, or its config without family and event_shape; by default β = 0.1.
            prior: a model of latents, or its config: {"family": ..., "net": {...}, ...}; the
                family is this class's where it is not given.
            latent_shape: how a latent (D,) is laid out for the prior, e.g. (c, h, w) for a U-Net;
                (D,) by default.
            train: the prior with the autoencoder, or the prior alone.
            output: `sample` draws x from p(x | z), or returns its mean.
            momentum: of the running mean and scale by which latents are standardised.

        Raises:
            AleatorError: an option out of range, or a prior of another shape.
        """
        super().__init__()
        from core.registry import build

        if train not in ("both", "prior") or output not in ("data", "mean"):
            raise AleatorError(
                f"train={train!r}, output={output!r}; known: both or prior, data or mean"
            )
        if not 0 < momentum <= 1:
            raise AleatorError(f"momentum={momentum}: it must be in (0, 1]")
        self.event_shape = torch.Size(event_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        if not isinstance(autoencoder, VAE):
            config = {"beta": 0.1, **(autoencoder or {})}
            built = build({**config, "family": "vae", "event_shape": self.event_shape})
            assert isinstance(built, VAE)
            autoencoder = built
        self.autoencoder = autoencoder
        latent = tuple(latent_shape or (autoencoder.latent_dim,))
        if math.prod(latent) != autoencoder.latent_dim:
            raise AleatorError(
                f"latent_shape={list(latent)} does not hold the {autoencoder.latent_dim} latent "
                "dimensions of the autoencoder"
            )
        if not isinstance(prior, GenerativeModel):
            prior = build({"family": self.family, **(prior or {}), "event_shape": latent})
        if tuple(prior.event_shape) != latent:
            raise AleatorError(
                f"a prior over {list(prior.event_shape)} for latents of shape {list(latent)}"
            )
        self.prior, self.latent_shape = prior, latent
        self.train_both, self.output, self.momentum = train == "both", output, momentum
        if not self.train_both:
            self.autoencoder.requires_grad_(False)
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Losses of autoencoder (nats) and prior (its own unit) of examples x (B, *E), (B,)."""
        vae = self.autoencoder
        vae.check(x, context)
        known = vae.with_library(context, x)
        shaped = vae.loss(x, context, generator=generator) if self.train_both else None
        with torch.no_grad():
            q = vae.posterior_law(x, known)
            eps = randn(q.mean.shape, generator, device=x.device, dtype=q.mean.dtype)
            z = (q.mean + q.stddev * eps).reshape(len(x), *self.latent_shape)
            if self.training:
                self._follow(z)
        fitted = self.prior.loss(self._standardised(z), context, generator=generator)
        terms = {f"prior_{name}": term for name, term in fitted.terms.items()}
        terms["prior"] = fitted.value.detach()
        if shaped is None:
            return Loss(fitted.value, terms)
        terms |= {f"vae_{name}": term for name, term in shaped.terms.items()}
        return Loss(shaped.value + fitted.value, terms)

    def _follow(self, z: Tensor) -> None:
        """Move mean and scale towards those of a batch; the first batches count equally."""
        self.seen += 1
        rate = max(self.momentum, 1 / int(self.seen))
        self.mean.lerp_(z.mean(0).to(self.mean), rate)
        second = (z - self.mean).square().mean()
        variance = second if int(self.seen) == 1 else self.scale.square().lerp(second, rate)
        self.scale.copy_(variance.clamp(min=1e-12).sqrt())

    def _standardised(self, z: Tensor) -> Tensor:
        return (z - self.mean) / self.scale

    def encode(self, x: Tensor, context: Context = None) -> Independent:
        """q(z | x, context) of examples (B, *E): a diagonal Gaussian over (D,)."""
        return self.autoencoder.encode(x, context)

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: Any = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draw z from the prior, then x: (*S, B, *E), or (*S, *E) without context.

        Args:
            shape: S.
            context: condition, batch B, of prior and decoder.
            sampler: of the prior.
            guidance: of the prior.
            generator: one stream, or prod(S) · B of them, S-major.
        """
        vae = self.autoencoder
        rows, repeated, leading = vae.layout(shape, context)
        options = {"sampler": sampler, "guidance": guidance, "generator": generator}
        latents = self.prior.sample(shape, context, **options).reshape(rows, *self.latent_shape)
        z = (self.mean + self.scale * latents).flatten(1)
        x = draw(vae.decode(z, repeated), "mean" if self.output == "mean" else None, generator)
        return x.reshape(*leading, *self.event_shape)

    @torch.no_grad()
    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        *,
        generator: Generators | None = None,
        draws: int = 8,
        **options: Any,
    ) -> Density:
        """A lower bound on ln p(x | context), (B,) nats with standard error.

        Importance-weighted (see `core.vae.base`) where the prior's density is exact; an average
        of single-draw bounds where that is itself an estimate, whose logarithm of a mean would
        bound nothing.

        Args:
            x: (B, *E).
            context: condition, batch B.
            generator: stream of the latent draws, or one for each example.
            draws: of z, for each example.
            options: of the prior's `log_prob`.

        Raises:
            AleatorError: bad examples, or a prior without a density or bound.
        """
        if draws < 1:
            raise AleatorError(f"draws={draws}: at least one is needed")
        vae = self.autoencoder
        vae.check(x, context)
        known = vae.with_library(context, x)
        q = vae.posterior_law(x, known)
        shape = (len(x), draws, vae.latent_dim)
        eps = randn(shape, generator, device=x.device, dtype=q.mean.dtype)
        z = q.mean[:, None] + q.stddev[:, None] * eps
        # ln q from eps: no cancellation where the posterior is narrow
        log_q = -0.5 * eps.square().sum(2) - q.stddev.log().sum(1)[:, None]
        log_q = log_q - 0.5 * vae.latent_dim * math.log(2 * math.pi)
        density, stacked = self._prior_density(z, context, generator, options)
        log_w = vae.log_likelihood(x, z, known) + stacked - log_q
        if density.kind == "exact":
            return importance_bound(log_w)
        if density.kind == "estimate":
            raise AleatorError(
                f"the prior {type(self.prior).__name__} only estimates its density: no bound on "
                "ln p(x) follows; use diffusion, flow matching or a flow as prior"
            )
        stderr = log_w.std(1) / math.sqrt(draws) if draws > 1 else None
        return Density(log_w.mean(1), "lower_bound", stderr)

    def _prior_density(
        self, z: Tensor, context: Context, generator: Generators | None, options: dict[str, Any]
    ) -> tuple[Density, Tensor]:
        """The prior's density as it labels it, and ln p(z | c) of z (B, K, D), (B, K)."""
        batch, draws = z.shape[:2]
        flat = self._standardised(z.reshape(batch * draws, *self.latent_shape))
        if generator is not None and not isinstance(generator, torch.Generator):
            generator = [g for g in generator for _ in range(draws)]  # each goes on in its stream
        repeated = repeat_context(context, draws)
        density = self.prior.log_prob(flat, repeated, generator=generator, **options)
        value = density.value - flat[0].numel() * self.scale.log()
        return density, value.reshape(batch, draws)


class LatentDiffusion(LearnedPrior):
    """Diffusion over the latents of a VAE."""

    family = "diffusion"


class LatentFlowMatching(LearnedPrior):
    """Flow matching over the latents of a VAE."""

    family = "flow_matching"
