r"""Continuous normalizing flows, trained by maximum likelihood through the solver.

    ln p(x) = ln N(x_1; 0, I) + ∫_0^1 tr(∂u/∂x)(x_t, t) dt,    dx/dt = u(x, t; context)

with t = 0 data and t = 1 noise, as everywhere here. To train the same model without solving,
see `core.flow_matching`.
References: Chen et al. (2018) arXiv:1806.07366; Grathwohl et al. (2019) arXiv:1810.01367.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from core.flows.base import Flow
from core.nets.conditions import Conditions
from core.transforms import ODE, Composition, Flatten
from core.transforms.ode import Gradient, Trace


class CNF(Flow):
    """The flow of a velocity network."""

    takes_net = True

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        trace: Trace | None = None,
        gradient: Gradient | None = None,
        solver: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Assemble.

        Args:
            net: (x (B, *E), t (B,), context) -> (B, *E); its attribute `conditions`, if it has
                one, says what context it takes; see `core.nets`.
            event_shape: E.
            context_shape: shape of the main context tensor of one example.
            trace: "exact", "hutchinson" or "hutch++", in training and by default in `log_prob`;
                None is exact up to 16 dimensions, then Hutchinson's.
            gradient: "checkpoint", "adjoint" or "direct", see `core.transforms.ode`; None is
                direct for vectors, which are small, and checkpointed for images.
            solver: options of `core.solvers.ode.odeint`: method, rtol, atol, steps, ...
            options: `levels` and `probes` of `Flow`.
        """
        chosen = trace or ("exact" if math.prod(event_shape) <= 16 else "hutchinson")
        way = gradient or ("direct" if len(event_shape) < 3 else "checkpoint")
        ode = ODE(net, trace=chosen, gradient=way, **(solver or {}))
        conditions = getattr(net, "conditions", None)
        super().__init__(
            Composition([ode, Flatten(event_shape)]),
            event_shape,
            context_shape,
            conditions=conditions if isinstance(conditions, Conditions) else None,
            **options,
        )
