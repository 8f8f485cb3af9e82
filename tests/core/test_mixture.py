"""A mixture of Gaussians: density and draws."""

import math

import pytest
import torch

from core.errors import AleatorError
from core.mixture import SPREAD, Mixture
from core.random import keyed_generator


def fitted(clusters, components=3):
    noise = Mixture(2, components).double()
    noise.fit(clusters)
    return noise


@pytest.mark.exact
def test_density_is_that_of_scikit_learn(clusters):
    from sklearn.mixture import GaussianMixture

    z = clusters
    peer = GaussianMixture(3, random_state=0, reg_covar=1e-6).fit(z.numpy())
    expected = torch.as_tensor(peer.score_samples(z.numpy()))
    torch.testing.assert_close(fitted(clusters).log_prob(z), expected, rtol=0, atol=1e-9)


@pytest.mark.exact
@torch.no_grad()
def test_draws_follow_the_mixture(clusters):
    noise, count = fitted(clusters), 20_000
    drawn = noise.sample(count, keyed_generator(1))
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=noise.logits),
        torch.distributions.MultivariateNormal(
            noise.mean, precision_matrix=noise._factors() @ noise._factors().mT
        ),
    )
    torch.testing.assert_close(noise.log_prob(drawn), law.log_prob(drawn), rtol=0, atol=1e-9)
    axis = torch.linspace(-8, 8, 321, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    mass = noise.log_prob(x).exp() * (axis[1] - axis[0]) ** 2
    assert abs(mass.sum() - 1) < 1e-6
    mean = (mass[:, None] * x).sum(0)
    covariance = torch.einsum("n,ni,nj->ij", mass, x - mean, x - mean)
    within = 5 * math.sqrt(covariance.diagonal().max() / count)
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=within)
    torch.testing.assert_close(drawn.T.cov(), covariance, rtol=0, atol=4 * within)
    left = mass[x[:, 0] < -1.5].sum()
    assert abs((drawn[:, 0] < -1.5).double().mean() - left) < 5 * 0.5 / math.sqrt(count)


def test_streams_belong_to_examples(clusters):
    noise = fitted(clusters)
    together = noise.sample(5, [keyed_generator(7, i) for i in range(5)])
    for i in range(5):
        alone = noise.sample(1, [keyed_generator(7, i)])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-12)


@pytest.mark.exact
def test_scattered_components_have_about_the_moments_of_a_standard_normal():
    torch.manual_seed(0)
    noise = Mixture(3, 400)
    noise.scatter()
    drawn = noise.sample(40_000, keyed_generator(2))
    assert drawn.mean(0).abs().max() < 0.2
    torch.testing.assert_close(drawn.T.cov(), torch.eye(3), rtol=0, atol=0.2)
    law = torch.distributions.Normal(noise.mean, SPREAD)
    z = drawn[:50]
    expected = law.log_prob(z[:, None]).sum(2).logsumexp(1) - math.log(400)
    torch.testing.assert_close(noise.log_prob(z), expected)


def test_nothing_is_known_of_a_mixture_that_was_not_fitted(clusters):
    for ask in (lambda m: m.log_prob(torch.zeros(1, 2)), lambda m: m.sample(3)):
        with pytest.raises(AleatorError, match="the mixture was not fitted"):
            ask(Mixture(2, 3))
