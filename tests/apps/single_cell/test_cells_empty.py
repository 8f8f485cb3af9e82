"""The law of ambient droplets is SciPy's, its p-values are exact, uniform, and find droplets."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from apps.single_cell.counts import Counts
from apps.single_cell.empty import Soup, empty_scores, like_empty

SHARE = np.array([0.6, 0.3, 0.1])


def soup(alpha=np.inf, share=SHARE):
    return Soup(share, alpha, 100, False)


def counts_of(x):
    return Counts(sp.csr_matrix(np.asarray(x, np.float32))), np.asarray(x).sum(1)


def law(alpha, n):
    if np.isinf(alpha):
        return stats.multinomial(n, SHARE)
    return stats.dirichlet_multinomial(alpha * SHARE, n)


@pytest.mark.exact
@pytest.mark.parametrize("alpha", [np.inf, 4.0])
def test_log_prob_and_every_step_of_a_path_are_scipys(alpha):
    x = np.array([[3, 0, 1], [2, 2, 0], [7, 1, 4]])
    expected = [float(law(alpha, row.sum()).logpmf(row)) for row in x]
    assert soup(alpha).log_prob(counts_of(x)[0].matrix) == pytest.approx(expected, abs=1e-10)
    one = Soup(np.array([1 - 1e-12, 1e-12]), alpha, 1, False)
    assert one.path(5, np.random.default_rng(0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.exact
@pytest.mark.parametrize("alpha", [np.inf, 4.0])
def test_p_values_are_the_exact_sums(alpha):
    n, runs = 5, 20_000
    every = np.array([x for x in itertools.product(range(n + 1), repeat=3) if sum(x) == n])
    mass = np.array([law(alpha, n).pmf(x) for x in every])
    exact = np.array([mass[mass <= m * (1 + 1e-9)].sum() for m in mass])
    found = empty_scores(*counts_of(every), soup=soup(alpha), runs=runs)
    assert np.abs(found - exact).max() < 4 * np.sqrt(0.25 / runs)


def test_p_values_of_droplets_are_uniform_and_cells_are_found():
    rng = np.random.default_rng(0)
    share, cell = rng.dirichlet(np.full(200, 0.5), 2)
    totals = rng.integers(20, 400, 600)
    droplets = np.array([rng.multinomial(n, share) for n in totals])
    cells = np.array([rng.multinomial(n, 0.7 * cell + 0.3 * share) for n in totals[:300] + 100])
    p = empty_scores(*counts_of(np.r_[droplets, cells]), soup=soup(share=share), runs=400)
    assert stats.kstest(p[:600], "uniform").pvalue > 0.01
    empty = like_empty(p)
    assert empty[:600].mean() > 0.97
    assert empty[600:].mean() < 0.02


def test_the_soup_is_learned_from_barcodes_with_few_molecules():
    rng = np.random.default_rng(1)
    share, cell = rng.dirichlet(np.full(60, 0.5), 2)
    mixed = rng.dirichlet(50 * share, 500)
    low = np.array([rng.multinomial(rng.integers(30, 90), p) for p in mixed])
    deep = rng.multinomial(2000, cell, 40)
    found = Soup.fit(*counts_of(np.r_[low, deep]))
    assert (found.barcodes, found.filtered) == (500, False)
    assert found.share == pytest.approx(share, abs=0.02)
    assert 35 < found.alpha < 70
    p = empty_scores(*counts_of(np.r_[low, deep]), runs=300)
    assert p[500:].max() < 0.01
    assert stats.kstest(p[:500], "uniform").statistic < 0.1


def test_filtered_cells_have_the_sum_of_all_as_their_soup():
    x = np.random.default_rng(2).poisson(5, (80, 50))
    found = Soup.fit(*counts_of(x))
    assert (found.filtered, found.alpha) == (True, np.inf)
    assert found.share == pytest.approx((x.sum(0) + 0.5) / (x.sum() + 25))


def test_same_seed_same_scores_and_no_molecules_is_one():
    x = np.random.default_rng(3).poisson(0.4, (70, 30))
    x[3] = 0
    counts, totals = counts_of(x)
    one, two = (empty_scores(counts, totals, runs=50, seed=4) for _ in range(2))
    assert (one == two).all()
    assert one[3] == 1.0
    assert (one != empty_scores(counts, totals, runs=50, seed=5)).any()
