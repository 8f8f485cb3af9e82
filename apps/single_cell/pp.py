"""Scanpy-style doors to what comes before a model: checks and filters, never a transformation."""

from __future__ import annotations

import anndata as ad

from apps.single_cell.data import open_cells, read_anndata
from apps.single_cell.filters import Filters
from apps.single_cell.filters import highly_variable as variable_genes


def check(adata: ad.AnnData, layer: str | None = None) -> dict[str, float]:
    """Look at every value of the counts; nothing is changed.

    Args:
        adata: cells.
        layer: where the counts are; X if None.

    Returns:
        cells, genes, density (share of values above zero), largest (count), median (molecules of
        a cell).

    Raises:
        AleatorError: they are no raw counts, in one line that names cell and gene.
    """
    import numpy as np

    cells = open_cells(adata, layer, drop_empty=True)
    found = cells.summary
    return {
        "cells": float(len(cells)),
        "genes": float(cells.shape[1]),
        "density": float(found.density),
        "largest": float(found.largest),
        "median": float(np.median(found.totals)),
    }


def filter_cells(adata: ad.AnnData, layer: str | None = None, **thresholds: float) -> ad.AnnData:
    """The cells and genes that pass thresholds, as a copy.

    Args:
        adata: cells.
        layer: where the counts are.
        **thresholds: of `Filters`: min_counts, max_counts, min_genes, min_cells, max_mito.

    Raises:
        AleatorError: no raw counts, or nothing would be left.
    """
    cells = Filters(**thresholds)(open_cells(adata, layer, drop_empty=True))  # type: ignore[arg-type]
    return read_anndata(cells)[:, list(cells.genes)].copy()


def highly_variable(
    adata: ad.AnnData,
    count: int = 2000,
    layer: str | None = None,
    *,
    batch_key: str | None = None,
    seed: int = 0,
) -> None:
    """Mark the genes that vary most beyond counting noise, in `var["highly_variable"]`.

    Args:
        adata: cells; denoising needs no selection, and gives all genes either way.
        count: genes wanted.
        layer: where the counts are.
        batch_key: column of obs within which genes are ranked.
        seed: of the sample of cells.

    Raises:
        AleatorError: no raw counts, or no such column.
    """
    cells = open_cells(adata, layer, drop_empty=True)
    adata.var["highly_variable"] = variable_genes(cells, count, batch_key=batch_key, seed=seed)
