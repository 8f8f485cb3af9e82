"""Samplers against the exact quantile map of a one-dimensional mixture, and exact Gaussians."""

import itertools
import math

import pytest
import torch

from core.denoiser import Posterior
from core.errors import AleatorError
from core.paths import path_from_config
from core.random import keyed_generator
from core.solvers import SAMPLERS, make_sampler
from core.solvers.base import GRIDS
from core.solvers.deterministic import ddim_coefficients, posterior_variance
from core.solvers.stochastic import ancestral_coefficients, forward_variance, learned_scale

VP = path_from_config("vp")


def noise(path, n=4000, d=1, seed=0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * path.at(path.t_max).sigma


def map_error(mixture, sampler, path=VP):
    """Mean |x - F_0^{-1}(F_1(x_T))|."""
    x_t = noise(path)
    point = path.at(path.t_max)
    exact = mixture.quantile_map(x_t, point.alpha, point.sigma)
    drawn = make_sampler(sampler)(mixture.denoise(path), x_t, path=path)
    return (drawn - exact).abs().mean().item()


@pytest.mark.exact
@pytest.mark.parametrize(
    ("name", "steps", "bound"),
    [
        ("2m", 20, 0.010),
        ("2m", 32, 0.004),
        ("unipc", 20, 0.005),
        ("unipc", 32, 0.002),
        ("ddim", 32, 0.04),
        ("heun", 63, 0.02),
    ],
)
def test_error_against_the_exact_quantile_map(two_modes, name, steps, bound):
    assert map_error(two_modes, {"name": name, "steps": steps}) <= bound


@pytest.mark.exact
@pytest.mark.parametrize(("name", "bound"), [("2m", 0.5), ("unipc", 0.6)])
def test_the_asinh_grid_beats_the_log_snr_grid(two_modes, name, bound, path):
    """On every path, at 20 evaluations, by the factor that the benchmark reports."""
    plain, close = (
        map_error(two_modes, {"name": name, "steps": 20, "grid": g}, path)
        for g in ("log_snr", "asinh")
    )
    assert close <= bound * plain


@pytest.mark.exact
@pytest.mark.parametrize("grid", sorted(GRIDS))
def test_grids_fall_from_noise_to_the_end(path, grid):
    """Every grid is strictly decreasing, keeps its ends and its count, and ends where told."""
    sampler = make_sampler({"name": "2m", "grid": grid, "log_snr_max": 6.0})
    times = sampler.times(path, 17)
    assert len(times) == 17
    assert times[0] == path.t_max
    assert all(t > s for t, s in itertools.pairwise(times))
    end = torch.tensor(times[-1], dtype=torch.float64)
    assert path.log_snr(end).item() == pytest.approx(6.0, abs=1e-6)


@pytest.mark.exact
def test_probability_flow_to_tolerance(two_modes, path):
    config = {"name": "ode", "rtol": 1e-7, "atol": 1e-7, "log_snr_max": 16.0}
    assert map_error(two_modes, config, path) < 5e-4


@pytest.mark.exact
@pytest.mark.parametrize(
    ("name", "order"),
    [("ddim", 1), ("euler", 1), ("angle", 1), ("2m", 2), ("unipc", 3), ("heun", 2)],
)
def test_order_of_convergence(two_modes, name, order):
    """Doubling the steps divides the error by about 2^order; a fine run of the same end point."""
    grid = {"grid": "log_snr"}
    x_t = noise(VP, 500)
    denoise = two_modes.denoise(VP)

    def run(steps):
        return make_sampler({"name": name, "steps": steps, **grid})(denoise, x_t, path=VP)

    reference = make_sampler({"name": "2m", "steps": 4096})(denoise, x_t, path=VP)
    coarse, fine = ((run(n) - reference).abs().mean().item() for n in (128, 256))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.4)


