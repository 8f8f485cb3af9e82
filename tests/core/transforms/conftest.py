"""Transforms with random weights in double precision, and the context that they are given."""

import pytest
import torch
from torch import nn

from core.nets.conditions import Conditions
from core.nets.lipschitz import LipschitzNet
from core.transforms import (
    ODE,
    ActNorm,
    Affine,
    Autoregressive,
    Composition,
    Coupling,
    CouplingConv,
    CouplingMLP,
    Elementwise,
    Flatten,
    Inverse,
    Monotone,
    Permutation,
    PLUConvolution,
    RationalQuadratic,
    Residual,
    Split,
    Squeeze,
)

BATCH = 4
VECTOR = Conditions(vector_dim=2, classes=3)
IMAGE = Conditions(vector_dim=2, classes=3, field_channels=1)
HIDDEN = (12, 10)


def coupling(univariate, features):
    outputs = (features - features // 2) * univariate.size
    return Coupling(univariate, CouplingMLP(features // 2, outputs, VECTOR, HIDDEN), features)


def image_coupling(channels):
    kept = channels // 2
    net = CouplingConv(kept, 2 * (channels - kept), IMAGE, width=6)
    return Coupling(Affine(), net, channels)


class Velocity(nn.Module):
    """A smooth field, so that the tests can ask for many digits."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4 + VECTOR.size, 8), nn.Linear(8, 3)

    def forward(self, x, t, context):
        return self.last(
            torch.tanh(self.first(torch.cat([x, t[:, None], VECTOR.vector(context, x)], 1)))
        )


def ode():
    return ODE(Velocity(), rtol=1e-11, atol=1e-11)


def residual(shape, conditions, **options):
    return Residual(LipschitzNet(shape, conditions, width=8, **options), tolerance=1e-13)


# name -> (event shape, context that it takes, how to make it)
MAKE = {
    "affine": ((3,), "vector", lambda: Elementwise(Affine(), (3,), VECTOR)),
    "affine image": ((2, 4, 4), "vector", lambda: Elementwise(Affine(), (2, 4, 4), VECTOR)),
    "spline": ((3,), "vector", lambda: Elementwise(RationalQuadratic(5, 2.0), (3,), VECTOR)),
    "monotone": ((3,), "vector", lambda: Elementwise(Monotone(4, 12), (3,), VECTOR)),
    "affine coupling": ((5,), "vector", lambda: coupling(Affine(), 5)),
    "spline coupling": ((5,), "vector", lambda: coupling(RationalQuadratic(5, 2.0), 5)),
    "autoregressive affine": ((4,), "vector", lambda: Autoregressive(Affine(), 4, VECTOR, HIDDEN)),
    "autoregressive spline": (
        (4,),
        "vector",
        lambda: Autoregressive(RationalQuadratic(5, 2.0), 4, VECTOR, HIDDEN),
    ),
    "autoregressive monotone": (
        (3,),
        "vector",
        lambda: Autoregressive(Monotone(4, 12), 3, VECTOR, HIDDEN),
    ),
    "one feature": ((1,), "vector", lambda: Autoregressive(Affine(), 1, VECTOR, HIDDEN)),
    "inverse": ((3,), "vector", lambda: Inverse(Autoregressive(Affine(), 3, VECTOR, HIDDEN))),
    "permutation": ((5,), None, lambda: Permutation.random(5, 1)),
    "convolution of vectors": ((5,), None, lambda: PLUConvolution(5)),
    "convolution": ((3, 2, 3), None, lambda: PLUConvolution(3)),
    "actnorm": ((3, 2, 2), None, lambda: ActNorm(3)),
    "squeeze": ((2, 4, 2), None, lambda: Squeeze()),
    "image coupling": ((3, 3, 2), "image", lambda: image_coupling(3)),
    "split": ((4, 2, 3), "image", lambda: Split((4, 2, 3), image_coupling(4), Flatten((2, 2, 3)))),
    "residual": ((3,), "vector", lambda: residual((3,), VECTOR)),
    "residual image": ((2, 3, 3), "image", lambda: residual((2, 3, 3), IMAGE)),
    "dense residual": ((3,), "vector", lambda: residual((3,), VECTOR, dense=True)),
    "dense residual image": ((2, 3, 3), "image", lambda: residual((2, 3, 3), IMAGE, dense=True)),
    "ode": ((3,), "vector", lambda: ode()),
    "composition": (
        (4,),
        "vector",
        lambda: Composition(
            [
                Autoregressive(Affine(), 4, VECTOR, HIDDEN),
                Permutation.reverse(4),
                coupling(Affine(), 4),
            ]
        ),
    ),
}


def shaken(module, seed=0, size=0.3):
    """Random weights, so that nothing is the identity."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise)
    return module.eval()


def context_of(kind, batch=BATCH, seed=5):
    if kind is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    parts = {
        "vector": torch.randn(batch, 2, generator=generator, dtype=torch.float64),
        "label": torch.arange(batch) % 4 - 1,
    }
    if kind == "image":
        parts["field"] = torch.randn(batch, 1, 4, 4, generator=generator, dtype=torch.float64)
    return parts


@pytest.fixture(params=MAKE)
def case(request):
    """(transform, x, context)."""
    shape, kind, make = MAKE[request.param]
    torch.manual_seed(0)
    transform = shaken(make())
    generator = torch.Generator().manual_seed(1)
    x = 1.3 * torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
    return transform, x, context_of(kind)
