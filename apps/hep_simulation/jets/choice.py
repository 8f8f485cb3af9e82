r"""P(class | context): was the jet found, how many fakes has the event.

    P(k | c) = softmax(f(c))_k,    f a small perceptron

A proper law, as the densities of what the chosen objects look like are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apps.hep_simulation.jets.density import Perceptron, choose
from core.errors import AleatorError
from core.model import Context, Density, GenerativeModel, Loss, context_batch, expand_context
from core.random import Generators, rand


class Choice(GenerativeModel):
    """One of several classes; events are whole numbers of shape ()."""

    takes_net = False

    def __init__(self, *, context_dim: int, classes: int, width: int = 32) -> None:
        """`classes` are numbered from 0."""
        super().__init__()
        self.event_shape, self.context_shape = torch.Size(()), torch.Size((context_dim,))
        self.classes = classes
        self.net = Perceptron(context_dim, width, classes)

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Start from the frequencies of training classes (N,)."""
        self.net.begin(x, self.classes)

    def shares(self, context: Tensor) -> Tensor:
        """Probabilities (K, B) given contexts (B, C)."""
        return self.net(context.T.contiguous()).softmax(0)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """-ln P(x | c), nats."""
        return Loss(-self.log_prob(x, context).value)

    def log_prob(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Density:
        """Exact ln P of classes x (B,)."""
        assert isinstance(context, Tensor)
        if ((x < 0) | (x >= self.classes)).any():
            raise AleatorError(f"classes must be in 0..{self.classes - 1}")
        log_share = self.net(context.T.contiguous()).log_softmax(0)
        return Density(log_share.gather(0, x.long()[None])[0], "exact")

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
        """Classes (*S, B)."""
        batch, draws = context_batch(context), math.prod(shape)
        if batch is None or sampler is not None or guidance is not None:
            raise AleatorError("a choice needs a context, and no sampler or guidance")
        expanded = expand_context(context, draws)
        assert isinstance(expanded, Tensor)
        return self.from_uniform(rand((draws * batch,), generator), expanded).reshape(
            *shape, batch
        )

    @torch.no_grad()
    def from_uniform(self, u: Tensor, context: Tensor) -> Tensor:
        """Classes (B,) from uniform numbers (B,)."""
        return choose(self.shares(context), u)
