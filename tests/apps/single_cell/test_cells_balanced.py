"""The balanced estimate: the least of what it says, and what that is good for."""

import numpy as np
import pytest
import torch

from apps.single_cell.posterior import balanced

THETA = 2.0


def drawn(n=400_000, mu=3.0, seed=0):
    """Rates of one gene, counts, and their posterior means."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(THETA, mu / THETA, n)
    counts = rng.poisson(rate)
    mean = mu * (THETA + counts) / (THETA + mu)
    return rate, counts, mean


def estimate(mean, counts, theta=THETA):
    found = balanced(
        torch.tensor(mean)[:, None], torch.tensor(counts)[:, None], torch.tensor([[theta]])
    )
    return found[:, 0].numpy()


@pytest.mark.exact
@pytest.mark.parametrize("mu", [0.3, 3.0, 40.0])
def test_it_is_the_least_of_both_errors(mu):
    _, counts, mean = drawn(mu=mu)
    a = np.linspace(0, 1, 1001)
    known, seen = mu**2 / THETA, mu + mu**2 / THETA  # variances of rates and counts
    value = a**2 * seen - 2 * a * known + known
    spread = (a * np.sqrt(seen) - np.sqrt(known)) ** 2
    best = a[(value + spread).argmin()]
    assert estimate(mean, counts) == pytest.approx(
        mu + best * (counts - mu), abs=0.002 * mu + 0.02
    )


def test_it_varies_nearly_as_rates_do_and_is_nearly_as_near():
    rate, counts, mean = drawn()
    found = estimate(mean, counts)
    assert mean.std() < found.std() < rate.std()
    assert rate.std() - found.std() < 0.55 * (rate.std() - mean.std())
    error, least = (np.square(e - rate).mean() for e in (found, mean))
    assert least < error < 1.05 * least


def test_genes_correlate_more_like_their_rates():
    rng = np.random.default_rng(1)
    mu = rng.lognormal(0.3, 0.7, 100_000)  # what two genes share
    rates = [rng.gamma(THETA, mu / THETA) for _ in range(2)]
    counts = [rng.poisson(rate) for rate in rates]
    means = [mu * (THETA + x) / (THETA + mu) for x in counts]
    both = [estimate(m, x) for m, x in zip(means, counts, strict=True)]
    real, of_means, of_both = (np.corrcoef(*pair)[0, 1] for pair in (rates, means, both))
    assert of_means - real > 0.1
    assert abs(of_both - real) < 0.6 * (of_means - real)


def test_large_dispersions_leave_the_mean():
    counts = np.array([0.0, 3.0, 9.0])
    mean = np.full(3, 4.0)
    assert estimate(mean, counts, 1e9) == pytest.approx(mean, rel=1e-3)
