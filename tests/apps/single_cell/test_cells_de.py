"""Differential expression: closed forms, truth, null splits, scanpy's layout, refusals."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from typer.testing import CliRunner

from apps.single_cell import Config, Denoiser
from apps.single_cell.data import sample_path
from apps.single_cell.de import Test, differential, expected_fdr, rank_genes_groups, shrink
from apps.single_cell.inputs import bundled_model
from core.errors import AleatorError
from pipelines.single_cell import app


@pytest.fixture(scope="module")
def sample():
    adata = ad.read_h5ad(sample_path())
    return Denoiser.load(bundled_model()), adata


@pytest.mark.exact
def test_expected_fdr_is_the_running_mean_of_doubts():
    p = np.array([0.5, 1.0, 0.9])
    assert expected_fdr(p) == pytest.approx([0.6 / 3, 0.0, 0.05])


@pytest.mark.exact
def test_shrinkage_is_that_of_the_normal_law_that_changes_come_from():
    rng = np.random.default_rng(0)
    beta, s = rng.normal(0, 0.8, 20_000), np.full(20_000, 0.6)
    found = shrink(beta + s * rng.normal(size=20_000), s, 0.5)
    weight = 0.64 / (0.64 + 0.36)
    exact = weight * found.scores * s
    assert np.abs(found.lfc - exact).mean() < 0.03  # the law is learned, on a grid of scales
    assert np.median(found.stderr) == pytest.approx(0.6 * np.sqrt(weight), rel=0.05)
    calls = found.probability.round(1)
    for level in (0.3, 0.5, 0.7, 0.9):  # the probabilities are frequencies
        assert (np.abs(beta) > 0.5)[calls == level].mean() == pytest.approx(level, abs=0.05)


@pytest.mark.exact
def test_false_discoveries_are_as_many_as_expected():
    rng = np.random.default_rng(1)
    beta = np.where(rng.random(30_000) < 0.9, 0, rng.normal(0, 1, 30_000))
    s = rng.uniform(0.1, 0.5, 30_000)
    found = shrink(beta + s * rng.normal(size=30_000), s, 0.25)
    called = found.called(0.05)
    assert called.sum() > 500
    assert (np.abs(beta) <= 0.25)[called].mean() == pytest.approx(0.05, abs=0.02)


def test_null_splits_call_nothing(sample):
    denoiser, adata = sample
    one = adata[adata.obs["cell_line"] == "HCC827"].copy()
    wrong = 0
    for seed in range(5):
        one.obs["half"] = np.random.default_rng(seed).permutation(one.n_obs) % 2
        found = differential(denoiser, one, "half", reference="1")
        wrong += int(found["0"].called(0.05).sum() > 0)
    assert wrong == 0


def test_calls_hold_against_molecules_that_were_not_seen(sample):
    denoiser, adata = sample
    found = differential(denoiser, adata, "cell_line")
    truth = adata.layers["truth"].toarray().astype(float)
    share = truth / truth.sum(1, keepdims=True) * 1e4
    for name, changes in found.items():
        own = (adata.obs["cell_line"] == name).to_numpy()
        lfc = np.log2(share[own].mean(0) + 0.1) - np.log2(share[~own].mean(0) + 0.1)
        called = changes.called(0.05)
        assert called.sum() > 200
        false = (np.abs(lfc) < 0.25) | (np.sign(lfc) != np.sign(changes.lfc))
        assert false[called].mean() < 0.05
        assert np.corrcoef(lfc, changes.lfc)[0, 1] > 0.9
        error = (changes.lfc - lfc) / changes.stderr
        assert error.std() < 1.4


def test_two_groups_are_opposite(known):
    adata, _ = known(400, 30)
    config = Config(3, 16, "nb", strength=10.0, steps=60)
    denoiser = Denoiser.fit(adata, config=config)
    adata.obs["kind"] = np.where(adata.obs["kind"] == "0", "a", "b")
    found = differential(denoiser, adata, "kind")
    assert found["a"].lfc == pytest.approx(-found["b"].lfc, abs=1e-5)
    adata.obs["kind"] = adata.obs["kind"].where(adata.obs["kind"] == "a")  # the rest unlabelled
    with pytest.raises(AleatorError, match="1 group"):
        differential(denoiser, adata, "kind")


def test_scanpy_reads_it(sample, tmp_path):
    _, adata = sample
    out, table = tmp_path / "de.h5ad", tmp_path / "de.csv"
    found = CliRunner().invoke(app, ["de", "-o", str(out), "--table", str(table)])
    assert found.exit_code == 0, found.output
    assert "genes called at 0.05" in found.stderr
    read = ad.read_h5ad(out)
    frame = sc.get.rank_genes_groups_df(read, "H838")
    assert len(frame) == adata.n_vars
    assert (np.diff(frame["scores"]) <= 1e-6).all()
    plain = adata.copy()
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    sc.tl.rank_genes_groups(plain, "cell_line", method="wilcoxon")
    other = sc.get.rank_genes_groups_df(plain, "H838").set_index("names").loc[frame["names"]]
    assert np.corrcoef(frame["scores"], other["scores"])[0, 1] > 0.9
    rows = pd.read_csv(table)
    assert set(rows["group"]) == set(adata.obs["cell_line"])
    assert rows[rows["group"] == "H838"]["called"].sum() == (frame["pvals_adj"] <= 0.05).sum()


def test_groups_that_cannot_be_compared(sample, tmp_path):
    denoiser, adata = sample
    few = adata.copy()
    few.obs["group"] = np.where(np.arange(few.n_obs) < 5, "few", "many")
    with pytest.raises(AleatorError, match="group=few has 5 cell"):
        differential(denoiser, few, "group")
    with pytest.raises(AleatorError, match="no column donor"):
        differential(denoiser, adata, "donor")
    with pytest.raises(AleatorError, match="cell_line has no HeLa"):
        differential(denoiser, adata, "cell_line", reference="HeLa")
    few.obs["own"] = [f"c{i}" for i in range(few.n_obs)]
    with pytest.raises(AleatorError, match="571 groups"):
        differential(denoiser, few, "own")
    found = CliRunner().invoke(app, ["de", "-o", str(tmp_path / "x.h5ad"), "--fdr", "2"])
    assert found.exit_code == 2
    assert "fdr=2.0" in found.stderr
    adata.write_h5ad(tmp_path / "in.h5ad")
    command = ["de", str(tmp_path / "in.h5ad"), "-o", str(tmp_path / "x.h5ad")]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 2
    assert "--groupby" in found.stderr


@pytest.mark.parametrize(
    ("options", "said"), [({"delta": -1.0}, "delta"), ({"pseudo": 0.0}, "pseudo")]
)
def test_bad_test_options(options, said):
    with pytest.raises(AleatorError, match=said):
        Test(**options)


def test_layout_has_all_fields_of_scanpy():
    b = np.array([2.0, -2.0, 0.0])
    changes = shrink(b, np.full(3, 0.1), 0.25)
    layout = rank_genes_groups({"a": changes}, pd.Index(list("xyz")), "g", "rest", Test())
    assert list(layout["names"]["a"]) == ["x", "z", "y"]
    assert layout["pvals"]["a"][0] < 0.3
    assert layout["params"]["method"] == "aleator"
