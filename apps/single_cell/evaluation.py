r"""What denoising is judged by, besides held-out molecules: known truth, proteins, coverage.

Known truth is the complement of the molecules that a method saw. Values are compared as
log(1 + 10 000 · share), over the genes with the most molecules in the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp

from apps.single_cell.mcv import log_normalised
from core.errors import AleatorError

GENES, CORRELATED = 2000, 200
"""Genes whose values are compared, and whose correlations with each other are."""
LEAST_CELLS = 30
"""Cells of a type whose coverage is reported on its own."""


def truth_scores(rates: np.ndarray, truth: sp.csr_matrix) -> dict[str, float]:
    """One output against molecules that it was not made from.

    Args:
        rates: (N, G), at any depth.
        truth: (N, G) molecules.

    Returns:
        mse: squared error of log-normalised values of the `GENES` genes with most molecules.
        gene_r: mean over these genes of the correlation over cells.
        gene_gene: root mean square error of the correlations of the `CORRELATED` first.
    """
    if rates.shape != truth.shape:
        raise AleatorError(f"rates {rates.shape} and truth {truth.shape} differ in shape")
    order = np.argsort(-np.asarray(truth.sum(0)).ravel(), kind="stable")[:GENES]
    ours = log_normalised(rates.astype(np.float64))[:, order]
    known = log_normalised(truth.toarray().astype(np.float64))[:, order]
    a, b = _standardised(ours), _standardised(known)
    few = slice(0, CORRELATED)
    gap = (a[:, few].T @ a[:, few] - b[:, few].T @ b[:, few]) / len(a)
    upper = np.triu_indices(len(gap), 1)
    return {
        "mse": float(np.square(ours - known).mean()),
        "gene_r": float((a * b).mean(0).mean()),
        "gene_gene": float(np.sqrt(np.square(gap[upper]).mean())),
    }


def protein_agreement(
    rates: np.ndarray, genes: Sequence[str], protein: np.ndarray, pairs: Mapping[str, int]
) -> dict[str, float]:
    """Spearman correlation over cells of each gene's share with the protein that it codes for.

    Args:
        rates: (N, G).
        genes: G names.
        protein: (N, P) counts.
        pairs: gene -> column of its protein.

    Returns:
        gene -> correlation; a gene that is constant has 0.
    """
    from scipy.stats import rankdata

    place = {name: j for j, name in enumerate(genes)}
    share = rates / np.maximum(rates.sum(1, keepdims=True), 1e-30)
    found = {}
    for gene, column in pairs.items():
        if gene not in place:
            raise AleatorError(f"gene {gene} is not among the {len(genes)} genes")
        x, y = rankdata(share[:, place[gene]]), rankdata(protein[:, column])
        found[gene] = float((_standardised(x[:, None]) * _standardised(y[:, None])).mean())
    return found


def coverage_by(
    ranks: np.ndarray, groups: Sequence[object], level: float = 0.9
) -> dict[str, float]:
    """Share of randomised ranks inside the central interval, for each group of rows.

    Args:
        ranks: (N, G) or (N,), see `posterior.pit`.
        groups: N labels; groups of fewer than `LEAST_CELLS` rows are left out.
        level: of the interval.
    """
    inside = np.abs(np.asarray(ranks) - 0.5) <= level / 2
    labels = np.asarray([str(group) for group in groups])
    found = {}
    for label in sorted(set(labels)):
        rows = labels == label
        if rows.sum() >= LEAST_CELLS:
            found[label] = float(inside[rows].mean())
    return found


def _standardised(x: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; constant ones are 0."""
    x = x - x.mean(0)
    deviation = x.std(0)
    return np.divide(x, deviation, out=np.zeros_like(x), where=deviation > 1e-9)
