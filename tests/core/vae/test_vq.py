"""VQ-VAE: straight-through gradients, k-means codebooks, an exact prior, revival, sampling."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from core import build
from core.errors import AleatorError
from core.random import keyed_generator
from core.training import FitConfig, fit
from core.vae.vq import Codebook, CodePrior, perplexity

CONFIG = {
    "family": "vq_vae",
    "event_shape": [6],
    "codes": 5,
    "code_dim": 3,
    "positions": 4,
    "encoder": {"width": 16, "blocks": 1},
    "decoder": {"width": 16, "blocks": 1},
    "prior": {"width": 16, "layers": 1, "heads": 2},
}


def model_of(**changes):
    torch.manual_seed(0)
    model = build({**CONFIG, **changes})
    with torch.no_grad():
        for net in (model.encoder, model.decoder):
            nn.init.normal_(net.last.weight, std=0.5, generator=keyed_generator(1))
    return model


@pytest.mark.exact
def test_the_gradient_goes_straight_through():
    model = model_of().eval()
    z = torch.randn(2, 4, 3, generator=keyed_generator(2), requires_grad=True)
    chosen, vectors = model.quantise(z)
    torch.testing.assert_close(vectors, model.codebook.codes[chosen])
    weight = torch.randn(2, 4, 3, generator=keyed_generator(3))
    (gradient,) = torch.autograd.grad((weight * vectors).sum(), z)
    assert torch.equal(gradient, weight)
    distances = torch.cdist(z.detach(), model.codebook.codes.expand(2, -1, -1))
    assert torch.equal(chosen, distances.argmin(2))


@pytest.mark.exact
def test_the_codebook_of_a_fixed_encoder_is_that_of_k_means():
    centres = torch.tensor([[0.0, 4.0], [3.0, -2.0], [-3.0, -2.0]])
    z = centres.repeat(100, 1) + 0.7 * torch.randn(300, 2, generator=keyed_generator(0))
    book = Codebook(3, 2, decay=0.7)
    book.codes.copy_(z[:3])
    book.sums.copy_(z[:3])
    for _ in range(60):
        book.follow(z, book.nearest(z), torch.zeros(300), 0.0)
    reference = KMeans(3, init=z[:3].numpy(), n_init=1, tol=0).fit(z.numpy())
    torch.testing.assert_close(
        book.codes, torch.as_tensor(reference.cluster_centers_), rtol=0, atol=1e-4
    )


@pytest.mark.exact
def test_dead_codes_are_revived_where_the_data_are():
    z = torch.randn(50, 2, generator=keyed_generator(0))
    book = Codebook(4, 2, decay=0.5)
    book.codes[1:] = 100.0
    for _ in range(8):
        u = torch.rand(50, generator=keyed_generator(1))
        book.follow(z, book.nearest(z), u, least=0.1)
    assert book.codes.abs().max() < 5
    assert perplexity(book.nearest(z), 4) > 2


@pytest.mark.exact
def test_perplexity_counts_the_codes_in_use():
    assert perplexity(torch.tensor([0, 1, 2, 3]), 9) == pytest.approx(4)
    assert perplexity(torch.zeros(7, dtype=torch.long), 9) == pytest.approx(1)
    p = np.array([0.5, 0.25, 0.25])
    assert perplexity(torch.tensor([0, 0, 1, 2]), 3) == pytest.approx(
        np.exp(-(p * np.log(p)).sum())
    )


@pytest.mark.exact
def test_the_prior_is_normalised_causal_and_samples_what_it_says():
    torch.manual_seed(0)
    prior = CodePrior(3, 4, width=8, layers=1, heads=2).double()
    nn.init.normal_(prior.last.weight, std=1.0, generator=keyed_generator(0))
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    log_p = prior.log_prob(every, None)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)
    first, changed = prior(every[:, :2], None), every[:, :2].clone()
    changed[:, 1] = (changed[:, 1] + 1) % 4
    second = prior(changed, None)
    torch.testing.assert_close(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2], second[:, 2])
    n = 20000
    u = torch.rand(n, 3, generator=keyed_generator(1), dtype=torch.float64)
    drawn = prior.sample(u, None)
    index = drawn @ torch.tensor([16, 4, 1])
    frequency = torch.bincount(index, minlength=64) / n
    p = log_p.exp().detach()
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / n).sqrt() + 1e-4).all()


@pytest.mark.exact
def test_the_bound_is_one_term_of_the_evidence():
    """Against the whole sum over 5^2 codes, of which it is one term; a larger sum is larger."""
    model = model_of(positions=2).double().eval()
    x = torch.randn(8, 6, generator=keyed_generator(4), dtype=torch.float64)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    terms = []
    for codes in every:
        law = model.decode(model.codebook.codes[codes].expand(8, -1, -1).double())
        prior = model.prior.log_prob(codes.expand(8, -1), None)
        terms.append(law.log_prob(x).sum(1) + prior)
    table = torch.stack(terms)
    found = model.log_prob(x).value
    assert (found < table.logsumexp(0)).all()
    chosen = model.encode(x).mean.argmax(2)
    row = chosen[:, 0] * 5 + chosen[:, 1]
    torch.testing.assert_close(found, table[row, torch.arange(8)])


def test_training_uses_the_codebook_and_samples_look_like_data(tmp_path):
    """Two far modes: the prior must know which codes go together."""
    modes = torch.tensor([[2.0, 2, 2, -2, -2, -2], [-2.0, -2, -2, 2, 2, 2]])
    pick = torch.randint(2, (1000,), generator=keyed_generator(0))
    train = modes[pick] + 0.1 * torch.randn(1000, 6, generator=keyed_generator(1))
    model = model_of(likelihood={"name": "gaussian", "scale": 0.3})

    def batches(step, generator):
        return train[torch.randint(1000, (64,), generator=generator)], None

    config = FitConfig(steps=600, learning_rate=4e-3, validate_every=0, ema=0.9)
    fitted = fit(model, batches, config, folder=tmp_path, progress=None, device="cpu").model
    terms = fitted.loss(train, generator=keyed_generator(2)).terms
    assert terms["perplexity"][0] > 1.5
    drawn = fitted.sample((300,), sampler="mean", generator=keyed_generator(3))
    near = torch.cdist(drawn, modes).min(1).values
    assert (near < 1.0).double().mean() > 0.95  # of halves put together at random, half are
    share = (drawn[:, 0] > 0).double().mean()
    assert 0.35 < share < 0.65
    bound = fitted.log_prob(train).value.mean()
    independent = -6 * (math.log(2.0) + 1.42)  # a Gaussian for each element
    assert bound > independent + 12


@pytest.mark.contract
def test_images_labels_and_streams():
    torch.manual_seed(0)
    model = build(
        {
            "family": "vq_vae",
            "event_shape": [1, 8, 8],
            "code_dim": 4,
            "positions": 16,
            "encoder": {"name": "coder", "channels": 8},
            "decoder": {"name": "coder", "channels": 8},
            "prior": {"width": 16, "layers": 1, "classes": 3},
        }
    )
    x, label = torch.randn(3, 1, 8, 8, generator=keyed_generator(0)), torch.arange(3)
    before = model.codebook.codes.clone()
    model.loss(x, label, generator=keyed_generator(1)).mean().backward()
    assert not torch.equal(before, model.codebook.codes)
    assert model.encode(x, label).mean.shape == (3, 16, 64)
    model.eval()
    streams = [keyed_generator(3, k) for k in range(3)]
    whole = model.sample((1,), label, generator=streams)[0]
    alone = model.sample((1,), label[2:], generator=[keyed_generator(3, 2)])[0]
    torch.testing.assert_close(whole[2:], alone, rtol=1e-5, atol=1e-5)
    same = model.log_prob(x, label).value
    assert not torch.equal(same, model.log_prob(x, label.flip(0)).value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": 1}, "codes=1"),
        ({"decay": 1.0}, r"decay=1\.0"),
        ({"prior": {"depth": 3}}, "the prior has no option 'depth'"),
        ({"prior": {"width": 10, "heads": 4}}, "does not divide by heads=4"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(AleatorError, match=message):
        build({**CONFIG, **change})
    with pytest.raises(AleatorError, match="log_prob has no option 'draws'"):
        model_of().log_prob(torch.zeros(1, 6), draws=3)
