"""A few cells of known rates, with every slot of an AnnData filled, and as files."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp


def make_cells(n=60, g=40, seed=0, depth=120.0) -> ad.AnnData:
    """Two types in two batches, Poisson counts; nothing empty, nothing unnamed."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    profile = rng.gamma(0.6, 1.0, (2, g)) + 0.02
    profile /= profile.sum(1, keepdims=True)
    library = rng.lognormal(np.log(depth), 0.3, n)
    counts = rng.poisson(library[:, None] * profile[kind])
    counts[:, 0] += 1
    adata = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)))
    adata.obs_names = [f"cell{i}" for i in range(n)]
    adata.var_names = [f"GENE{j}" for j in range(g - 2)] + ["MT-CO1", "MT-ND1"]
    adata.obs["batch"] = pd.Categorical(np.where(np.arange(n) % 2, "b", "a"))
    adata.obs["kind"] = pd.Categorical(np.where(kind, "T", "B"))
    adata.obs["age"] = rng.normal(50, 10, n)
    adata.obs["donor"] = rng.integers(1, 4, n)
    adata.var["gene_ids"] = [f"ENSG{j:05d}" for j in range(g)]
    adata.obsm["X_pca"] = rng.normal(size=(n, 3))
    adata.varm["loadings"] = rng.normal(size=(g, 3))
    adata.obsp["distances"] = sp.random(n, n, 0.1, format="csr", random_state=0)
    adata.uns["method"] = {"name": "poisson", "rates": np.arange(3.0)}
    adata.layers["counts"] = adata.X.copy()
    adata.layers["lognorm"] = log_normalised(adata.X)
    adata.raw = adata.copy()
    return adata


def log_normalised(x, total=1e4):
    """log1p of counts at a common depth, sparse."""
    scaled = sp.diags(total / np.asarray(x.sum(1)).ravel()) @ x
    return sp.csr_matrix(scaled.log1p()).astype(np.float32)


@pytest.fixture(scope="session")
def small_cells():
    """`make_cells`."""
    return make_cells


@pytest.fixture(scope="session")
def cell_files(tmp_path_factory):
    """Folder with small.h5ad, small.zarr and csc.h5ad."""
    folder = tmp_path_factory.mktemp("cells")
    adata = make_cells()
    adata.write_h5ad(folder / "small.h5ad")
    adata.write_zarr(folder / "small.zarr")
    adata.X = adata.X.tocsc()
    adata.write_h5ad(folder / "csc.h5ad")
    return folder


def known_rates(n=240, g=50, seed=0, batches=1):
    """Counts of three types with gamma rates, and the rates."""
    rng = np.random.default_rng(seed)
    profile = np.random.default_rng(7).dirichlet(np.full(g, 0.4), 3)
    kind, batch = rng.integers(0, 3, n), rng.integers(0, batches, n)
    depth = rng.lognormal(np.log(150), 0.3, (n, 1))
    mean = depth * profile[kind] * np.where((batch[:, None] == 1) & (np.arange(g) < 5), 4, 1)
    rates = rng.gamma(5.0, mean / 5.0 + 1e-9)
    counts = rng.poisson(rates).astype(np.float32)
    counts[:, -1] += 1
    adata = ad.AnnData(sp.csr_matrix(counts))
    adata.obs_names = [f"c{i}" for i in range(n)]
    adata.var_names = [f"g{j}" for j in range(g)]
    adata.obs["kind"] = kind.astype(str)
    adata.obs["batch"] = [f"b{b}" for b in batch]
    rates[:, -1] += 1
    return adata, rates


@pytest.fixture(scope="session")
def known():
    """`known_rates`: AnnData with obs kind and batch, and the rates."""
    return known_rates
