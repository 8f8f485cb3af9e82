"""Files to cells: AnnData, 10x and Loom, opened lazily, every count checked once.

`open_cells` finds the counts in X, a layer or raw, refuses what cannot be a count with one line
that names the file, the cell, the gene and the remedy, and gives `Cells`. Everything that this
application reads comes in through here.
"""

from __future__ import annotations

import contextlib
import importlib.resources
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from apps.single_cell.cells import Cells
from apps.single_cell.checks import check_counts, duplicates, some
from apps.single_cell.counts import Counts, Stored
from apps.single_cell.files import Opened, damaged, open_path, read_whole
from core.errors import AleatorError

__all__ = ["Cells", "open_cells", "read_anndata", "sample_path"]

Source: TypeAlias = str | Path | ad.AnnData

IN_MEMORY = 2**26
"""Stored values up to which a matrix is read whole unless asked otherwise (0.5 GB as CSR)."""


def sample_path(name: str = "five_lines_thinned.h5ad") -> Path:
    """Where a bundled file is; `samples/README.md` says what it holds.

    Raises:
        AleatorError: there is no such sample.
    """
    folder = Path(str(importlib.resources.files("apps.single_cell") / "samples"))
    if not (folder / name).exists():
        raise AleatorError(f"no bundled sample {name}; see {folder / 'README.md'}")
    return folder / name


def open_cells(
    source: Source,
    layer: str | None = None,
    *,
    backed: bool | None = None,
    drop_empty: bool = False,
    make_unique: bool = False,
    allow_noninteger: bool = False,
) -> Cells:
    """Open a file, or take an AnnData, as cells with raw counts.

    Args:
        source: path of an `.h5ad`, AnnData-Zarr, 10x `.h5`, `matrix.mtx` folder or Loom file; or
            an AnnData, which is not changed.
        layer: layer with the counts; "raw" for `adata.raw`; None for X.
        backed: leave the counts of an h5ad or Zarr store on disk; None decides by their size.
        drop_empty: leave cells without any molecule out, instead of refusing them.
        make_unique: number genes and cells of the same name apart, instead of refusing them.
        allow_noninteger: take fractional values, such as counts corrected for ambient RNA.

    Returns:
        the cells, all genes.

    Raises:
        AleatorError: anything that is missing, damaged or no count.
    """
    opened = _given(source) if isinstance(source, ad.AnnData) else open_path(source)
    slot = _slot(opened, layer)
    obs, var = _tables(opened, slot)
    matrix, notes = _matrix(opened, slot, backed)
    where = f"{opened.where}: {slot}"
    if tuple(matrix.shape) != (len(obs), len(var)):
        raise AleatorError(
            f"{where} is {matrix.shape[0]} x {matrix.shape[1]}, but the tables name {len(obs)} "
            f"cells and {len(var)} genes; the file is damaged"
        )
    if len(obs) < 2 or len(var) < 2:
        raise AleatorError(
            f"{where} has {len(obs)} cell(s) and {len(var)} gene(s); "
            "at least two of each are needed"
        )
    obs, var = (
        _unique(table, what, opened.where, make_unique)
        for table, what in ((obs, "cell"), (var, "gene"))
    )
    counts = Counts(matrix)
    summary = check_counts(
        counts,
        obs.index,
        var.index,
        where,
        allow_noninteger=allow_noninteger,
        remedy=_remedy(opened, slot),
    )
    if summary.fractional:
        notes.append(f"{summary.fractional} values are not whole, as allowed")
    cells = Cells(
        counts=counts,
        obs=obs,
        var=var,
        source=opened.where,
        slot=slot,
        summary=summary,
        index=np.arange(len(obs)),
        path=opened.path,
        adata=opened.adata,
        notes=(*opened.notes, *notes, *_silent_genes(summary.gene_totals)),
    )
    return _without_empty(cells, drop_empty)


def read_anndata(cells: Cells) -> ad.AnnData:
    """Everything that the source holds about these cells: a copy in memory, every slot kept.

    Genes are all genes of the source, in its order.

    Raises:
        AleatorError: the source has become unreadable.
    """
    if cells.adata is not None:
        whole = cells.adata
    elif cells.path is not None:
        whole = read_whole(cells.path)
    else:
        raise AleatorError(f"{cells.source}: what these cells come from is gone")
    whole = whole if len(cells.index) == whole.n_obs else whole[cells.index]
    return whole.to_memory() if whole.isbacked else whole.copy()


def _given(adata: ad.AnnData) -> Opened:
    return Opened("the AnnData", "AnnData", adata=adata)


def _inside(opened: Opened) -> list[str]:
    """Slots of a source that hold a matrix: "X", "layers/NAME", "raw/X"."""
    if opened.adata is not None:
        adata = opened.adata
        layers = [f"layers/{name}" for name in adata.layers]
        raw = ["raw/X"] if adata.raw is not None else []
        return [*(["X"] if adata.X is not None else []), *layers, *raw]
    assert opened.path is not None
    with damaged(opened.path), _store(opened.path) as store:
        found = ["X", *(f"layers/{name}" for name in store.get("layers", ())), "raw/X"]
        return [slot for slot in found if _there(store, slot)]


