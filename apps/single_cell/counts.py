"""A matrix of counts, read by blocks of cells, wherever it lies: never dense, never whole.

`Counts` gives rows as CSR float32, whatever is underneath: a SciPy matrix, a NumPy or Dask array,
or a matrix in a file (`Stored`), which is opened read-only by each process for itself, so that
counts can be sent to workers. Rows of a shuffled training pass come from sorted runs of
neighbouring rows: random enough to learn from, sequential enough for a disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from core.errors import AleatorError
from core.random import keyed_generator

EXACT = 2**24
"""float32 holds every integer up to here, and not every one beyond."""
BLOCK = 1024
"""Cells read at once where nothing else is asked for."""
GAP = 8
"""Rows that are cheaper to read and drop than to seek over."""


@dataclass
class Stored:
    """A matrix in an HDF5 file or a Zarr store, opened read-only on first use.

    Attributes:
        path: file or folder.
        key: where in it, e.g. "layers/counts".
    """

    path: Path
    key: str
    _open: Any = field(default=None, repr=False, compare=False)

    @property
    def handle(self) -> Any:
        """What supports `[start:stop]` and `.shape`: sparse or dense."""
        if self._open is None:
            from anndata.io import sparse_dataset

            if self.path.is_dir():
                import zarr

                element: Any = zarr.open_group(self.path, mode="r")[self.key]
            else:
                import h5py

                element = h5py.File(self.path, "r")[self.key]
            self._open = element if hasattr(element, "dtype") else sparse_dataset(element)
        return self._open

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        rows, columns = self.handle.shape
        return int(rows), int(columns)

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return np.dtype(self.handle.dtype)

    def __getitem__(self, index: Any) -> Any:
        return self.handle[index]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "key": self.key, "_open": None}


@dataclass(frozen=True)
class Counts:
    """Counts (N, G) read by rows.

    Attributes:
        matrix: CSR, array, Dask array, backed AnnData matrix or `Stored`; all of its cells and
            genes.
        cells: indices of the rows that are kept, ascending; all if None.
        genes: indices of the columns, in the order wanted; all if None. -1 is a gene that the
            matrix does not have, whose counts are zero.
    """

    matrix: Any
    cells: np.ndarray | None = None
    genes: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G) of what is kept."""
        rows, columns = self.matrix.shape
        rows = rows if self.cells is None else len(self.cells)
        return int(rows), int(columns if self.genes is None else len(self.genes))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def in_memory(self) -> bool:
        """Whether reading costs no disk."""
        return sp.issparse(self.matrix) or isinstance(self.matrix, np.ndarray)

    def select(self, cells: np.ndarray | None = None, genes: np.ndarray | None = None) -> Counts:
        """Some of the cells and genes, as indices or masks over what is kept now; lazy."""
        kept: dict[str, np.ndarray] = {}
        for name, index, size in (("cells", cells, len(self)), ("genes", genes, self.shape[1])):
            if index is None:
                continue
            index = np.asarray(index)
            index = np.flatnonzero(index) if index.dtype == bool else index
            before = getattr(self, name)
            if name == "cells":
                index = np.sort(index)
            if before is None:
                before = np.arange(size)
            kept[name] = np.where(index < 0, -1, before[index])
        return replace(self, **kept)

    def native(self, start: int, stop: int) -> sp.csr_matrix:
        """Cells start:stop, (stop - start, G), as CSR in the type that they are stored in."""
        start, stop, _ = slice(start, stop).indices(len(self))
        if self.cells is None:
            return self._columns(_csr(self.matrix[start:stop]))
        return self._columns(self._rows(self.cells[start:stop]))

    def read(self, start: int = 0, stop: int | None = None) -> sp.csr_matrix:
        """Cells start:stop, (stop - start, G), CSR float32."""
        return self.native(start, len(self) if stop is None else stop).astype(np.float32)

    def take(self, index: np.ndarray) -> sp.csr_matrix:
        """Any cells in any order, (len(index), G), CSR float32."""
        index = np.asarray(index)
        unique, back = np.unique(index, return_inverse=True)
        rows = self._rows(unique if self.cells is None else self.cells[unique])
        return self._columns(rows[back]).astype(np.float32)

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[int, int, sp.csr_matrix]]:
        """(start, stop, cells start:stop as CSR float32) from the first cell to the last."""
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield start, stop, self.read(start, stop)

    def load(self) -> Counts:
        """The same counts as one CSR matrix in memory (float32)."""
        if sp.issparse(self.matrix) and self.cells is None and self.genes is None:
            return self
        parts = [block for _, _, block in self.blocks()]
        return Counts(sp.vstack(parts, format="csr") if parts else self.read())

    def _rows(self, index: np.ndarray) -> sp.csr_matrix:
        """Rows of the matrix at ascending indices, read in runs."""
        if self.in_memory:
            return _csr(self.matrix[index])
        if not len(index):
            return _csr(self.matrix[0:0])
        cuts = np.flatnonzero(np.diff(index) > GAP) + 1
        runs = np.split(index, cuts)
        parts = [_csr(self.matrix[run[0] : run[-1] + 1])[run - run[0]] for run in runs]
        return sp.vstack(parts, format="csr")

    def _columns(self, rows: sp.csr_matrix) -> sp.csr_matrix:
        if self.genes is None:
            return rows
        missing = self.genes < 0
        if not missing.any():
            return rows[:, self.genes]
        kept = rows[:, self.genes[~missing]].tocoo()
        columns = np.flatnonzero(~missing)[kept.col]
        shape = (rows.shape[0], len(self.genes))
        return sp.csr_matrix((kept.data, (kept.row, columns)), shape=shape)


