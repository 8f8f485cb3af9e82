"""Metrics of mixing on spaces whose answer is known; batches taken out, through the command."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from apps.single_cell import Config, Denoiser, Output
from apps.single_cell.integration import (
    connectivity,
    effective_number,
    integration_scores,
    kbet,
    neighbours,
)
from apps.single_cell.layers import AVERAGE
from core.errors import AleatorError
from pipelines.single_cell import app


def space(gap, n=400, seed=0):
    """Two types far apart; batches `gap` apart within each."""
    rng = np.random.default_rng(seed)
    batch, label = rng.integers(0, 2, n), rng.integers(0, 2, n)
    points = rng.normal(size=(n, 4))
    points[:, 0] += 12 * label
    points[:, 1] += gap * batch
    return points, batch, label


@pytest.mark.exact
def test_effective_numbers_and_neighbours_by_hand():
    codes = np.array([0, 0, 1, 1])
    near = np.array([[1, 2], [0, 1], [2, 3], [0, 3]])
    assert effective_number(near, codes) == pytest.approx([2, 1, 1, 2])
    points = np.array([[0.0], [1.0], [3.0], [3.0]])
    assert neighbours(points, 1).ravel().tolist() == [1, 0, 3, 2]
    assert connectivity(np.array([[1], [0], [3], [2]]), np.zeros(4, int)) == 0.5


def test_kbet_accepts_at_its_level_what_is_mixed():
    rng = np.random.default_rng(0)
    points, batch = rng.normal(size=(1500, 2)), rng.integers(0, 3, 1500)
    assert kbet(neighbours(points, 40), batch) == pytest.approx(0.95, abs=0.03)
    assert kbet(neighbours(points + 9 * batch[:, None], 40), batch) == 0


def test_scores_tell_mixed_from_apart():
    mixed = integration_scores(*space(0.0))
    assert min(mixed[name] for name in ("iLISI", "kBET", "graph", "cLISI", "NMI", "ARI")) > 0.9
    apart = integration_scores(*space(8.0))
    assert apart["iLISI"] < 0.05
    assert apart["kBET"] < 0.05
    assert apart["batch ASW"] < 0.5 < mixed["batch ASW"]
    assert mixed["total"] > apart["total"] + 0.15
    shuffled = space(0.0)
    worse = integration_scores(*shuffled[:2], np.random.default_rng(1).permutation(shuffled[2]))
    assert worse["kept"] < 0.4 < mixed["kept"]


def test_scores_of_one_batch_or_few_cells_are_refused():
    points, batch, label = space(0.0)
    with pytest.raises(AleatorError, match=r"1 batch\(es\)"):
        integration_scores(points, np.zeros(400), label)
    with pytest.raises(AleatorError, match="too few"):
        integration_scores(points[:40], batch[:40], label[:40])


def test_average_over_batches_is_the_mean_of_each(known):
    adata, _ = known(200, 30, batches=2)
    config = Config(3, 16, "nb", strength=10.0, steps=60)
    denoiser = Denoiser.fit(adata, batch_key="batch", config=config)
    one, two, mean = (
        denoiser.denoise(adata, output=Output(batch=b)).layers["denoised"]
        for b in ("b0", "b1", AVERAGE)
    )
    assert np.abs(one - two).max() > 0.1
    assert mean == pytest.approx((one + two) / 2, rel=1e-4, abs=1e-6)


def test_command_takes_batches_out(known, tmp_path):
    adata, _ = known(300, 40, batches=2)
    adata.write_h5ad(tmp_path / "in.h5ad")
    command = ["integrate", str(tmp_path / "in.h5ad"), "-o", str(tmp_path / "out.h5ad")]
    quick = ["--no-search", "--steps", "120", "--latent", "4", "--strength", "10"]
    measured = ["--batch-key", "batch", "--label-key", "kind", "--report", str(tmp_path / "r")]
    found = CliRunner().invoke(app, [*command, *quick, *measured])
    assert found.exit_code == 0, found.output
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    b1 = (out.obs["batch"] == "b1").to_numpy()

    def gap(x):
        share = x[:, :5].sum(1) / x.sum(1)
        return abs(np.log(share[b1].mean() / share[~b1].mean()))

    assert gap(out.layers["integrated"]) < 0.4 * gap(sp.csr_matrix(out.X).toarray())
    assert "integrated_log" in out.layers
    assert "kind kept apart" in (tmp_path / "r" / "integration.md").read_text()
    refused = CliRunner().invoke(app, [*command, "--overwrite"])
    assert refused.exit_code == 2
    assert "--batch-key" in refused.stderr
    refused = CliRunner().invoke(
        app, [*command, "--overwrite", "--batch-key", "batch", "--label-key", "type"]
    )
    assert refused.exit_code == 2
    assert "no column type" in refused.stderr
