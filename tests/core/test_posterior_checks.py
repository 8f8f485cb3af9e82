"""Checks of posteriors on a linear-Gaussian simulator, whose posterior is known."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal

from core.errors import AleatorError
from core.evaluation import Ranks, expected_coverage, sbc, tarp
from core.evaluation.posterior_checks import wilson
from core.random import keyed_generator

F64 = torch.float64
A = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, 0.2]], dtype=F64)
S = 0.5


def simulated(n=400, draws=99, seed=0, shift=0.0, widen=1.0, marginal=False, A=A):
    """θ ~ N(0, I), y = A θ + S ε; draws of a posterior that may be wrong."""
    g = keyed_generator(seed)
    theta = torch.randn(n, 2, generator=g, dtype=F64)
    y = theta @ A.T + S * torch.randn(n, 3, generator=g, dtype=F64)
    precision = torch.eye(2, dtype=F64) + A.T @ A / S**2
    covariance = torch.linalg.inv(precision)
    mean = y @ A @ covariance.T / S**2 + shift * covariance.diagonal().sqrt()
    if marginal:  # right marginals, no correlation
        covariance = covariance.diagonal().diag()
    q = MultivariateNormal(mean, widen**2 * covariance)
    z = torch.randn(draws, n, 2, generator=g, dtype=F64)
    return q, mean + z @ q.scale_tril[0].T, theta


@pytest.mark.exact
def test_ranks_of_the_exact_posterior_are_uniform():
    q, draws, theta = simulated()
    checks = {
        "sbc": sbc(draws, theta),
        "tarp": tarp(draws, theta, generator=keyed_generator(1)),
        "hpd": expected_coverage(q.log_prob(draws), q.log_prob(theta)),
    }
    for name, ranks in checks.items():
        assert ranks.p_value().min() > 0.02, name
        found = ranks.coverage((0.1, 0.5, 0.9), confidence=0.999)
        assert ((found.low < found.levels) & (found.levels < found.high)).all(), name
        z, low, high = ranks.band(0.999)
        ecdf = ranks.ecdf().reshape(len(z), -1)
        assert ((ecdf >= low[:, None]) & (ecdf <= high[:, None])).all(), name


@pytest.mark.exact
@pytest.mark.parametrize(
    ("wrong", "seen_by"),
    [
        ({"shift": 0.5}, {"sbc", "tarp"}),
        ({"widen": 0.6}, {"sbc", "tarp", "hpd"}),
        ({"widen": 1.6}, {"sbc", "tarp", "hpd"}),
    ],
)
def test_ranks_of_a_wrong_posterior_are_not(wrong, seen_by):
    q, draws, theta = simulated(**wrong)
    checks = {
        "sbc": sbc(draws, theta),
        "tarp": tarp(draws, theta, generator=keyed_generator(1)),
        "hpd": expected_coverage(q.log_prob(draws), q.log_prob(theta)),
    }
    for name in seen_by:
        assert checks[name].p_value().max() < 0.01, name
        z, low, high = checks[name].band()
        ecdf = checks[name].ecdf().reshape(len(z), -1)
        assert ((ecdf < low[:, None]) | (ecdf > high[:, None])).any(), name


@pytest.mark.exact
def test_a_wrong_dependence_escapes_sbc_and_not_the_others():
    A = torch.tensor([[1.0, 1.0], [0.2, -0.2], [0.0, 0.1]], dtype=F64)
    q, draws, theta = simulated(n=1500, marginal=True, A=A)
    assert sbc(draws, theta).p_value().min() > 0.01
    assert expected_coverage(q.log_prob(draws), q.log_prob(theta)).p_value() < 0.01


@pytest.mark.exact
@pytest.mark.parametrize("widen", [0.6, 1.5])
def test_coverage_of_a_misjudged_spread_is_the_closed_form(widen):
    """|θ - mean|² / σ² is χ²_2, so that level l covers 1 - (1 - l)^{widen²}."""
    q, draws, theta = simulated(n=4000, widen=widen)
    levels = torch.tensor([0.3, 0.5, 0.8, 0.9], dtype=F64)
    found = expected_coverage(q.log_prob(draws), q.log_prob(theta)).coverage(levels.tolist())
    exact = 1 - (1 - levels) ** widen**2
    torch.testing.assert_close(found.found, exact, rtol=0, atol=0.025)


@pytest.mark.exact
def test_p_values_of_uniform_ranks_are_uniform():
    g = keyed_generator(3)
    for n, draws in ((60, 7), (100, 250)):
        p = Ranks(torch.randint(draws + 1, (n, 400), generator=g), draws).p_value()
        assert stats.kstest(p.numpy(), "uniform").pvalue > 1e-3
    _, low, high = Ranks(torch.zeros(100, dtype=torch.long), 250).band(0.9)
    many = Ranks(torch.randint(251, (100, 1000), generator=g), 250).ecdf()
    inside = ((many >= low[:, None]) & (many <= high[:, None])).all(0).double().mean().item()
    assert inside == pytest.approx(0.9, abs=0.04)


@pytest.mark.exact
def test_ranks_count_draws_below_and_share_ties():
    truth = torch.tensor([[0.5], [2.0], [1.0]])
    draws = torch.tensor([0.0, 1.0, 1.0, 3.0])[:, None, None].expand(4, 3, 1)
    ranks = torch.stack([sbc(draws, truth, keyed_generator(k)).ranks[:, 0] for k in range(300)])
    assert (ranks[:, 0] == 1).all()
    assert (ranks[:, 1] == 3).all()
    counts = torch.bincount(ranks[:, 2], minlength=5)
    assert counts[0] == counts[4] == 0
    assert (counts[1:4] > 60).all()


@pytest.mark.exact
def test_distances_from_references_are_ranked():
    truth = torch.tensor([[0.0, 0.0], [4.0, 2.0]], dtype=F64)
    draws = torch.stack([truth + 0.1, truth + 1.2, truth - 1.0])
    ranks = tarp(draws, truth, references=truth + 0.5).ranks
    assert ranks.tolist() == [1, 1]  # only the nearest draw is nearer to the point than θ


@pytest.mark.exact
def test_wilson_is_scipys():
    low, high = wilson(torch.tensor([0.0, 0.3, 1.0], dtype=F64), 40, 0.9)
    for k, a, b in zip((0, 12, 40), low, high, strict=True):
        expected = stats.binomtest(k, 40).proportion_ci(0.9, method="wilson")
        assert a.item() == pytest.approx(expected.low, abs=1e-12)
        assert b.item() == pytest.approx(expected.high, abs=1e-12)


def test_mistakes_are_named():
    draws, truth = torch.zeros(5, 3, 2), torch.zeros(3, 2)
    with pytest.raises(AleatorError, match=r"draws of shape \(5, 3, 2\) for truths \(3, 1\)"):
        sbc(draws, truth[:, :1])
    with pytest.raises(AleatorError, match="sbc: NaN"):
        sbc(draws * math.nan, truth)
    with pytest.raises(AleatorError, match="references of shape"):
        tarp(draws, truth, references=truth[:1])
    with pytest.raises(AleatorError, match="levels"):
        Ranks(torch.zeros(3, dtype=torch.long), 5).coverage((1.0,))
