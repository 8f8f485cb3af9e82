"""The VAE against probabilistic PCA: bounds below the evidence, tight where they can be."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from core import build
from core.errors import AleatorError
from core.random import keyed_generator
from core.training import FitConfig, fit
from core.vae import VAE
from core.vae.base import importance_bound
from core.vae.vae import free_bits, kl_to_standard_normal


def data(law, n=50):
    return law.evidence.mean + 1.3 * torch.randn(
        n, 4, generator=keyed_generator(2), dtype=torch.float64
    )


@pytest.mark.exact
@pytest.mark.parametrize("draws", [1, 7])
def test_the_bound_is_the_evidence_where_the_posterior_is_exact(orthogonal, draws):
    x = data(orthogonal)
    found = orthogonal.vae().log_prob(x, generator=keyed_generator(0), draws=draws)
    assert found.kind == "lower_bound"
    torch.testing.assert_close(found.value, orthogonal.evidence.log_prob(x), rtol=0, atol=1e-9)
    assert found.stderr is None if draws == 1 else (found.stderr < 1e-9).all()


@pytest.mark.exact
def test_the_gap_is_the_divergence_from_the_true_posterior(correlated):
    """ELBO = ln p(x) - KL(q ‖ p(z | x)), with a q that is shifted and too wide."""
    x, model = data(correlated, 20), correlated.vae(shift=0.2, widen=1.4)
    bound = model.elbo(x, draws=20000, generator=keyed_generator(1))
    q = model.encode(x)
    full = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    gap = kl_divergence(full, correlated.posterior(x))
    expected = correlated.evidence.log_prob(x) - gap
    assert (gap > 0.1).all()
    assert ((bound.value - expected).abs() < 4 * bound.stderr).all()
    assert (bound.stderr < 0.05).all()


@pytest.mark.exact
def test_importance_weighting_tightens_the_bound(correlated):
    """L_1 ≤ L_2 ≤ ... ≤ ln p(x), each step many standard errors wide."""
    model, x = correlated.vae(shift=0.4, widen=1.5), data(correlated, 1)
    many = x.expand(6000, -1)
    exact = correlated.evidence.log_prob(x).item()
    below = -math.inf
    for k in (1, 2, 8, 32):
        values = model.log_prob(many, draws=k, generator=keyed_generator(k)).value
        stderr = values.std().item() / math.sqrt(len(values))
        assert values.mean().item() > below + 3 * stderr
        below = values.mean().item()
        assert below < exact + 3 * stderr
    assert exact - below < 0.1


@pytest.mark.exact
def test_the_standard_error_is_the_spread_of_repeated_estimates(correlated):
    model, x = correlated.vae(widen=1.3), data(correlated, 1).expand(3000, -1)
    found = model.log_prob(x, draws=128, generator=keyed_generator(3))
    assert found.value.std().item() == pytest.approx(found.stderr.mean().item(), rel=0.1)
    chunked = model.log_prob(x[:5], draws=128, chunk=50, generator=keyed_generator(3))
    assert chunked.value.std() < 0.5


@pytest.mark.exact
def test_kl_and_reconstruction_are_those_of_torch(correlated):
    model, x = correlated.vae(shift=0.3, beta=0.7), data(correlated)
    loss = model.loss(x, generator=keyed_generator(4))
    q = model.encode(x)
    prior = Independent(Normal(torch.zeros(50, 2), torch.ones(50, 2)), 1)
    torch.testing.assert_close(loss.terms["kl"], kl_divergence(q, prior).double())
    eps = torch.randn(50, 2, generator=keyed_generator(4), dtype=torch.float64)
    mean = (q.mean + q.stddev * eps) @ correlated.W.T + correlated.m
    log_p = Normal(mean, correlated.s).log_prob(x).sum(1)
    torch.testing.assert_close(loss.terms["reconstruction"], -log_p)
    torch.testing.assert_close(loss.value, -log_p + 0.7 * loss.terms["kl"])


@pytest.mark.exact
def test_reparametrised_gradient_is_that_of_the_closed_form(correlated):
    """For the encoder's bias, by the pathwise estimator, against autograd of the exact ELBO."""
    model, x = correlated.vae(shift=0.3, widen=1.2), data(correlated, 1)
    weight = model.encoder.bias
    n = 40000
    loss = model.loss(x.expand(n, -1), generator=keyed_generator(5)).value.reshape(40, -1)
    rows = [torch.autograd.grad(v.mean(), weight, retain_graph=True)[0] for v in loss]
    found, stderr = torch.stack(rows).mean(0), torch.stack(rows).std(0) / math.sqrt(40)
    q = model.encode(x)
    full = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    (exact,) = torch.autograd.grad(kl_divergence(full, correlated.posterior(x)).sum(), weight)
    assert ((found - exact).abs() < 4 * stderr).all()
    assert (stderr < 0.1 * exact.abs().max()).all()


