"""The yardstick of the sampler benchmark: its truth is true, and every budget is kept."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "samplers_accuracy.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.exact
def test_posterior_mean_is_bayes_by_quadrature(bench):
    """E[x_0 | x_t] as a ratio of integrals over a fine grid of x_0."""
    mixture, alpha, sigma = bench.Mixture(), 0.6, 0.5
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    weights, means, scales = mixture.parts()
    x_0 = torch.linspace(-4, 4, 40001, dtype=torch.float64)
    prior = (weights / scales * torch.exp(-0.5 * ((x_0[:, None] - means) / scales) ** 2)).sum(1)
    joint = prior * torch.exp(-0.5 * ((x[:, None] - alpha * x_0) / sigma) ** 2)
    expected = (joint * x_0).sum(1) / joint.sum(1)
    torch.testing.assert_close(mixture.mean_given(x, alpha, sigma), expected)


@pytest.mark.exact
def test_the_map_of_quantiles_is_where_a_fine_ode_goes(bench):
    """Not the bisection against itself: Runge–Kutta on the probability flow, tightly."""
    z = bench.quantiles(64)
    options = {"log_snr_max": 18.0, "rtol": 1e-8, "atol": 1e-8}
    exact = bench.Exact()

    def denoise(x, t):
        point = bench.VP.at(t)
        return bench.Posterior(exact.mean(x, point.alpha, point.sigma), x, point)

    x_T = bench.VP.at(bench.VP.t_max).sigma * z
    x_0 = bench.make_sampler({"name": "ode", **options})(denoise, x_T, path=bench.VP)
    assert exact.error(x_0) < 1e-4
    assert exact.evaluations > 64


@pytest.mark.exact
def test_quantiles_are_those_of_a_normal(bench):
    z = bench.quantiles(1000)
    assert z.mean().abs() < 1e-12
    assert z.std().item() == pytest.approx(1, abs=0.01)
    assert torch.special.ndtr(z[249]).item() == pytest.approx(0.2495)


@pytest.mark.exact
@pytest.mark.parametrize("name", ["2m", "unipc", "ddim", "heun", "euler"])
def test_error_falls_with_the_budget_and_the_budget_is_kept(bench, name):
    z = bench.quantiles(400)
    found = {n: bench.our_error(name, {}, n, z) for n in (8, 16, 32)}
    errors = [error for error, _ in found.values()]
    assert errors == sorted(errors, reverse=True)
    assert all(n - 1 <= used <= n for n, (_, used) in found.items())


@pytest.mark.exact
def test_one_method_in_three_libraries_is_one_method(bench):
    """DDIM's error is first order in the steps wherever it comes from: 50 against 100."""
    z, runs = bench.quantiles(400), [(bench.our_error, {})]
    if bench.load_diffusers():
        runs.append((bench.diffusers_error, {"timestep_spacing": "trailing"}))
    if bench.load_azula():
        runs.append((bench.azula_error, "VPSchedule"))
    for run, options in runs:
        name = "ddim" if run is bench.our_error else "DDIM"
        coarse, fine = (run(name, options, n, z)[0] for n in (50, 100))
        assert coarse / fine == pytest.approx(2, rel=0.2)


def test_the_page_shows_the_results_that_are_stored():
    """Each row of the page on samplers is a row of the stored results, number by number."""
    stored = (ROOT / "benchmarks" / "results" / "samplers.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
    shown = [cells(line) for line in page.splitlines() if numbers(cells(line))]
    kept = {tuple(cells(line)) for line in stored.splitlines()}
    assert len(shown) > 30
    assert [row for row in shown if tuple(row) not in kept] == []


def cells(line):
    return [cell.strip(" *") for cell in line.split("|")[1:-1]]


def numbers(row):
    return [cell for cell in row[1:] if cell.replace(".", "", 1).isdigit() and "." in cell]