def _there(store: Any, slot: str) -> bool:
    return slot in store and store[slot].attrs.get("encoding-type") != "null"


def _slot(opened: Opened, layer: str | None) -> str:
    """Which matrix is meant, if it is there."""
    slots = _inside(opened)
    wanted = "X" if layer in (None, "X") else f"layers/{layer}"
    if layer == "raw" and wanted not in slots:
        wanted = "raw/X"
    if wanted in slots:
        return wanted
    have = some([slot.removeprefix("layers/").removesuffix("/X") for slot in slots]) or "none"
    if wanted == "X":
        raise AleatorError(f"{opened.where}: X is empty; name the counts by layer (there: {have})")
    raise AleatorError(f"{opened.where}: no layer {layer} (matrices there: {have})")


def _remedy(opened: Opened, slot: str) -> str:
    others = [s.removeprefix("layers/").removesuffix("/X") for s in _inside(opened) if s != slot]
    if not others:
        return "give the file with the raw counts"
    return f"give the raw counts by layer (others here: {some(others)})"


def _tables(opened: Opened, slot: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """obs, and the var that belongs to the slot."""
    if opened.adata is not None:
        adata = opened.adata
        return adata.obs, adata.raw.var if slot == "raw/X" else adata.var
    from anndata.io import read_elem

    assert opened.path is not None
    key = "raw/var" if slot == "raw/X" else "var"
    with damaged(opened.path), _store(opened.path) as store:
        return read_elem(store["obs"]), read_elem(store[key])


def _matrix(opened: Opened, slot: str, backed: bool | None) -> tuple[Any, list[str]]:
    """The matrix, CSR or lazily readable by rows, and what was done to it."""
    notes = []
    matrix: Any
    if opened.adata is not None:
        adata, name = opened.adata, slot.removeprefix("layers/")
        if slot == "raw/X":
            matrix = adata.raw.X
        else:
            matrix = adata.X if slot == "X" else adata.layers[name]
        path = adata.filename if adata.isbacked and not adata.is_view else None
        if path is not None and not hasattr(matrix, "toarray") and slot != "raw/X":
            matrix = Stored(Path(path), slot)  # opened again read-only, and fit for workers
    else:
        assert opened.path is not None
        matrix = Stored(opened.path, slot)
        with damaged(opened.path):
            size = _stored_values(matrix)
            if backed is None:
                backed = size > IN_MEMORY
            if not backed and _form(matrix) is not None:
                matrix = matrix.handle.to_memory()
    if _form(matrix) == "csc":
        notes.append(
            f"{slot} is stored by genes (CSC), which is slow to read by cells: converted to CSR "
            "in memory"
        )
        matrix = matrix.handle.to_memory() if isinstance(matrix, Stored) else matrix
    if sp.issparse(matrix):
        matrix = sp.csr_matrix(matrix)
        matrix.sum_duplicates()
    elif not hasattr(matrix, "shape") or len(matrix.shape) != 2:
        raise AleatorError(f"{opened.where}: {slot} is not a matrix")
    return matrix, notes


def _form(matrix: Any) -> str | None:
    """Format csr, csc, or None for what is not sparse."""
    inner = matrix.handle if isinstance(matrix, Stored) else matrix
    return getattr(inner, "format", None)


def _stored_values(matrix: Stored) -> int:
    inner = matrix.handle
    group = getattr(inner, "group", None)
    return int(group["data"].shape[0] if group is not None else np.prod(inner.shape))


def _store(path: Path) -> Any:
    """The file or folder, open for reading, as a context."""
    if path.is_dir():
        import zarr

        return contextlib.nullcontext(zarr.open_group(path, mode="r"))
    import h5py

    return h5py.File(path, "r")


def _unique(table: pd.DataFrame, what: str, where: str, make_unique: bool) -> pd.DataFrame:
    table = table.copy()
    table.index = table.index.astype(str)
    twice = duplicates(table.index)
    if twice and not make_unique:
        named = some([f"{name} ({times} times)" for name, times in twice])
        raise AleatorError(
            f"{where}: {len(twice)} {what} names occur more than once: {named}; make them unique "
            "with make_unique, or merge them if they are the same"
        )
    if twice:
        table.index = ad.utils.make_index_unique(table.index)
    return table


def _silent_genes(totals: np.ndarray) -> tuple[str, ...]:
    silent = int((totals == 0).sum())
    return (f"{silent} genes have no molecule in any cell",) if silent else ()


def _without_empty(cells: Cells, drop: bool) -> Cells:
    empty = cells.summary.totals == 0
    if not empty.any():
        return cells
    names = some(list(cells.obs.index[empty]))
    if not drop:
        raise AleatorError(
            f"{cells.source}: {cells.slot} has {empty.sum()} cells without any molecule: {names}; "
            "remove them, or leave them out with drop_empty"
        )
    kept = cells.select(~empty, note=f"{empty.sum()} empty cells left out: {names}")
    if len(kept) < 2:
        raise AleatorError(f"{cells.source}: fewer than two cells have any molecule")
    return kept
