"""Are these raw counts? Every value is looked at, once, block by block.

A model of counts that is given logarithms trains without complaint and means nothing. So the first
value that cannot be a count ends the reading, with its cell and gene, and with what the matrix
looks like instead. The same pass sums up cells and genes for the filters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from apps.single_cell.counts import BLOCK, EXACT, Counts
from core.errors import AleatorError

Undo = Callable[[np.ndarray], np.ndarray]

SAMPLE = 512
"""Cells that `looks_like` judges from."""


@dataclass(frozen=True)
class Summary:
    """What one pass over the counts finds.

    Attributes:
        totals: (N,) molecules of each cell.
        detected: (N,) genes of each cell with at least one.
        gene_totals: (G,) molecules of each gene.
        gene_cells: (G,) cells with at least one molecule of the gene.
        largest: of all counts.
        fractional: stored values that are not whole (only where they were allowed).
    """

    totals: np.ndarray
    detected: np.ndarray
    gene_totals: np.ndarray
    gene_cells: np.ndarray
    largest: float
    fractional: int = 0

    @property
    def density(self) -> float:
        """Share of entries that are not zero."""
        return float(self.gene_cells.sum()) / max(1, len(self.totals) * len(self.gene_totals))


def check_counts(
    counts: Counts,
    cells: Sequence[str],
    genes: Sequence[str],
    where: str,
    *,
    allow_noninteger: bool = False,
    remedy: str = "give the raw counts",
) -> Summary:
    """Look at every value.

    Args:
        counts: (N, G).
        cells: N names.
        genes: G names.
        where: the matrix, for messages, e.g. "pbmc.h5ad: X".
        allow_noninteger: accept fractional values (corrected for ambient RNA, for instance).
        remedy: what to do about a matrix that is not of counts.

    Returns:
        sums over cells and genes.

    Raises:
        AleatorError: at the first value that is not a count, naming its cell and gene.
    """
    dtype = np.dtype(getattr(counts.matrix, "dtype", np.float32))
    if dtype.kind not in "iuf":
        kind = {"b": "true and false", "c": "complex numbers"}.get(dtype.kind, f"{dtype} values")
        raise AleatorError(f"{where} holds {kind}, not counts; {remedy}")
    n, g = counts.shape
    totals, detected = np.zeros(n), np.zeros(n, np.int64)
    gene_totals, gene_cells = np.zeros(g), np.zeros(g, np.int64)
    largest, fractional = 0.0, 0
    for start in range(0, n, BLOCK):
        rows = counts.native(start, start + BLOCK)
        bad = _offence(rows, allow_noninteger)
        if bad is not None:
            place, what = bad
            row = int(np.searchsorted(rows.indptr, place, side="right")) - 1
            told = _explained(what, rows, counts, where, remedy)
            value = _show(rows.data[place])
            name = f"gene {genes[rows.indices[place]]} in cell {cells[start + row]}"
            raise AleatorError(f"{where}: {value} for {name} {told}")
        stop = start + rows.shape[0]
        totals[start:stop] = np.asarray(rows.sum(1, dtype=np.float64)).ravel()
        detected[start:stop] = np.diff(rows.indptr)
        gene_totals += np.asarray(rows.sum(0, dtype=np.float64)).ravel()
        gene_cells += np.bincount(rows.indices, minlength=g)
        largest = max(largest, float(rows.data.max(initial=0)))
        fractional += int((rows.data % 1 != 0).sum()) if dtype.kind == "f" else 0
    return Summary(totals, detected, gene_totals, gene_cells, largest, fractional)


def looks_like(rows: sp.csr_matrix) -> str:
    r"""What a matrix that is not of counts may be, in words.

    Depth-normalised values x = T y / Σy have rows of one sum, their logarithms log(1 + x) rows of
    one sum after exp(x) - 1; values divided by *any* factor of the cell are whole multiples of the
    cell's smallest. Scaled values are negative somewhere and dense.

    Args:
        rows: some cells (n, G), CSR.

    Returns:
        e.g. "log1p of counts normalised to 10000 per cell".
    """
    rows = rows[np.diff(rows.indptr) > 0].astype(np.float64)
    if not rows.shape[0]:
        return "an empty matrix"
    data = rows.data
    if (data < 0).any():
        dense = rows.nnz > 0.5 * np.prod(rows.shape)
        return "scaled or centred values (z-scores)" if dense else "corrected or scaled values"
    if data.max() < 50:
        for name, undo in (("log1p", np.expm1), ("log2(1 + x)", lambda x: np.exp2(x) - 1)):
            total = _common_sum(rows, undo)
            if total:
                return f"{name} of counts normalised to {total:.6g} per cell"
            if _multiples(rows, undo):
                return f"{name} of counts divided by a factor of each cell"
        if _multiples(rows, lambda x: np.square(x)):
            return "square roots of counts"
    total = _common_sum(rows, lambda x: x)
    if total:
        return f"counts normalised to {total:.6g} per cell, without a logarithm"
    if _multiples(rows, lambda x: x):
        return "counts divided by a factor of each cell"
    share = np.mean(data % 1 != 0)
    if share < 0.05:
        return f"counts but for {share:.2g} of the values"
    return "logged or transformed values" if data.max() < 20 else "estimated or corrected counts"


def duplicates(names: Sequence[str]) -> list[tuple[str, int]]:
    """(name, how often) of every name that occurs more than once, in order of first occurrence."""
    found, counted = np.unique(np.asarray(names, dtype=object).astype(str), return_counts=True)
    often = dict(zip(found[counted > 1], counted[counted > 1], strict=True))
    seen = dict.fromkeys(str(name) for name in names if str(name) in often)
    return [(name, int(often[name])) for name in seen]


def some(names: Sequence[str], most: int = 5) -> str:
    """A list for a message: the first few, and how many more."""
    shown = ", ".join(map(str, list(names)[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _offence(rows: sp.csr_matrix, allow_noninteger: bool) -> tuple[int, str] | None:
    """Place and kind of the first value that cannot be a count."""
    data = rows.data
    tests = [
        ("missing", lambda: ~np.isfinite(data) if data.dtype.kind == "f" else None),
        ("negative", lambda: data < 0 if data.dtype.kind != "u" else None),
        ("large", lambda: data > EXACT),
        ("fraction", lambda: data % 1 != 0 if data.dtype.kind == "f" else None),
    ]
    for kind, test in tests:
        if kind == "fraction" and allow_noninteger:
            continue
        found = test()
        if found is not None and found.any():
            return int(np.argmax(found)), kind
    return None


def _explained(what: str, rows: sp.csr_matrix, counts: Counts, where: str, remedy: str) -> str:
    if what == "missing":
        return "is not a number; remove or replace missing values in the counts"
    if what == "large":
        return (
            f"is beyond {EXACT}, up to where single precision counts exactly; "
            "is it a count, or an overflow upstream?"
        )
    sample = rows if rows.shape[0] >= SAMPLE else counts.native(0, SAMPLE)
    if what == "negative":
        return f"is negative: this looks like {looks_like(sample)}; {remedy}"
    mixed = np.mean(rows.data % 1 != 0)
    if mixed < 0.05:
        return (
            f"is not whole, while {1 - mixed:.4%} of the values around it are; "
            "correct the file, or allow it with allow_noninteger"
        )
    return f"is not a count: this looks like {looks_like(sample)}; {remedy}"


def _common_sum(rows: sp.csr_matrix, undo: Undo) -> float | None:
    """The sum that rows share after `undo`, to half a percent."""
    undone = sp.csr_matrix((undo(rows.data), rows.indices, rows.indptr), shape=rows.shape)
    sums = np.asarray(undone.sum(1)).ravel()
    centre = float(np.median(sums))
    if len(sums) < 3 or np.abs(sums / centre - 1).max() > 5e-3:
        return None
    power = 10.0 ** round(np.log10(centre))
    return power if abs(centre / power - 1) < 5e-3 else centre


def _multiples(rows: sp.csr_matrix, undo: Undo) -> bool:
    """Whether, after `undo`, the values of each cell are multiples of its smallest."""
    whole = []
    for row in range(min(rows.shape[0], 64)):
        values = undo(rows.data[rows.indptr[row] : rows.indptr[row + 1]])
        ratio = values / values.min()
        ratio = ratio[ratio < 100]  # beyond, rounding in single precision blurs the multiples
        if len(values) > 2 and ratio.max() > 1.5:
            whole.append(np.abs(ratio - np.round(ratio)).max() < 0.02)
    return len(whole) > 2 and float(np.mean(whole)) > 0.9 and not _whole(rows)


def _whole(rows: sp.csr_matrix) -> bool:
    return bool((rows.data % 1 == 0).all())


def _show(value: float) -> str:
    return f"{value:.6g}" if abs(value) < EXACT else f"{value:.10g}"
