"""Scores against known truth, by hand and by SciPy; intervals and ranks against exact laws."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from apps.single_cell import Denoiser, Output
from apps.single_cell.correlation import gene_correlations
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.data import sample_path
from apps.single_cell.evaluation import coverage_by, protein_agreement, truth_scores
from apps.single_cell.fitting import Stream, default_steps, mixed
from apps.single_cell.inputs import bundled_model
from apps.single_cell.mcv import log_normalised
from apps.single_cell.ood import Surprise
from apps.single_cell.posterior import Rates, pit
from core.errors import AleatorError


def some_rates(shape, mean, n=4000):
    m = np.full((n, 1), mean)
    return Rates(0, n, m, m**2 / shape, np.zeros((n, 1)), np.zeros(n))


@pytest.mark.exact
@pytest.mark.parametrize("shape", [0.02, 0.3, 2.0, 500.0, 3e5])
def test_interval_is_that_of_the_gamma_law(shape):
    low, high = some_rates(shape, 3.0, 1).interval(0.8)
    exact = stats.gamma.ppf([0.1, 0.9], shape, scale=3 / shape)
    assert [low[0, 0], high[0, 0]] == pytest.approx(exact, rel=1e-3)


def test_ranks_of_draws_are_uniform_and_of_others_are_not():
    rng = np.random.default_rng(0)
    found = some_rates(2.0, 3.0)
    rates = rng.gamma(2.0, 1.5, (4000, 1))
    for ratio in (0.11, 1.0):
        held = rng.poisson(ratio * rates)
        ranks = pit(found, ratio, held, rng.random(held.shape)).ravel()
        assert stats.kstest(ranks, "uniform").pvalue > 1e-3
    wrong = pit(found, 1.0, rng.poisson(3.0, (4000, 1)), rng.random((4000, 1))).ravel()
    assert stats.kstest(wrong, "uniform").pvalue < 1e-6


def test_truth_scores_of_the_truth_and_of_a_constant():
    rng = np.random.default_rng(0)
    truth = sp.csr_matrix(rng.poisson(rng.gamma(1, 5, (50, 30))).astype(np.float32) + 1)
    perfect = truth_scores(truth.toarray() * 3, truth)
    assert perfect == pytest.approx({"mse": 0, "gene_r": 1, "gene_gene": 0}, abs=1e-6)
    mean = np.tile(np.asarray(truth.mean(0)), (50, 1))
    assert truth_scores(mean, truth)["gene_r"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(AleatorError, match="differ in shape"):
        truth_scores(mean[:, :3], truth)


@pytest.mark.exact
def test_protein_agreement_is_scipys():
    rng = np.random.default_rng(0)
    rates, protein = rng.gamma(1, 1, (40, 3)), rng.poisson(5, (40, 2))
    found = protein_agreement(rates, ["a", "b", "c"], protein, {"b": 1})
    share = rates[:, 1] / rates.sum(1)
    assert found["b"] == pytest.approx(stats.spearmanr(share, protein[:, 1])[0], abs=1e-12)
    with pytest.raises(AleatorError, match="gene d"):
        protein_agreement(rates, ["a", "b", "c"], protein, {"d": 0})


def test_coverage_by_group():
    ranks = np.concatenate([np.linspace(0, 1, 101), np.full(40, 0.99), np.full(5, 0.5)])
    found = coverage_by(ranks, ["even"] * 101 + ["end"] * 40 + ["few"] * 5)
    assert found == {"even": pytest.approx(0.9, abs=0.02), "end": 0.0}


def empty_design(n):
    return Design(np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32), ())


def test_every_cell_comes_once_an_epoch_and_batches_are_what_they_say():
    counts = sp.csr_matrix(np.arange(1, 301, dtype=np.float32)[:, None] * np.ones((1, 2)))
    stream = Stream(Counts(counts), np.ones(300), empty_design(300), 50, 3)
    assert sorted(np.concatenate(mixed(300, 3, 0))) == list(range(300))
    seen = []
    for step in range(6):
        rows, index = stream.rows(step)
        assert (rows.toarray()[:, 0] == index + 1).all()
        seen += list(index)
    assert sorted(seen) == list(range(300))
    assert (
        stream.rows(2)[1]
        == Stream(Counts(counts), np.ones(300), empty_design(300), 50, 3).rows(2)[1]
    ).all()
    assert (stream.rows(6)[1] != stream.rows(0)[1]).any()


def test_steps_grow_with_the_cells_within_limits():
    assert default_steps(50, 128) == 400
    assert default_steps(2700, 128) == 440
    assert default_steps(10**7, 128) == 20_000


def test_surprise_is_relative_to_depth():
    rng = np.random.default_rng(0)
    library = rng.lognormal(7, 0.5, 2000)
    elbo = -3 * library**0.8 * np.exp(rng.normal(0, 0.05, 2000))
    found = Surprise.fit(elbo[:1000], library[:1000], elbo[1000:], library[1000:])
    assert (found.score(elbo, library) > 1).mean() == pytest.approx(0.02, abs=0.015)
    assert (found.score(elbo * 1.3, library) > 1).mean() > 0.95
    assert Surprise.from_dict(found.to_dict()) == found


def test_correlations_of_draws_are_nearer_the_truth_than_those_of_means_and_counts():
    adata = ad.read_h5ad(sample_path())
    truth = adata.layers["truth"].toarray().astype(float)
    most = np.argsort(-truth.sum(0))[:80]
    denoiser = Denoiser.load(bundled_model())
    genes = list(adata.var_names[most])
    found = gene_correlations(denoiser, adata, genes, draws=3)
    assert list(found.index) == genes
    assert np.diag(found) == pytest.approx(np.ones(80))
    upper = np.triu_indices(80, 1)
    known = np.corrcoef(log_normalised(truth)[:, most].T)[upper]

    def error(rates):
        return np.sqrt(
            np.square(np.corrcoef(log_normalised(rates)[:, most].T)[upper] - known).mean()
        )

    ours = np.sqrt(np.square(found.to_numpy()[upper] - known).mean())
    means, balanced = (
        denoiser.denoise(adata, output=Output(estimate=name)).layers["denoised"].astype(float)
        for name in ("mean", "balanced")
    )
    assert ours < 0.11
    assert ours < 0.7 * min(error(means), error(adata.X.toarray().astype(float)))
    assert error(balanced) < 0.7 * min(error(means), error(adata.X.toarray().astype(float)))
    with pytest.raises(AleatorError, match="does not know HeLa"):
        gene_correlations(denoiser, adata, [genes[0], "HeLa"])
