"""Energy models: gradients of the likelihood, scores recovered, Z known, streams, errors."""

import math

import pytest
import torch
from torch import nn

from core import build
from core.energy import EnergyModel, divergence
from core.errors import AleatorError
from core.random import keyed_generator

COVARIANCE = torch.tensor([[0.8, 0.5], [0.5, 0.9]], dtype=torch.float64)
BASE = 3.0


class Quadratic(nn.Module):
    """f = ½ (x - m)ᵀ A (x - m) - |x|²/2s²: the energy is a Gaussian's, with precision A."""

    def __init__(self, precision, mean) -> None:
        super().__init__()
        self.A = nn.Parameter(precision.clone())
        self.m = nn.Parameter(mean.clone())

    def forward(self, x, level, context=None):
        d = x - self.m
        quadratic = 0.5 * torch.einsum("ni,ij,nj->n", d, 0.5 * (self.A + self.A.T), d)
        return (quadratic - 0.5 * x.square().sum(1) / BASE**2)[:, None]


class Quartic(nn.Module):
    """f = a x⁴ - b x², one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.6, 1.1], dtype=torch.float64))

    def forward(self, x, level, context=None):
        shift = 0.0 if context is None else 0.7 * context["vector"]
        return self.w[0] * x**4 - self.w[1] * x**2 + shift * x


def gaussian_data(n, seed=0):
    z = torch.randn(n, 2, generator=keyed_generator(seed), dtype=torch.float64)
    return z @ torch.linalg.cholesky(COVARIANCE).T + 0.3


def quadratic(training, **options):
    start = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    return EnergyModel(
        (2,), energy=Quadratic(*start), base_scale=BASE, training=training, **options
    )


def grid_log_z(model, context=None):
    x = torch.linspace(-8, 8, 40001, dtype=torch.float64)[:, None]
    repeated = None if context is None else {"vector": context.expand(len(x), 1)}
    return (-model.energy(x, repeated)).logsumexp(0) + math.log(16 / 40000)


@pytest.mark.exact
def test_contrastive_gradient_is_that_of_the_exact_likelihood():
    """With exact model samples (a grid's weights) E⁺ - E⁻ has the gradient of -ln p, to 1e-6."""
    model = EnergyModel((1,), energy=Quartic(), base_scale=BASE)
    x = torch.randn(50, 1, generator=keyed_generator(1), dtype=torch.float64)
    weights = model.net.w
    nll = model.energy(x).mean() + grid_log_z(model)
    (exact,) = torch.autograd.grad(nll, weights)
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64)[:, None]
    energies = model.energy(grid)
    probability = (-energies).softmax(0).detach()
    (found,) = torch.autograd.grad(model.energy(x).mean() - probability @ energies, weights)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


@pytest.mark.exact
def test_long_chains_give_the_likelihoods_gradient():
    """The loss itself, its chains run to equilibrium, within four standard errors."""
    model = EnergyModel(
        (1,), energy=Quartic(), base_scale=1.0, chain_steps=200, chain_step=0.05, replay_size=0
    )
    x = torch.randn(1, 1, generator=keyed_generator(1), dtype=torch.float64).expand(4000, 1)
    (exact,) = torch.autograd.grad(model.energy(x).mean() + grid_log_z(model), model.net.w)
    loss = model.loss(x, generator=keyed_generator(2)).value.reshape(40, -1).mean(1)
    rows = torch.stack([torch.autograd.grad(v, model.net.w, retain_graph=True)[0] for v in loss])
    stderr = rows.std(0) / math.sqrt(40)
    assert ((rows.mean(0) - exact).abs() < 4 * stderr).all()


@pytest.mark.exact
def test_annealed_log_density_is_quadratures():
    model = EnergyModel((1,), energy=Quartic(), base_scale=BASE)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    found = model.log_prob(x, chains=400, temperatures=60, generator=keyed_generator(3))
    exact = -model.energy(x) - grid_log_z(model)
    assert found.kind == "estimate"
    assert ((found.value - exact).abs() < 3 * found.stderr).all()
    assert (found.stderr < 0.1).all()
    context = {"vector": torch.tensor([[0.0], [1.0]], dtype=torch.float64)}
    pair = model.log_prob(
        x[:2], context, chains=400, temperatures=60, generator=keyed_generator(4)
    )
    log_z = torch.stack([grid_log_z(model, c) for c in context["vector"]])
    exact = -model.energy(x[:2], context) - log_z
    assert ((pair.value - exact).abs() < 3 * pair.stderr).all()


@pytest.mark.exact
@pytest.mark.parametrize("training", ["explicit", "sliced", "denoising"])
def test_score_matching_recovers_precision_and_mean(training):
    """The minimiser is the sample's own precision; of the noised law where noise is added."""
    x = gaussian_data(4000)
    noise = 0.3
    model = quadratic(training, noise=noise)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = model.loss(x, generator=keyed_generator(5)).mean()
        value.backward()
        return value

    optimiser.step(closure)
    covariance = torch.cov(x.T, correction=0)
    if training == "denoising":
        covariance = covariance + noise**2 * torch.eye(2).double()
    found = 0.5 * (model.net.A + model.net.A.T)
    tolerance = 1e-4 if training == "explicit" else 0.12
    torch.testing.assert_close(found, torch.linalg.inv(covariance), rtol=0, atol=tolerance)
    torch.testing.assert_close(model.net.m.data, x.mean(0), rtol=0, atol=max(tolerance, 1e-4) / 2)


