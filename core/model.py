r"""The one contract: every family of models is a `GenerativeModel`.

    loss(x, context)      -> Loss      what training minimises, per example
    sample(S, context)    -> Tensor    draws x ~ p(x | context)
    log_prob(x, context)  -> Density   ln p(x | context) in nats, and how far to trust it

Shapes are batch first, event last: `x` is (B, \*E); samples are (\*S, B, \*E). A context is a
tensor, or a mapping with any of the keys `field` (B, C, H, W), `vector` (B, D) and `label` (B,);
models of counts know `library` (B,), too, the total that the means are shares of.
Time runs from t = 0 (data) to t = 1 (noise).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from core.errors import Unsupported
from core.random import Generators

Context = Tensor | Mapping[str, Tensor] | None
DensityKind = Literal["exact", "unbiased", "lower_bound", "estimate"]


@dataclass(frozen=True)
class Loss:
    """A per-example objective and the named parts that it is made of.

    Attributes:
        value: (B,) what is minimised, averaged over the batch by the training loop.
        terms: name -> (B,) parts for the log; they need not sum to `value`.
    """

    value: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    def mean(self) -> Tensor:
        """The scalar that is back-propagated."""
        return self.value.mean()


@dataclass(frozen=True)
class Density:
    """A log-density in nats that says what it is.

    Attributes:
        value: (B,) ln p(x | context), an unbiased estimate of it, or a lower bound on it.
        kind: "exact" (up to the solver's tolerance), "unbiased", "lower_bound", or "estimate"
            (consistent, but neither a bound nor unbiased).
        stderr: (B,) standard error of a Monte-Carlo `value`; None where nothing is random.
    """

    value: Tensor
    kind: DensityKind
    stderr: Tensor | None = None

    def bits_per_dim(self, event_shape: Sequence[int]) -> Tensor:
        """-value / (D ln 2), shape (B,): the unit used for images."""
        return -self.value / (math.prod(event_shape) * math.log(2.0))


class GenerativeModel(nn.Module, ABC):
    """Base class of all families.

    Attributes:
        event_shape: E, the shape of one example.
        context_shape: shape of one example's context field or vector, None if unconditional.
    """

    event_shape: torch.Size
    context_shape: torch.Size | None
    takes_net: ClassVar[bool] = True
    """Whether the first argument is the network that the config calls `net`."""
    unsupported: ClassVar[Mapping[str, str]] = {}
    """Verbs that a family has not although its parents do, and what to use instead."""

    def __getattr__(self, name: str) -> Any:
        """Say what to use instead of a verb that is not there."""
        if name in ("denoise", "encode"):
            raise Unsupported(unsupported(type(self), name))
        return super().__getattr__(name)

    @abstractmethod
    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Training objective of examples x (B, *E)."""

    @abstractmethod
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: Any = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draw samples.

        Args:
            shape: S, how many draws for each context.
            context: condition of batch size B (B = 1 and dropped if there is none).
            sampler: how to draw (a name or a sampler object); each family has a default.
            guidance: how to strengthen the condition, e.g. `core.guidance.ClassifierFree`.
            generator: one stream, or prod(S) * B of them, S-major.

        Returns:
            (*S, B, *E), or (*S, *E) without context.
        """

    def log_prob(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Density:
        """Log-density ln p(x | context) of examples (B, *E), in nats."""
        raise Unsupported(unsupported(type(self), "log_prob"))


INSTEAD = {
    "log_prob": "diffusion, flow matching, flows, VAEs and energy models have a density",
    "denoise": "diffusion, flow matching and consistency models denoise",
    "encode": "VAEs and latent models encode",
    "posterior": "diffusion, flow matching, flows, VAEs and energy models have a posterior",
}


def unsupported(family: type[GenerativeModel], verb: str) -> str:
    """The message of a verb that a family does not have."""
    instead = family.unsupported.get(verb, INSTEAD[verb])
    return f"{family.__name__} has no {verb}: {instead}"


@runtime_checkable
class Denoises(Protocol):
    """Models that can say what clean example a noisy one comes from."""

    def denoise(self, x_t: Tensor, t: Tensor, context: Context = None) -> Any:
        """The posterior of x_0 given x_t (B, *E) at times t (B,): a `core.denoiser.Posterior`."""


@runtime_checkable
class Encodes(Protocol):
    """Models with a latent space."""

    def encode(self, x: Tensor, context: Context = None) -> torch.distributions.Distribution:
        """q(z | x, context)."""


def context_batch(context: Context) -> int | None:
    """Batch size of a context; None if there is none."""
    if context is None:
        return None
    tensor = context if isinstance(context, Tensor) else next(iter(context.values()))
    return tensor.shape[0]


def map_context(context: Context, function: Any) -> Context:
    """Apply `function` to every tensor of a context."""
    if context is None:
        return None
    if isinstance(context, Tensor):
        return function(context)
    return {name: function(tensor) for name, tensor in context.items()}


def expand_context(context: Context, draws: int) -> Context:
    """Repeat a context of batch B to (draws * B), draw-major, as `sample` lays out its batch."""
    return map_context(context, lambda c: c.repeat(draws, *[1] * (c.dim() - 1)))
