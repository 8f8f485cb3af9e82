"""p(x | y) of every family where it is known: Gaussian models, and one dimension by quadrature."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from core import build
from core.energy import EnergyModel
from core.errors import AleatorError
from core.flow_matching import FlowMatching
from core.model import GenerativeModel
from core.operators import AveragePool
from core.posterior import posterior
from core.random import keyed_generator
from core.vae import VAE, BottomUpVAE, LatentDiffusion, LatentFlowMatching, TopDownVAE
from core.vae.likelihoods import GaussianLikelihood

F64 = torch.float64
A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=F64)
Y = torch.tensor([[0.7, -0.2], [-1.5, 1.0]], dtype=F64)
S = 0.4
MEAN = torch.tensor([0.5, -1.0, 0.3], dtype=F64)
W = torch.tensor([[1.0, 0.2], [0.7, 0.5], [-0.4, 0.9]], dtype=F64)
WIDTH = 0.5
COVARIANCE = W @ W.T + WIDTH**2 * torch.eye(3, dtype=F64)


def gaussian(y):
    """The exact p(x | y) for x ~ N(MEAN, COVARIANCE)."""
    total = A @ COVARIANCE @ A.T + S**2 * torch.eye(2, dtype=F64)
    gain = torch.linalg.solve(total, A @ COVARIANCE).T
    covariance = COVARIANCE - gain @ A @ COVARIANCE
    return MultivariateNormal(MEAN + (y - A @ MEAN) @ gain.T, covariance)


class Constant(nn.Module):
    """An affine network, and a constant log-variance if there is one."""

    def __init__(self, weight, bias, log_variance=None):
        super().__init__()
        self.weight, self.bias, self.rest = nn.Parameter(weight), bias, log_variance

    def forward(self, x, level, context=None):
        mean = x @ self.weight.T + self.bias
        if self.rest is None:
            return mean
        return torch.cat([mean, torch.full_like(mean, self.rest)], 1)


def likelihood():
    law = GaussianLikelihood((3,), scale=WIDTH, learned="no").double()
    law.log_scale.fill_(math.log(WIDTH))
    return law


def encoder():
    return Constant(torch.zeros(2, 3, dtype=F64), torch.zeros(2, dtype=F64), 0.0)


def vae():
    decoder = Constant(W, MEAN)
    options = {"likelihood": likelihood(), "encoder": encoder(), "decoder": decoder}
    return VAE((3,), latent_dim=2, **options)


def bottom_up():
    """z_1 = 0.8 z_2 + 0.6 ε is again standard normal."""
    turn, zero = 0.8 * torch.eye(2, dtype=F64), torch.zeros(2, dtype=F64)
    return BottomUpVAE(
        (3,),
        latent_dims=(2, 2),
        likelihood=likelihood(),
        encoder=[encoder(), Constant(turn, zero, 0.0)],
        decoder=[Constant(W, MEAN), Constant(turn, zero, 2 * math.log(0.6))],
    )


def top_down():
    """Levels start with standard normal priors, and the path adds up what they inject."""
    small = {"width": 4, "blocks": 1}
    options = {"likelihood": likelihood(), "level": small, "encoder": small, "decoder": small}
    model = TopDownVAE((3,), latent_dims=(1, 1), width=2, **options).double()
    model.decoder = Constant(W, MEAN)
    with torch.no_grad():
        for k, level in enumerate(model.levels):
            level.inject.weight.zero_()
            level.inject.bias.zero_()
            level.inject.weight[k] = 1.0
    return model


class Known(FlowMatching):
    """Flow matching that knows its data."""

    def __init__(self, path):
        super().__init__(nn.Linear(1, 1).double(), (3,), path=path)

    def denoise(self, x_t, t, context=None):
        from core.denoiser import Posterior

        point = self.path.at(t)
        a, s = point.alpha, point.sigma
        total = a**2 * COVARIANCE + s**2 * torch.eye(3, dtype=F64)
        gain = a * torch.linalg.solve(total, COVARIANCE).T
        return Posterior(MEAN + (x_t - a * MEAN) @ gain.T, x_t, point)


class Quadratic(nn.Module):
    """(x - m)ᵀ P (x - m) / 2 without the model's own |x|² / 2s²."""

    def __init__(self, base_scale):
        super().__init__()
        self.P, self.scale = torch.linalg.inv(COVARIANCE), base_scale

    def forward(self, x, level, context=None):
        gap = x - MEAN
        own = x.square().sum(1) / (2 * self.scale**2)
        return (0.5 * (gap @ self.P * gap).sum(1) - own)[:, None]


class Whitening(nn.Module):
    """x = MEAN + L u, with the interface of a flow's transform."""

    def __init__(self, gradient=True):
        super().__init__()
        self.root, self.gradient = nn.Parameter(torch.linalg.cholesky(COVARIANCE)), gradient

    def invert(self, u, context=None):
        x = MEAN + u @ self.root.T
        return x if self.gradient else x.detach()


