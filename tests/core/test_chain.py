"""A chain of four stages where all is linear and Gaussian: means, covariances, SBC."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from core import build
from core.chain import Chain
from core.errors import AleatorError
from core.evaluation import sbc
from core.model import Density, GenerativeModel, Loss, context_batch
from core.random import keyed_generator, randn
from core.vae import VAE
from core.vae.likelihoods import GaussianLikelihood

F64 = torch.float64
SIZES = {"parton": 2, "shower": 3, "detector": 3, "observable": 2}
NOISE = {"parton": 0.3, "shower": 0.4, "detector": 0.2, "observable": 0.3}


def matrices():
    g, before, found = keyed_generator(0), 2, {}
    for name, size in SIZES.items():
        found[name] = torch.randn(size, before, generator=g, dtype=F64) / math.sqrt(before)
        before = size
    return found


class Linear(GenerativeModel):
    """z' = M z + s ε, exactly."""

    takes_net = False

    def __init__(self, matrix, noise):
        super().__init__()
        self.event_shape, self.context_shape = matrix.shape[:1], matrix.shape[1:]
        self.matrix, self.noise = nn.Parameter(matrix), noise

    def loss(self, x, context=None, *, generator=None):
        return Loss(-self.log_prob(x, context).value)

    def log_prob(self, x, context=None, **options):
        law = torch.distributions.Normal(context @ self.matrix.T, self.noise)
        return Density(law.log_prob(x).sum(1), "exact")

    def sample(self, shape=(), context=None, *, sampler=None, guidance=None, generator=None):
        mean = context @ self.matrix.T
        assert shape == ()
        assert context_batch(context) == len(mean)
        return mean + self.noise * randn(mean.shape, generator, dtype=mean.dtype)


@pytest.fixture
def chain():
    return Chain({name: Linear(M, NOISE[name]) for name, M in matrices().items()})


def propagated():
    """Gain and covariance of x given θ."""
    gain, covariance = torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64)
    for name, M in matrices().items():
        gain = M @ gain
        covariance = M @ covariance @ M.T + NOISE[name] ** 2 * torch.eye(len(M), dtype=F64)
    return gain, covariance


def posterior_of(x, widen=1.0):
    """p(θ | x) for θ ~ N(0, I): mean (N, 2) and its root."""
    gain, covariance = propagated()
    precision = torch.eye(2, dtype=F64) + gain.T @ torch.linalg.solve(covariance, gain)
    weight = torch.linalg.solve(precision, torch.linalg.solve(covariance, gain).T)
    return x @ weight.T, widen * torch.linalg.cholesky(torch.linalg.inv(precision))


@pytest.mark.exact
def test_the_composed_sampler_has_the_propagated_moments(chain):
    theta, n = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=F64), 40000
    x = chain.sample((n,), theta, generator=keyed_generator(1))["observable"]
    assert x.shape == (n, 2, 2)
    gain, covariance = propagated()
    for k in range(2):
        stderr = covariance.diagonal().sqrt() / math.sqrt(n)
        assert ((x[:, k].mean(0) - gain @ theta[k]).abs() < 5 * stderr).all()
        torch.testing.assert_close(torch.cov(x[:, k].T), covariance, rtol=0.05, atol=0.01)


@pytest.mark.exact
def test_ranks_of_the_exact_posterior_are_uniform_and_of_a_wrong_one_not(chain):
    g, n = keyed_generator(2), 500
    theta = torch.randn(n, 2, generator=g, dtype=F64)
    x = chain.sample((), theta, generator=g)["observable"]
    for widen, right in ((1.0, True), (0.6, False)):
        mean, root = posterior_of(x, widen)
        draws = mean + torch.randn(99, n, 2, generator=g, dtype=F64) @ root.T
        p = sbc(draws, theta).p_value()
        assert (p.min() > 0.02) if right else (p.max() < 0.01)
    # The posterior that Bayes' theorem gives with the chain's own density.
    gain, covariance = propagated()
    grid = torch.linspace(-4, 4, 161, dtype=F64)
    points = torch.cartesian_prod(grid, grid)
    log_p = MultivariateNormal(points @ gain.T, covariance).log_prob(x[0])
    weight = (log_p - 0.5 * points.square().sum(1)).softmax(0)
    torch.testing.assert_close(weight @ points, posterior_of(x[:1])[0][0], rtol=0, atol=1e-3)


@pytest.mark.exact
def test_stages_are_trained_side_by_side(chain):
    g = keyed_generator(3)
    theta = torch.randn(200, 2, generator=g, dtype=F64)
    records = chain.sample((), theta, generator=g)
    loss = chain.loss(records, theta)
    assert list(loss.terms) == list(SIZES)
    given, total = theta, 0.0
    for name, stage in chain.stages.items():
        total = total - stage.log_prob(records[name], given).value
        given = records[name]
    torch.testing.assert_close(loss.value, total)
    loss.mean().backward()
    errors = [s.matrix.grad.norm() for s in chain.stages.values()]
    assert max(errors) < 1.5  # near the maximum of the likelihood


@pytest.mark.contract
def test_stages_of_any_family_are_learned_from_records(chain):
    """A linear stage by a VAE and the others as simulated."""
    likelihood = GaussianLikelihood((2,), scale=0.3, learned="no")
    net = {"width": 16, "blocks": 1, "vector_dim": 3}
    vae = VAE((2,), latent_dim=1, likelihood=likelihood, encoder=net, decoder=net).double()
    flow_net = {"width": 16, "blocks": 1, "vector_dim": 3}
    flow = build({"family": "flow_matching", "event_shape": [3], "net": flow_net}).double()
    mixed = Chain({**dict(chain.stages.items()), "detector": flow, "observable": vae})
    theta = torch.zeros(4, 2, dtype=F64)
    walk = {"detector": {"name": "2m", "steps": 3}}
    found = mixed.sample((5,), theta, samplers=walk, generator=keyed_generator(4))
    assert {k: v.shape for k, v in found.items()} == {
        name: (5, 4, size) for name, size in SIZES.items()
    }
    records = {name: value[0] for name, value in found.items()}
    assert mixed.loss(records, theta, generator=keyed_generator(5)).value.shape == (4,)
    streams = [keyed_generator(6, k) for k in range(4)]
    whole = mixed.sample((), theta, generator=streams)["observable"]
    alone = mixed.sample((), theta[3:], generator=[keyed_generator(6, 3)])["observable"]
    torch.testing.assert_close(whole[3:], alone)


def test_mistakes_are_named(chain):
    with pytest.raises(AleatorError, match="at least one stage"):
        Chain({})
    with pytest.raises(AleatorError, match="begins with its parameters"):
        chain.sample((3,))
    with pytest.raises(AleatorError, match="no stage 'hadron'; it has parton"):
        chain.sample((), torch.zeros(1, 2).double(), samplers={"hadron": None})
    with pytest.raises(AleatorError, match="no records of the stage 'parton'"):
        chain.loss({}, torch.zeros(1, 2).double())
