"""Leaving cells and genes out, and saying so; which genes vary beyond their noise.

All thresholds work on the sums that the check of the counts has found already: filtering reads
nothing, except for the share of mitochondrial molecules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from apps.single_cell.cells import Cells
from apps.single_cell.checks import some
from core.errors import AleatorError

HVG_CELLS = 20_000
"""Cells from which variable genes are found; a seeded sample of larger sets."""


@dataclass(frozen=True)
class Filters:
    """Thresholds, both ends included; nothing is left out by default.

    Attributes:
        min_counts: molecules of a cell, at least.
        max_counts: molecules of a cell, at most.
        min_genes: genes detected in a cell, at least.
        min_cells: cells in which a gene is detected, at least.
        max_mito: share of mitochondrial molecules (genes MT-*), at most.
    """

    min_counts: int = 0
    max_counts: int | None = None
    min_genes: int = 0
    min_cells: int = 0
    max_mito: float | None = None

    def __post_init__(self) -> None:
        for name in ("min_counts", "min_genes", "min_cells"):
            if getattr(self, name) < 0:
                raise AleatorError(f"{name}={getattr(self, name)}: it must not be negative")
        if self.max_counts is not None and self.max_counts < max(1, self.min_counts):
            raise AleatorError(f"max_counts={self.max_counts} leaves no cell")
        if self.max_mito is not None and not 0 <= self.max_mito <= 1:
            raise AleatorError(f"max_mito={self.max_mito}: a share, from 0 to 1, is expected")

    def __call__(self, cells: Cells) -> Cells:
        """Apply them: genes first, on all cells, then cells.

        Args:
            cells: any.

        Returns:
            what is left, with a note for every threshold that left something out.

        Raises:
            AleatorError: fewer than two cells or genes would be left, or mitochondrial genes are
                asked for and there are none.
        """
        found, notes = cells.summary, []
        genes = found.gene_cells >= self.min_cells
        if not genes.all():
            notes.append(
                f"{(~genes).sum()} genes seen in fewer than {self.min_cells} cells left out"
            )
        kept = np.ones(len(cells), bool)
        tests = [
            (found.totals >= self.min_counts, f"fewer than {self.min_counts} molecules"),
            (found.detected >= self.min_genes, f"fewer than {self.min_genes} genes"),
        ]
        if self.max_counts is not None:
            few = found.totals <= self.max_counts
            tests.append((few, f"more than {self.max_counts} molecules"))
        if self.max_mito is not None:
            low = mitochondrial_share(cells) <= self.max_mito
            tests.append((low, f"more than {self.max_mito:.0%} mitochondrial molecules"))
        for passed, reason in tests:
            if not passed.all():
                names = some(list(cells.obs.index[~passed]), 3)
                notes.append(f"{(~passed).sum()} cells with {reason} left out ({names})")
            kept &= passed
        if kept.sum() < 2 or genes.sum() < 2:
            raise AleatorError(
                f"{cells.source}: the filters leave {kept.sum()} of {len(kept)} cells and "
                f"{genes.sum()} of {len(genes)} genes ({'; '.join(notes)}); loosen them"
            )
        left = cells.select(
            None if kept.all() else kept, None if genes.all() else np.flatnonzero(genes)
        )
        for note in notes:
            left = left.select(note=note)
        return left


def mitochondrial_share(cells: Cells) -> np.ndarray:
    """Share (N,) of the molecules of each cell that are of genes MT-* (any case).

    Raises:
        AleatorError: no gene has such a name.
    """
    genes = np.flatnonzero(cells.var.index.str.upper().str.startswith("MT-"))
    if not len(genes):
        raise AleatorError(
            f"{cells.source}: no gene is named MT-..., so the mitochondrial share is unknown; "
            "name genes by symbol, or leave max_mito out"
        )
    chosen = cells.counts.select(genes=genes)
    sums = [np.asarray(block.sum(1)).ravel() for _, _, block in chosen.blocks()]
    return np.concatenate(sums) / np.maximum(cells.summary.totals, 1)


def highly_variable(
    cells: Cells, count: int, *, batch_key: str | None = None, seed: int = 0
) -> np.ndarray:
    """The genes that vary most beyond counting noise, by analytic Pearson residuals.

    Args:
        cells: any; at most `HVG_CELLS` of them are looked at.
        count: genes wanted.
        batch_key: column of obs within which genes are ranked.
        seed: of the sample of cells.

    Returns:
        mask (G,) with `count` genes (all that are expressed, if these are fewer).

    Raises:
        AleatorError: fewer than one gene asked for, or no such column.

    Reference: Lause, Berens and Kobak (2021), doi:10.1186/s13059-021-02451-7, as in scanpy.
    """
    import anndata as ad
    import scanpy as sc

    if count < 1:
        raise AleatorError(f"{count} variable genes: at least one is needed")
    if batch_key is not None and batch_key not in cells.obs:
        raise AleatorError(f"{cells.source}: obs has no column {batch_key}")
    chosen = np.arange(len(cells))
    if len(cells) > HVG_CELLS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(cells), HVG_CELLS, replace=False))
    counts = cells.counts.take(chosen)
    expressed = np.flatnonzero(np.asarray(counts.sum(0)).ravel())
    obs = pd.DataFrame(index=cells.obs.index[chosen])
    if batch_key is not None:
        obs[batch_key] = cells.obs[batch_key].to_numpy()[chosen].astype(str)
    mask = np.zeros(cells.shape[1], bool)
    if len(expressed) <= count:
        mask[expressed] = True
        return mask
    adata = ad.AnnData(sp.csr_matrix(counts[:, expressed]), obs=obs)
    found = sc.experimental.pp.highly_variable_genes(
        adata, n_top_genes=count, batch_key=batch_key, inplace=False
    )
    mask[expressed[found["highly_variable"].to_numpy()]] = True
    return mask
