"""Joint-VAE: categorical divergences, the relaxation's limit, exact mixtures, labels recovered."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence

from core import build
from core.errors import AleatorError
from core.random import keyed_generator
from core.training import FitConfig, fit
from core.vae import JointVAE
from core.vae.joint import kl_to_uniform, relaxed_one_hot
from core.vae.likelihoods import GaussianLikelihood

F64 = torch.float64


def logits(n=5, k=4, seed=0):
    return torch.randn(n, k, generator=keyed_generator(seed), dtype=F64).log_softmax(1)


@pytest.mark.exact
def test_categorical_divergence_is_that_of_torch():
    log_pi = logits()
    uniform = Categorical(logits=torch.zeros(5, 4, dtype=F64))
    torch.testing.assert_close(
        kl_to_uniform(log_pi), kl_divergence(Categorical(logits=log_pi), uniform)
    )


@pytest.mark.exact
def test_a_cold_relaxation_is_one_hot_with_the_right_frequencies():
    log_pi = logits(1, 3)
    draws = relaxed_one_hot(log_pi.expand(40000, -1), 1e-3, keyed_generator(1))
    assert (draws.max(1).values > 0.999).double().mean() > 0.99
    frequency = draws.mean(0)
    stderr = (log_pi.exp() * (1 - log_pi.exp()) / 40000).sqrt()[0]
    assert ((frequency - log_pi.exp()[0]).abs() < 5 * stderr + 1e-3).all()
    warm = relaxed_one_hot(log_pi.expand(100, -1), 50.0, keyed_generator(1))
    torch.testing.assert_close(warm, torch.full_like(warm, 1 / 3), rtol=0, atol=0.1)
    torch.testing.assert_close(draws.sum(1), torch.ones(40000, dtype=F64))


class Fixed(nn.Module):
    """A network that is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.unused = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x, level, context=None):
        return self.function(x)


MEANS = torch.tensor([[-2.0, 0.0], [1.0, 1.5], [1.0, -1.5]], dtype=F64)


def mixture_model(**options):
    """The decoder ignores z: evidence is a mixture of three Gaussians."""
    likelihood = GaussianLikelihood((2,), scale=0.5, learned="no").double()
    likelihood.log_scale.fill_(math.log(0.5))
    return JointVAE(
        (2,),
        latent_dim=1,
        categories=3,
        likelihood=likelihood,
        encoder=Fixed(lambda x: torch.zeros(len(x), 5, dtype=F64)),
        decoder=Fixed(lambda zc: zc[:, 1:] @ MEANS),
        **options,
    )


@pytest.mark.exact
def test_the_bound_sums_over_categories_exactly():
    x = 2 * torch.randn(20, 2, generator=keyed_generator(2), dtype=F64)
    exact = Normal(MEANS, 0.5).log_prob(x[:, None]).sum(2).logsumexp(1) - math.log(3)
    found = mixture_model().log_prob(x, draws=3, generator=keyed_generator(3))
    assert found.kind == "lower_bound"
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-9)
    drawn = mixture_model().sample((9000,), generator=keyed_generator(4))
    nearest = torch.cdist(drawn, MEANS).argmin(1)
    assert (torch.bincount(nearest, minlength=3) / 9000 - 1 / 3).abs().max() < 0.025


@pytest.mark.exact
def test_capacities_pull_the_divergences_to_their_targets():
    model = mixture_model(gamma=7.0, capacities=(0.4, 9.0), warmup=2)
    x = torch.zeros(3, 2, dtype=F64)
    assert model.capacities[1] == math.log(3)
    for share in (0.0, 0.5, 1.0, 1.0):
        loss = model.loss(x, generator=keyed_generator(5))
        target = loss.terms["reconstruction"] + 7.0 * share * (0.4 + math.log(3))
        torch.testing.assert_close(loss.value, target)  # both divergences are zero here
    plain = mixture_model().loss(x, generator=keyed_generator(5))
    torch.testing.assert_close(plain.value, plain.terms["reconstruction"])


def test_labels_of_three_clusters_are_recovered(tmp_path):
    label = torch.randint(3, (1500,), generator=keyed_generator(0))
    noise = torch.randn(1500, 2, generator=keyed_generator(1))
    train = MEANS.float()[label] + 0.25 * noise
    torch.manual_seed(1)
    net = {"width": 32, "blocks": 1}
    model = build(
        {
            "family": "joint_vae",
            "event_shape": [2],
            "latent_dim": 1,
            "categories": 3,
            "encoder": net,
            "decoder": net,
            "likelihood": {"name": "gaussian", "scale": 0.3, "learned": "no"},
            "gamma": 10.0,
            "capacities": [0.2, 1.1],
            "warmup": 200,
        }
    )

    def batches(step, generator):
        return train[torch.randint(1500, (128,), generator=generator)], None

    config = FitConfig(steps=400, learning_rate=4e-3, validate_every=0, ema=0.9)
    fitted = fit(model, batches, config, folder=tmp_path, progress=None, device="cpu").model
    found = fitted.classify(train).argmax(1)
    table = torch.zeros(3, 3).index_put_((found, label), torch.ones(1500), accumulate=True)
    assert table.max(1).values.sum() / 1500 > 0.95
    assert (table.max(0).values / table.sum(0) > 0.9).all()


@pytest.mark.contract
def test_verbs_keep_each_examples_stream():
    model = build({"family": "joint_vae", "event_shape": [1, 4, 4], "categories": 3}).double()
    x = torch.randn(4, 1, 4, 4, generator=keyed_generator(0), dtype=F64)

    def streams(rows):
        return [keyed_generator(9, r) for r in rows]

    for verb in (
        lambda r: model.log_prob(x[r], draws=2, generator=streams(r)).value,
        lambda r: model.loss(x[r], generator=streams(r)).value,
        lambda r: model.sample((len(r),), generator=streams(r)),
    ):
        torch.testing.assert_close(verb(range(4))[2:], verb(range(2, 4)), rtol=1e-9, atol=1e-9)
    assert model.encode(x).mean.shape == (4, 8)
    torch.testing.assert_close(model.classify(x).exp().sum(1), torch.ones(4, dtype=F64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": 1}, "categories=1"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"gamma": -1.0}, r"gamma=-1\.0"),
        ({"encoder": {"wide": 1}}, "no option 'wide'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(AleatorError, match=message):
        build({"family": "joint_vae", "event_shape": [3], **change})
