"""DAED: the diffusion model's bound with shared weights, more with its own, and its parts."""

import math

import pytest
import torch
from torch import nn

from core import build
from core.denoiser import Posterior
from core.diffusion import Diffusion
from core.elbo import diffusion_elbo
from core.errors import AleatorError
from core.random import keyed_generator
from core.training import FitConfig, fit
from core.vae import DAED

F64 = torch.float64
S = 0.6  # data N(0.5, S²) in two dimensions


class Exact(Diffusion):
    """Knows its data."""

    def __init__(self):
        super().__init__(nn.Linear(1, 1).double(), (2,), path="vp")

    def denoise(self, x_t, t, context=None):
        return exact(self.path, x_t, t)


def exact(path, x_t, t):
    point = path.at(t)
    gain = point.alpha * S**2 / (point.alpha**2 * S**2 + point.sigma**2)
    return Posterior(0.5 + gain * (x_t - point.alpha * 0.5), x_t, point)


class Shared(nn.Module):
    """In place of the autoencoder: the generator's own denoiser."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x_t, t, context=None):
        return exact(self.path, x_t, t)


def model_of(log_snr=3.0):
    generator = Exact()
    model = DAED((2,), generator=generator, autoencoder=nn.Identity(), log_snr=log_snr).double()
    model.autoencoder = Shared(generator.path)
    return model


def data(n, seed=0):
    return 0.5 + S * torch.randn(n, 2, generator=keyed_generator(seed), dtype=F64)


def spread_left(model):
    """Standard deviation of x given x_1."""
    point = model.generator.path.at(model.t_meet)
    return (1 / (1 / S**2 + (point.alpha / point.sigma) ** 2)) ** 0.5


@pytest.mark.exact
def test_with_shared_weights_the_bound_is_that_of_diffusion():
    """Its last scale is that of the noise left, as in `core.elbo`: equal in expectation."""
    model, x = model_of(), data(1).expand(30000, -1)
    found = model.log_prob(x, steps=5, draws=1, generator=keyed_generator(1)).value
    options = {"path": model.generator.path, "steps": 5, "log_snr_max": 3.0}
    options["prior_std"] = model.generator.prior_std
    expected = diffusion_elbo(
        model.generator.bind(None), x, generator=keyed_generator(2), **options
    ).density.value
    stderr = math.hypot(found.std().item(), expected.std().item()) / math.sqrt(len(x))
    assert found.mean().item() == pytest.approx(expected.mean().item(), abs=4 * stderr)
    assert stderr < 0.03


@pytest.mark.exact
def test_a_scale_of_its_own_tightens_the_bound_towards_the_evidence():
    """The exact p(x | x_1) is narrower than the noise left: with it only the steps lose."""
    model, x = model_of(log_snr=0.0), data(3000)
    plain = model.log_prob(x, steps=200, draws=2, generator=keyed_generator(1)).value.mean()
    model.log_scale.data.fill_(math.log(spread_left(model)))
    own = model.log_prob(x, steps=200, draws=2, generator=keyed_generator(1)).value.mean()
    evidence = torch.distributions.Normal(0.5, S).log_prob(x).sum(1).mean()
    assert plain < own - 0.05
    assert own < evidence + 0.02
    assert evidence - own < 0.05


@pytest.mark.exact
def test_samples_follow_the_data_whatever_the_meeting_point():
    for log_snr in (0.0, 3.0):
        model = model_of(log_snr)
        model.output = "data"
        model.log_scale.data.fill_(math.log(spread_left(model)))
        walk = {"name": "2m", "steps": 40}
        x = model.sample((20000,), sampler=walk, generator=keyed_generator(3))
        assert (x.mean(0) - 0.5).abs().max() < 0.02
        torch.testing.assert_close(torch.cov(x.T), S**2 * torch.eye(2).double(), rtol=0, atol=0.02)


@pytest.mark.exact
@pytest.mark.parametrize("times", ["log_normal", "uniform", "logit_normal"])
def test_the_generator_is_trained_above_the_meeting_point_only(times):
    """And there by the law of times of an ordinary one, given that it is above."""
    net = nn.Linear(1, 1)
    cut = Diffusion(net, (1,), path="vp", times=times, first_log_snr=1.0)
    whole = Diffusion(net, (1,), path="vp", times=times)
    t = cut.draw_times(4000, keyed_generator(0))
    bound = cut.path.t_from_log_snr(torch.tensor(1.0, dtype=F64)).item()
    assert t.min() > bound * 0.999
    above = whole.draw_times(40000, keyed_generator(1))
    above = above[above > bound]
    levels = torch.linspace(0.05, 0.95, 10).to(t)
    torch.testing.assert_close(t.quantile(levels), above.quantile(levels), rtol=0.03, atol=0.005)


CONFIG = {
    "family": "daed",
    "event_shape": [2],
    "log_snr": 1.0,
    "generator": {"path": "vp", "net": {"width": 32, "blocks": 1}},
    "autoencoder": {"width": 32, "blocks": 1},
}


def test_training_fits_both_parts_and_the_denoiser_works_alone(tmp_path):
    sign = 2.0 * torch.randint(2, (2000, 1), generator=keyed_generator(0)) - 1
    train = torch.cat([sign, -sign], 1) + 0.1 * torch.randn(2000, 2, generator=keyed_generator(1))

    def batches(step, generator):
        return train[torch.randint(2000, (128,), generator=generator)], None

    torch.manual_seed(0)
    options = FitConfig(steps=300, learning_rate=4e-3, validate_every=0, ema=0.95)
    model = fit(
        build(CONFIG), batches, options, folder=tmp_path, progress=None, device="cpu"
    ).model
    level = math.exp(-0.5)
    seen = train[:500] + level * torch.randn(500, 2, generator=keyed_generator(2))
    cleaned = model.remove_noise(seen, level)
    error, plain = (cleaned - train[:500]).square().mean(), (seen - train[:500]).square().mean()
    assert error < 0.35 * plain
    x = model.sample((500,), generator=keyed_generator(3))
    near = (x.abs() - 1).abs().max(1).values < 0.5
    assert (near & (x[:, 0] * x[:, 1] < 0)).double().mean() > 0.8


@pytest.mark.contract
def test_images_and_contexts():
    net = {"name": "unet", "channels": 8, "multipliers": [1], "classes": 3}
    config = {**CONFIG, "event_shape": [1, 8, 8], "autoencoder": net}
    model = build({**config, "generator": {"net": net, "sampler": {"steps": 3}}})
    x, label = torch.randn(2, 1, 8, 8, generator=keyed_generator(0)), torch.tensor([0, 2])
    loss = model.loss(x, label, generator=keyed_generator(1))
    assert {"generator_mse", "autoencoder"} <= set(loss.terms)
    assert model.sample((3,), label, generator=keyed_generator(2)).shape == (3, 2, 1, 8, 8)
    found = model.log_prob(x, label, steps=3, draws=2, generator=keyed_generator(3))
    assert found.kind == "lower_bound"
    assert found.stderr.shape == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_snr": 99.0}, r"log_snr=99\.0 is not on the path vp"),
        ({"output": "mode"}, "output='mode'"),
        ({"scale": -1.0}, r"scale=-1\.0"),
        ({"generator": {"weight": 1}}, "family Diffusion has no option 'weight'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(AleatorError, match=message):
        build({**CONFIG, **change})


def test_mistakes_in_use_are_named():
    model = build(CONFIG)
    with pytest.raises(AleatorError, match="the autoencoder takes up to"):
        model.remove_noise(torch.zeros(1, 2), 0.9)
    with pytest.raises(AleatorError, match=r"a generator of \[2\] for events of \[3\]"):
        DAED((3,), generator=Exact())
    with pytest.raises(AleatorError, match="first in example 0"):
        model.loss(torch.full((1, 2), math.nan))
