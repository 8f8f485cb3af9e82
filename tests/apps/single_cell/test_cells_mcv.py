"""Molecular cross-validation: binomial, exact sums, no blocks, losses by hand, known optimum."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from apps.single_cell.mcv import (
    Tally,
    cross_validate,
    difference,
    log_normalised,
    poisson_loss,
    split,
    thin,
)
from core.errors import AleatorError


def some_counts(n=300, g=50, seed=0):
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.poisson(rng.gamma(1, 2, (n, g))).astype(np.float32))


def test_parts_add_up_and_are_binomial():
    counts = some_counts()
    first, second = thin(counts, 0.3, 0)
    assert abs(first + second - counts).max() == 0
    x, kept = counts.toarray(), first.toarray()
    for size in (1, 2, 5):
        drawn = kept[x == size]
        expected = stats.binom.pmf(np.arange(size + 1), size, 0.3) * len(drawn)
        found = np.bincount(drawn.astype(int), minlength=size + 1)
        assert stats.chisquare(found, expected).pvalue > 1e-3


def test_parts_of_poisson_counts_are_independent():
    rates = np.full((200, 200), 3.0)
    counts = sp.csr_matrix(np.random.default_rng(1).poisson(rates).astype(np.float32))
    first, second = thin(counts, 0.5, 4)
    r = np.corrcoef(first.toarray().ravel(), second.toarray().ravel())[0, 1]
    assert abs(r) < 4 / 200


def test_blocks_do_not_matter_and_seeds_do():
    counts = some_counts()
    whole, _ = thin(counts, 0.9, 7)
    parts = [thin(counts[i : i + 64], 0.9, 7, first=i)[0] for i in range(0, 300, 64)]
    assert abs(sp.vstack(parts) - whole).max() == 0
    assert abs(thin(counts, 0.9, 8)[0] - whole).max() > 0


def test_split_as_published_is_the_stream_of_the_benchmark():
    counts = some_counts(20, 10)
    found = split(counts, 0.9, 3, as_published=True)
    drawn = np.random.RandomState(3).binomial(counts.data.astype(int), 0.9)
    train = sp.csr_matrix((drawn, counts.indices, counts.indptr), counts.shape)
    assert (found.train.toarray() == train.toarray()[:, found.genes]).all()


def test_genes_without_training_molecules_are_left_out():
    counts = some_counts(50, 5).tolil()
    counts[:, 2] = 0
    found = split(sp.csr_matrix(counts), 0.9, 0)
    assert found.genes.tolist() == [True, True, False, True, True]
    assert found.train.shape == found.test.shape == (50, 4)


def test_ratio():
    found = split(some_counts(), 0.75, 0)
    assert found.ratio == pytest.approx(1 / 3, rel=0.05)


def test_loss_has_its_least_at_the_rate():
    counts = np.random.default_rng(0).poisson(2.0, 100_000)
    losses = [poisson_loss(np.full(1, rate), counts).mean() for rate in (1.8, 2.0, 2.2)]
    assert losses[1] == min(losses)


def test_scores_by_hand():
    tally = Tally(0.5)
    tally.add(np.array([[2.0, 4.0]]), sp.csr_matrix([[1.0, 2.0]]))
    found = tally.scores()
    expected = (1 - np.log(1 + 1e-6) + 2 - 2 * np.log(2 + 1e-6)) / 2
    assert found["poisson"] == pytest.approx(expected, abs=1e-12)
    assert found["mse"] == pytest.approx(0, abs=1e-12)
    assert found["poisson_as_published"] == pytest.approx(expected, abs=1e-12)


def test_published_score_rewards_an_output_of_nothing_and_ours_does_not():
    molecules = split(some_counts(), 0.9, 0)
    profile = np.asarray(molecules.train.mean(0))

    def nothing(x):
        return np.repeat(profile * 1e-9, x.shape[0], 0)

    def mean(x):
        return np.repeat(profile, x.shape[0], 0)

    tiny, fair = (cross_validate(f, molecules).scores() for f in (nothing, mean))
    assert tiny["poisson_as_published"] < fair["poisson_as_published"]
    assert tiny["poisson"] > fair["poisson"]


def test_blocks_do_not_change_scores():
    molecules = split(some_counts(), 0.9, 0)

    def predict(x):
        return x.toarray() + 0.1

    one, many = (cross_validate(predict, molecules, block).scores() for block in (1000, 37))
    assert one == pytest.approx(many, rel=1e-12)


def test_paired_difference():
    molecules = split(some_counts(), 0.9, 0)
    truth = cross_validate(lambda x: x.toarray() * 0 + 2.0, molecules)
    worse = cross_validate(lambda x: x.toarray() * 0 + 4.0, molecules)
    mean, error = difference(truth, worse)
    assert mean < -3 * error < 0
    with pytest.raises(AleatorError, match="not the same split"):
        difference(truth, Tally(1.0, [np.zeros(3)]))


def test_log_normalised_keeps_empty_rows():
    assert log_normalised(np.array([[0.0, 0.0], [1.0, 3.0]]), 4.0)[1] == pytest.approx(
        np.log([2, 4])
    )
    assert not log_normalised(np.zeros((1, 3))).any()


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0])
def test_share_out_of_range(share):
    with pytest.raises(AleatorError, match="between 0 and 1"):
        split(some_counts(), share)


def test_fractions_cannot_be_split():
    with pytest.raises(AleatorError, match="not whole"):
        split(some_counts() * 0.5)


def test_nothing_left_to_test_on():
    with pytest.raises(AleatorError, match="leave nothing"):
        split(sp.csr_matrix(np.eye(2, dtype=np.float32)), 0.999999)


def test_bad_rates():
    tally = Tally(1.0)
    with pytest.raises(AleatorError, match="negative or not a number"):
        tally.add(np.array([[np.nan, 1.0]]), sp.csr_matrix([[1.0, 2.0]]))
    with pytest.raises(AleatorError, match="differ in shape"):
        tally.add(np.ones((1, 3)), sp.csr_matrix([[1.0, 2.0]]))
