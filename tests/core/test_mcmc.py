"""Chains: right stationary laws, reversible, errors of the right order, honest diagnostics."""

import math

import pytest
import torch
from scipy import integrate, stats

from core.errors import AleatorError
from core.evaluation import effective_sample_size, split_r_hat
from core.mcmc import annealed_importance, hmc, langevin, leapfrog, value_and_gradient
from core.random import keyed_generator

COVARIANCE = torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64)
PRECISION = torch.linalg.inv(COVARIANCE)
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)


def gaussian(x):
    d = x - MEAN
    return -0.5 * torch.einsum("ni,ij,nj->n", d, PRECISION, d)


def standard(x):
    return -0.5 * x.square().sum(1)


def mixture(x):
    """Two modes in one dimension, weights 0.3 and 0.7, times e^1.7: ln Z = 1.7."""
    parts = [math.log(w) + torch.distributions.Normal(m, s).log_prob(x[:, 0]) for w, m, s in MODES]
    return torch.stack(parts).logsumexp(0) + 1.7


MODES = ((0.3, -1.0, 0.5), (0.7, 1.2, 0.4))


def start(n, d=2, seed=0):
    return torch.randn(n, d, generator=keyed_generator(seed), dtype=torch.float64)


@pytest.mark.exact
@pytest.mark.parametrize("step", [0.1, 0.5])
def test_langevin_noise_is_the_root_of_the_step(step):
    """X1: the stationary variance of N(0, 1) is 1 / (1 - a/4), not a times that."""
    steps, n = int(16 / step), 10000
    x = langevin(standard, start(n, 1), step=step, steps=steps, generator=keyed_generator(1)).x
    expected = 1 / (1 - step / 4)
    assert x.var().item() == pytest.approx(expected, abs=5 * expected * math.sqrt(2 / n))
    cold = langevin(
        standard,
        start(n, 1) * step**0.5,
        step=step,
        steps=steps,
        temperature=step,
        generator=keyed_generator(1),
    ).x
    assert cold.var().item() == pytest.approx(step * expected, rel=5 * math.sqrt(2 / n))


def check_gaussian(draws, ess):
    flat = draws.reshape(-1, 2)
    z = (flat.mean(0) - MEAN) / (COVARIANCE.diagonal() / ess).sqrt()
    assert (z.abs() < 4.5).all()
    torch.testing.assert_close(torch.cov(flat.T), COVARIANCE, rtol=0.06, atol=0.03)


@pytest.mark.exact
@pytest.mark.parametrize("sampler", ["mala", "hmc"])
def test_stationary_moments_of_a_gaussian(sampler):
    x = 3 * start(200)
    if sampler == "mala":
        chains = langevin(
            gaussian, x, step=0.35, steps=600, adjust=True, keep=1, generator=keyed_generator(2)
        )
        draws = chains.draws[200:]
        assert 0.5 < chains.acceptance.mean() < 0.95
    else:
        chains = hmc(
            gaussian, x, step=0.5, length=5, steps=60, warmup=60, generator=keyed_generator(3)
        )
        draws = chains.draws
        assert 0.75 < chains.acceptance.mean() < 0.98
    ess = effective_sample_size(draws)
    assert (ess > 1500).all()
    assert (split_r_hat(draws) < 1.1).all()
    check_gaussian(draws, ess)


@pytest.mark.exact
@pytest.mark.parametrize("sampler", ["mala", "hmc"])
def test_last_states_follow_a_mixture(sampler):
    """Kolmogorov–Smirnov on independent chains, against the exact distribution function."""
    x = 2 * start(3000, 1, seed=5)
    if sampler == "mala":
        x = langevin(mixture, x, step=0.5, steps=300, adjust=True, generator=keyed_generator(4)).x
    else:
        x = hmc(mixture, x, step=0.35, length=6, steps=60, keep=0, generator=keyed_generator(5)).x

    def cdf(v):
        return sum(w * stats.norm.cdf(v, m, s) for w, m, s in MODES)

    assert stats.kstest(x[:, 0].numpy(), cdf).pvalue > 1e-3


