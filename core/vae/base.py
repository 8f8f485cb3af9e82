r"""What all models with a latent space share: importance-weighted bounds from weighted draws.

    ln w = ln p(x | z) + ln p(z) - ln q(z | x),   z ~ q
    L_K  = E ln (1/K) Σ_k w_k  ≤  ln p(x),        L_1 = ELBO,  L_K ≤ L_{K+1}

References: Kingma and Welling (2014) arXiv:1312.6114; Burda et al. (2016) arXiv:1509.00519.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.checks import check_examples
from core.distributions import Gaussian, Law
from core.errors import AleatorError
from core.model import (
    Context,
    Density,
    GenerativeModel,
    context_batch,
    expand_context,
    map_context,
)
from core.random import Generators, randn
from core.vae.likelihoods import Likelihood, make_likelihood


class LatentModel(GenerativeModel):
    """Base class: a likelihood, checks of the input, and bounds from `log_weights`."""

    takes_net = False
    likelihood: Likelihood
    step: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None,
        likelihood: str | Mapping[str, Any] | Likelihood,
    ) -> None:
        """`likelihood`: a name, a mapping with options, or the module itself."""
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        self.likelihood = make_likelihood(likelihood, self.event_shape)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @property
    @abstractmethod
    def latent_sizes(self) -> tuple[int, ...]:
        """Lengths of z_1, z_2, ...: one for a plain VAE."""

    @abstractmethod
    def generate(self, context: Context, noise: Sequence[Tensor]) -> Law:
        """p(x | z) for z drawn from the prior with given noise, each (N, D_l)."""

    @property
    def noise_dim(self) -> int:
        """How many standard normal numbers make one example, where the likelihood is Gaussian."""
        return sum(self.latent_sizes) + math.prod(self.event_shape)

    def from_noise(self, u: Tensor, context: Context = None) -> Tensor:
        """Examples (N, *E) as a differentiable function of standard normal u (N, noise_dim).

        Raises:
            AleatorError: the likelihood is not Gaussian.
        """
        *latents, eps = u.split([*self.latent_sizes, math.prod(self.event_shape)], 1)
        law = self.generate(context, latents)
        if not isinstance(law, Gaussian):
            raise AleatorError(
                f"a {type(law).__name__} likelihood has no continuous noise; a posterior given an "
                "observation needs likelihood='gaussian'"
            )
        return law.mean + law.scale * eps.reshape(law.mean.shape)

    @abstractmethod
    def log_weights(
        self, x: Tensor, context: Context, draws: int, generator: Generators | None
    ) -> Tensor:
        """Log-weights ln w of `draws` draws from q, (B, draws) nats."""

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: str | None = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draw z from the prior, then x from p(x | z): (*S, B, *E), or (*S, *E) without context.

        Args:
            shape: S.
            context: condition, batch B; with a likelihood that shares a total, `library` in it.
            sampler: "data" (the default) draws x, "mean" returns the mean of p(x | z).
            guidance: none is known for this family.
            generator: one stream, or prod(S) · B of them, S-major.
        """
        check_sampler(sampler, guidance)
        rows, repeated, leading = self.layout(shape, context)
        like = self.new()
        noise = [
            randn((rows, d), generator, device=like.device, dtype=like.dtype)
            for d in self.latent_sizes
        ]
        x = draw(self.generate(repeated, noise), sampler, generator)
        return x.reshape(*leading, *self.event_shape)

    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        *,
        generator: Generators | None = None,
        kind: str = "lower_bound",
        draws: int = 64,
        chunk: int = 64,
    ) -> Density:
        """The importance-weighted bound L_K on ln p(x | context), in nats.

        Args:
            x: (B, *E).
            context: condition, batch B.
            generator: stream of the latent draws, or one for each example.
            kind: "lower_bound", the only kind that there is.
            draws: K; the bound tightens as it grows, and K = 1 is the ELBO.
            chunk: draws evaluated at once, which limits memory.

        Returns:
            the bound, with the standard error (delta method) that a finite K leaves.

        Raises:
            AleatorError: bad examples, or another kind.
        """
        if kind != "lower_bound":
            raise AleatorError(f"density kind {kind!r}; {type(self).__name__} has a lower_bound")
        if draws < 1 or chunk < 1:
            raise AleatorError(f"draws={draws}, chunk={chunk}: at least one is needed")
        self.check(x, context)
        with torch.no_grad():
            parts = [
                self.log_weights(x, context, min(chunk, draws - done), generator)
                for done in range(0, draws, chunk)
            ]
        return importance_bound(torch.cat(parts, 1))

    def check(self, x: Tensor, context: Context) -> None:
        """Raise AleatorError for examples that the model gives no probability."""
        check_examples(x, self.event_shape, context)
        self.likelihood.check(x)

    def library_of(self, context: Context, x: Tensor | None = None) -> Tensor | None:
        """The total of each example, (B,): from the context, or else that of x itself.

        Raises:
            AleatorError: there is none, or one is not positive.
        """
        if not self.likelihood.library:
            return None
        library = context.get("library") if isinstance(context, Mapping) else None
        if library is None:
            if x is None:
                raise AleatorError("counts need a total to share: give context['library'] (B,)")
            library = x.flatten(1).sum(1)
        if not ((library > 0) & library.isfinite()).all():
            row = int((~((library > 0) & library.isfinite())).nonzero()[0])
            raise AleatorError(
                f"library of example {row} is {library[row].item():g}; it must be positive: "
                "drop examples without counts"
            )
        return library

    def with_library(self, context: Context, x: Tensor) -> Context:
        """The context with the library of x in it, where the likelihood needs one."""
        library = self.library_of(context, x)
        if library is None:
            return context
        if isinstance(context, Tensor):
            kind = {4: "field", 2: "vector", 1: "label"}[context.dim()]
            return {kind: context, "library": library}
        return {**(context or {}), "library": library}

    def ramp(self, steps: int) -> float:
        """From 0 to 1 over so many calls in training mode; each call counts as one step."""
        fraction = min(1.0, int(self.step) / steps) if steps else 1.0
        if self.training:
            self.step += 1
        return fraction

    def layout(
        self, shape: Sequence[int], context: Context
    ) -> tuple[int, Context, tuple[int, ...]]:
        """Rows to draw, their contexts, and the leading shape of what `sample` returns."""
        batch, draws = context_batch(context), math.prod(shape)
        leading = (*shape, *(() if batch is None else (batch,)))
        return draws * (batch or 1), expand_context(context, draws), leading

    def new(self) -> Tensor:
        """An empty tensor of the weights' type and device."""
        return next(self.parameters(), torch.empty(())).new_empty(())


