"""Bounded data onto the line, and integers whose bits do not change by it."""

import math

import pytest
import torch

from core.errors import AleatorError
from core.flows import RealNVP
from core.random import keyed_generator
from core.transforms import Logit


@pytest.mark.exact
def test_logit_is_that_of_torch_and_integrates():
    """The logistic law is what a logit makes of a uniform one."""
    x = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)[:, None]
    y, log_det = Logit(0.01)(x)
    torch.testing.assert_close(y, torch.logit(0.01 + 0.98 * (x + 0.5)))
    back, log_det_back = Logit(0.01).inverse(y)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-12)
    line = torch.linspace(-40, 40, 8001, dtype=torch.float64)[:, None]
    total = Logit(0.01).inverse(line)[1].exp().sum() * 0.01
    assert abs(total - 1 / 0.98) < 1e-9  # of an interval that is a little longer than 1


def test_logit_refuses_what_is_outside():
    with pytest.raises(AleatorError, match=r"data in \[-1/2, 1/2\]; got 0..0.6"):
        Logit()(torch.tensor([[0.0], [0.6]]))
    for alpha in (0.0, 0.5, -1.0):
        with pytest.raises(AleatorError, match="in \\(0, 1/2\\)"):
            Logit(alpha)
    with pytest.raises(AleatorError, match="logit is for integers"):
        RealNVP((2,), logit=1e-6)


@pytest.mark.exact
def test_probabilities_of_integers_sum_to_one_through_logit_and_standardisation():
    """By quadrature in a cell, P(x) of all integers; samples stay in their range."""
    torch.manual_seed(0)
    flow = RealNVP((2,), levels=3, hidden=(8,), layers=2, logit=1e-3, standardised=True).double()
    rows = torch.randint(0, 3, (64, 2), generator=keyed_generator(0)).double()
    flow.train().loss(rows, generator=keyed_generator(1))
    flow.eval()
    axis = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500 - 0.5
    inside = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        z, log_det = flow.transform(inside)
        density = -0.5 * z.square().sum(1) - math.log(2 * math.pi) + log_det
    total = density.exp().mean()  # of the unit square
    assert 0.98 < total < 1 + 1e-6
    bound = flow.log_prob(
        torch.cartesian_prod(torch.arange(3), torch.arange(3)),
        generator=keyed_generator(2), probes=400,
    )  # fmt: skip
    assert bound.value.exp().sum() < total
    assert bound.value.exp().sum() > 0.5
    drawn = flow.sample((500,), generator=keyed_generator(3))
    assert drawn.unique().tolist() == [0, 1, 2]


@pytest.mark.exact
def test_the_first_batch_is_standardised_element_by_element():
    flow = RealNVP((3,), levels=9, layers=1, logit=1e-6, standardised=True)
    for parameter in flow.parameters():
        torch.nn.init.zeros_(parameter)
    rows = torch.randint(0, 9, (500, 3), generator=keyed_generator(0)).float()
    flow.train().loss(rows, generator=keyed_generator(1))
    z = flow.encode(flow.dequantised(rows, keyed_generator(1)))
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(z.std(0), torch.ones(3), rtol=0, atol=2e-3)
