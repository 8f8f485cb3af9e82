r"""Continuous flows: the solution of dx/dt = u(x, t; context), from data t = 0 to noise t = 1.

    y = x + ∫_0^1 u dt,    ln|det dy/dx| = ∫_0^1 tr(∂u/∂x) dt

The trace is exact (D backward passes an evaluation), or estimated: Hutchinson's vᵀ J v, or
Hutch++, which takes the trace on the range of a few random products exactly and estimates only
what is orthogonal to it. Probes are fixed along a trajectory, so that every estimate is unbiased.

Gradients are those of the solver: with "checkpoint" an evaluation keeps only its state and is
repeated in the backward pass; "adjoint" keeps nothing and solves the adjoint equation back, to
the solver's tolerance; "direct" keeps all.
References: Chen et al. (2018) arXiv:1806.07366; Grathwohl et al. (2019) arXiv:1810.01367;
Meyer et al. (2021) arXiv:2010.09649 (Hutch++); Zhuang et al. (2020) arXiv:2006.02493.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from core.errors import AleatorError
from core.model import Context
from core.random import Generators, rand, randn
from core.solvers.adjoint import odeint_adjoint, recomputed
from core.solvers.ode import odeint
from core.transforms.base import Transform

Trace = Literal["exact", "hutchinson", "hutch++"]
Gradient = Literal["checkpoint", "adjoint", "direct"]
Divergence = Callable[[Tensor, Tensor, bool], Tensor]
"""(u, x, create_graph) -> (B, K)."""


class ODE(Transform):
    """The flow of a velocity network."""

    def __init__(
        self,
        net: nn.Module,
        *,
        trace: Trace = "exact",
        gradient: Gradient = "checkpoint",
        **solver: Any,
    ) -> None:
        """Assemble.

        Args:
            net: (x (B, *E), t (B,), context) -> (B, *E); smooth.
            trace: what `estimate` does: "exact", "hutchinson" or "hutch++".
            gradient: how gradients go through the solver.
            solver: options of `core.solvers.ode.odeint`; rtol = atol = 1e-5 by default.

        Raises:
            AleatorError: an unknown word.
        """
        super().__init__()
        for word, kind, what in ((trace, Trace, "trace"), (gradient, Gradient, "gradient")):
            if word not in get_args(kind):
                raise AleatorError(f"unknown {what} {word!r}; known: {', '.join(get_args(kind))}")
        self.net, self.trace, self.gradient = net, trace, gradient
        self.exact = trace == "exact"
        self.solver = {"rtol": 1e-5, "atol": 1e-5, **solver}

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise; the exact trace."""
        y, log_det = self._solve(x, context, 0.0, 1.0, exact_trace, 1)
        return y, log_det[:, 0]

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data; the exact trace."""
        x, log_det = self._solve(y, context, 1.0, 0.0, exact_trace, 1)
        return x, log_det[:, 0]

    def encode(self, x: Tensor, context: Context = None) -> Tensor:
        """Data to noise without any trace."""
        return self._solve(x, context, 0.0, 1.0, None, 0)[0]

    def invert(self, y: Tensor, context: Context = None) -> Tensor:
        """Noise to data without any trace."""
        return self._solve(y, context, 1.0, 0.0, None, 0)[0]

    def estimate(
        self,
        x: Tensor,
        context: Context = None,
        *,
        probes: int = 1,
        generator: Generators | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Data to noise, with estimates (probes, B); see `Transform.estimate`.

        The estimates of Hutch++ share one random subspace, of at most a third of D: given it
        they are independent, and each is unbiased.
        """
        if self.trace == "exact":
            y, log_det = self(x, context)
            return y, log_det[None]
        dims, options = math.prod(x.shape[1:]), {"device": x.device, "dtype": x.dtype}
        draw = rand((len(x), probes, dims), generator, **options)  # type: ignore[arg-type]
        signs = torch.where(draw < 0.5, -1.0, 1.0).to(x)
        sketch = None
        if self.trace == "hutch++":
            rank = min(max(probes // 2, 1), max(dims // 3, 1))
            sketch = randn((len(x), rank, dims), generator, **options)  # type: ignore[arg-type]
        y, log_det = self._solve(x, context, 0.0, 1.0, estimated_trace(signs, sketch), probes)
        return y, log_det.T

    def _solve(
        self,
        x: Tensor,
        context: Context,
        start: float,
        end: float,
        divergence: Divergence | None,
        columns: int,
    ) -> tuple[Tensor, Tensor]:
        shape, dims = x.shape, math.prod(x.shape[1:])

        def field(t: float, state: Tensor) -> Tensor:
            keep, at = torch.is_grad_enabled(), state.new_full((len(state),), t)
            if divergence is None:
                return self.net(state.reshape(shape), at, context).flatten(1)
            with torch.enable_grad():
                point = state[:, :dims].reshape(shape)
                if not (keep and point.requires_grad):
                    point = point.detach().requires_grad_()
                u = self.net(point, at, context)
                slope = torch.cat([u.flatten(1), divergence(u, point, keep)], 1)
            return slope if keep else slope.detach()

        state = torch.cat([x.flatten(1), x.new_zeros(len(x), columns)], 1)
        if not torch.is_grad_enabled() or self.gradient == "direct":
            state = odeint(field, state, start, end, **self.solver)
        else:
            leaves: list[Tensor] = [p for p in self.net.parameters() if p.requires_grad]
            leaves += [c for c in _tensors(context) if c.requires_grad]
            if self.gradient == "adjoint":
                state = odeint_adjoint(field, state, start, end, leaves, **self.solver)
            else:
                state = odeint(recomputed(field, leaves), state, start, end, **self.solver)
        return state[:, :dims].reshape(shape), state[:, dims:]


def exact_trace(u: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    """tr(∂u/∂x) of u (B, *E) at x (B, *E), (B, 1): one backward pass a dimension."""
    total = u.new_zeros(len(u))
    for i, column in enumerate(u.flatten(1).unbind(1)):
        (row,) = torch.autograd.grad(
            column.sum(), x, create_graph=create_graph, retain_graph=True, materialize_grads=True
        )
        total = total + row.flatten(1)[:, i]
    return total[:, None]


def estimated_trace(signs: Tensor, sketch: Tensor | None = None) -> Divergence:
    """An unbiased estimator of the trace.

    Args:
        signs: (B, K, D) random signs, a column of estimates each.
        sketch: (B, R, D) normal draws: Hutch++ on the subspace that they are mapped to; None for
            Hutchinson's estimator.
    """

    def products(u: Tensor, x: Tensor, vectors: Tensor, create_graph: bool) -> Tensor:
        """Jᵀ v of vectors (B, K, D), (B, K, D)."""
        found = [
            torch.autograd.grad(
                u,
                x,
                v.reshape(u.shape),
                create_graph=create_graph,
                retain_graph=True,
                materialize_grads=True,
            )[0].flatten(1)
            for v in vectors.unbind(1)
        ]
        return torch.stack(found, 1)

    def divergence(u: Tensor, x: Tensor, create_graph: bool) -> Tensor:
        if sketch is None:
            return (products(u, x, signs, create_graph) * signs).sum(2)
        # The subspace may depend on x: for any that does not depend on the signs the mean over
        # them is the trace, and so is its gradient with the subspace held fixed.
        image = products(u, x, sketch, False).detach().mT  # (B, D, R)
        basis = torch.linalg.qr(image).Q.mT
        rest = signs - (signs @ basis.mT) @ basis
        inside = (products(u, x, basis, create_graph) * basis).sum((1, 2))
        return inside[:, None] + (products(u, x, rest, create_graph) * rest).sum(2)

    return divergence


def _tensors(context: Context) -> list[Tensor]:
    if context is None:
        return []
    return [context] if isinstance(context, Tensor) else list(context.values())
