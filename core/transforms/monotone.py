r"""Unconstrained monotone networks: y = ∫_0^x f(t; h) dt + b with a positive network f.

The integral is a Gauss–Legendre sum on [0, x]; f is smooth, so that it converges exponentially
in the number of nodes and dy/dx = f(x; h) holds to rounding. The inverse is bracketed, then
found by Newton steps that fall back on bisection.
Reference: Wehenkel and Louppe (2019) arXiv:1908.05164.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.transforms.affine import Univariate

_SMALLEST = 1e-3
"""Smallest slope."""


class Monotone(Univariate):
    """A monotone network shared by all features; each has its own embedding h and offset b."""

    nodes: Tensor
    weights: Tensor

    def __init__(
        self, embedding: int = 8, width: int = 32, nodes: int = 24, max_steps: int = 200
    ) -> None:
        """Assemble.

        Args:
            embedding: length of h.
            width: hidden units of f.
            nodes: of the quadrature.
            max_steps: of the inverse, before it gives up.
        """
        super().__init__()
        self.size, self.max_steps = embedding + 1, max_steps
        self.first = nn.Linear(1 + embedding, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, 1)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
            self.last.bias.fill_(math.log(math.expm1(1 - _SMALLEST)))
        dtype = torch.get_default_dtype()
        for name, values in zip(("nodes", "weights"), _gauss(nodes), strict=True):
            self.register_buffer(name, values.to(dtype), persistent=False)

    def _apply(self, fn: object, recurse: bool = True) -> Monotone:
        """Take the nodes anew when the precision changes: rounded ones would stay rounded."""
        super()._apply(fn, recurse)
        nodes, weights = _gauss(len(self.nodes))
        self.nodes, self.weights = nodes.to(self.nodes), weights.to(self.weights)
        return self

    def slope(self, t: Tensor, h: Tensor) -> Tensor:
        """f(t; h) > 0 of t (...) and h (..., embedding)."""
        weight = self.first.weight
        hidden = torch.tanh(
            t[..., None] * weight[:, 0] + F.linear(h, weight[:, 1:], self.first.bias)
        )
        hidden = torch.tanh(self.second(hidden))
        return F.softplus(self.last(hidden)[..., 0]) + _SMALLEST

    def _value(self, x: Tensor, h: Tensor, offset: Tensor) -> Tensor:
        t = x[..., None] * self.nodes
        return x * (self.slope(t, h[..., None, :]) * self.weights).sum(-1) + offset

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        h, offset = theta[1:].movedim(0, -1), theta[0]
        return self._value(x, h, offset), self.slope(x, h).log()

    def inverse(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Noise to data.

        Raises:
            AleatorError: no convergence.
        """
        h, offset = theta[1:].movedim(0, -1), theta[0]
        with torch.no_grad():
            x = self._solve(y, h, offset)
        slope = self.slope(x, h)
        if torch.is_grad_enabled():  # one Newton step carries the gradient of the inverse
            x = x + (y - self._value(x, h, offset)) / slope.detach()
            slope = self.slope(x, h)
        return x, -slope.log()

    def _solve(self, y: Tensor, h: Tensor, offset: Tensor) -> Tensor:
        # |y - offset| >= _SMALLEST |x|, so that the root lies within +-|y - offset| / _SMALLEST.
        reach = 1 + (y - offset).abs()
        low, high = -reach, reach.clone()
        tolerance = 8 * torch.finfo(y.dtype).eps * (1 + y.abs())
        for _ in range(self.max_steps):
            outside_low = self._value(low, h, offset) > y
            outside_high = self._value(high, h, offset) < y
            if not (outside_low | outside_high).any():
                break
            low = torch.where(outside_low, 2 * low, low)
            high = torch.where(outside_high, 2 * high, high)
        x = (y - offset).clamp(low, high)
        for _ in range(self.max_steps):
            error = self._value(x, h, offset) - y
            done = (error.abs() <= tolerance) | (high - low <= tolerance)
            if done.all():
                return x
            low, high = torch.where(error < 0, x, low), torch.where(error > 0, x, high)
            newton = x - error / self.slope(x, h)
            middle = (low + high) / 2
            step = torch.where((newton > low) & (newton < high), newton, middle)
            x = torch.where(done, x, step)
        raise AleatorError(
            f"the inverse of a monotone network did not converge in {self.max_steps} steps; "
            "raise max_steps or use float64"
        )


def _gauss(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss–Legendre quadrature on [0, 1], in double precision."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return torch.as_tensor(points + 1) / 2, torch.as_tensor(weights) / 2
