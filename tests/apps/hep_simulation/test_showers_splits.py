"""The law of one split: it adds up to one, and draws follow it."""

import numpy as np
import pytest
import torch
from scipy import stats

from apps.hep_simulation import splits

THRESHOLD = 0.4


def _parameters(rows, seed=0):
    drawn = torch.randn(1, splits.width(), generator=torch.Generator().manual_seed(seed))
    drawn[:, -splits.COMPONENTS :] -= 1.5  # tails within the grid
    return drawn.double().expand(rows, -1)


def _grid(energy, count=20_000):
    """Shares of an energy, fine near both ends, and the widths that they stand for."""
    y = torch.linspace(-12, 12, count, dtype=torch.float64)
    excess, share = energy - 2 * THRESHOLD, torch.sigmoid(y)
    a, b = THRESHOLD + excess * share, THRESHOLD + excess * torch.sigmoid(-y)
    return a, b, excess * share * torch.sigmoid(-y) * (y[1] - y[0])


@pytest.mark.exact
@pytest.mark.parametrize("energy", [0.5, 3.0, 40.0])
def test_probabilities_and_density_add_up_to_one(energy):
    total = 0.0
    if energy >= 2 * THRESHOLD:
        a, b, width = _grid(energy)
        inside = splits.log_prob(_parameters(len(a)), a, b, THRESHOLD).exp()
        total = (inside * width).sum().item()
    ends = torch.tensor([energy, 0.0], dtype=torch.float64)
    whole = splits.log_prob(_parameters(2), ends, ends.flip(0), THRESHOLD).exp().sum().item()
    assert total + whole == pytest.approx(1.0, abs=1e-3)
    assert (whole == pytest.approx(1.0)) == (energy < 2 * THRESHOLD)


@pytest.mark.exact
def test_draws_follow_the_density():
    energy, count = 10.0, 40_000
    uniform = torch.rand(count, 2, generator=torch.Generator().manual_seed(1)).double()
    whole = torch.full((count,), energy, dtype=torch.float64)
    a, b = splits.draw(_parameters(count), whole, uniform, THRESHOLD)
    assert torch.allclose(a + b, whole)
    ends = torch.tensor([energy, 0.0], dtype=torch.float64)
    expected = splits.log_prob(_parameters(2), ends, ends.flip(0), THRESHOLD).exp()
    for found, p in (
        ((b == 0).double().mean(), expected[0]),
        ((a == 0).double().mean(), expected[1]),
    ):
        assert abs(found - p) < 4 * (p * (1 - p) / count).sqrt() + 1e-9
    inside = a[(a > 0) & (b > 0)]
    assert inside.min() >= THRESHOLD
    assert (energy - inside).min() >= THRESHOLD - 1e-12
    grid, other, width = _grid(energy)
    density = splits.log_prob(_parameters(len(grid)), grid, other, THRESHOLD).exp() * width
    cumulative = density.cumsum(0) / density.sum()
    law = lambda v: np.interp(v, grid.numpy(), cumulative.numpy())  # noqa: E731
    assert stats.kstest(inside.numpy(), law).pvalue > 1e-3


def test_gradients_are_finite_where_sharing_is_impossible():
    parameters = _parameters(3).clone().requires_grad_()
    a = torch.tensor([0.5, 0.0, 5.0], dtype=torch.float64)
    b = torch.tensor([0.0, 0.6, 0.4], dtype=torch.float64)
    splits.log_prob(parameters, a, b, THRESHOLD).sum().backward()
    assert torch.isfinite(parameters.grad).all()
