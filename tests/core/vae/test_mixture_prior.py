"""A VAE whose prior is a learned mixture, against the evidence of a linear one in closed form."""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from core import build
from core.errors import AleatorError
from core.random import keyed_generator
from core.training import FitConfig, fit


def clustered(law, components=3, **options):
    """A linear VAE under a mixture of Gaussians with full covariances."""
    model = law.vae(components=components, **options).double()
    stream = keyed_generator(12)
    with torch.no_grad():
        for parameter in model.prior.parameters():
            drawn = torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
            parameter.add_(0.4 * drawn)
    return model


def evidence(law, prior):
    """p(x) = Σ_k w_k N(W m_k + m, W Σ_k Wᵀ + s² 1)."""
    factors = prior._factors().detach()
    within = torch.linalg.inv(factors @ factors.mT)
    eye = torch.eye(len(law.m), dtype=torch.float64)
    parts = MultivariateNormal(
        prior.mean.detach() @ law.W.T + law.m, law.W @ within @ law.W.T + law.s**2 * eye
    )
    return MixtureSameFamily(Categorical(logits=prior.logits.detach()), parts)


@pytest.mark.exact
def test_the_bound_goes_to_the_evidence_under_a_mixture(correlated):
    model = clustered(correlated, widen=1.5)
    exact = evidence(correlated, model.prior)
    x = exact.sample((40,))
    found = model.log_prob(x, draws=20_000, chunk=2000, generator=keyed_generator(1))
    error = (found.value - exact.log_prob(x)).abs()
    assert (error < 5 * found.stderr + 1e-6).all()
    assert found.stderr.median() < 0.02
    elbo = model.elbo(x, draws=20_000, generator=keyed_generator(2))
    assert (elbo.value < exact.log_prob(x) + 4 * elbo.stderr).all()
    weights = model.log_weights(x, None, 20_000, keyed_generator(2))
    torch.testing.assert_close(elbo.value, weights.mean(1))


@pytest.mark.exact
def test_the_loss_is_the_negative_bound_on_average(correlated):
    """One draw of the divergence a step is an unbiased estimate."""
    model = clustered(correlated)
    exact = evidence(correlated, model.prior).sample((1,))
    model.train()
    many = model.loss(exact.expand(20_000, -1), generator=keyed_generator(3))
    elbo = model.elbo(exact, draws=20_000, generator=keyed_generator(4))
    spread = (many.terms["reconstruction"] + many.terms["kl"]).std() / math.sqrt(20_000)
    assert abs(many.value.mean() + elbo.value) < 5 * (spread + elbo.stderr)
    torch.testing.assert_close(many.terms["elbo"], -many.value.detach())


@pytest.mark.exact
def test_samples_follow_the_evidence(correlated):
    model, count = clustered(correlated), 60_000
    x = model.sample((count,), generator=keyed_generator(5))
    law = evidence(correlated, model.prior)
    within = 5 * law.variance.max().sqrt() / math.sqrt(count)
    torch.testing.assert_close(x.mean(0), law.mean, rtol=0, atol=within.item())
    fresh = law.sample((count,))
    u = torch.randn(count, model.noise_dim, generator=keyed_generator(13), dtype=torch.float64)
    with torch.no_grad():
        made = model.from_noise(u)
    torch.testing.assert_close(made.mean(0), law.mean, rtol=0, atol=within.item())
    torch.testing.assert_close(made.T.cov(), fresh.T.cov(), rtol=0.05, atol=0.05)
    for drawn in (x, fresh):  # a statistic that sees the clusters: the log-density itself
        assert abs(law.log_prob(drawn).mean() - law.log_prob(fresh).mean()) < 0.03
    torch.testing.assert_close(x.T.cov(), fresh.T.cov(), rtol=0.05, atol=0.05)


@pytest.mark.exact
def test_one_standard_component_is_the_standard_prior(correlated):
    plain, model = correlated.vae(shift=0.2), correlated.vae(shift=0.2, components=1).double()
    with torch.no_grad():
        for parameter in model.prior.parameters():
            parameter.zero_()
    x = correlated.evidence.sample((30,))
    for draws in (1, 8):
        pair = [
            m.log_prob(x, draws=draws, generator=keyed_generator(6)).value for m in (plain, model)
        ]
        torch.testing.assert_close(*pair, rtol=0, atol=1e-10)
    pair = [
        m.sample_posterior(x, (5,), candidates=7, generator=keyed_generator(7))
        for m in (plain, model)
    ]
    torch.testing.assert_close(*pair)


@pytest.mark.exact
def test_a_mixture_is_learned_and_tells_clusters_apart(tmp_path):
    """Two clusters: a mixture comes nearer to the evidence than the standard normal prior."""
    stream = keyed_generator(8)
    side = (torch.rand(2000, 1, generator=stream) < 0.5).float() * 2 - 1
    x = 3 * side + 0.3 * torch.randn(2000, 2, generator=stream)
    found = {}
    for components in (0, 4):
        torch.manual_seed(0)
        config = {"family": "vae", "event_shape": [2], "latent_dim": 1, "components": components}
        nets = {"encoder": {"width": 32, "blocks": 1}, "decoder": {"width": 32, "blocks": 1}}
        model = build({**config, **nets})

        def batches(step, generator):
            return x[torch.randint(len(x), (128,), generator=generator)], None

        options = FitConfig(steps=500, batch_size=128, learning_rate=5e-3, validate_every=0)
        fitted = fit(model, batches, options, folder=tmp_path / str(components), progress=None)
        found[components] = fitted.model.eval()
    values = {
        k: m.log_prob(x, draws=64, generator=keyed_generator(9)).value.mean()
        for k, m in found.items()
    }
    assert values[4] > values[0] + 0.05
    drawn = found[4].sample((2000,), generator=keyed_generator(10))
    between = (drawn.mean(1).abs() < 1.5).float().mean()
    assert between < 0.05
    assert abs((drawn[:, 0] > 0).float().mean() - 0.5) < 0.1


def test_a_stored_model_is_the_same(correlated):
    model = clustered(correlated)
    again = correlated.vae(components=3).double()
    again.load_state_dict(model.state_dict())
    x = torch.zeros(2, 4, dtype=torch.float64)
    pair = [m.log_prob(x, draws=3, generator=keyed_generator(0)).value for m in (model, again)]
    torch.testing.assert_close(*pair, rtol=0, atol=0)


def test_mistakes_are_named(correlated):
    for wrong in (-1, 2.5, "two"):
        with pytest.raises(AleatorError, match=f"components={wrong!r}: a whole number"):
            correlated.vae(components=wrong)
    with pytest.raises(AleatorError, match="leave out free_bits or components"):
        correlated.vae(components=2, free_bits=0.1)