def importance_bound(log_w: Tensor) -> Density:
    """Log of the mean of w over draws (B, K): a bound in expectation, with standard error."""
    draws = log_w.shape[1]
    value = log_w.logsumexp(1) - math.log(draws)
    if draws == 1:
        return Density(value, "lower_bound")
    relative = (log_w - value[:, None]).exp()  # w / mean w
    return Density(value, "lower_bound", relative.std(1) / math.sqrt(draws))


def check_sampler(sampler: Any, guidance: Any) -> None:
    """Raise AleatorError for what `sample` of latent-variable models does not know."""
    if guidance is not None or sampler not in (None, "data", "mean"):
        raise AleatorError(
            f"sampler={sampler!r}, guidance={guidance!r}: latent-variable models know the "
            "samplers data and mean, and no guidance"
        )


def draw(law: Law, sampler: str | None, generator: Generators | None) -> Tensor:
    """A draw of p(x | z), or with "mean" its mean."""
    return law.mean if sampler == "mean" else law.sample(generator)


def sum_event(value: Tensor, leading: int = 1) -> Tensor:
    """Sum over all axes after the first `leading` ones."""
    return value.flatten(leading).sum(leading) if value.dim() > leading else value


def repeat_rows(tensor: Tensor, times: int) -> Tensor:
    """(B, ...) -> (B · times, ...), each row repeated in place."""
    return tensor.repeat_interleave(times, 0)


def repeat_context(context: Context, times: int) -> Context:
    """`repeat_rows` of every tensor of a context."""
    return map_context(context, lambda c: repeat_rows(c, times))


def make_net(
    net: nn.Module | Mapping[str, Any] | None,
    inside: Sequence[int],
    outside: Sequence[int],
) -> nn.Module:
    """An encoder or decoder from `inside` to `outside`: given, or built from its config.

    Raises:
        AleatorError: unknown network or option.
    """
    if isinstance(net, nn.Module):
        return net
    from core.registry import build_net

    return build_net({"name": "mlp", "out_shape": tuple(outside), **(net or {})}, tuple(inside))


def run_net(net: nn.Module, x: Tensor, context: Context) -> Tensor:
    """Evaluate a network that knows noise levels where there is none."""
    return net(x, x.new_zeros(len(x)), context)