@pytest.mark.exact
def test_explicit_objective_differs_from_fishers_by_a_constant():
    """Hyvärinen: gradients of E[½|s|² + ∇·s] and of E ½|s - ∇ln p|² agree, by quadrature."""
    model = EnergyModel((1,), energy=Quartic(), base_scale=BASE, training="explicit")
    x = torch.linspace(-7, 7, 4001, dtype=torch.float64)[:, None]
    p = torch.distributions.Normal(*torch.tensor([0.2, 0.7], dtype=torch.float64))
    weight = p.log_prob(x[:, 0]).exp() * (14 / 4000)
    (implicit,) = torch.autograd.grad((weight * model.loss(x).value).sum(), model.net.w)
    true_score = -(x - 0.2) / 0.49
    fisher = 0.5 * (model.score(x) - true_score).square()[:, 0]
    (direct,) = torch.autograd.grad((weight * fisher).sum(), model.net.w)
    torch.testing.assert_close(implicit, direct, rtol=1e-8, atol=1e-8)


@pytest.mark.exact
def test_sliced_objective_is_the_explicit_one_on_average():
    torch.manual_seed(0)
    nets = [
        build({"family": "energy", "event_shape": [3], "energy": NET, "training": t})
        for t in ("explicit", "sliced")
    ]
    with torch.no_grad():
        for p in nets[0].parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=keyed_generator(6)))
    nets[1].load_state_dict(nets[0].state_dict())
    explicit, sliced = (n.double() for n in nets)
    x = torch.randn(1, 3, generator=keyed_generator(7), dtype=torch.float64)
    many = sliced.loss(x.expand(20000, -1), generator=keyed_generator(8)).value
    stderr = many.std() / math.sqrt(len(many))
    assert abs(many.mean() - explicit.loss(x).value[0]) < 4 * stderr
    jacobian = torch.autograd.functional.jacobian(lambda y: explicit.score(y).sum(0), x)[:, 0]
    y = x.clone().requires_grad_()
    torch.testing.assert_close(divergence(explicit.score(y), y)[0], jacobian.trace())


@pytest.mark.exact
def test_contrastive_training_finds_a_gaussian():
    model = quadratic("contrastive", chain_steps=8, chain_step=0.2, replay_size=256)
    x = gaussian_data(2000)
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    generator = keyed_generator(9)
    tail = []
    for k in range(200):
        batch = x[torch.randint(2000, (256,), generator=generator)]
        optimiser.zero_grad()
        model.loss(batch, generator=generator).mean().backward()
        optimiser.step()
        if k >= 120:
            tail.append(model.net.A.detach().clone())
    A = torch.stack(tail).mean(0)
    torch.testing.assert_close(
        0.5 * (A + A.T), torch.linalg.inv(torch.cov(x.T)), rtol=0.15, atol=0.1
    )


@pytest.mark.exact
@pytest.mark.parametrize(
    "sampler",
    [
        {"name": "mala", "steps": 150},
        {"name": "hmc", "steps": 15, "warmup": 15},
        {"name": "langevin", "step": 0.02, "steps": 400},
    ],
    ids=["mala", "hmc", "langevin"],
)
def test_samples_follow_the_energy(sampler):
    precision = torch.linalg.inv(COVARIANCE)
    net = Quadratic(precision, torch.full((2,), 0.3, dtype=torch.float64))
    model = EnergyModel((2,), energy=net, base_scale=BASE, sampler=sampler)
    x = model.sample((2000,), generator=keyed_generator(10))
    assert x.shape == (2000, 2)
    assert (x.mean(0) - 0.3).abs().max() < 5 * math.sqrt(0.9 / 2000)
    torch.testing.assert_close(torch.cov(x.T), COVARIANCE, rtol=0, atol=0.15)


NET = {"width": 8, "blocks": 1}
CONFIG = {"family": "energy", "event_shape": [3], "energy": {**NET, "vector_dim": 2}}


@pytest.mark.contract
def test_conditional_samples_depend_on_their_own_streams():
    model = build(CONFIG).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=keyed_generator(0), dtype=p.dtype))
    context = torch.randn(2, 2, generator=keyed_generator(1), dtype=torch.float64)
    quick = {"name": "mala", "steps": 5}
    streams = [keyed_generator(m, b) for m in range(3) for b in range(2)]
    whole = model.sample((3,), context, sampler=quick, generator=streams)
    assert whole.shape == (3, 2, 3)
    part = model.sample(
        (3,), context[1:], sampler=quick, generator=[keyed_generator(m, 1) for m in range(3)]
    )
    torch.testing.assert_close(whole[:, 1:], part, rtol=1e-10, atol=1e-10)
    assert model.loss(whole[0], context, generator=keyed_generator(2)).value.shape == (2,)
    assert not model.filled  # conditional chains do not use the buffer


