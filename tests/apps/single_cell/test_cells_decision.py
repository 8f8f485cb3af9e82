"""The decision for log-normalised errors: exact expectations, and no better output nearby."""

import numpy as np
import pytest

from apps.single_cell.decision import expected_log_counts, for_log_error
from apps.single_cell.mcv import log_normalised
from apps.single_cell.posterior import Rates


@pytest.mark.exact
@pytest.mark.parametrize(
    ("mean", "shape", "rel"),
    [(0.01, 0.5, 1e-3), (2.0, 3.0, 1e-3), (25.0, 1e5, 1e-3), (90, 60, 0.01)],
)
def test_expectation_is_the_sum_over_all_counts(mean, shape, rel):
    from scipy.stats import nbinom

    k = np.arange(5000)
    p = nbinom.pmf(k, shape, shape / (shape + mean))
    exact = (p * np.log1p(1e4 * k / 250)).sum()
    found = expected_log_counts(np.array([[mean]]), np.array([[shape]]), np.array([250.0]))
    assert found[0, 0] == pytest.approx(exact, rel=rel)


def test_a_gene_that_is_never_seen_is_zero():
    found = expected_log_counts(np.zeros((1, 2)), np.ones((1, 2)), np.array([10.0]))
    assert (found == 0).all()


def test_output_has_less_log_error_than_the_rates_themselves():
    rng = np.random.default_rng(0)
    n, g, shape, depth, ratio = 200, 300, 2.0, np.full(200, 400.0), 1 / 9
    mean = rng.dirichlet(np.full(g, 0.3), n) * depth[:, None]
    rates = rng.gamma(shape, mean / shape)
    test = rng.poisson(rates * ratio).astype(float)
    test[:, 0] += 1
    found = Rates(0, n, mean, mean**2 / shape, np.zeros((n, 1)), np.zeros(n))
    decided = for_log_error(found, ratio, depth)
    assert (decided >= 0).all()
    assert decided.sum(1) == pytest.approx(depth)

    def error(output):
        return np.square(log_normalised(output) - log_normalised(test)).mean()

    assert error(decided) < 0.6 * error(mean)
    for factor in (0.7, 1.4):  # of all but the largest gene
        other = decided * factor
        largest = decided.argmax(1)
        rows = np.arange(n)
        other[rows, largest] = 0
        other[rows, largest] = np.maximum(depth - other.sum(1), 0)
        assert error(decided) < error(other)
