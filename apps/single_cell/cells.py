"""Cells as this application knows them: counts, who the cells and genes are, where from.

`Cells` is immutable: filters and alignment give new ones that read the same matrix, so that a
file is opened and checked once and never copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from apps.single_cell.checks import Summary, some
from apps.single_cell.counts import Counts
from core.errors import AleatorError


@dataclass(frozen=True)
class Cells:
    """Raw counts of N cells and G genes.

    Attributes:
        counts: (N, G), read by blocks.
        obs: (N, ...) table of the cells, indexed by their names.
        var: (G, ...) table of the genes, indexed by their names.
        source: file, for messages.
        slot: where the counts come from: "X", "layers/NAME" or "raw/X".
        summary: sums over cells and genes, from the check of all values.
        path: h5ad or Zarr store that holds everything else; None if `adata` does.
        adata: the whole object, if it was given or read; never changed.
        index: (N,) places of these cells among all cells of the source.
        notes: what was done and found on the way.
    """

    counts: Counts
    obs: pd.DataFrame
    var: pd.DataFrame
    source: str
    slot: str
    summary: Summary
    index: np.ndarray
    path: Path | None = None
    adata: ad.AnnData | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        return self.counts.shape

    @property
    def cell_names(self) -> tuple[str, ...]:
        """N names."""
        return tuple(map(str, self.obs.index))

    @property
    def genes(self) -> tuple[str, ...]:
        """G names."""
        return tuple(map(str, self.var.index))

    def select(
        self, cells: np.ndarray | None = None, genes: np.ndarray | None = None, note: str = ""
    ) -> Cells:
        """Some of the cells and genes.

        Args:
            cells: mask (N,), all if None.
            genes: mask (G,) or indices in the order wanted, all if None.
            note: added to the notes.

        Returns:
            what is left. Totals stay those of *all* genes of the file: they are library sizes.
        """
        rows = np.arange(len(self)) if cells is None else np.flatnonzero(cells)
        columns = np.arange(self.shape[1]) if genes is None else np.asarray(genes)
        columns = np.flatnonzero(columns) if columns.dtype == bool else columns
        found = self.summary
        return replace(
            self,
            counts=self.counts.select(
                rows if cells is not None else None, columns if genes is not None else None
            ),
            obs=self.obs.iloc[rows],
            var=self.var.iloc[columns],
            index=self.index[rows],
            summary=replace(
                found,
                totals=found.totals[rows],
                detected=found.detected[rows],
                gene_totals=found.gene_totals[columns],
                gene_cells=found.gene_cells[columns],
            ),
            notes=(*self.notes, note) if note else self.notes,
        )

    def aligned(self, genes: Sequence[str], *, fill_missing: bool = False) -> Cells:
        """The genes that a model knows, by name, in its order.

        Args:
            genes: wanted, in order.
            fill_missing: take genes that this file does not have as never seen (zero counts).

        Returns:
            the cells with exactly these genes.

        Raises:
            AleatorError: genes are missing, naming some, and what the names look like if none fit.
        """
        place = self.var.index.get_indexer(pd.Index(list(genes)))
        absent = [gene for gene, where in zip(genes, place, strict=True) if where < 0]
        if absent and (not fill_missing or len(absent) == len(genes)):
            raise AleatorError(self._missing_genes(absent, genes))
        extra = self.shape[1] - (len(genes) - len(absent))
        notes = []
        if extra:
            notes.append(f"{extra} genes that the model does not know are left out")
        if absent:
            notes.append(f"{len(absent)} genes are not in the file, taken as zero: {some(absent)}")
        present = place[place >= 0]
        if (np.diff(present) < 0).any():
            notes.append("genes were in another order than the model's: aligned by name")
        known = np.maximum(place, 0)
        var = self.var.iloc[known].copy()
        var.index = pd.Index(list(genes))
        cells = self.select(genes=known)
        summary = replace(
            cells.summary,
            gene_totals=np.where(place < 0, 0, cells.summary.gene_totals),
            gene_cells=np.where(place < 0, 0, cells.summary.gene_cells),
        )
        counts = self.counts.select(genes=place)
        return replace(cells, counts=counts, var=var, summary=summary, notes=(*self.notes, *notes))

    def _missing_genes(self, absent: Sequence[str], genes: Sequence[str]) -> str:
        said = f"{self.source}: {len(absent)} of the {len(genes)} genes of the model are missing"
        if len(absent) < len(genes) / 2:
            return f"{said} ({some(absent)}); add them, or take them as zero with fill_missing"
        remedy = "is it the same species, and are the names of the same kind?"
        wanted = set(genes)
        for column in self.var:
            if len(wanted & set(self.var[column].astype(str))) > len(genes) / 2:
                remedy = f"var[{column!r}] has them: make that the index of var"
        if len({g.upper() for g in genes} & {g.upper() for g in self.genes}) > len(genes) / 2:
            remedy = "they differ in upper and lower case only: human names against mouse ones?"
        cut = {gene.split(".")[0] for gene in genes} & {gene.split(".")[0] for gene in self.genes}
        if len(cut) > len(genes) / 2:
            remedy = "they differ in their version number (.1, .2) only: cut it off on both sides"
        return f"{said}, e.g. {some(absent, 3)} (the file has {some(self.genes, 3)}); {remedy}"
