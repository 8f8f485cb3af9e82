r"""Are batches mixed, and types kept apart? Metrics of scIB over a latent space.

Mixing     iLISI       effective number of batches around a cell, (median - 1) / (B - 1)
           kBET        share of cells around which batches come as they do among all of the type
           batch ASW   1 - |silhouette of batches|, within each type
           graph       largest connected part of each type in the graph of neighbours
Kept       cLISI       (K - effective number of types around a cell) / (K - 1)
           label ASW   (1 + silhouette of types) / 2
           NMI, ARI    of k-means with as many clusters as types

All run from 0 (bad) to 1 (good); the total weighs what is kept .6 and mixing .4, as in scIB. LISI
counts the nearest cells equally instead of by a Gaussian kernel. References: Luecken et al. (2022)
doi:10.1038/s41592-021-01336-8; Korsunsky et al. (2019) doi:10.1038/s41592-019-0619-0 (LISI);
Büttner et al. (2019) doi:10.1038/s41592-018-0254-1 (kBET).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from core.errors import AleatorError

NEIGHBOURS = 50
"""Around each cell; fewer where there are few cells."""
MOST = 5000
"""Cells that are looked at: a seeded sample of larger sets."""
KEPT = ("cLISI", "label ASW", "NMI", "ARI")
MIXED = ("iLISI", "kBET", "batch ASW", "graph")


def neighbours(points: np.ndarray, count: int) -> np.ndarray:
    """Indices (N, count) of the nearest other points."""
    from scipy.spatial import cKDTree

    found = cKDTree(points).query(points, count + 1)[1]
    own = found == np.arange(len(points))[:, None]
    own[~own.any(1), -1] = True  # of equal points, one beyond the last is left out
    return found[~own].reshape(len(points), count)


def effective_number(near: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Inverse Simpson index 1 / Σ p² of the categories (N,) among neighbours (N, k)."""
    hot = np.eye(codes.max() + 1)[codes]
    share = hot[near].mean(1)
    return 1 / np.square(share).sum(1)


def kbet(near: np.ndarray, codes: np.ndarray, level: float = 0.05) -> float:
    """Share of cells whose neighbours' batches are no rejection of those of all cells.

    Args:
        near: (N, k) neighbours.
        codes: (N,) batches.
        level: of Pearson's χ² test of each cell.
    """
    from scipy.stats import chi2

    hot = np.eye(codes.max() + 1)[codes]
    expected = near.shape[1] * hot.mean(0)
    seen = hot[near].sum(1)
    statistic = (np.square(seen - expected) / np.maximum(expected, 1e-12)).sum(1)
    return float((chi2.sf(statistic, hot.shape[1] - 1) > level).mean())


def connectivity(near: np.ndarray, codes: np.ndarray) -> float:
    """Mean over types of the share of its cells in its largest connected part."""
    n, k = near.shape
    rows = np.repeat(np.arange(n), k)
    graph = sp.csr_matrix((np.ones(n * k), (rows, near.ravel())), shape=(n, n))
    found = []
    for code in np.unique(codes):
        own = np.flatnonzero(codes == code)
        parts = sp.csgraph.connected_components(graph[own][:, own], directed=False)[1]
        found.append(np.bincount(parts).max() / len(own))
    return float(np.mean(found))


def integration_scores(
    points: np.ndarray, batches: np.ndarray, labels: np.ndarray, seed: int = 0
) -> dict[str, float]:
    """All metrics of a latent space.

    Args:
        points: (N, D).
        batches: (N,) names.
        labels: (N,) names of types.
        seed: of sample and clusters.

    Returns:
        metric -> value in [0, 1] or so, with "kept", "mixed" and "total".

    Raises:
        AleatorError: fewer than two batches or types, or too few cells.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import (
        adjusted_rand_score,
        normalized_mutual_info_score,
        silhouette_samples,
        silhouette_score,
    )

    names = [np.unique(np.asarray(x).astype(str), return_inverse=True) for x in (batches, labels)]
    (batch_names, batch), (label_names, label) = names
    if len(batch_names) < 2 or len(label_names) < 2:
        raise AleatorError(
            f"{len(batch_names)} batch(es) and {len(label_names)} type(s): mixing and keeping "
            "apart need two of each"
        )
    if len(points) < 60:
        raise AleatorError(f"{len(points)} cells are too few to judge an integration by")
    order = np.sort(np.random.default_rng(seed).permutation(len(points))[:MOST])
    points, batch, label = np.asarray(points, np.float64)[order], batch[order], label[order]
    near = neighbours(points, min(NEIGHBOURS, len(points) // 4))
    found = {
        "iLISI": (np.median(effective_number(near, batch)) - 1) / (len(batch_names) - 1),
        "cLISI": (len(label_names) - np.median(effective_number(near, label)))
        / (len(label_names) - 1),
        "label ASW": (1 + silhouette_score(points, label)) / 2,
        "graph": connectivity(neighbours(points, min(15, len(points) // 4)), label),
    }
    clusters = KMeans(len(label_names), n_init=4, random_state=seed).fit_predict(points)
    found["NMI"] = normalized_mutual_info_score(label, clusters)
    found["ARI"] = adjusted_rand_score(label, clusters)
    asw, accepted = [], []
    for code in np.unique(label):
        own = np.flatnonzero(label == code)
        there = np.unique(batch[own])
        if len(there) < 2 or len(own) < 20:
            continue
        within = np.searchsorted(there, batch[own])
        asw.append(float((1 - np.abs(silhouette_samples(points[own], within))).mean()))
        close = neighbours(points[own], min(NEIGHBOURS, len(own) // 4))
        accepted.append(kbet(close, within))
    found["batch ASW"] = float(np.mean(asw)) if asw else float("nan")
    found["kBET"] = float(np.mean(accepted)) if accepted else float("nan")
    found = {name: float(value) for name, value in found.items()}
    found["kept"] = float(np.mean([found[name] for name in KEPT]))
    found["mixed"] = float(np.nanmean([found[name] for name in MIXED]))
    found["total"] = 0.6 * found["kept"] + 0.4 * found["mixed"]
    return found
