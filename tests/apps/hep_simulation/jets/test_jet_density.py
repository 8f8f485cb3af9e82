"""The mixed density: masses sum to one, densities integrate to one, draws follow them."""

import numpy as np
import pytest
import torch
from scipy import stats

from apps.hep_simulation.jets import features
from apps.hep_simulation.jets.choice import Choice
from apps.hep_simulation.jets.density import MixedDensity
from core.errors import AleatorError


@pytest.fixture
def density():
    """Two patterns, one value each of which the second pattern fixes, far from birth."""
    torch.manual_seed(3)
    model = MixedDensity(
        (3,), context_dim=2, active=[[1], [0]], least=[2, 1], needs_two=(), width=16, mixtures=3
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    return model.double().eval().requires_grad_(False)


@pytest.mark.exact
@pytest.mark.parametrize("context", [[0.0, 0.0], [1.5, -2.0]])
def test_total_mass_is_one(density, context):
    n = torch.arange(1, 200_001, dtype=torch.float64)
    c, total = torch.tensor([context], dtype=torch.float64), 0.0
    for pattern, least in ((0, 2), (1, 1)):
        counts = n[n >= least]
        rows = torch.stack([torch.full_like(counts, pattern), counts, 0 * counts], 1)
        mass = density._parts(rows, c.expand(len(rows), 2))
        total += (mass["pattern"] + mass["count"]).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-3)
    v = torch.linspace(-60, 60, 24001, dtype=torch.float64)
    for count in (2, 17):
        rows = torch.stack([0 * v, torch.full_like(v, count), v], 1)
        p = density._parts(rows, c.expand(len(v), 2))["values"].exp()
        assert torch.trapezoid(p, v).item() == pytest.approx(1, abs=1e-4)
        whole = density.log_prob(rows, c.expand(len(v), 2)).value.exp()
        parts = density._parts(rows[:1], c)
        mass = (parts["pattern"] + parts["count"]).exp().item()
        assert torch.trapezoid(whole, v).item() == pytest.approx(mass, rel=1e-4)


def test_draws_follow_the_density(density):
    c = torch.zeros(40000, 2, dtype=torch.float64)
    x = density.sample((), c, generator=torch.Generator().manual_seed(0))
    row = torch.zeros(1, 2, dtype=torch.float64)
    for k, n in ((0, 5), (0, 12), (1, 1), (1, 9)):
        parts = density._parts(torch.tensor([[k, n, 0.0]], dtype=torch.float64), row)
        expected = (parts["pattern"] + parts["count"]).exp().item()
        share = ((x[:, 0] == k) & (x[:, 1] == n)).double().mean().item()
        assert share == pytest.approx(expected, abs=4 * (expected / 40000) ** 0.5 + 1e-4)
    common = x[(x[:, 0] == 0) & (x[:, 1] == x[x[:, 0] == 0, 1].median())]
    v = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    rows = torch.stack([torch.zeros_like(v), torch.full_like(v, common[0, 1]), v], 1)
    p = density._parts(rows, row.expand(len(v), 2))["values"].exp().detach()
    cdf = torch.cumulative_trapezoid(p, v)
    found = np.interp(common[:, 2], v[1:], cdf)
    assert stats.kstest(found, "uniform").pvalue > 0.001
    assert (x[x[:, 0] == 1, 2] == 0).all()


def test_draws_are_functions_of_their_uniform_numbers(density):
    u = torch.rand(50, density.uniforms, generator=torch.Generator().manual_seed(1))
    c = torch.randn(50, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = density.from_uniform(u, c)
    assert torch.allclose(density.from_uniform(u[7:9], c[7:9]), whole[7:9])


def test_mistakes_are_named(density):
    c = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(AleatorError, match="no fewer than the pattern needs"):
        density.log_prob(torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), c)
    with pytest.raises(AleatorError, match=r"patterns must be in 0\.\.1"):
        density.log_prob(torch.tensor([[2.0, 3.0, 0.0]], dtype=torch.float64), c)
    with pytest.raises(AleatorError, match=r"context \(B, 2\)"):
        density.log_prob(torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float64), c[:, :1])


@pytest.mark.exact
def test_choice_is_a_law():
    torch.manual_seed(0)
    choice, c = Choice(context_dim=2, classes=4), torch.randn(3, 2)
    masses = [choice.log_prob(torch.full((3,), k), c).value.exp() for k in range(4)]
    assert torch.allclose(sum(masses), torch.ones(3), atol=1e-6)
    drawn = choice.sample((20000,), c[:1], generator=torch.Generator().manual_seed(0))
    assert (drawn == 2).double().mean().item() == pytest.approx(masses[2][0].item(), abs=0.015)


def test_fractions_sum_to_one_and_zeros_are_zeros():
    """Encode and decode are inverse, for every pattern of zeros."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([1, 1, 1, 1], 600)
    shares *= rng.random((600, 4)) < 0.6
    shares = shares[shares.sum(1) > 0]
    shares /= shares.sum(1, keepdims=True)
    reco = dict(zip(features.COMPONENTS, shares.T[:3], strict=True))
    reco["nConstituents"] = 1 + (shares > 0).sum(1) + rng.poisson(3, len(shares))
    kinematics = rng.normal(size=(len(shares), 4))
    rows, free = features.encode(kinematics, reco)
    again, shape = features.decode(rows)
    for i, name in enumerate(features.COMPONENTS):
        assert np.allclose(shape[name], shares[:, i], atol=1e-5)
        assert ((shape[name] == 0) == (shares[:, i] == 0)).all()
    total = sum(shape[name] for name in features.COMPONENTS)
    assert np.allclose(total[shares[:, 3] == 0], 1, atol=1e-12)
    assert (shape["nConstituents"] == reco["nConstituents"]).all()
    assert np.array_equal(again, kinematics)
    assert free[:, :4].all()


def test_impossible_fractions_are_refused():
    reco = {"chHEF": np.array([0.9]), "neEmEF": np.array([0.4]), "neHEF": np.array([0.0])}
    with pytest.raises(AleatorError, match=r"jet 0: energy fractions 0\.9, 0\.4, 0"):
        features.shares(reco)
