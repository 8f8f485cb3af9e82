"""ODE integrators against closed forms and torchdiffeq."""

import math

import pytest
import torch
from torchdiffeq import odeint as reference

from core.errors import AleatorError
from core.solvers.ode import odeint

A = torch.tensor([[-0.3, 1.0], [-1.0, -0.1]], dtype=torch.float64)
Y = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.exact
@pytest.mark.parametrize("span", [(0.0, 3.0), (3.0, 0.0)])
def test_linear_system_is_the_matrix_exponential(span):
    y = odeint(lambda t, y: y @ A.T, Y, *span, rtol=1e-9, atol=1e-9)
    exact = Y @ torch.linalg.matrix_exp(A * (span[1] - span[0])).T
    torch.testing.assert_close(y, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.exact
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_fixed_methods_have_their_order(method, order):
    def error(steps):
        y = odeint(lambda t, y: math.cos(t) * y, Y, 0.0, 2.0, method=method, steps=steps)
        return (y - Y * math.exp(math.sin(2.0))).abs().max().item()

    assert math.log2(error(32) / error(64)) == pytest.approx(order, abs=0.2)


def test_dopri5_agrees_with_torchdiffeq():
    def field(t, y):
        return torch.sin(y * 3) - 0.5 * y + (math.sin(t) if isinstance(t, float) else torch.sin(t))

    ours = odeint(field, Y, 0.0, 4.0, rtol=1e-8, atol=1e-8)
    theirs = reference(field, Y, torch.tensor([0.0, 4.0]).double(), rtol=1e-8, atol=1e-8)[-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_tolerance_holds_for_the_worst_example():
    """One stiff example among many easy ones is still solved to tolerance."""
    rates = torch.full((100, 1), -0.01, dtype=torch.float64)
    rates[7] = -60.0
    y = odeint(lambda t, y: rates * y, torch.ones_like(rates), 0.0, 1.0, rtol=1e-6, atol=1e-8)
    assert (y - rates.exp()).abs().max() < 1e-5


def test_out_of_reach_is_said():
    with pytest.raises(AleatorError, match="cannot reach"):
        odeint(lambda t, y: y**2, torch.ones(1, 1), 0.0, 2.0)  # blows up at t = 1
    # and so it is where every step is good, but there are too many
    with pytest.raises(AleatorError, match=r"at t=0\.\d+ \(\d+ evaluations\)"):
        odeint(lambda t, y: 0 * y + math.cos(1e4 * t), Y, 0.0, 1.0, max_evaluations=500)
    with pytest.raises(AleatorError, match="unknown ODE method"):
        odeint(lambda t, y: y, Y, 0.0, 1.0, method="rk5")