class Bijection(GenerativeModel):
    """As flows are: a transform from data to noise."""

    def __init__(self, gradient=True):
        super().__init__()
        self.event_shape, self.context_shape = torch.Size((3,)), None
        self.transform = Whitening(gradient)

    def loss(self, x, context=None, *, generator=None):
        raise NotImplementedError

    def sample(self, shape=(), context=None, **options):
        raise NotImplementedError


def energy():
    return EnergyModel((3,), energy=Quadratic(3.0), base_scale=3.0).double()


def latent(family):
    """A network of zeros is the exact denoiser of standard normal latents."""
    config = {"family": family, "event_shape": [2], "path": "vp", "prediction": "edm"}
    prior = build({**config, "net": {"width": 4, "blocks": 1}})
    kind = LatentDiffusion if family == "diffusion" else LatentFlowMatching
    return kind((3,), autoencoder=vae(), prior=prior).double()


MODELS = {
    "diffusion": lambda: Known("vp"),
    "flow_matching": lambda: Known("rectified"),
    "vae": vae,
    "hierarchical_vae": bottom_up,
    "top_down_vae": top_down,
    "energy": energy,
    "bijection": Bijection,
    "latent_diffusion": lambda: latent("diffusion"),
    "latent_flow_matching": lambda: latent("flow_matching"),
}

CHAINS = {"bijection", "vae", "hierarchical_vae", "top_down_vae", "energy"}


@pytest.mark.exact
@pytest.mark.parametrize("family", sorted(MODELS))
def test_posterior_of_a_gaussian_model(family):
    """Mean within 2 % and covariance within 5 % of the exact ones."""
    n = 3000 if family == "top_down_vae" else 8000
    model = MODELS[family]().eval()
    short = {"warmup": 60, "steps": 40} if family in CHAINS else {}
    x = posterior(model, Y, A, noise=S, **short).sample((n,), generator=keyed_generator(0))
    assert x.shape == (n, 2, 3)
    exact = gaussian(Y)
    for k in range(2):
        gap = (x[:, k].mean(0) - exact.mean[k]).norm()
        assert gap < 0.02 * exact.mean[k].norm()
        spread = exact.covariance_matrix[0]
        assert (torch.cov(x[:, k].T) - spread).norm() < 0.05 * spread.norm()


def quadrature(log_prior):
    """The distribution function of p(x | sin 2x = 0.4 ± 0.2) on a grid."""
    grid = torch.linspace(-4, 4, 8001, dtype=F64)
    log_p = log_prior(grid) - 0.5 * ((0.4 - (2 * grid).sin()) / 0.2).square()
    p = (log_p - log_p.max()).exp()
    return grid, p.cumsum(0) / p.sum()


@pytest.mark.exact
@pytest.mark.parametrize("family", ["vae", "energy"])
def test_a_nonlinear_observation_leaves_several_modes(family):
    """Against quadrature in one dimension; x is standard normal before it is observed."""
    if family == "vae":
        law = GaussianLikelihood((1,), scale=0.6, learned="no").double()
        law.log_scale.fill_(math.log(0.6))
        zero = torch.zeros(1, dtype=F64)
        decoder = Constant(torch.full((1, 1), 0.8, dtype=F64), zero)
        options = {"likelihood": law, "decoder": decoder}
        options["encoder"] = Constant(torch.zeros(1, 1, dtype=F64), zero, 0.0)
        model = VAE((1,), latent_dim=1, **options)
    else:
        flat = Constant(torch.zeros(1, 1, dtype=F64), torch.zeros(1, dtype=F64))
        model = EnergyModel((1,), energy=flat, base_scale=1.0).double()
    y = torch.full((1, 1), 0.4, dtype=F64)
    found = posterior(model, y, lambda x: (2 * x).sin(), noise=0.2, candidates=64)
    x = found.sample((4000,), generator=keyed_generator(1)).flatten().sort().values
    grid, cdf = quadrature(lambda g: -0.5 * g.square())
    at = cdf[torch.searchsorted(grid, x).clamp(max=8000)]
    ecdf = torch.arange(1, 4001, dtype=F64) / 4000
    assert (at - ecdf).abs().max() < 1.95 / math.sqrt(4000)  # Kolmogorov-Smirnov at 0.001


