"""Priors learned in a latent space: exact where prior and decoder are linear and Gaussian."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from core import build
from core.diffusion import Diffusion
from core.errors import AleatorError
from core.evaluation import energy_distance
from core.flow_matching import FlowMatching
from core.model import Density, Encodes
from core.nets import MLP, Coder
from core.random import keyed_generator
from core.training import FitConfig, fit
from core.vae import VAE, LatentDiffusion, LatentFlowMatching

F64 = torch.float64
MU = torch.tensor([0.7, -1.0], dtype=F64)
SPREAD = 0.6  # the latents are N(MU, SPREAD² I): not the VAE's own prior


class Oracle(Diffusion):
    """Exact for standard normal latents: with EDM's preconditioning, by a network of zeros."""

    def __init__(self, **options):
        super().__init__(MLP((2,), width=8, blocks=1), (2,), **options)


def exact_model(orthogonal, **options):
    """PPCA with another latent law: its encoder and prior are exact."""
    W, m, s = orthogonal.W, orthogonal.m, orthogonal.s
    precision = torch.eye(2, dtype=F64) / SPREAD**2 + W.T @ W / s**2
    gain = torch.linalg.solve(precision, W.T / s**2)
    offset = torch.linalg.solve(precision, MU / SPREAD**2) - gain @ m
    vae = orthogonal.vae()
    vae.encoder = orthogonal.affine(gain, offset, (1 / precision.diagonal()).log())
    model = LatentDiffusion((4,), autoencoder=vae, prior=Oracle(), **options).double()
    model.mean.copy_(MU)
    model.scale.fill_(SPREAD)
    law = MultivariateNormal(W @ MU + m, SPREAD**2 * W @ W.T + s**2 * torch.eye(4, dtype=F64))
    return model.eval(), law


@pytest.mark.exact
@pytest.mark.parametrize("draws", [1, 4])
def test_the_bound_is_the_evidence_where_prior_and_posterior_are_exact(orthogonal, draws):
    model, law = exact_model(orthogonal)
    x = law.mean + torch.randn(20, 4, generator=keyed_generator(0), dtype=F64)
    found = model.log_prob(x, draws=draws, generator=keyed_generator(1), rtol=1e-8, atol=1e-8)
    assert found.kind == "lower_bound"
    torch.testing.assert_close(found.value, law.log_prob(x), rtol=0, atol=2e-5)


@pytest.mark.exact
def test_an_estimated_prior_density_gives_an_average_of_bounds(orthogonal):
    """Hutchinson's density is unbiased: its mean over draws is too, with an honest error."""
    model, law = exact_model(orthogonal)
    x = law.mean + torch.randn(10, 4, generator=keyed_generator(0), dtype=F64)
    found = model.log_prob(x, draws=16, generator=keyed_generator(1), trace="hutchinson", probes=2)
    assert ((found.value - law.log_prob(x)).abs() < 5 * found.stderr + 1e-3).all()


@pytest.mark.exact
def test_samples_follow_the_evidence(orthogonal):
    n, (model, law) = 20000, exact_model(orthogonal)
    x = model.sample((n,), generator=keyed_generator(4), sampler={"name": "2m", "steps": 40})
    z = torch.linalg.solve_triangular(law.scale_tril, (x - law.mean).T, upper=False)
    assert (z.mean(1).abs() < 5 / math.sqrt(n)).all()
    torch.testing.assert_close(z @ z.T / n, torch.eye(4, dtype=F64), rtol=0, atol=0.05)
    model.output = "mean"
    mean = model.sample((50,), generator=keyed_generator(4))
    inside = torch.linalg.lstsq(orthogonal.W, (mean - orthogonal.m).T).residuals
    assert (mean - orthogonal.m).norm() > 1
    assert inside.numel() == 0 or inside.abs().max() < 1e-18


@pytest.mark.exact
def test_latents_are_standardised_by_their_own_law(orthogonal):
    model, law = exact_model(orthogonal, momentum=0.01)
    model.train()
    model.mean.zero_()
    model.scale.fill_(1)
    generator = keyed_generator(5)
    for _ in range(200):
        z = torch.randn(200, 4, generator=generator, dtype=F64)
        model.loss(law.mean + z @ law.scale_tril.T, generator=generator)
    torch.testing.assert_close(model.mean, MU, rtol=0, atol=0.03)
    assert model.scale.item() == pytest.approx(SPREAD, rel=0.03)
    again = LatentDiffusion((4,), autoencoder=orthogonal.vae(), prior=Oracle()).double()
    again.load_state_dict(model.state_dict())
    assert int(again.seen) == 200


