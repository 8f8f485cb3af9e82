"""Attacks move codes; chains on the true posterior bring them back."""

import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.distributions import Independent, Normal, kl_divergence

from core import build
from core.errors import AleatorError
from core.random import keyed_generator
from core.training import FitConfig, fit
from core.vae.attack import defend, latent_attack, symmetric_kl


@pytest.mark.exact
def test_the_distance_is_that_of_torch():
    g = keyed_generator(0)
    laws = [
        Independent(Normal(torch.randn(5, 3, generator=g), torch.rand(5, 3, generator=g) + 0.1), 1)
        for _ in range(2)
    ]
    both = kl_divergence(laws[0], laws[1]) + kl_divergence(laws[1], laws[0])
    torch.testing.assert_close(symmetric_kl(*laws), both / 2)


@pytest.mark.exact
def test_the_attack_on_a_linear_encoder_is_at_a_corner_of_the_box(orthogonal):
    """The distance is a convex quadratic of δ: its maximum over 2^4 corners."""
    model = orthogonal.vae()
    x = orthogonal.evidence.mean + torch.randn(1, 4, generator=keyed_generator(1)).double()
    q = model.encode(x)
    corners = 2.0 * torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4) - 1
    found = symmetric_kl(
        model.encode(x + 0.3 * corners),
        Independent(Normal(q.mean.expand(16, -1), q.stddev.expand(16, -1)), 1),
    )
    starts = [keyed_generator(2, k) for k in range(12)]
    many = x.expand(12, -1)
    attacked = latent_attack(model, many, radius=0.3, steps=20, generator=starts)
    assert (attacked - many).abs().max() <= 0.3 + 1e-12
    law = Independent(Normal(q.mean.expand(12, -1), q.stddev.expand(12, -1)), 1)
    reached = symmetric_kl(model.encode(attacked), law)
    assert reached.max().item() == pytest.approx(found.max().item(), rel=1e-6)
    limited = latent_attack(model, x, radius=0.3, limits=(-0.1, 0.1), steps=5)
    assert ((limited <= x.clamp(min=0.1)) & (limited >= x.clamp(max=-0.1))).all()


@pytest.mark.exact
def test_chains_reach_the_true_posterior_from_a_wrong_start(correlated):
    model = correlated.vae(shift=3.0, widen=0.1)
    x = correlated.evidence.mean[None] + 0.3
    run = defend(model, x, chains=400, steps=60, warmup=60, keep=5, generator=keyed_generator(3))
    true = correlated.posterior(x)
    draws = run.draws[2:].flatten(0, 1)
    stderr = true.covariance_matrix[0].diagonal().sqrt() / math.sqrt(1000)
    assert ((draws.mean(0) - true.mean[0]).abs() < 5 * stderr).all()
    torch.testing.assert_close(torch.cov(draws.T), true.covariance_matrix[0], rtol=0.1, atol=0.01)


@pytest.mark.exact
def test_the_bound_on_total_variation_holds(correlated):
    """TV(p(z|x_a), q(z|x)) ≤ TV(p(z|x_a), p(z|x)) + √(KL(q(z|x) ‖ p(z|x)) / 2), by quadrature.

    The chains' limit against the clean code: what the defence can reach.
    """
    model = correlated.vae(shift=0.1, widen=1.1)
    x = correlated.evidence.mean[None] + 0.3
    attacked = latent_attack(model, x, radius=0.2, steps=10, generator=keyed_generator(4))
    clean, moved, q = correlated.posterior(x), correlated.posterior(attacked), model.encode(x)
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]) ** 2

    def total_variation(a, b):
        return 0.5 * (a.log_prob(z).exp() - b.log_prob(z).exp()).abs().sum() * cell

    full = torch.distributions.MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    left = total_variation(moved, full)
    right = total_variation(moved, clean) + (0.5 * kl_divergence(full, clean)).sqrt()
    assert 0.05 < left <= right
    # Without the defence the code is where the attack put it: further off.
    assert total_variation(model.encode(attacked), full) > left


@pytest.mark.slow
def test_digits_are_recognised_again_after_the_defence(tmp_path):
    """Accuracy of a classifier of codes: clean, attacked, and after the chains."""
    digits = load_digits()
    x = torch.as_tensor(digits.data / 16, dtype=torch.float32)
    order = torch.randperm(len(x), generator=keyed_generator(0))
    x, label = x[order], digits.target[order.numpy()]
    train, test = slice(0, 1500), slice(1500, 1700)
    torch.manual_seed(0)
    net = {"width": 128, "blocks": 2}
    config = {"family": "vae", "event_shape": [64], "latent_dim": 10}
    config |= {
        "encoder": net,
        "decoder": net,
        "likelihood": {"name": "gaussian", "scale": 0.1, "learned": "no"},
    }

    def batches(step, generator):
        return x[train][torch.randint(1500, (128,), generator=generator)], None

    options = FitConfig(steps=1500, learning_rate=2e-3, validate_every=0)
    model = fit(
        build(config), batches, options, folder=tmp_path, progress=None, device="cpu"
    ).model
    judge = LogisticRegression(max_iter=2000)
    judge.fit(model.encode(x[train]).mean.numpy(), label[train])

    def accuracy(z):
        return (judge.predict(z.numpy()) == label[test]).mean()

    attacked = latent_attack(model, x[test], radius=0.15, steps=30, generator=keyed_generator(1))
    clean = accuracy(model.encode(x[test]).mean)
    broken = accuracy(model.encode(attacked).mean)
    run = defend(model, attacked, steps=150, warmup=100, keep=5, generator=keyed_generator(2))
    healed = accuracy(run.draws[10:].mean(0))
    print(f"accuracy: clean {clean:.3f}, attacked {broken:.3f}, defended {healed:.3f}")
    assert clean > 0.8
    assert broken < clean - 0.3
    assert healed > broken + 0.15


def test_mistakes_are_named(orthogonal):
    model, x = orthogonal.vae(), torch.zeros(1, 4, dtype=torch.float64)
    with pytest.raises(AleatorError, match="radius=0"):
        latent_attack(model, x, radius=0)
    with pytest.raises(AleatorError, match="first in example 0"):
        defend(model, x * math.nan)
