"""The judges of generated cells, on cases whose answer is known."""

import numpy as np
import pytest
import scipy.sparse as sp

from apps.single_cell.realism import (
    Components,
    classifier_auc,
    copied,
    discrepancy,
    log_normalised_sparse,
    moment_gaps,
    realism,
    recognised,
)
from core.errors import AleatorError


def counts(n=200, g=60, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    profile = np.random.default_rng(7).dirichlet(np.full(g, 1.0), 2)
    kind = rng.integers(0, 2, n)
    rates = scale * rng.lognormal(np.log(300), 0.3, (n, 1)) * profile[kind]
    return sp.csr_matrix(rng.poisson(rates).astype(np.float32)), kind


@pytest.mark.exact
def test_components_are_those_of_a_dense_decomposition():
    x, _ = counts(80, 30)
    found = Components.fit(x)
    dense = log_normalised_sparse(x).toarray()
    centred = dense - dense.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    scores = found(x)
    assert np.linalg.norm(scores, axis=0) == pytest.approx(values[: scores.shape[1]], rel=1e-6)
    assert scores @ scores.T == pytest.approx(centred @ centred.T, abs=5)
    kept = found.inverse(scores) - dense
    assert np.linalg.norm(kept) == pytest.approx(np.linalg.norm(values[29:]), abs=1e-6)


@pytest.mark.exact
def test_discrepancy_against_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2)), rng.normal(1, 1, (6, 2))
    total = 0.0
    for factor in (0.25, 1.0, 4.0):

        def mean(a, b, factor=factor):
            gaps = [np.sum((p - q) ** 2) for p in a for q in b]
            return np.mean(np.exp(-np.array(gaps) / (2 * factor * 1.5**2)))

        total += (mean(x, x) + mean(y, y) - 2 * mean(x, y)) / 3
    assert discrepancy(x, y, 1.5) == pytest.approx(np.sqrt(total), rel=1e-10)
    assert discrepancy(x, x) == 0


def test_classifier_tells_what_differs_and_only_that():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 200, 5))
    assert classifier_auc(x, y) == pytest.approx(0.5, abs=0.08)
    assert classifier_auc(x, y + 2) > 0.95


def test_moments_of_cells_with_half_the_molecules():
    (x, _), (y, _) = counts(3000), counts(3000, seed=1, scale=0.5)
    same = moment_gaps(x, counts(3000, seed=2)[0])
    assert max(abs(same[name]) for name in ("zeros", "mean", "spread_library")) < 0.06
    half = moment_gaps(x, y)
    assert half["mean"] == pytest.approx(0.5, abs=0.05)
    assert half["variance"] > 0.5
    assert half["zeros"] > 0.1


def test_copies_are_found():
    rng = np.random.default_rng(0)
    train, real, new = rng.normal(size=(3, 300, 4))
    assert copied(train, real, new)["nearest"] == pytest.approx(1, abs=0.15)
    found = copied(train, real, train[:100] + 1e-6)
    assert found["nearest"] < 1e-3
    assert found["close"] == 1


def test_types_are_recognised():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 100)
    x = rng.normal(size=(200, 3)) + 5 * (labels == "b")[:, None]
    assert recognised(x, labels, x[::2], labels[::2]) == 1
    assert recognised(x, labels, x[::2], labels[::-2]) == 0


def test_all_of_it_on_cells_of_the_same_law_and_of_another():
    (train, a), (real, b), (made, c) = (counts(seed=seed) for seed in range(3))
    found = realism(train, real, made, train_labels=a, labels=b, asked=c)
    assert found["auc"] == pytest.approx(0.5, abs=0.12)
    assert found["mmd_ratio"] == pytest.approx(1, abs=0.25)
    assert found["recognised_ratio"] == pytest.approx(1, abs=0.05)
    assert found["nearest"] == pytest.approx(1, abs=0.1)
    rng = np.random.default_rng(0)
    mixed = sp.csr_matrix(rng.permuted(made.toarray(), axis=0))
    other = realism(train, real, mixed)
    assert other["mmd_ratio"] > 2
    assert "recognised" not in other
    with pytest.raises(AleatorError, match="40 each"):
        realism(train, real[:20], made)