@pytest.mark.exact
@pytest.mark.parametrize("steps", [2, 3, 4, 9])
@pytest.mark.parametrize("spread", [0.4, 1.0, 2.5])
def test_steps_in_the_angle_keep_the_spread_of_a_gaussian(path, steps, spread):
    """N(0, d²) comes out with its spread after any number of steps; DDIM's shrinks."""

    def denoise(x_t, t):
        at = path.at(t)
        gain = at.alpha * spread**2 / ((at.alpha * spread) ** 2 + at.sigma**2)
        return Posterior(gain * x_t, x_t, at)

    def drawn(name, **options):
        start = path.at(path.t_max)
        x_t = torch.full((1, 1), math.hypot(start.alpha * spread, start.sigma)).double()
        sampler = make_sampler({"name": name, "steps": steps, "log_snr_max": 14.0, **options})
        return sampler(denoise, x_t, path=path).item()

    assert drawn("angle", spread=spread) == pytest.approx(spread, rel=1e-5 / spread**2)
    assert drawn("ddim") < 0.95 * spread


@pytest.mark.exact
@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"name": "2m"}, (0.84, 0.84, 0.87)),
        ({"name": "unipc", "grid": "karras"}, (0.80, 0.97, 1.07)),
        ({"name": "angle", "grid": "karras", "log_snr_max": 4.0}, (1.15, 0.99, 0.92)),
    ],
)
def test_how_much_of_the_spread_four_steps_keep(config, kept):
    """Of Gaussian data with variances 0.1, 1 and 10, on the path of climate's diffusion."""
    path = path_from_config({"name": "edm", "sigma_min": 0.01, "sigma_max": 20.0})
    variance = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)

    def denoise(x_t, t):
        at = path.at(t)
        gain = at.alpha * variance / (at.alpha**2 * variance + at.sigma**2)
        return Posterior(gain * x_t, x_t, at)

    x_t = torch.full((1, 3), math.hypot(20, 1)).double()
    drawn = make_sampler({"steps": 4, **config})(denoise, x_t, path=path)
    assert (drawn[0] / variance.sqrt()).tolist() == pytest.approx(kept, abs=0.006)


@pytest.mark.exact
@pytest.mark.parametrize("name", ["ddpm", "sde"])
def test_stochastic_samplers_return_the_gaussian(gaussian_3d, path, name):
    """X3 and the reverse SDE: with the exact denoiser the chain returns N(m, s²)."""
    steps = 600 if name == "ddpm" else 1000
    sampler = make_sampler({"name": name, "steps": steps, "log_snr_max": 12.0})
    generator = torch.Generator().manual_seed(1)
    x = sampler(gaussian_3d.denoise(path), noise(path, 20000, 3), path=path, generator=generator)
    torch.testing.assert_close(x.mean(0), gaussian_3d.means[0], rtol=0, atol=0.03)
    torch.testing.assert_close(x.std(0), gaussian_3d.scales.expand(3), rtol=0.02, atol=0)


@pytest.mark.exact
def test_euler_maruyama_has_weak_order_one(gaussian_3d):
    """The error of the second moment halves with the step; common noise would hide nothing.

    The moments of a linear SDE's Euler scheme are followed exactly instead of sampled.
    """
    s = gaussian_3d.scales[0].item()

    def variance(steps):
        times = make_sampler({"name": "sde", "steps": steps}).times(VP, steps)
        v = VP.at(times[0]).sigma ** 2
        for t, to in itertools.pairwise(times):
            at, dt = VP.at(t), t - to
            f = at.d_alpha / at.alpha
            g2 = 2 * at.sigma**2 * (at.d_sigma / at.sigma - f)
            marginal = at.alpha**2 * s**2 + at.sigma**2
            v = (1 - f * dt - g2 * dt / marginal) ** 2 * v + g2 * dt
        end = VP.at(times[-1])
        return v - (end.alpha**2 * s**2 + end.sigma**2)

    ratio = variance(1000) / variance(2000)
    assert ratio == pytest.approx(2, rel=0.05)


@pytest.mark.exact
@pytest.mark.parametrize("name", ["vp", "cosine", "ve", "edm", "rectified"])
def test_posterior_of_a_step_is_bayes(name):
    """q(x_s | x_t, x_0) by quadrature, on every path."""
    path = path_from_config(name)
    t, s = 0.6, 0.45
    at, to = path.at(t), path.at(s)
    x_0, x_t = 0.3, 0.3 * at.alpha + 0.8 * at.sigma
    centre, width = to.alpha * x_0, to.sigma
    grid = torch.linspace(-12, 12, 200001, dtype=torch.float64) * width + centre
    ratio = at.alpha / to.alpha
    log = -0.5 * ((grid - centre) / width) ** 2
    log = log - 0.5 * (x_t - ratio * grid) ** 2 / forward_variance(path, t, s)
    p = (log - log.max()).exp()
    p = p / p.sum()
    mean = (p * grid).sum()
    on_x, on_mean = ancestral_coefficients(path, t, s)
    assert on_x * x_t + on_mean * x_0 == pytest.approx(mean.item(), abs=1e-8)
    variance = (p * (grid - mean) ** 2).sum().item()
    assert posterior_variance(path, t, s) == pytest.approx(variance, rel=1e-8)


