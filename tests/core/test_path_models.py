"""Diffusion and flow matching: readings, bounds, densities, gradients, guidance; all exact."""

import math

import pytest
import torch
from torch import nn

from core.denoiser import Denoiser, Posterior, mean_from
from core.density import flow_log_prob
from core.diffusion import Diffusion, error_weight
from core.elbo import diffusion_elbo, discretised_normal, step_kl
from core.errors import AleatorError
from core.flow_matching import FlowMatching
from core.paths import path_from_config
from core.random import keyed_generator

READINGS = ["x0", "eps", "score", "v", "velocity"]


class Linear(nn.Module):
    """A small conditional network with random weights."""

    def __init__(self, dim=3, out=None, seed=0):
        super().__init__()
        self.layer = nn.Linear(2 * dim + 1, out or dim).double()
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)

    def forward(self, x, noise, context=None):
        c = torch.zeros_like(x) if context is None else context
        return self.layer(torch.cat([x, noise[:, None], c], 1)).tanh()


def points(n=7, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.exact
@pytest.mark.parametrize("reading", READINGS)
def test_every_reading_inverts(path, reading):
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    x_t, mean = points(seed=1), points(seed=2)
    posterior = Posterior(mean, x_t, path.at(t, x_t))
    back = mean_from(reading, getattr(posterior, reading), x_t, posterior.point)
    torch.testing.assert_close(back, mean, rtol=1e-7, atol=1e-7)


@pytest.mark.exact
def test_score_is_the_gradient_of_the_marginal(mixture_3d, path):
    """X5 (Tweedie): the marginal score is the posterior mean of the conditional one."""
    x_t, t = points(), 0.4
    point = path.at(t)
    x = x_t.clone().requires_grad_()
    (exact,) = torch.autograd.grad(mixture_3d.log_prob(x, point.alpha, point.sigma).sum(), x)
    torch.testing.assert_close(mixture_3d.denoise(path)(x_t, t).score, exact)


@pytest.mark.exact
@pytest.mark.parametrize("prediction", [*READINGS, "edm"])
def test_number_and_tensor_times_agree(path, prediction):
    denoiser = Denoiser(Linear(), path, prediction, sigma_data=0.5)
    x_t = points()
    by_number = denoiser(x_t, 0.3).mean
    by_tensor = denoiser(x_t, torch.full((7,), 0.3, dtype=torch.float64)).mean
    torch.testing.assert_close(by_number, by_tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.exact
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
@pytest.mark.parametrize("t", [1e-4, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("name", ["vp", "ve", "edm"])
def test_preconditioning_by_number_is_exact_to_rounding(name, t, sigma_data, dtype):
    """Against double precision, weights near 0 and 1, networks of another precision too."""

    def net(x, level, context):
        return torch.tanh(x).to(dtype)

    x_t = 3 * points(seed=8).float()
    x_t = x_t * path_from_config(name).at(t).sigma
    found = Denoiser(net, name, sigma_data=sigma_data)(x_t, t).mean
    wide = Denoiser(lambda x, *_: net(x.float(), *_).double(), name, sigma_data=sigma_data)
    times = torch.full((len(x_t),), t, dtype=torch.float64)
    expected = wide(x_t.double(), times).mean
    assert found.dtype == torch.float32
    coarse = 2**-8 if dtype is torch.bfloat16 else 1e-6
    torch.testing.assert_close(found.double(), expected, rtol=coarse, atol=coarse)


@pytest.mark.exact
def test_edm_preconditioning_is_karras_table_1():
    """On the EDM path the coefficients are those of the paper; unit input and target variance."""
    denoiser = Denoiser(Linear(), "edm", sigma_data=0.5)
    path = denoiser.path
    x_0 = 0.5 * points(200000, 1)
    for t in (0.2, 0.5, 0.8):
        s = path.at(t).sigma
        x_t = x_0 + s * points(200000, 1, seed=1)
        c_skip = 0.25 / (s**2 + 0.25)
        c_out = s * 0.5 / math.sqrt(s**2 + 0.25)
        target = (x_0 - c_skip * x_t) / c_out
        assert target.var().item() == pytest.approx(1, rel=0.02)
        zero = Denoiser(lambda x, n, c: torch.zeros_like(x), "edm", sigma_data=0.5)
        torch.testing.assert_close(zero(x_t[:5], t).mean, c_skip * x_t[:5])


@pytest.mark.exact
@pytest.mark.parametrize(
    ("reading", "weighting"), [("eps", "simple"), ("v", "v"), ("velocity", "velocity")]
)
def test_weights_turn_the_error_in_x0_into_the_error_in_the_reading(path, reading, weighting):
    t = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    x, eps = points(seed=3), points(seed=4)
    point = path.at(t, x)
    x_t = point.alpha * x + point.sigma * eps
    true, guess = Posterior(x, x_t, point), Posterior(points(seed=5), x_t, point)
    direct = (getattr(true, reading) - getattr(guess, reading)).square()
    weighted = error_weight(weighting, point, 1.0) * (guess.mean - x).square()
    torch.testing.assert_close(direct, weighted, rtol=1e-7, atol=1e-9)


@pytest.mark.exact
@pytest.mark.parametrize(
    ("config", "law"),
    [
        ("vp", "gaussian"),
        ("rectified", "gaussian"),
        ("rectified", "mixture"),
        ({"name": "edm", "sigma_max": 2000.0, "sigma_min": 1e-5}, "mixture"),
    ],
    ids=str,
)
def test_density_of_gaussians_and_mixtures(config, law, two_modes):
    """Within 1e-5 nats; centred laws, as standardised data are: x_T is then N(0, prior_std²)."""
    path, s = path_from_config(config), 0.7
    tensors = ([1.0], [[0.0, 0.0, 0.0]], [s])
    if law == "mixture":
        tensors = ([0.4, 0.6], [[0.6, -0.9, 0.3], [-0.4, 0.6, -0.2]], [0.5, 0.3])
    law = type(two_modes)(*(torch.tensor(v, dtype=torch.float64) for v in tensors))
    end = path.at(path.t_max)
    density = flow_log_prob(
        law.denoise(path),
        points(6) * 0.7,
        path=path,
        prior_std=math.hypot(end.sigma, end.alpha * s),
        log_snr_max=18.0,
        rtol=1e-9,
        atol=1e-9,
    )
    assert density.kind == "exact"
    torch.testing.assert_close(density.value, law.log_prob(points(6) * 0.7), rtol=0, atol=1e-5)


@pytest.mark.exact
def test_hutchinson_is_unbiased_and_says_its_error(mixture_3d):
    path = path_from_config("rectified")
    density = flow_log_prob(
        mixture_3d.denoise(path),
        points(4),
        path=path,
        prior_std=path.at(path.t_max).sigma,
        trace="hutchinson",
        probes=40,
        log_snr_max=16.0,
        generator=keyed_generator(0),
        method="rk4",
        steps=60,
    )
    assert density.kind == "unbiased"
    error = (density.value - mixture_3d.log_prob(points(4))).abs()
    assert (error < 3 * density.stderr + 1e-3).all()
    assert (density.stderr < 0.5).all()


@pytest.mark.exact
def test_bound_is_below_the_evidence_and_the_gap_closes(mixture_3d):
    path, x = path_from_config("vp"), points(40) * 0.7
    exact = mixture_3d.log_prob(x).mean()
    gaps = []
    for steps in (8, 32, 128):
        bound = diffusion_elbo(
            mixture_3d.denoise(path),
            x,
            path=path,
            steps=steps,
            draws=64,
            generator=keyed_generator(steps),
            log_snr_max=9.0,
        ).density
        assert bound.kind == "lower_bound"
        gaps.append((exact - bound.value.mean()).item())
        assert gaps[-1] > -4 * bound.stderr.mean() / math.sqrt(len(x))
    # First order in 1/T: the gap falls by four with four times the steps.
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=0.25)


@pytest.mark.exact
def test_prior_term_and_steps_are_kl_divergences():
    """X4: L_t and L_T against torch.distributions, equal and unequal variances."""
    path, x = path_from_config("vp"), points(5)
    elbo = diffusion_elbo(
        lambda x_t, t: Posterior(x_t * 0.3, x_t, path.at(t)),
        x,
        path=path,
        steps=4,
        generator=keyed_generator(0),
        prior_std=1.1,
    )
    first = path.at(path.t_max)
    q = torch.distributions.Normal(first.alpha * x, first.sigma)
    p = torch.distributions.Normal(torch.zeros_like(x), 1.1)
    torch.testing.assert_close(elbo.l_T, torch.distributions.kl_divergence(q, p).sum(1))
    x_t, t, s = points(5, seed=8), 0.5, 0.4
    from core.solvers.deterministic import posterior_variance
    from core.solvers.stochastic import ancestral_coefficients, forward_variance

    on_x, on_mean = ancestral_coefficients(path, t, s)
    fraction = torch.full_like(x, 0.3)
    posterior = Posterior(0.3 * x_t, x_t, path.at(t), fraction)
    low, high = posterior_variance(path, t, s), forward_variance(path, t, s)
    for name, variance in (
        ("posterior", low),
        ("forward", high),
        ("learned", low**0.7 * high**0.3),
    ):
        q = torch.distributions.Normal(on_x * x_t + on_mean * x, math.sqrt(low))
        p = torch.distributions.Normal(on_x * x_t + on_mean * posterior.mean, math.sqrt(variance))
        expected = torch.distributions.kl_divergence(q, p).sum(1)
        torch.testing.assert_close(step_kl(x, x_t, posterior, path, t, s, name), expected)


@pytest.mark.exact
def test_discretised_likelihood_sums_to_one():
    bins = torch.arange(-400, 401, dtype=torch.float64) * 0.05
    for mean, scale in ((0.31, 0.02), (-0.7, 0.4), (0.0, 2.0)):
        mass = discretised_normal(bins, torch.tensor(mean, dtype=torch.float64), scale, 0.05)
        assert mass.exp().sum().item() == pytest.approx(1, abs=1e-10)


@pytest.mark.exact
def test_learned_variance_beats_both_fixed_choices(gaussian_3d):
    """On a Gaussian the best reverse variance is known; at ten steps it lies between β̃ and β."""
    path, x = path_from_config("vp"), gaussian_3d.sample(400, keyed_generator(1))
    exact = gaussian_3d.denoise(path)
    s2 = gaussian_3d.scales[0].item() ** 2

    def learned(x_t, t):
        from core.solvers.deterministic import posterior_variance
        from core.solvers.stochastic import ancestral_coefficients, forward_variance

        posterior, s = exact(x_t, t), following[t]
        if s is None:
            return posterior
        low, high = posterior_variance(path, t, s), forward_variance(path, t, s)
        _, on_mean = ancestral_coefficients(path, t, s)
        point = path.at(t)
        left = s2 * point.sigma**2 / (point.alpha**2 * s2 + point.sigma**2)
        best = low + on_mean**2 * left  # the true variance of x_s given x_t
        fraction = (math.log(best) - math.log(low)) / (math.log(high) - math.log(low))
        assert 0 <= fraction <= 1
        return Posterior(posterior.mean, x_t, point, torch.full_like(x_t, fraction))

    from core.solvers.base import log_snr_grid

    end = path.t_from_log_snr(torch.tensor(10.0, dtype=torch.float64)).item()
    times = log_snr_grid(path, 11, end)
    following = dict(zip(times, [*times[1:], None], strict=True))
    bound = {
        name: diffusion_elbo(
            learned, x, path=path, steps=10, variance=name, draws=20, generator=keyed_generator(2)
        )
        .density.value.mean()
        .item()
        for name in ("posterior", "forward", "learned")
    }
    assert bound["learned"] > bound["posterior"] + 0.01
    assert bound["learned"] > bound["forward"] + 0.01
    assert bound["learned"] < gaussian_3d.log_prob(x).mean().item() + 0.05


@pytest.mark.exact
def test_conditional_and_marginal_flow_matching_have_one_gradient():
    """Five data points: the marginal velocity is known, and both losses pull alike."""
    data = points(5, 3, seed=11)
    net = Linear()
    model = FlowMatching(net, (3,), times="uniform", path={"name": "rectified", "sigma_min": 0.2})
    generator, n = keyed_generator(5), 60000
    x = data[torch.randint(5, (n,), generator=generator)]
    t = model.draw_times(n, generator).double()
    x_t, eps, point = model.noised(x, t, generator)
    conditional = point.d_alpha * x + point.d_sigma * eps
    distance = (x_t[:, None] - point.alpha[:, None] * data) ** 2 / point.sigma[:, None] ** 2
    share = (-0.5 * distance.sum(-1)).softmax(-1)
    marginal = Posterior(share @ data, x_t, point).velocity
    predicted = net(*_net_input(model, x_t, point))

    def gradient(target, rows):
        value = (predicted[rows] - target[rows]).square().mean()
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(value, net.parameters(), retain_graph=True)]
        )

    blocks = torch.arange(n).tensor_split(30)
    differences = torch.stack([gradient(conditional, b) - gradient(marginal, b) for b in blocks])
    standard_error = differences.std(0) / math.sqrt(30)
    z = (differences.mean(0) / standard_error).nan_to_num()  # 0 / 0: weights of the absent context
    assert (z.abs() < 3).all()
    assert (z != 0).sum() == 15
    own = model.loss(x, generator=keyed_generator(5)).value
    assert own.shape == (n,)


def _net_input(model, x_t, point):
    c_in = 1 / (point.sigma**2 + point.alpha**2).sqrt()
    return c_in * x_t, ((point.sigma.log() - point.alpha.log()) / 4).flatten()


@pytest.mark.exact
def test_loss_of_flow_matching_is_the_velocity_error():
    model = FlowMatching(Linear(), (3,))
    x = points(4000)
    loss = model.loss(x, generator=keyed_generator(1))
    generator = keyed_generator(1)
    t = model.draw_times(len(x), generator).to(x)
    x_t, eps, point = model.noised(x, t, generator)
    target = point.d_alpha * x + point.d_sigma * eps
    predicted = model.denoise(x_t, t).velocity
    expected = (predicted - target).square().mean(1)
    torch.testing.assert_close(loss.value, expected, rtol=1e-6, atol=1e-8)


def test_dropped_context_is_null_for_the_right_share():
    model = Diffusion(Linear(), (3,), context_dropout=0.25)
    context = {"field": torch.ones(4000, 2), "label": torch.ones(4000, dtype=torch.long)}
    dropped = model.drop_context(context, keyed_generator(0))
    gone = (dropped["field"] == 0).all(1)
    assert gone.double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(gone, dropped["label"] == -1)


@pytest.mark.contract
@pytest.mark.parametrize("family", [Diffusion, FlowMatching])
def test_samples_follow_the_contract_and_the_batch_does_not_matter(family):
    model, context = family(Linear(), (3,)), points(2)
    assert model.sample(generator=keyed_generator(0)).shape == (3,)
    streams = [[keyed_generator(m, b) for b in range(2)] for m in range(4)]
    drawn = model.sample((4,), context, generator=[g for row in streams for g in row])
    assert drawn.shape == (4, 2, 3)
    second = model.sample((4,), context[1:], generator=[keyed_generator(m, 1) for m in range(4)])
    torch.testing.assert_close(drawn[:, 1:], second, rtol=1e-9, atol=1e-9)
    with pytest.raises(AleatorError, match="unknown weighting"):
        Diffusion(Linear(), (3,), weighting="snr")


@pytest.mark.contract
@pytest.mark.parametrize("learned", [False, True])
def test_training_recovers_a_gaussian(learned):
    """A few seconds of training: mean, spread and variance fraction make sense."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 2 if learned else 1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, noise, context=None):
            return self.net(torch.cat([x, noise[:, None]], 1))

    model = Diffusion(Net(), (1,), learned_variance=learned)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    generator = keyed_generator(3)
    for _ in range(300 if not learned else 10):
        x = 0.8 + 0.5 * torch.randn(128, 1, generator=generator)
        loss = model.loss(x, generator=generator)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    assert ("variance" in loss.terms) == learned
    if not learned:
        drawn = model.sample((4000,), generator=keyed_generator(4))
        assert drawn.mean().item() == pytest.approx(0.8, abs=0.1)
        assert drawn.std().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.exact
def test_continuity_equation_sign():
    """X2: along v = a x, ln p_t(φ_t(x)) = ln p_0(x) - a D t."""
    from core.density import with_divergence

    a, x = 0.7, points(4)
    _, divergence = with_divergence(lambda y: a * y, x)
    torch.testing.assert_close(divergence, torch.full((4, 1), 3 * a, dtype=torch.float64))
    moved = torch.distributions.Normal(0.0, math.exp(a * 0.5)).log_prob(x * math.exp(a * 0.5))
    start = torch.distributions.Normal(0.0, 1.0).log_prob(x)
    torch.testing.assert_close(moved.sum(1), start.sum(1) - divergence[:, 0] * 0.5)