@pytest.mark.exact
def test_mala_keeps_the_law_that_it_is_given():
    """From exact draws large steps change nothing, with the correction and only with it."""
    L = torch.linalg.cholesky(COVARIANCE)
    x = MEAN + start(60000, seed=6) @ L.T
    for adjust in (True, False):
        moved = langevin(
            gaussian, x, step=0.9, steps=3, adjust=adjust, generator=keyed_generator(7)
        ).x
        z = torch.linalg.solve_triangular(L, (moved - MEAN).T, upper=False)
        off = (torch.cov(z) - torch.eye(2).double()).abs().max().item()
        assert (off < 5 * math.sqrt(2 / 60000)) == adjust


@pytest.mark.exact
def test_leapfrog_is_reversible_and_keeps_volume():
    x, v = start(5), start(5, seed=1)
    _, gradient = value_and_gradient(mixture_2d, x)
    there = leapfrog(mixture_2d, x, v, gradient, step=0.2, length=25)
    back = leapfrog(mixture_2d, there[0], -there[1], there[3], step=0.2, length=25)
    torch.testing.assert_close(back[0], x, rtol=0, atol=1e-11)
    torch.testing.assert_close(back[1], -v, rtol=0, atol=1e-11)
    h = 1e-6
    columns = []
    for i in range(4):
        ends = []
        for sign in (1, -1):
            state = torch.cat([x[:1], v[:1]], 1)
            state[0, i] += sign * h
            y, w = state[:, :2], state[:, 2:]
            gradient = value_and_gradient(mixture_2d, y)[1]
            ends.append(
                torch.cat(leapfrog(mixture_2d, y, w, gradient, step=0.2, length=10)[:2], 1)
            )
        columns.append((ends[0] - ends[1])[0] / (2 * h))
    assert torch.linalg.det(torch.stack(columns)).abs().item() == pytest.approx(1, abs=1e-7)


def mixture_2d(x):
    return torch.logaddexp(gaussian(x), gaussian(x + 1.5) - 0.3) - 0.05 * x.pow(4).sum(1)


@pytest.mark.exact
def test_energy_error_is_of_second_order():
    """Over a fixed time, half the step makes a quarter of the error."""
    x, v = start(200), start(200, seed=1)
    value, gradient = value_and_gradient(mixture_2d, x)
    errors = []
    for length in (20, 40, 80):
        _, w, new, _ = leapfrog(mixture_2d, x, v, gradient, step=1.0 / length, length=length)
        change = (value - 0.5 * v.square().sum(1)) - (new - 0.5 * w.square().sum(1))
        errors.append(change.abs().mean().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)


@pytest.mark.exact
def test_dual_averaging_finds_the_step_from_far_off():
    steps = []
    for first in (1e-3, 3.0):
        chains = hmc(
            standard,
            start(50, 60),
            step=first,
            length=3,
            steps=40,
            warmup=120,
            target=0.7,
            keep=0,
            generator=keyed_generator(8),
        )
        assert chains.acceptance.mean().item() == pytest.approx(0.7, abs=0.08)
        steps.append(chains.step)
    assert steps[0] == pytest.approx(steps[1], rel=0.15)


@pytest.mark.exact
def test_annealing_finds_the_normalising_constant():
    """Within three standard errors of quadrature; the standard error is that of repetitions."""
    area, _ = integrate.quad(lambda v: mixture(torch.tensor([[v]])).exp().item(), -8, 8)
    exact = math.log(area)
    assert exact == pytest.approx(1.7, abs=1e-6)
    runs = [
        annealed_importance(
            mixture,
            torch.zeros(300, 1, dtype=torch.float64),
            scale=2.0,
            temperatures=20,
            step=0.25,
            generator=keyed_generator(9, k),
        )
        for k in range(12)
    ]
    for run in runs:
        assert abs(run.value - exact) < 3 * run.stderr + 1e-12
        assert 100 < run.effective <= 300
    spread = torch.tensor([run.value for run in runs]).std().item()
    mean_stderr = sum(run.stderr for run in runs) / len(runs)
    assert 0.5 < spread / mean_stderr < 1.8
    weights = runs[0].log_w.softmax(0)
    mean = (weights * runs[0].x[:, 0]).sum().item()
    assert mean == pytest.approx(0.3 * -1.0 + 0.7 * 1.2, abs=0.3)