@pytest.mark.exact
@pytest.mark.parametrize("method", ["moment_matching", "pigdm"])
@pytest.mark.parametrize("family", ["diffusion", "flow_matching"])
def test_images_seen_by_a_coarse_instrument(family, method):
    """A fresh U-Net with EDM's preconditioning is the exact denoiser of white noise."""
    model = build(
        {
            "family": family,
            "event_shape": [1, 4, 4],
            "path": "vp",
            "prediction": "edm",
            "net": {"name": "unet", "channels": 8, "multipliers": [1]},
        }
    )
    y = torch.tensor([1.0, -0.5, 0.2, 0.0]).reshape(1, 1, 2, 2)
    found = posterior(model, y, AveragePool(2), noise=0.3, method=method)
    x = found.sample((700,), generator=keyed_generator(2))
    assert x.shape == (700, 1, 1, 4, 4)
    gain = 0.25 / (0.25 + 0.09)  # of block means, N(0, 1/4)
    blocks = AveragePool(2)(x[:, 0])
    torch.testing.assert_close(blocks.mean(0), gain * y[0], rtol=0, atol=0.05)
    exact = 0.25 * 0.09 / 0.34
    assert blocks.var(0).mean().item() == pytest.approx(exact, rel=0.12)
    assert x.var(0).mean().item() == pytest.approx(1 - 0.25 + exact, rel=0.05)


@pytest.mark.contract
@pytest.mark.parametrize("family", sorted(MODELS))
def test_draws_are_laid_out_as_samples_and_follow_the_generator(family):
    short = {"warmup": 5, "steps": 5} if family in CHAINS else {"sampler": {"steps": 8}}
    found = posterior(MODELS[family]().eval(), Y, A, noise=S, **short)
    x = found.sample((2, 3), generator=keyed_generator(4))
    assert x.shape == (2, 3, 2, 3)
    assert torch.equal(x, found.sample((2, 3), generator=keyed_generator(4)))
    assert not torch.equal(x, found.sample((2, 3), generator=keyed_generator(5)))
    streams = [keyed_generator(6, k) for k in range(4)]
    assert found.sample((2,), generator=streams).shape == (2, 2, 3)


@pytest.mark.contract
def test_contexts_go_with_their_observations():
    net = {"width": 16, "blocks": 1, "classes": 3}
    model = build({"family": "diffusion", "event_shape": [3], "net": net})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=keyed_generator(3)))
    model, label, y = model.double(), torch.tensor([0, 2]), Y

    def drawn(rows):
        streams = [keyed_generator(1, s, r) for s in range(2) for r in rows]
        rows = list(rows)
        given = posterior(model, y[rows], A, noise=S, context=label[rows])
        return given.sample((2,), generator=streams)

    torch.testing.assert_close(drawn(range(2))[:, 1:], drawn([1]), rtol=1e-6, atol=1e-6)
    other = posterior(model, y, A, noise=S, context=label.flip(0))
    streams = [keyed_generator(1, s, r) for s in range(2) for r in range(2)]
    assert not torch.allclose(other.sample((2,), generator=streams), drawn(range(2)), atol=1e-3)


@pytest.mark.exact
def test_chains_can_be_diagnosed():
    from core.evaluation import split_r_hat

    run, x = posterior(vae(), Y, A, noise=S).chains((50,), keep=1, generator=keyed_generator(7))
    assert x.shape == (50, 2, 3)
    assert run.draws.shape == (60, 100, 5)
    assert 0.6 < run.acceptance.mean() < 0.95
    assert (split_r_hat(run.draws[:, ::2]) < 1.1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": 0.0}, r"noise=0\.0"),
        ({"y": Y[0]}, r"shape \(2,\)"),
        ({"y": Y * math.nan}, "finite values"),
        ({"context": torch.zeros(3, 1)}, "a context of batch 3 for 2 observations"),
        ({"method": "gibbs"}, "VAE: method 'gibbs'; known: hmc"),
        ({"model": Known("vp"), "method": "hmc"}, "known: moment_matching, dps, pigdm"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {"model": vae(), "y": Y, "operator": A, "noise": S, **change}
    with pytest.raises(AleatorError, match=message):
        posterior(**arguments)


def test_mistakes_that_show_when_drawing():
    with pytest.raises(AleatorError, match="no option 'iterations'"):
        posterior(vae(), Y, A, noise=S, iterations=3).sample()
    with pytest.raises(AleatorError, match="no option 'warmup'"):
        posterior(Known("vp"), Y, A, noise=S, warmup=3).sample()
    with pytest.raises(AleatorError, match=r"observations of shape \(2, 1\)"):
        posterior(vae(), Y[:, :1], A, noise=S).sample()
    with pytest.raises(AleatorError, match="linear operator"):
        posterior(latent("diffusion"), Y, torch.sin, noise=S).sample()
    with pytest.raises(AleatorError, match="the inverse of this flow has no gradient"):
        posterior(Bijection(gradient=False), Y, A, noise=S).sample()
    integers = Bijection()
    integers.levels = 17
    with pytest.raises(AleatorError, match="of integers"):
        posterior(integers, Y, A, noise=S).sample()
    counts = build({"family": "vae", "event_shape": [3], "likelihood": "poisson"})
    with pytest.raises(AleatorError, match="Poisson likelihood has no continuous noise"):
        posterior(counts, Y.float(), A.float(), noise=S).sample()
