"""The network of sets: a density, whatever its weights, and the same in any order."""

import pytest
import torch

from apps.hep_simulation.inference.network import SetPosterior
from core.errors import AleatorError


@pytest.fixture
def network():
    """Two parameters, three observables, weights far from those at birth."""
    torch.manual_seed(0)
    found = SetPosterior((2,), features=3, width=16, learned=4, hidden=8, layers=2, most=20)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in found.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return found.eval()


def sets(batch, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    events = torch.randn(batch, n, 3, generator=generator)
    return {"events": events, "mask": torch.ones(batch, n, dtype=torch.bool)}


def probit_grid(size=400):
    """Points of the box that are dense at its edges, and their weights in an integral."""
    t = torch.linspace(-6, 6, size, dtype=torch.float64)
    density = (-0.5 * t.square()).exp() / (2 * torch.pi) ** 0.5 * (t[1] - t[0])
    grid = torch.cartesian_prod(torch.special.ndtr(t), torch.special.ndtr(t))
    return grid, torch.outer(density, density).flatten()


@pytest.mark.exact
@pytest.mark.parametrize("n", [1, 5, 60])
def test_it_integrates_to_one_for_any_number_of_events(network, n):
    network.set_temper(torch.tensor([1, 20]), torch.tensor([0.2, -0.1]))
    grid, weight = probit_grid()
    law = network.law(sets(1, n))
    expanded = {name: value.expand(len(grid), *value.shape[1:]) for name, value in law.items()}
    with torch.no_grad():
        density = network.log_prob_given(grid, expanded).exp()
    assert (weight @ density).item() == pytest.approx(1, abs=5e-3)


def test_order_of_events_and_padding_do_not_matter(network):
    context, u = sets(4, 10), torch.full((4, 2), 0.3, dtype=torch.float64)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    turned = {"events": context["events"][:, order], "mask": context["mask"]}
    padded = {
        "events": torch.cat([context["events"], torch.full((4, 3, 3), 9.0)], 1),
        "mask": torch.cat([context["mask"], torch.zeros(4, 3, dtype=torch.bool)], 1),
    }
    value = network.log_prob(u, context).value
    assert torch.allclose(network.log_prob(u, turned).value, value, atol=1e-4)
    assert torch.allclose(network.log_prob(u, padded).value, value, atol=1e-4)


def test_samples_follow_the_density(network):
    context = sets(1, 6)
    u = network.sample((4000,), context, generator=torch.Generator().manual_seed(0))[:, 0]
    grid, weight = probit_grid()
    law = network.law(context)

    def at(v):
        return network.log_prob_given(
            v, {k: t.expand(len(v), *t.shape[1:]) for k, t in law.items()}
        )

    with torch.no_grad():
        log_p, drawn = at(grid), at(u)
    share = weight * log_p.exp()
    expected = (share @ log_p).item()
    assert drawn.mean().item() == pytest.approx(expected, abs=0.06)
    assert u.mean(0).tolist() == pytest.approx((share @ grid).tolist(), abs=0.02)


def test_closed_form_start_is_the_linear_gaussian_posterior():
    """Without training: the precision grows by the Fisher information of each event."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    u = torch.rand(2000, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(2000, 30, 3, generator=generator, dtype=torch.float64)
    events = (u @ slope)[:, None] - 0.5 + 0.8 * noise
    network = SetPosterior((2,), features=3, layers=0, most=30).eval()
    network.begin(u, events.float())
    law = network.law({"events": events[:5].float(), "mask": torch.ones(5, 30, dtype=torch.bool)})
    covariance = law["scale_tril"] @ law["scale_tril"].mT
    expected = torch.linalg.inv(30 * slope @ slope.T / 0.64)
    assert torch.allclose(covariance[0], expected.to(covariance), atol=0.2 * expected.max())


def test_mistakes_are_named(network):
    with pytest.raises(AleatorError, match="outside the prior"):
        network.log_prob(torch.tensor([[0.5, 1.0]]), sets(1, 3))
    with pytest.raises(AleatorError, match=r"\(B, N, 3\)"):
        network.law({"events": torch.zeros(1, 4, 2), "mask": torch.ones(1, 4, dtype=torch.bool)})
    with pytest.raises(AleatorError, match="without events"):
        network.law({"events": torch.zeros(1, 4, 3), "mask": torch.zeros(1, 4, dtype=torch.bool)})