@pytest.mark.exact
def test_beta_one_is_the_vae_and_the_bound_ignores_beta(correlated):
    x = data(correlated)
    plain, heavy = correlated.vae(), correlated.vae(beta=4.0, free_bits=0.5)
    streams = [keyed_generator(6) for _ in range(4)]
    assert torch.equal(
        plain.loss(x, generator=streams[0]).value,
        -plain.loss(x, generator=streams[1]).terms["elbo"],
    )
    assert torch.equal(
        plain.log_prob(x, generator=streams[2]).value,
        heavy.log_prob(x, generator=streams[3]).value,
    )


@pytest.mark.exact
def test_free_bits_hold_idle_dimensions():
    q = Independent(
        Normal(torch.tensor([[0.1, 2.0], [0.3, 1.0]], requires_grad=True), torch.ones(2, 2)), 1
    )
    kl = kl_to_standard_normal(q)
    held = free_bits(kl, 0.4)
    torch.testing.assert_close(held, 0.4 + kl[:, 1])
    (gradient,) = torch.autograd.grad(held.sum(), q.mean)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 2.0], [0.0, 1.0]]))
    torch.testing.assert_close(free_bits(kl, 0.0), kl.sum(1))


def test_warm_up_counts_training_steps_and_is_stored():
    model = VAE((3,), latent_dim=2, warmup=4, beta=2.0)
    x = torch.randn(5, 3, generator=keyed_generator(0))
    betas = [model.loss(x).terms["beta"][0].item() for _ in range(6)]
    assert betas == [0, 0.5, 1, 1.5, 2, 2]
    model.eval()
    model.loss(x)
    again = VAE((3,), latent_dim=2, warmup=4)
    again.load_state_dict(model.state_dict())
    assert int(again.step) == 6


@pytest.mark.exact
def test_prior_samples_follow_the_evidence(correlated):
    model, n = correlated.vae(), 100000
    x = model.sample((n,), generator=keyed_generator(7))
    assert x.shape == (n, 4)
    law = correlated.evidence
    z = torch.linalg.solve_triangular(law.scale_tril, (x - law.mean).T, upper=False)
    assert (z.mean(1).abs() < 5 / math.sqrt(n)).all()
    torch.testing.assert_close(z @ z.T / n, torch.eye(4).double(), rtol=0, atol=5 * 1.5 / n**0.5)


@pytest.mark.exact
def test_resampled_latents_follow_the_true_posterior(correlated):
    model, x = correlated.vae(shift=0.3, widen=1.3), data(correlated, 2)
    true = correlated.posterior(x)
    n = 4000
    z = model.sample_posterior(x, (n,), candidates=100, generator=keyed_generator(8))
    assert z.shape == (n, 2, 2)
    for i in range(2):
        assert (z[:, i].mean(0) - true.mean[i]).abs().max() < 5 * 0.5 / math.sqrt(n)
        found = torch.cov(z[:, i].T)
        torch.testing.assert_close(found, true.covariance_matrix[i], rtol=0.1, atol=0.01)
    q = model.sample_posterior(x, (n,), generator=keyed_generator(9))
    assert (q[:, 0].mean(0) - true.mean[0]).abs().max() > 0.2


CONDITIONAL = {
    "family": "vae",
    "event_shape": [5],
    "latent_dim": 2,
    "likelihood": {"name": "nb", "library": True},
    "encoder": {"width": 16, "blocks": 1, "vector_dim": 2, "classes": 3},
    "decoder": {"width": 16, "blocks": 1, "vector_dim": 2, "classes": 3},
}


def counts(n=6):
    return torch.poisson(torch.full((n, 5), 4.0), generator=keyed_generator(0)) + 1


