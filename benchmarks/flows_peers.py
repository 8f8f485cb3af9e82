"""The libraries that `flows.py` compares with: the same layers, hidden units and bins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LAYERS, HIDDEN, BINS = 5, 64, 8


def zuko_flow(dims: int) -> tuple[nn.Module, Any, Any]:
    import zuko

    flow = zuko.flows.NSF(dims, transforms=LAYERS, hidden_features=(HIDDEN, HIDDEN), bins=BINS)
    return flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,))


def nflows_flow(dims: int) -> tuple[nn.Module, Any, Any]:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import MLP
    from nflows.transforms import (
        CompositeTransform,
        PiecewiseRationalQuadraticCouplingTransform,
        ReversePermutation,
    )

    class Net(MLP):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__([inputs], [outputs], [HIDDEN, HIDDEN])

        def forward(self, inputs: Tensor, context: Any = None) -> Tensor:
            return super().forward(inputs)

    mask = torch.arange(dims) >= dims // 2
    parts: list[Any] = []
    for _ in range(LAYERS):
        parts += [
            PiecewiseRationalQuadraticCouplingTransform(
                mask.int(), Net, num_bins=BINS, tails="linear", tail_bound=5.0
            ),
            ReversePermutation(dims),
        ]
    flow = Flow(CompositeTransform(parts), StandardNormal([dims]))
    return flow, flow.log_prob, flow.sample


def normflows_flow(dims: int) -> tuple[nn.Module, Any, Any]:
    import normflows

    parts = []
    for _ in range(LAYERS):
        parts += [
            normflows.flows.CoupledRationalQuadraticSpline(
                dims, 2, HIDDEN, num_bins=BINS, tail_bound=5.0
            ),
            normflows.flows.LULinearPermute(dims),
        ]
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(dims), parts)
    return flow, flow.log_prob, lambda n: flow.sample(n)[0]


def peers() -> dict[str, str]:
    """Versions of the libraries compared with."""
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("zuko", "nflows", "normflows")}
