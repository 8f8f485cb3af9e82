"""Filters leave out what they say, and agree with scanpy."""

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from apps.single_cell.data import open_cells
from apps.single_cell.filters import Filters, highly_variable, mitochondrial_share
from core.errors import AleatorError


@pytest.mark.parametrize(
    ("filters", "cell_options", "gene_options"),
    [
        (Filters(min_counts=110), {"min_counts": 110}, None),
        (Filters(max_counts=150), {"max_counts": 150}, None),
        (Filters(min_genes=20), {"min_genes": 20}, None),
        (Filters(min_cells=15), None, {"min_cells": 15}),
    ],
)
def test_thresholds_are_those_of_scanpy(small_cells, filters, cell_options, gene_options):
    adata = small_cells()
    left = filters(open_cells(adata))
    oracle = adata.copy()
    if cell_options:
        sc.pp.filter_cells(oracle, **cell_options)
    if gene_options:
        sc.pp.filter_genes(oracle, **gene_options)
    assert left.cell_names == tuple(oracle.obs_names)
    assert left.genes == tuple(oracle.var_names)
    assert 0 < left.shape[0] * left.shape[1] < 60 * 40
    np.testing.assert_array_equal(left.counts.read().toarray(), oracle.X.toarray())
    number = (60 - len(left)) or (40 - left.shape[1])
    assert left.notes[-1].startswith(f"{number} ")


def test_mitochondrial_share(small_cells):
    adata = small_cells()
    x = adata.X.toarray()
    share = x[:, -2:].sum(1) / x.sum(1)
    cells = open_cells(adata)
    np.testing.assert_allclose(mitochondrial_share(cells), share)
    level = float(np.median(share))
    left = Filters(max_mito=level)(cells)
    np.testing.assert_array_equal(left.index, np.flatnonzero(share <= level))
    renamed = adata[:, :30].copy()
    with pytest.raises(AleatorError, match="no gene is named MT-"):
        Filters(max_mito=0.1)(open_cells(renamed))


def test_no_filter_leaves_all_and_says_nothing(small_cells):
    cells = open_cells(small_cells())
    left = Filters()(cells)
    assert left.shape == cells.shape
    assert left.notes == cells.notes


def test_what_leaves_nothing_is_refused(small_cells):
    with pytest.raises(AleatorError, match=r"leave 0 of 60 cells .* loosen them"):
        Filters(min_counts=10**6)(open_cells(small_cells()))
    for bad in ({"min_counts": -1}, {"max_counts": 0}, {"max_mito": 2.0}):
        with pytest.raises(AleatorError, match=next(iter(bad))):
            Filters(**bad)


def test_variable_genes_are_those_planted(small_cells):
    adata = small_cells(n=200)
    rng = np.random.default_rng(1)
    x = rng.poisson(3.0, (200, 40)).astype(np.float32)
    planted = [3, 17, 29]
    x[:100, planted] = rng.poisson(12.0, (100, 3))
    x[:, 5] = 0
    adata.X = sp.csr_matrix(x)
    cells = open_cells(adata)
    found = highly_variable(cells, 3)
    assert list(np.flatnonzero(found)) == planted
    assert highly_variable(cells, 3, batch_key="batch").sum() == 3
    everything = highly_variable(cells, 100)
    assert everything.sum() == 39
    assert not everything[5]
    with pytest.raises(AleatorError, match="no column plate"):
        highly_variable(cells, 3, batch_key="plate")
