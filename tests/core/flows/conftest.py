"""Small flows with random weights in double precision."""

import pytest
import torch
from torch import nn

from core.flows import CNF, MAF, NSF, Glow, RealNVP, ResidualFlow
from core.nets.conditions import Conditions

SMALL = {"hidden": (8, 8), "layers": 2}
CONTEXT = {"vector_dim": 2, "classes": 3}


class Velocity(nn.Module):
    """A smooth field."""

    def __init__(self, dims, vector_dim=0, classes=0):
        super().__init__()
        self.conditions = Conditions(vector_dim, classes)
        self.first = nn.Linear(dims + 1 + self.conditions.size, 8)
        self.last = nn.Linear(8, dims)

    def forward(self, x, t, context=None):
        vector = self.conditions.vector(context, x)
        parts = [x, t[:, None]] + ([] if vector is None else [vector])
        return self.last(torch.tanh(self.first(torch.cat(parts, 1))))


def cnf(shape, **context):
    options = {"trace": "exact", "solver": {"rtol": 1e-10, "atol": 1e-10}}
    return CNF(Velocity(shape[0], **context), shape, **options)


def residual(shape, **options):
    return ResidualFlow(shape, layers=2, width=8, tolerance=1e-12, **options)


# name -> how to make it, given an event shape and a context
VECTOR_FLOWS = {
    "real_nvp": lambda shape, **c: RealNVP(shape, **SMALL, **c),
    "maf": lambda shape, **c: MAF(shape, **SMALL, **c),
    "umnn": lambda shape, **c: MAF(shape, univariate="monotone", hidden=(8,), layers=1, **c),
    "nsf": lambda shape, **c: NSF(shape, bins=5, bound=3.0, **SMALL, **c),
    "nsf coupling": lambda shape, **c: NSF(
        shape, bins=5, bound=3.0, autoregressive=False, **SMALL, **c
    ),
    "residual": residual,
    "dense": lambda shape, **c: residual(shape, dense=True, **c),
    "cnf": cnf,
}
IMAGE_FLOWS = {
    "glow": lambda **c: Glow((1, 4, 4), scales=2, steps=2, width=6, **c),
    "residual image": lambda **c: residual((1, 4, 4), squeezes=1, **c),
    "dense image": lambda **c: residual((1, 4, 4), dense=True, **c),
}
FLOWS = {name: (make, (3,)) for name, make in VECTOR_FLOWS.items()} | {
    name: (lambda _, make=make, **c: make(**c), (1, 4, 4)) for name, make in IMAGE_FLOWS.items()
}


def shaken(flow, size=0.3, seed=0):
    """Random weights, so that nothing is the identity."""
    generator = torch.Generator().manual_seed(seed)
    flow = flow.double()
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise)
    return flow.eval()


@pytest.fixture
def context():
    """Of four examples."""
    generator = torch.Generator().manual_seed(3)
    return {
        "vector": torch.randn(4, 2, generator=generator, dtype=torch.float64),
        "label": torch.arange(4) % 3,
    }


@pytest.fixture(name="shaken")
def shaken_():
    """The function that shakes."""
    return shaken


@pytest.fixture(params=FLOWS)
def flow(request):
    """Every flow, with a context."""
    torch.manual_seed(0)
    make, shape = FLOWS[request.param]
    return shaken(make(shape, **CONTEXT), size=0.3 if len(shape) == 1 else 0.1)


@pytest.fixture(params=VECTOR_FLOWS)
def plane(request):
    """Every flow of vectors, in two dimensions, without context."""
    torch.manual_seed(1)
    return shaken(VECTOR_FLOWS[request.param]((2,)), size=0.2, seed=1)
