"""Observation operators: what they see, and transposes that are transposes."""

import pytest
import torch
from torch.nn import functional as F

from core.errors import AleatorError
from core.operators import AveragePool, Blur, Function, Linear, Mask, Operator, as_operator
from core.random import keyed_generator

F64 = torch.float64


def images(n=2, seed=0):
    return torch.randn(n, 2, 6, 8, generator=keyed_generator(seed), dtype=F64)


MASK = torch.rand(2, 6, 8, generator=keyed_generator(5)) < 0.3
OPERATORS = {
    "mask": Mask(MASK),
    "pool": AveragePool(2),
    "blur": Blur.gaussian(0.8),
    "linear": Linear(torch.randn(5, 96, generator=keyed_generator(6), dtype=F64)),
    "function": Function(lambda x: x.flatten(1).cumsum(1)[:, ::7].sin()),
}


@pytest.mark.exact
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_adjoint_and_tangent_are_one_derivative(name):
    """V · (A' u) = (A'ᵀ v) · u, and A' is what finite differences say."""
    operator, x, u = OPERATORS[name], images(), images(seed=1)
    seen = operator(x)
    v = torch.randn(seen.shape, generator=keyed_generator(2), dtype=F64)
    along = operator.tangent(x, u)
    left, right = (v * along).sum(), (operator.adjoint(x, v) * u).sum()
    torch.testing.assert_close(left, right)
    h = 1e-5
    finite = (operator(x + h * u) - operator(x - h * u)) / (2 * h)
    torch.testing.assert_close(along, finite, rtol=1e-7, atol=1e-7)
    if operator.linear:
        torch.testing.assert_close(operator(2 * x + u), 2 * seen + operator(u))


@pytest.mark.exact
def test_operators_see_what_they_say():
    x = images()
    torch.testing.assert_close(Mask(MASK)(x)[1], x[1][MASK])
    torch.testing.assert_close(AveragePool(2)(x)[0, 1, 2, 3], x[0, 1, 4:6, 6:8].mean())
    kernel = torch.zeros(3, 5, dtype=F64)
    kernel[0, 4] = 1.0
    shifted = Blur(kernel)(x)
    torch.testing.assert_close(shifted[:, :, 1:, :-2], x[:, :, :-1, 2:])
    torch.testing.assert_close(Blur.gaussian(1.5)(torch.ones_like(x)), torch.ones_like(x))
    matrix = OPERATORS["linear"].matrix
    torch.testing.assert_close(Linear(matrix)(x), F.linear(x.flatten(1), matrix))


def test_masks_matrices_and_functions_become_operators():
    assert isinstance(as_operator(MASK), Mask)
    assert isinstance(as_operator(torch.ones(2, 3)), Linear)
    assert not as_operator(torch.sin).linear
    given = AveragePool(2)
    assert as_operator(given) is given
    assert isinstance(given, Operator)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mask(torch.zeros(3, dtype=torch.bool)), "at least one element"),
        (lambda: Mask(torch.ones(3)), "bool"),
        (lambda: Mask(MASK)(torch.zeros(2, 3)), r"mask of shape \(2, 6, 8\) for events of \(3,\)"),
        (lambda: AveragePool(0), "factor=0"),
        (lambda: AveragePool(4)(images()), "sides divisible by 4"),
        (lambda: Blur(torch.ones(2, 3)), "two odd sides"),
        (lambda: Blur.gaussian(0.0), r"scale=0\.0"),
        (lambda: Blur.gaussian(1.0)(torch.zeros(2, 3)), r"images \(N, C, H, W\)"),
        (lambda: Linear(torch.ones(3)), r"a matrix, not \(3,\)"),
        (lambda: Linear(torch.ones(2, 3))(torch.zeros(1, 4)), "3 columns for events of 4"),
        (lambda: as_operator("mask"), "str is no operator"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(AleatorError, match=message):
        make()
