"""Flows whose noise is a mixture of Gaussians, found by expectation-maximisation."""

import pytest
import torch

from core.errors import AleatorError
from core.flows import MAF, NSF, RealNVP


@pytest.mark.exact
@pytest.mark.parametrize("family", [MAF, NSF, RealNVP])
def test_a_flow_at_the_identity_is_the_mixture_and_integrates_when_it_is_not(family, clusters):
    torch.manual_seed(0)
    flow = family((2,), layers=2, hidden=(8,), linear=True, components=3).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in flow.transform.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.2 * noise)
    flow.fit_noise(clusters)
    axis = torch.linspace(-9, 9, 451, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        total = flow.log_prob(x).value.exp().sum() * (axis[1] - axis[0]) ** 2
        assert abs(total - 1) < 2e-4
        for parameter in flow.transform.parameters():
            parameter.zero_()  # the linear layer becomes a permutation of scale 1
        flow.fit_noise(clusters)
        z = flow.encode(clusters)
        torch.testing.assert_close(flow.log_prob(clusters).value, flow.noise.log_prob(z))
    flow.loss(clusters).mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in flow.noise.parameters())


def test_mistakes_are_named():
    flow = NSF((2,), components=3)
    with pytest.raises(AleatorError, match="call fit_noise first"):
        flow.log_prob(torch.zeros(1, 2))
    with pytest.raises(AleatorError, match="call fit_noise first"):
        flow.sample((3,))
    with pytest.raises(AleatorError, match="2 rows are too few for 3 components"):
        flow.fit_noise(torch.zeros(2, 2))
    with pytest.raises(AleatorError, match="not finite"):
        flow.fit_noise(torch.full((9, 2), torch.nan))
    with pytest.raises(AleatorError, match="build it with components"):
        NSF((2,)).fit_noise(torch.zeros(9, 2))
    with pytest.raises(AleatorError, match="components=-1"):
        NSF((2,), components=-1)
    with pytest.raises(AleatorError, match="components='two'"):
        NSF((2,), components="two")