def shuffled(
    cells: int, seed: int, epoch: int, *, block: int = 128, blocks: int = 64
) -> Iterator[np.ndarray]:
    """The cells of one epoch as sorted sets of random blocks, each to be shuffled in memory.

    Every cell comes once. A set is `blocks` random runs of `block` neighbouring rows: its rows are
    read in order of place, and `batches` mixes them.

    Args:
        cells: N.
        seed: of the training run.
        epoch: counted from 0.
        block: neighbouring rows read together.
        blocks: runs in memory at once.

    Yields:
        ascending indices, at most block x blocks of them.
    """
    generator = keyed_generator(seed, epoch)
    order = torch.randperm(-(-cells // block), generator=generator).numpy()
    for start in range(0, len(order), blocks):
        runs = np.sort(order[start : start + blocks])
        rows = (runs[:, None] * block + np.arange(block)).ravel()
        yield rows[rows < cells]


def batches(
    counts: Counts,
    batch: int,
    seed: int,
    epoch: int,
    *,
    block: int = 128,
    blocks: int = 64,
) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
    """Random batches of one epoch: what `shuffled` reads, permuted.

    Args:
        counts: (N, G).
        batch: cells a batch; the last of each set may have fewer.
        seed: of the training run.
        epoch: counted from 0.
        block: as for `shuffled`.
        blocks: as for `shuffled`.

    Yields:
        (indices (B,), counts (B, G) CSR float32), a function of (seed, epoch) alone.

    Raises:
        AleatorError: a size below 1.
    """
    if min(batch, block, blocks) < 1:
        raise AleatorError(f"batch={batch}, block={block}, blocks={blocks}: at least 1 each")
    for number, index in enumerate(shuffled(len(counts), seed, epoch, block=block, blocks=blocks)):
        rows = counts.take(index)
        generator = keyed_generator(seed, epoch, number)
        order = torch.randperm(len(index), generator=generator).numpy()
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            yield index[part], rows[part]


def _csr(block: Any) -> sp.csr_matrix:
    """Whatever a slice of the matrix is, as CSR without stored zeros and with sorted indices."""
    if hasattr(block, "compute"):
        block = block.compute(scheduler="synchronous")
    rows = block if sp.issparse(block) and block.format == "csr" else sp.csr_matrix(block)
    if isinstance(rows, sp.sparray):
        rows = sp.csr_matrix(rows)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    if rows.nnz and not rows.data.all():
        rows = rows.copy()
        rows.eliminate_zeros()
    return rows