@pytest.mark.exact
def test_ddim_extremes():
    """Noise eta = 1 gives the ancestral step; eta = 0 the exponential Euler step."""
    t, s = 0.7, 0.55
    on_x, on_mean, scale = ddim_coefficients(VP, t, s, 1.0)
    assert (on_x, on_mean) == pytest.approx(ancestral_coefficients(VP, t, s))
    assert scale**2 == pytest.approx(posterior_variance(VP, t, s))
    on_x, on_mean, scale = ddim_coefficients(VP, t, s, 0.0)
    at, to = VP.at(t), VP.at(s)
    h = math.log(to.alpha / to.sigma) - math.log(at.alpha / at.sigma)
    assert on_x == pytest.approx(to.sigma / at.sigma)
    assert on_mean == pytest.approx(-to.alpha * math.expm1(-h))
    assert scale == 0


def test_ddim_inverts(two_modes):
    """Running the map backwards from the data returns the noise, up to the step size."""
    denoise, x_t = two_modes.denoise(VP), noise(VP, 200)
    sampler = make_sampler({"name": "ddim", "steps": 2001})
    times = sampler.times(VP, 2001)
    x = x_t
    for t, s in itertools.pairwise(times):
        on_x, on_mean, _ = ddim_coefficients(VP, t, s, 0.0)
        x = on_x * x + on_mean * denoise(x, t).mean
    back = times[::-1]
    for s, t in itertools.pairwise(back):
        on_x, on_mean, _ = ddim_coefficients(VP, s, t, 0.0)
        x = on_x * x + on_mean * denoise(x, s).mean
    assert (x - x_t).abs().mean() < 5e-3


@pytest.mark.property
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sample_does_not_depend_on_its_batch(two_modes, name):
    """With a generator per sample, any split of the batch gives the same numbers."""
    sampler = make_sampler(
        {"name": name, "steps": 12, **({"method": "rk4"} if name == "ode" else {})}
    )
    denoise, x_t = two_modes.denoise(VP), noise(VP, 6)

    def run(rows):
        streams = [keyed_generator(3, i) for i in rows]
        return sampler(denoise, x_t[rows], path=VP, generator=streams)

    together = run([0, 1, 2, 3, 4, 5])
    apart = torch.cat([run([0]), run([1, 2, 3]), run([4, 5])])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


def test_learned_variance_interpolates_in_the_logarithm(gaussian_3d):
    sampler = make_sampler({"name": "ddpm", "variance": "learned"})
    for fraction, expected in ((0.0, posterior_variance), (1.0, forward_variance)):
        scale = learned_scale(VP, 0.5, 0.4, torch.tensor(fraction, dtype=torch.float64))
        assert scale.item() ** 2 == pytest.approx(expected(VP, 0.5, 0.4))
    with pytest.raises(AleatorError, match="learned_variance"):
        sampler(gaussian_3d.denoise(VP), noise(VP, 2, 3), path=VP)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("3m", "unknown sampler '3m'; known: 2m, angle"),
        ({"name": "2m", "eta": 1}, "has no option 'eta'"),
        ({"name": "2m", "steps": 0}, "needs at least one"),
        ({"name": "angle", "spread": 0.0}, "spread=0.0; a positive one"),
    ],
)
def test_bad_sampler_options_are_named(config, message):
    with pytest.raises(AleatorError, match=message):
        make_sampler(config)


def test_one_step_is_one_denoising(two_modes):
    x_t = noise(VP, 5)
    for name in ("2m", "angle", "ddim", "unipc", "euler", "heun", "ddpm", "sde"):
        x = make_sampler({"name": name, "steps": 1})(two_modes.denoise(VP), x_t, path=VP)
        torch.testing.assert_close(x, two_modes.denoise(VP)(x_t, VP.t_max).mean)
