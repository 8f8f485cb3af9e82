r"""Gradients through an ODE in little memory.

`recomputed` makes a field that keeps its state only and is evaluated again in the backward pass:
the gradient is that of the numerical solution, to rounding. `odeint_adjoint` keeps the final
state only and solves

    da/dt = -(∂f/∂y)ᵀ a,    dg/dt = -(∂f/∂θ)ᵀ a

back in time along with y: the gradient is that of the exact solution, to the tolerance.
References: Chen et al. (2018) arXiv:1806.07366; Chen et al. (2016) arXiv:1604.06174.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.solvers.ode import Field, odeint


def recomputed(field: Field, leaves: Sequence[Tensor]) -> Field:
    """The same field, evaluated anew for its gradient.

    Args:
        field: the right-hand side.
        leaves: all tensors, besides the state, that gradients should reach.
    """
    return lambda t, y: _Recomputed.apply(field, t, y, *leaves)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: Field, t: float, y: Tensor, *leaves: Tensor) -> Tensor:
        ctx.field, ctx.t, ctx.leaves = field, t, leaves
        ctx.save_for_backward(y)
        with torch.no_grad():
            return field(t, y)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (y,) = ctx.saved_tensors
        _, found = _products(ctx.field, ctx.t, y, ctx.leaves, gradients[0])
        return None, None, *found


def odeint_adjoint(
    field: Field, y: Tensor, start: float, end: float, leaves: Sequence[Tensor], **solver: Any
) -> Tensor:
    """`core.solvers.ode.odeint` whose gradient is solved for.

    Args:
        field: the right-hand side.
        y: (B, W) initial state.
        start: initial time.
        end: final time.
        leaves: all tensors, besides the state, that gradients should reach.
        solver: options of `odeint`, there and back.

    Returns:
        (B, W) state at `end`.

    Raises:
        AleatorError: as `odeint`; in the backward pass too.
    """
    return _Adjoint.apply(field, y, start, end, solver, *leaves)


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        field: Field,
        y: Tensor,
        start: float,
        end: float,
        solver: dict[str, Any],
        *leaves: Tensor,
    ) -> Tensor:
        ctx.field, ctx.span, ctx.solver, ctx.leaves = field, (start, end), solver, leaves
        with torch.no_grad():
            y = odeint(field, y, start, end, **solver)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (y,) = ctx.saved_tensors
        batch, width = y.shape
        sizes = [leaf.numel() for leaf in ctx.leaves]
        # Rows of the state are examples (y, a), then the gradients of the leaves, cut to the same
        # width: the solver judges each row by itself, so that none hides behind another.
        rows = math.ceil(sum(sizes) / (2 * width))

        def augmented(t: float, state: Tensor) -> Tensor:
            point, a = state[:batch, :width], state[:batch, width:]
            slope, (along, *others) = _products(ctx.field, t, point, ctx.leaves, a)
            flat = [other.reshape(-1) for other in others]
            flat.append(state.new_zeros(rows * 2 * width - sum(sizes)))
            top = torch.cat([slope, -along], 1)
            return torch.cat([top, -torch.cat(flat).reshape(rows, 2 * width)])

        state = torch.cat([torch.cat([y, gradients[0]], 1), y.new_zeros(rows, 2 * width)])
        start, end = ctx.span
        with torch.no_grad():
            state = odeint(augmented, state, end, start, **ctx.solver)
        parts = state[batch:].reshape(-1)[: sum(sizes)].split(sizes)
        found = [part.reshape(leaf.shape) for part, leaf in zip(parts, ctx.leaves, strict=True)]
        return None, state[:batch, width:], None, None, None, *found


def _products(
    field: Field, t: float, y: Tensor, leaves: Sequence[Tensor], a: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """f(t, y), and aᵀ ∂f/∂y and aᵀ ∂f/∂leaf."""
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        slope = field(t, y)
        found = torch.autograd.grad(slope, [y, *leaves], a, materialize_grads=True)
    return slope.detach(), found
