r"""Monotone functions of one variable, and the simplest of them, y = x exp(s) + m.

A `Univariate` turns every element by a function of its own, whose parameters come from a network
(`Coupling`, `Autoregressive`) or are learned or predicted from the context (`Elementwise`). The
logarithm of the scale is bounded, s = a / (1 + |a| / s_max), so that no step explodes.
References: Dinh et al. (2017) arXiv:1605.08803; Papamakarios et al. (2017) arXiv:1705.07057.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.model import Context
from core.nets.conditions import Conditions
from core.transforms.base import Transform, check_channels


class Univariate(nn.Module, ABC):
    """A family of increasing functions.

    Attributes:
        size: parameters an element. Zeros should give (about) the identity.
    """

    size: int

    @abstractmethod
    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Y and ln dy/dx, each (B, ...), of x (B, ...) with parameters (size, B, ...)."""

    @abstractmethod
    def inverse(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """X and ln dx/dy, each (B, ...), of y (B, ...) with parameters (size, B, ...)."""


class Affine(Univariate):
    """y = x exp(s) + m."""

    size = 2

    def __init__(self, max_log_scale: float = math.log(1000.0)) -> None:
        """`max_log_scale`: the bound on |s|."""
        super().__init__()
        self.max_log_scale = max_log_scale

    def _parts(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = theta.unbind(0)
        return shift, raw / (1 + raw.abs() / self.max_log_scale)

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, then shift."""
        shift, log_scale = self._parts(theta)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale

    def inverse(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Shift back, then scale back."""
        shift, log_scale = self._parts(theta)
        return (y - shift) * (-log_scale).exp(), -log_scale


class Elementwise(Transform):
    """Every element by a function of its own, the same for all examples or given the context."""

    def __init__(
        self, univariate: Univariate, event_shape: Sequence[int], conditions: Conditions | None
    ) -> None:
        """Assemble.

        Args:
            univariate: the family of functions.
            event_shape: E.
            conditions: what the parameters depend on, linearly; None if on nothing.
        """
        super().__init__()
        self.univariate = univariate
        self.conditions = conditions or Conditions()
        self.event_shape = tuple(event_shape)
        count = math.prod(event_shape) * univariate.size
        self.theta = nn.Parameter(torch.zeros(univariate.size, *event_shape))
        self.linear = nn.Linear(self.conditions.size, count) if self.conditions.size else None

    def _theta(self, x: Tensor, context: Context) -> Tensor:
        check_channels(x, self.event_shape[0], "this elementwise transform")
        if self.linear is None:
            return self.theta[:, None].expand(-1, len(x), *self.event_shape)
        shift = self.linear(self.conditions.vector(context, x))
        shift = shift.reshape(len(x), *self.theta.shape).movedim(1, 0)
        return self.theta[:, None] + shift

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        y, log_slope = self.univariate(x, self._theta(x, context))
        return y, log_slope.flatten(1).sum(1)

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        x, log_slope = self.univariate.inverse(y, self._theta(y, context))
        return x, log_slope.flatten(1).sum(1)