@pytest.mark.exact
def test_annealing_of_a_correlated_gaussian():
    exact = math.log(2 * math.pi) + 0.5 * torch.logdet(COVARIANCE).item()
    run = annealed_importance(
        gaussian, start(400), scale=2.0, temperatures=30, generator=keyed_generator(10)
    )
    assert abs(run.value - exact) < 3 * run.stderr
    assert run.stderr < 0.1


@pytest.mark.exact
@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.6, 0.9])
def test_effective_sample_size_of_an_autoregression(rho):
    """ESS / draws = (1 - ρ) / (1 + ρ) for x_t = ρ x_{t-1} + noise."""
    steps, chains = 4000, 8
    noise = start(steps, chains, seed=11) * math.sqrt(1 - rho**2)
    rows = [noise[0] / math.sqrt(1 - rho**2)]
    for k in range(1, steps):
        rows.append(rho * rows[-1] + noise[k])
    draws = torch.stack(rows)[..., None]
    expected = steps * chains * (1 - rho) / (1 + rho)
    assert effective_sample_size(draws).item() == pytest.approx(expected, rel=0.1)
    assert split_r_hat(draws).item() == pytest.approx(1, abs=0.01)


@pytest.mark.exact
def test_r_hat_sees_chains_that_disagree_or_drift():
    apart = start(1000, 4, seed=12) + torch.arange(4.0)
    trend = start(1000, 4, seed=12) + torch.linspace(0, 3, 1000)[:, None]
    assert split_r_hat(apart[..., None]).item() > 1.3
    assert split_r_hat(trend[..., None]).item() > 1.2
    halves = torch.cat([apart[:500], apart[-500:]], 1)
    within, between = halves.var(0).mean(), halves.mean(0).var()
    expected = math.sqrt((499 / 500 * within + between) / within)
    assert split_r_hat(apart[..., None]).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.contract
@pytest.mark.parametrize("adjust", [False, True])
def test_a_chain_depends_on_its_own_stream_alone(adjust):
    x = start(4)

    def run(rows):
        streams = [keyed_generator(13, r) for r in rows]
        return langevin(mixture_2d, x[rows], step=0.3, steps=9, adjust=adjust, generator=streams).x

    torch.testing.assert_close(run([0, 1, 2, 3])[2:], run([2, 3]), rtol=1e-12, atol=1e-12)

    def trajectories(rows):
        streams = [keyed_generator(14, r) for r in rows]
        return hmc(mixture_2d, x[rows], step=0.3, steps=5, generator=streams).x

    torch.testing.assert_close(trajectories([0, 1, 2, 3])[2:], trajectories([2, 3]))


def test_a_wall_is_never_crossed():
    """Where the density is zero or NaN no chain goes: a half-line, by both samplers."""

    def half_line(x):
        return torch.where(x[:, 0] > 0, -x[:, 0], -math.inf)

    x = start(500, 1).abs()
    for chains in (
        langevin(half_line, x, step=0.5, steps=200, adjust=True, generator=keyed_generator(15)),
        hmc(half_line, x, step=0.3, length=5, steps=40, generator=keyed_generator(16)),
    ):
        assert (chains.x > 0).all()
        assert chains.x.mean().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: langevin(standard, x, step=-1.0, steps=3), "step=-1.0"),
        (lambda x: langevin(standard, x, step=0.1, steps=0), "steps=0"),
        (lambda x: langevin(standard, x * math.nan, step=0.1, steps=1), "NaN or infinite"),
        (lambda x: langevin(standard, x, step=9.0, steps=900), "diverged; take a smaller one"),
        (lambda x: langevin(lambda y: y.sum(), x, step=0.1, steps=1), "one number each"),
        (lambda x: langevin(lambda y: y.sum(1).log(), -x.abs(), step=0.1, steps=1), "not finite"),
        (lambda x: hmc(standard, x, steps=1, length=0), "length=0"),
        (lambda x: annealed_importance(standard, x[:1]), "1 chains"),
        (
            lambda x: langevin(standard, x, step=0.1, steps=1, adjust=True, temperature=0.5),
            "temper log_p instead",
        ),
        (lambda x: split_r_hat(x[:3, :, None]), "S ≥ 4"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(AleatorError, match=message):
        call(start(6))