def randomised(config):
    """With weights that are not zero anywhere: freshly built networks put out zeros."""
    model, generator = build(config), keyed_generator(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.contract
def test_context_reaches_encoder_and_decoder():
    model, x = randomised(CONDITIONAL), counts(1)
    vector, label = torch.zeros(1, 2), torch.tensor([0])
    base = {"vector": vector, "label": label}
    q = model.encode(x, base).mean
    for other in ({"vector": vector + 1, "label": label}, {"vector": vector, "label": label + 2}):
        assert not torch.allclose(model.encode(x, other).mean, q)
        library = torch.tensor([20.0])
        z = torch.zeros(1, 2)
        a = model.decode(z, {**base, "library": library}).mean
        b = model.decode(z, {**other, "library": library}).mean
        assert not torch.allclose(a, b)


@pytest.mark.contract
def test_means_share_the_library():
    model = randomised(CONDITIONAL)
    library = torch.tensor([7.0, 4000.0])
    mean = model.decode(torch.zeros(2, 2), {"library": library}).mean
    torch.testing.assert_close(mean.sum(1), library)
    torch.testing.assert_close(mean[0] / 7, mean[1] / 4000)
    x = counts()
    given = {"library": x.sum(1)}
    torch.testing.assert_close(
        model.log_prob(x, generator=keyed_generator(0)).value,
        model.log_prob(x, given, generator=keyed_generator(0)).value,
    )


@pytest.mark.contract
def test_an_example_depends_on_its_own_stream_alone():
    model, x = randomised(CONDITIONAL).double(), counts().double()
    context = {"label": torch.arange(6) % 3, "library": x.sum(1)}
    last = {k: v[4:] for k, v in context.items()}

    def streams(rows):
        return [keyed_generator(9, r) for r in rows]

    for verb in (
        lambda c, r: model.log_prob(x[r], c, generator=streams(r)).value,
        lambda c, r: model.loss(x[r], c, generator=streams(r)).value,
        lambda c, r: model.sample((1,), c, generator=streams(r))[0],
        lambda c, r: model.sample_posterior(x[r], (3,), c, generator=streams(r)).transpose(0, 1),
    ):
        whole, part = verb(context, range(6)), verb(last, range(4, 6))
        torch.testing.assert_close(whole[4:], part, rtol=1e-10, atol=1e-10)
    drawn = model.sample((4,), context, generator=keyed_generator(2))
    assert drawn.shape == (4, 6, 5)
    assert (drawn == drawn.floor()).all()
    mean = model.sample((4,), context, sampler="mean", generator=keyed_generator(2))
    torch.testing.assert_close(mean.sum(2), context["library"].expand(4, 6))


@pytest.mark.parametrize(
    ("x", "context", "message"),
    [
        (torch.ones(2, 4), None, r"shape \(2, 4\); \(B, \*\[5\]\)"),
        (torch.ones(5), None, r"shape \(5,\)"),
        (torch.full((2, 5), math.nan), None, "first in example 0"),
        (torch.full((2, 5), 0.5), None, "0.5 is not an integer"),
        (-torch.ones(2, 5), None, "the least is -1"),
        (torch.zeros(2, 5), None, "library of example 0 is 0; it must be positive"),
        (torch.ones(2, 5), {"library": torch.ones(3)}, "a context of batch 3 for 2 examples"),
    ],
)
def test_bad_examples_are_one_clear_line(x, context, message):
    model = build(CONDITIONAL)
    for verb in (model.loss, model.log_prob, model.encode, model.elbo):
        with pytest.raises(AleatorError, match=message):
            verb(x, context)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"likelihood": "nbb"}, "unknown likelihood 'nbb'; known: bernoulli, .*zinb"),
        ({"likelihood": {"name": "nb", "theta": 1}}, r"likelihood nb: .*'theta'.*dispersion"),
        ({"likelihood": {"name": "gaussian", "scale": -1.0}}, "scale=-1.0"),
        ({"likelihood": {"name": "logistic", "bins": 1}}, "bins=1"),
        ({"beta": -1.0}, "beta=-1.0"),
        ({"encoder": {"wide": 3}}, "net MLP has no option 'wide'"),
        ({"net": {"name": "mlp"}}, "family VAE has no option 'net'; it has .*decoder"),
    ],
)
def test_mistakes_in_configs_are_named(change, message):
    with pytest.raises(AleatorError, match=message):
        build({**CONDITIONAL, **change})


def test_options_of_verbs_are_checked():
    model = build(CONDITIONAL)
    with pytest.raises(AleatorError, match="density kind 'exact'"):
        model.log_prob(counts(), kind="exact")
    with pytest.raises(AleatorError, match="draws=0"):
        model.log_prob(counts(), draws=0)
    with pytest.raises(AleatorError, match="give context"):
        model.sample((2,))
    with pytest.raises(AleatorError, match="sampler='2m'"):
        model.sample((2,), {"library": torch.ones(1)}, sampler="2m")


@pytest.mark.exact
def test_weights_that_differ_wildly_do_not_overflow():
    bound = importance_bound(torch.tensor([[-2000.0, -10.0, 800.0]]))
    assert bound.value.item() == pytest.approx(800 - math.log(3), rel=1e-6)
    assert bound.stderr.isfinite().all()


@pytest.mark.slow
def test_training_reaches_the_evidence_of_probabilistic_pca(orthogonal, tmp_path):
    """A linear VAE fitted by the training loop comes within 0.1 nat of the best density."""
    train = orthogonal.evidence.expand((2000,)).mean.float()
    L = orthogonal.evidence.scale_tril.float()
    train = train + torch.randn(2000, 4, generator=keyed_generator(0)) @ L.T
    torch.manual_seed(0)
    model = build(
        {
            "family": "vae",
            "event_shape": [4],
            "latent_dim": 2,
            "warmup": 100,
            "encoder": {"width": 32, "blocks": 1},
            "decoder": {"width": 32, "blocks": 1},
        }
    )

    def batches(step, generator):
        return train[torch.randint(2000, (128,), generator=generator)], None

    config = FitConfig(steps=900, learning_rate=5e-3, validate_every=0, weight_decay=0.0)
    fitted = fit(model, batches, config, folder=tmp_path, progress=None, device="cpu").model
    assert int(fitted.step) == 900
    found = fitted.log_prob(train[:500], generator=keyed_generator(1)).value.mean().item()
    exact = orthogonal.evidence.log_prob(train[:500].double()).mean().item()
    assert exact - 0.1 < found < exact + 0.05