@pytest.mark.exact
def test_the_prior_does_not_bend_the_autoencoder(orthogonal):
    model, law = exact_model(orthogonal)
    x = law.sample((30,))
    generators = [keyed_generator(6), keyed_generator(6)]
    joint = model.loss(x, generator=generators[0])
    alone = model.autoencoder.loss(x, generator=generators[1])
    weights = list(model.autoencoder.encoder.parameters())
    for a, b in zip(
        torch.autograd.grad(joint.mean(), weights),
        torch.autograd.grad(alone.mean(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    second = LatentDiffusion((4,), autoencoder=model.autoencoder, prior=Oracle(), train="prior")
    second.double().loss(x).mean().backward()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert any(p.grad is not None for p in second.prior.parameters())


CONFIG = {
    "family": "latent_flow_matching",
    "event_shape": [2],
    "autoencoder": {
        "latent_dim": 2,
        "likelihood": {"name": "gaussian", "scale": 0.1},
        "encoder": {"width": 32, "blocks": 1},
        "decoder": {"width": 32, "blocks": 1},
    },
    "prior": {"net": {"width": 48, "blocks": 2}},
}


@pytest.mark.parametrize("family", ["latent_flow_matching", "latent_diffusion"])
def test_training_learns_a_law_that_the_latents_do_not_have_by_themselves(family, tmp_path):
    """Two far modes through a plain autoencoder: the learned prior knows of the gap."""
    generator = keyed_generator(0)
    sign = 2.0 * torch.randint(2, (2000, 1), generator=generator) - 1
    train = torch.cat([2 * sign, -sign], 1) + 0.2 * torch.randn(2000, 2, generator=generator)

    def batches(step, generator):
        return train[torch.randint(2000, (128,), generator=generator)], None

    options = FitConfig(steps=300, learning_rate=4e-3, validate_every=0, ema=0.95)
    model = build({**CONFIG, "family": family})
    fitted = fit(model, batches, options, folder=tmp_path, progress=None, device="cpu").model
    truth = train[:500]
    drawn = fitted.sample((500,), generator=keyed_generator(1))
    plain = fitted.autoencoder.sample((500,), generator=keyed_generator(1))
    far = energy_distance(plain, truth).value
    near = energy_distance(drawn, truth).value
    assert near < 0.05
    assert near < far / 3
    bound = fitted.log_prob(truth[:100], draws=4, generator=keyed_generator(2)).value.mean()
    entropy = -math.log(2) - 2 * (math.log(0.2) + 0.5 * math.log(2 * math.pi * math.e))
    assert entropy - 1.5 < bound < entropy + 0.3


IMAGE = {
    "event_shape": [1, 8, 8],
    "latent_shape": [2, 4, 4],
    "autoencoder": {
        "latent_dim": 32,
        "encoder": {"name": "coder", "channels": 8, "classes": 3},
        "decoder": {"name": "coder", "channels": 8, "classes": 3},
    },
    "prior": {
        "net": {"name": "unet", "channels": 8, "multipliers": [1, 2], "classes": 3},
        "sampler": {"steps": 4},
    },
}


@pytest.mark.contract
@pytest.mark.parametrize(
    ("family", "law"), [("latent_diffusion", Diffusion), ("latent_flow_matching", FlowMatching)]
)
def test_images_keep_their_layout(family, law):
    model = build({"family": family, **IMAGE})
    assert type(model.prior) is law
    assert isinstance(model, Encodes)
    x = torch.randn(3, 1, 8, 8, generator=keyed_generator(0))
    label = torch.tensor([0, 1, 2])
    loss = model.loss(x, label, generator=keyed_generator(1))
    assert loss.value.shape == (3,)
    assert {"vae_kl", "prior", "prior_mse"} <= set(loss.terms)
    loss.mean().backward()
    assert model.encode(x, label).mean.shape == (3, 32)
    assert model.sample((2,), label, generator=keyed_generator(2)).shape == (2, 3, 1, 8, 8)
    assert model.sample((2,), generator=keyed_generator(2)).shape == (2, 1, 8, 8)
    streams = [keyed_generator(7, k) for k in range(3)]
    whole = model.sample((1,), label, generator=streams)[0]
    alone = model.sample((1,), label[2:], generator=[keyed_generator(7, 2)])[0]
    torch.testing.assert_close(whole[2:], alone, rtol=1e-4, atol=1e-4)


def test_a_bound_with_streams_depends_on_the_example_alone():
    torch.manual_seed(0)
    model = build({"family": "latent_diffusion", **CONFIG | {"family": "latent_diffusion"}}).eval()
    x = torch.randn(4, 2, generator=keyed_generator(0))
    whole = model.log_prob(x, draws=2, generator=[keyed_generator(7, k) for k in range(4)]).value
    alone = model.log_prob(x[3:], draws=2, generator=[keyed_generator(7, 3)]).value
    torch.testing.assert_close(whole[3:], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.exact
@pytest.mark.parametrize("dims", [32, 5])
def test_a_coder_goes_down_and_up(dims):
    """With latents on the grid, and with a linear layer where they do not divide."""
    down = Coder((1, 8, 12), out_shape=(dims,), channels=8, multipliers=(1, 2))
    up = Coder((dims,), out_shape=(1, 8, 12), channels=8, multipliers=(1, 2))
    for net in (down, up):
        torch.nn.init.normal_(net.last.weight, generator=keyed_generator(0))
    x = torch.randn(2, 1, 8, 12, generator=keyed_generator(1))
    level = torch.zeros(2)
    z = down(x, level)
    assert z.shape == (2, dims)
    assert up(z, level).shape == (2, 1, 8, 12)
    if dims == 32:
        return
    with pytest.raises(AleatorError, match="9 x 12 does not halve 1 times"):
        Coder((1, 9, 12), out_shape=(4,))
    with pytest.raises(AleatorError, match=r"not \(8,\) and \(4,\)"):
        Coder((8,), out_shape=(4,))


@pytest.mark.exact
def test_grid_latents_are_local():
    """The latent of one cell does not see the opposite corner of a large image."""
    net = Coder((1, 32, 32), out_shape=(256,), channels=8, multipliers=(1, 2))
    torch.nn.init.normal_(net.last.weight, generator=keyed_generator(0))
    for module in net.modules():  # group norms see everything
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    x = torch.randn(1, 1, 32, 32, generator=keyed_generator(1))
    moved = x.clone()
    moved[..., -4:, -4:] += 1
    change = (net(moved, torch.zeros(1)) - net(x, torch.zeros(1))).reshape(16, 16)
    assert (change[:8, :8] == 0).all()
    assert change[-1, -1] != 0


class Estimated(Oracle):
    """A prior that only estimates its density."""

    def log_prob(self, x, context=None, **options):
        return Density(x.new_zeros(len(x)), "estimate")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_shape": [3]}, r"latent_shape=\[3\] does not hold the 2"),
        ({"train": "vae"}, "train='vae'"),
        ({"output": "mode"}, "output='mode'"),
        ({"momentum": 0.0}, "momentum=0.0"),
        ({"prior": {"net": {"wide": 3}}}, "net MLP has no option 'wide'"),
        ({"prior": {"family": "gan"}}, "unknown family 'gan'"),
        ({"autoencoder": {"latent": 3}}, "family VAE has no option 'latent'"),
    ],
)
def test_mistakes_in_configs_are_named(change, message):
    with pytest.raises(AleatorError, match=message):
        build({**CONFIG, **change})


def test_mistakes_in_use_are_named():
    vae = VAE((3,), latent_dim=2)
    with pytest.raises(AleatorError, match=r"a prior over \[2\] for latents of shape \[1, 2\]"):
        LatentDiffusion((3,), autoencoder=vae, prior=Oracle(), latent_shape=(1, 2))
    model = LatentFlowMatching((3,), autoencoder=vae, prior=Estimated())
    x = torch.zeros(2, 3)
    with pytest.raises(AleatorError, match="Estimated only estimates its density"):
        model.log_prob(x)
    with pytest.raises(AleatorError, match="draws=0"):
        model.log_prob(x, draws=0)
    for verb in (model.loss, model.log_prob, model.encode):
        with pytest.raises(AleatorError, match="first in example 0"):
            verb(x * math.nan)
