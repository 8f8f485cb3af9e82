r"""VAEs with levels of latents, z_1 next to the data and z_L at the top.

    bottom-up   q = q(z_1 | x) Π q(z_l | z_{l-1}),      p = p(z_L) Π p(z_l | z_{l+1}) p(x | z_1)
    top-down    q = Π q(z_l | z_{>l}, x),               p = Π p(z_l | z_{>l}) p(x | z)

The bottom-up chain with a fixed Gaussian encoder is a diffusion model, and its bound is that of
`core.elbo`. Top-down, prior and posterior share one deterministic path h through the levels, so
that the upper levels are used at all. References: Sønderby et al. (2016) arXiv:1602.02282;
Child (2021) arXiv:2011.10650; Kingma et al. (2021) arXiv:2107.00630.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.distributions import Gaussian, Law
from core.errors import AleatorError
from core.model import Context, Loss
from core.random import Generators, randn
from core.vae.base import (
    LatentModel,
    make_net,
    repeat_context,
    repeat_rows,
    run_net,
    sum_event,
)
from core.vae.likelihoods import Likelihood
from core.vae.vae import free_bits


@dataclass(frozen=True, eq=False)
class Pass:
    """One pass through all levels.

    Attributes:
        log_p: (N,) ln p(x | z).
        log_ratio: (N, L) ln q(z_l | ·) - ln p(z_l | ·) at the drawn latents.
        kl: (N, L) what the loss has in its place: the same expectation, and less variance where
            the divergence is a closed form.
        latents: z_1 ... z_L, each (N, D_l).
    """

    log_p: Tensor
    log_ratio: Tensor
    kl: Tensor
    latents: list[Tensor]


class HierarchicalVAE(LatentModel):
    """What both kinds share: loss, bound and options."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None,
        likelihood: str | Mapping[str, Any] | Likelihood,
        latent_dims: Sequence[int],
        beta: float,
        level_bits: float,
        warmup: int,
    ) -> None:
        """See the subclasses."""
        super().__init__(event_shape, context_shape, likelihood)
        if not latent_dims or min(latent_dims) < 1 or beta < 0 or level_bits < 0 or warmup < 0:
            raise AleatorError(
                f"hierarchical vae: latent_dims={list(latent_dims)}, beta={beta}, "
                f"level_bits={level_bits}, warmup={warmup}; positive dimensions and no negative "
                "weights are needed"
            )
        self.latent_dims = tuple(latent_dims)
        self.beta, self.level_bits, self.warmup = beta, level_bits, warmup

    @abstractmethod
    def forward(self, x: Tensor, context: Context, noise: Sequence[Tensor]) -> Pass:
        """Encode and decode x (N, *E) with given noise, z_1's first, each (N, D_l)."""

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Negative ELBO with weighted KL of examples x (B, *E), value (B,) nats.

        In training mode each call counts as one step of the warm-up.
        """
        self.check(x, context)
        noise = [n[:, 0] for n in self._noise(x, 1, generator)]
        done = self.forward(x, self.with_library(context, x), noise)
        beta = self.ramp(self.warmup) * self.beta
        value = -done.log_p + beta * free_bits(done.kl, self.level_bits)
        terms = {"reconstruction": -done.log_p.detach()}
        terms |= {f"kl_{i + 1}": kl for i, kl in enumerate(done.kl.detach().unbind(1))}
        return Loss(value, terms)

    def log_weights(  # noqa: D102
        self, x: Tensor, context: Context, draws: int, generator: Generators | None
    ) -> Tensor:
        noise = [n.flatten(0, 1) for n in self._noise(x, draws, generator)]
        repeated = repeat_context(self.with_library(context, x), draws)
        done = self.forward(repeat_rows(x, draws), repeated, noise)
        return (done.log_p - done.log_ratio.sum(1)).reshape(-1, draws)

    def _noise(self, x: Tensor, draws: int, generator: Generators | None) -> list[Tensor]:
        like = self.new()
        return [
            randn((len(x), draws, d), generator, device=like.device, dtype=like.dtype)
            for d in self.latent_dims
        ]

    @property
    def latent_sizes(self) -> tuple[int, ...]:
        """D_1 ... D_L."""
        return self.latent_dims


class BottomUpVAE(HierarchicalVAE):
    """Markov chains up and down."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        latent_dims: Sequence[int] = (16, 8),
        likelihood: str | Mapping[str, Any] | Likelihood = "gaussian",
        encoder: Mapping[str, Any] | Sequence[nn.Module] | None = None,
        decoder: Mapping[str, Any] | Sequence[nn.Module] | None = None,
        beta: float = 1.0,
        level_bits: float = 0.0,
        warmup: int = 0,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            latent_dims: D_1 ... D_L.
            likelihood: p(x | z_1).
            encoder: config of the networks z_{l-1} -> mean and log-variance of z_l (features of x
                for l = 1), or the L networks.
            decoder: config of the networks z_l -> p(x | z_1) and p(z_{l-1} | z_l), or all L.
            beta: weight of the divergences in the loss.
            level_bits: nats for each level below which its divergence is not reduced further.
            warmup: training steps over which β rises linearly from 0.

        Raises:
            AleatorError: an option out of range, an unknown likelihood or network.
        """
        super().__init__(
            event_shape, context_shape, likelihood, latent_dims, beta, level_bits, warmup
        )
        e, dims = self.event_shape, self.latent_dims
        inside = [tuple(e), *[(d,) for d in dims[:-1]]]
        outside = [(self.likelihood.outputs * e[0], *e[1:]), *[(2 * d,) for d in dims[:-1]]]
        up = [(a, (2 * d,)) for a, d in zip(inside, dims, strict=True)]
        down = [((d,), a) for d, a in zip(dims, outside, strict=True)]
        self.encoders, self.decoders = _networks(encoder, up), _networks(decoder, down)

    def forward(self, x: Tensor, context: Context, noise: Sequence[Tensor]) -> Pass:  # noqa: D102
        below, laws, latents = self.likelihood.features(x), [], []
        for encoder, eps in zip(self.encoders, noise, strict=True):
            laws.append(_gaussian(run_net(encoder, below, context)))
            below = laws[-1].mean + laws[-1].scale * eps
            latents.append(below)
        output = run_net(self.decoders[0], latents[0], context)
        law = self.likelihood(output, self.library_of(context))
        ratios = []
        for level, (q, z) in enumerate(zip(laws, latents, strict=True)):
            prior = self._prior(level, latents[level + 1 :], z, context)
            ratios.append(sum_event(q.log_prob(z) - prior.log_prob(z)))
        ratio = torch.stack(ratios, 1)
        return Pass(sum_event(law.log_prob(x)), ratio, ratio, latents)

    def _prior(self, level: int, above: list[Tensor], z: Tensor, context: Context) -> Gaussian:
        if not above:
            return Gaussian(torch.zeros_like(z), torch.ones_like(z))
        return _gaussian(run_net(self.decoders[level + 1], above[0], context))

    def generate(self, context: Context, noise: Sequence[Tensor]) -> Law:  # noqa: D102
        z = noise[-1]
        for level in range(len(self.latent_dims) - 1, 0, -1):
            prior = _gaussian(run_net(self.decoders[level], z, context))
            z = prior.mean + prior.scale * noise[level - 1]
        return self.likelihood(run_net(self.decoders[0], z, context), self.library_of(context))


class _Level(nn.Module):
    """One level of the shared path: prior(h), posterior(h, d), and what z does to h."""

    def __init__(self, width: int, dim: int, net: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.prior = make_net(net, (width,), (2 * dim,))
        self.posterior = make_net(net, (2 * width,), (2 * dim,))
        self.inject = nn.Linear(dim, width)
        self.mix = make_net(net, (width,), (width,))

    def after(self, h: Tensor, z: Tensor, context: Context) -> Tensor:
        h = h + self.inject(z)
        return h + run_net(self.mix, h, context)


class TopDownVAE(HierarchicalVAE):
    """The ladder: a deterministic path up, one shared path down."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        latent_dims: Sequence[int] = (16, 8),
        width: int = 128,
        likelihood: str | Mapping[str, Any] | Likelihood = "gaussian",
        encoder: nn.Module | Mapping[str, Any] | None = None,
        decoder: nn.Module | Mapping[str, Any] | None = None,
        level: Mapping[str, Any] | None = None,
        beta: float = 1.0,
        level_bits: float = 0.0,
        warmup: int = 0,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            latent_dims: D_1 ... D_L.
            width: features of the paths.
            likelihood: p(x | z).
            encoder: features of x -> d_1 (B, width); a module, or the config of a network.
            decoder: h below all levels (B, width) -> outputs of the likelihood.
            level: config of the networks inside the levels.
            beta: weight of the divergences in the loss.
            level_bits: nats for each level below which its divergence is not reduced further.
            warmup: training steps over which β rises linearly from 0.

        Raises:
            AleatorError: an option out of range, an unknown likelihood or network.
        """
        super().__init__(
            event_shape, context_shape, likelihood, latent_dims, beta, level_bits, warmup
        )
        e = self.event_shape
        self.encoder = make_net(encoder, e, (width,))
        self.decoder = make_net(decoder, (width,), (self.likelihood.outputs * e[0], *e[1:]))
        self.levels = nn.ModuleList(_Level(width, d, level) for d in self.latent_dims)
        self.up = nn.ModuleList(
            make_net(level, (width,), (width,)) for _ in range(len(self.latent_dims) - 1)
        )
        self.top = nn.Parameter(torch.zeros(width))
        for net in (self.encoder, self.decoder):
            _wake(net)

    def forward(self, x: Tensor, context: Context, noise: Sequence[Tensor]) -> Pass:  # noqa: D102
        features = [run_net(self.encoder, self.likelihood.features(x), context)]
        for net in self.up:
            features.append(features[-1] + run_net(net, features[-1], context))
        h = self.top.expand(len(x), -1)
        ratios, kls, latents = [], [], []
        for index in reversed(range(len(self.levels))):
            level: Any = self.levels[index]
            prior = _gaussian(run_net(level.prior, h, context))
            q = _gaussian(run_net(level.posterior, torch.cat([h, features[index]], 1), context))
            z = q.mean + q.scale * noise[index]
            ratios.append(sum_event(q.log_prob(z) - prior.log_prob(z)))
            kls.append(sum_event(_kl(q, prior)))
            latents.append(z)
            h = level.after(h, z, context)
        law = self.likelihood(run_net(self.decoder, h, context), self.library_of(context))
        ratio, kl = torch.stack(ratios[::-1], 1), torch.stack(kls[::-1], 1)
        return Pass(sum_event(law.log_prob(x)), ratio, kl, latents[::-1])

    def generate(self, context: Context, noise: Sequence[Tensor]) -> Law:  # noqa: D102
        h = self.top.expand(len(noise[0]), -1)
        for index in reversed(range(len(self.levels))):
            level: Any = self.levels[index]
            prior = _gaussian(run_net(level.prior, h, context))
            h = level.after(h, prior.mean + prior.scale * noise[index], context)
        return self.likelihood(run_net(self.decoder, h, context), self.library_of(context))


def _networks(
    given: Mapping[str, Any] | Sequence[nn.Module] | None, shapes: Sequence[tuple[Any, Any]]
) -> nn.ModuleList:
    if given is None or isinstance(given, Mapping):
        return nn.ModuleList(make_net(given, a, b) for a, b in shapes)
    if len(given) != len(shapes):
        raise AleatorError(f"{len(given)} networks for {len(shapes)} levels; one each is needed")
    return nn.ModuleList(given)


def _gaussian(output: Tensor) -> Gaussian:
    mean, log_variance = output.chunk(2, 1)
    return Gaussian(mean, (0.5 * log_variance.clamp(-30.0, 30.0)).exp())


def _kl(q: Gaussian, p: Gaussian) -> Tensor:
    ratio = (q.scale / p.scale).square()
    return 0.5 * (((q.mean - p.mean) / p.scale).square() + ratio - 1 - ratio.log())


def _wake(net: nn.Module) -> None:
    """Give a last layer that starts at zero small weights: two in a row would never learn."""
    last = getattr(net, "last", None)
    if isinstance(last, nn.Linear):
        nn.init.normal_(last.weight, std=0.1 / math.sqrt(last.in_features))
