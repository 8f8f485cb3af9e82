"""Doublets that were planted are found; pairs are of one batch and never of one cell."""

import anndata as ad
import numpy as np
import scipy.sparse as sp

from apps.single_cell import Config, Denoiser
from apps.single_cell.covariates import Design
from apps.single_cell.data import open_cells
from apps.single_cell.doublets import doublet_scores, pairs


def test_pairs_are_two_cells_of_one_batch():
    batch = np.array([0, 1, 0, 1, 1, 2])
    design = Design(batch[:, None], np.zeros((6, 0), np.float32), (3,))
    one, two = pairs(6, 500, design, 0)
    assert (one != two).all()
    alone = batch[one] == 2
    assert (batch[one] == batch[two])[~alone].all()
    seen = {(int(a), int(b)) for a, b in zip(one, two, strict=True)}
    assert {(0, 2), (2, 0), (1, 3), (1, 4), (3, 4), (4, 1)} <= seen


def test_planted_doublets_score_higher_also_at_the_depth_of_others(known):
    adata, _ = known(400, 40)
    rng = np.random.default_rng(0)
    kind = adata.obs["kind"].to_numpy()
    x = adata.X.toarray()
    mixed = []
    while len(mixed) < 40:
        i, j = rng.integers(0, 400, 2)
        if kind[i] != kind[j]:
            mixed.append(rng.binomial((x[i] + x[j]).astype(int), 0.6))
    whole = ad.AnnData(sp.csr_matrix(np.concatenate([x, mixed]).astype(np.float32)))
    whole.var_names = adata.var_names
    whole.obs_names = [f"c{i}" for i in range(440)]
    denoiser = Denoiser.fit(whole, config=Config(4, 32, "nb", strength=10.0, steps=150))
    found = doublet_scores(denoiser, open_cells(whole))
    assert ((found >= 0) & (found <= 1)).all()
    single, double = found[:400], found[400:]
    auc = (double[:, None] > single).mean()
    assert auc > 0.85
    assert (found == doublet_scores(denoiser, open_cells(whole))).all()