class Tilt(nn.Module):
    """f = ½ (x - m)ᵀ A (x - m): what tilts a Gaussian into another."""

    def __init__(self, precision, mean) -> None:
        super().__init__()
        self.A, self.m = nn.Parameter(precision), nn.Parameter(mean)

    def forward(self, x, level, context=None):
        d = x - self.m
        return 0.5 * torch.einsum("ni,ij,nj->n", d, self.A, d)[:, None]


@pytest.mark.exact
def test_a_fitted_base_is_the_data_gaussian_and_its_tilt_known():
    """exp(-f) N(m, C) is Gaussian too: log-density, samples and score, where scales differ."""
    scales = torch.tensor([[1.0, 0.0], [0.4, 0.01]], dtype=torch.float64)
    z = torch.randn(4000, 2, generator=keyed_generator(0), dtype=torch.float64)
    x = z @ scales.T + 0.3
    mean, covariance = x.mean(0), torch.cov(x.T)
    precision = torch.diag(torch.tensor([2.0, 0.0], dtype=torch.float64))
    model = EnergyModel(
        (2,),
        energy=Tilt(precision, mean.clone()),
        base="fitted",
        base_scale=1.0,
        sampler={"name": "mala", "step": 0.5, "steps": 60},
    ).double()
    model.fit_base(x)
    u = model.to_base(x)
    torch.testing.assert_close(model.to_data(u), x, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cov(u.T), torch.eye(2).double(), rtol=0, atol=1e-9)
    tilted = torch.distributions.MultivariateNormal(
        mean, precision_matrix=torch.linalg.inv(covariance) + precision
    )
    found = model.log_prob(x[:20], generator=keyed_generator(1), chains=2000)
    error = (found.value - tilted.log_prob(x[:20])).abs()
    assert (error < 4 * found.stderr + 1e-3).all()
    assert found.stderr.max() < 0.02
    gap = x[:20] - mean
    torch.testing.assert_close(
        model.score(x[:20]), -gap @ tilted.precision_matrix, rtol=1e-8, atol=1e-8
    )
    drawn = model.sample((8000,), generator=keyed_generator(2))
    inside = torch.cov(model.to_base(drawn).detach().T)
    wanted = torch.linalg.inv(model.base_factor.T @ tilted.precision_matrix @ model.base_factor)
    torch.testing.assert_close(inside, wanted, rtol=0.06, atol=0.06)


def test_a_base_that_cannot_be_fitted_says_why():
    model = EnergyModel((2,), energy=Quartic(), base="fitted")
    flat = torch.cat([torch.randn(9, 1), torch.ones(9, 1)], 1)
    with pytest.raises(AleatorError, match="covariance of 9 examples of 2 numbers is singular"):
        model.fit_base(flat)
    with pytest.raises(AleatorError, match="base='fitted' in the config"):
        EnergyModel((2,), energy=Quartic()).fit_base(torch.randn(9, 2))


@pytest.mark.contract
def test_replay_buffer_is_part_of_the_state_and_still_in_evaluation():
    x = torch.randn(16, 3, generator=keyed_generator(3))

    def model():
        torch.manual_seed(0)
        return build({**CONFIG, "replay_size": 32})

    first, second = model(), model()
    values = [m.loss(x, generator=keyed_generator(4)).value for m in (first, second)]
    assert torch.equal(*values)
    assert torch.equal(first.replay, second.replay)
    third = model()
    third.load_state_dict(first.state_dict())
    values = [m.loss(x, generator=keyed_generator(5)).value for m in (first, third)]
    assert torch.equal(*values)
    first.eval()
    before = first.replay.clone()
    first.loss(x, generator=keyed_generator(6))
    assert torch.equal(first.replay, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": "cd"}, "unknown training 'cd'; known: contrastive"),
        ({"base_scale": 0.0}, "base_scale=0.0; it must be positive"),
        ({"restart": 2.0}, "restart=2.0"),
        ({"base": "flat"}, "base='flat'; known: fitted, isotropic"),
        ({"sampler": "nuts"}, "unknown sampler 'nuts'; known: hmc, langevin, mala"),
        ({"sampler": {"name": "mala", "length": 3}}, "sampler mala has no option 'length'"),
        ({"energy": {"depth": 3}}, "net MLP has no option 'depth'"),
    ],
)
def test_mistakes_in_configs_are_named(change, message):
    with pytest.raises(AleatorError, match=message):
        build({**CONFIG, **change})


def test_bad_examples_are_one_clear_line():
    model = build(CONFIG)
    for verb in (model.loss, model.log_prob):
        with pytest.raises(AleatorError, match=r"shape \(2, 4\)"):
            verb(torch.zeros(2, 4))
        with pytest.raises(AleatorError, match="NaN or infinite values, first in example 1"):
            verb(torch.tensor([[0.0] * 3, [math.inf] * 3]))
