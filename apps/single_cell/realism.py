r"""Are generated cells like real ones that no model has seen?

    AUC      random forest on 50 principal components: ½ where it cannot tell them apart
    MMD      √(E k(X, X') + E k(Y, Y') - 2 E k(X, Y)) over all pairs, beside that of two halves of
             the real cells: chance is their value, not zero
    moments  zeros, and mean and variance of each gene
    types    does a classifier of real cells recognise what was asked for, as often as in real ones
    copies   is the nearest training cell nearer than it is to real cells

Components are fitted on training cells, never on what is compared: among training cells they have
learned the noise as well, so that these may not be compared with any others by them.
References: Lopez-Paz and Oquab (2017) arXiv:1610.06545; Gretton et al. (2012) JMLR 13:723.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from apps.single_cell.mcv import TARGET
from core.errors import AleatorError

COMPONENTS, TREES, FOLDS = 50, 200, 5
LEAST = 40
"""Cells on each side below which nothing is told."""
EXPRESSED = 0.05
"""Molecules a cell above which moments of a gene are compared."""


@dataclass(frozen=True)
class Components:
    """Principal components of log-normalised counts.

    Attributes:
        mean: (G,).
        axes: (K, G), orthonormal.
    """

    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, counts: sp.csr_matrix, seed: int = 0) -> Components:
        """From training cells (N, G)."""
        from scipy.sparse.linalg import LinearOperator, svds

        x = log_normalised_sparse(counts)
        mean = np.asarray(x.mean(0)).ravel()
        centred = LinearOperator(
            x.shape,
            matvec=lambda v: x @ v.ravel() - mean @ v.ravel(),
            rmatvec=lambda u: x.T @ u.ravel() - mean * u.sum(),
            dtype=np.float64,
        )
        rank = min(COMPONENTS, min(x.shape) - 1)
        start = np.random.default_rng(seed).normal(size=min(x.shape))
        values, axes = svds(centred, k=rank, v0=start)[1:]
        return cls(mean, axes[np.argsort(-values)])

    def __call__(self, counts: sp.csr_matrix) -> np.ndarray:
        """Scores (N, K)."""
        return log_normalised_sparse(counts) @ self.axes.T - self.mean @ self.axes.T

    def inverse(self, scores: np.ndarray) -> np.ndarray:
        """Log-normalised values (N, G) of scores (N, K)."""
        return scores @ self.axes + self.mean


def log_normalised_sparse(counts: sp.csr_matrix) -> sp.csr_matrix:
    """log(1 + x target / Σ x), sparse."""
    x = sp.csr_matrix(counts, dtype=np.float64)
    total = np.maximum(np.asarray(x.sum(1)).ravel(), 1.0)
    scaled = sp.csr_matrix(sp.diags(TARGET / total) @ x)
    scaled.data = np.log1p(scaled.data)
    return scaled


def classifier_auc(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Probability that a forest rates a cell of y (M, K) above one of x (N, K), held out."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    forest = RandomForestClassifier(TREES, min_samples_leaf=2, random_state=seed)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    z, label = np.concatenate([x, y]), np.r_[np.zeros(len(x)), np.ones(len(y))]
    chance = cross_val_predict(forest, z, label, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(label, chance))


def discrepancy(x: np.ndarray, y: np.ndarray, width: float | None = None) -> float:
    """Maximum mean discrepancy of equally many x and y (N, K), over all pairs (biased).

    Args:
        x: one sample.
        y: the other.
        width: of the Gaussian kernels, which are ½, 1 and 2 times as wide; the median distance
            within x if None.
    """
    from scipy.spatial.distance import cdist

    xx, yy, xy = (cdist(a, b, "sqeuclidean") for a, b in ((x, x), (y, y), (x, y)))
    middle = width**2 if width else float(np.median(xx[np.triu_indices(len(x), 1)]))
    total = 0.0
    for factor in (0.25, 1.0, 4.0):
        a, b, c = (np.exp(-d / (2 * factor * middle)).mean() for d in (xx, yy, xy))
        total += (a + b - 2 * c) / 3
    return float(np.sqrt(max(total, 0.0)))


def moment_gaps(real: sp.csr_matrix, made: sp.csr_matrix) -> dict[str, float]:
    """Relative gaps of zeros, and of mean and variance over genes of similar expression.

    Returns:
        zeros: share of zeros over that of real cells, less 1.
        mean: largest of ten classes of expression of |median ratio of the means - 1|.
        variance: likewise of variances.
        spread_library: standard deviation of ln library over that of real cells, less 1.
    """
    size = float(np.prod(real.shape)), float(np.prod(made.shape))
    zeros = (1 - made.nnz / size[1]) / (1 - real.nnz / size[0]) - 1
    (m, v), (n, w) = _moments(real), _moments(made)
    genes = np.flatnonzero(m > EXPRESSED)
    if len(genes) < 20:
        raise AleatorError(f"{len(genes)} genes with {EXPRESSED} molecules a cell: too few")
    classes = np.array_split(genes[np.argsort(m[genes])], 10)
    library = [np.log(np.maximum(np.asarray(x.sum(1)).ravel(), 1)).std() for x in (real, made)]
    return {
        "zeros": float(zeros),
        "mean": max(abs(float(np.median(n[c] / m[c])) - 1) for c in classes),
        "variance": max(abs(float(np.median(w[c] / v[c])) - 1) for c in classes),
        "spread_library": float(library[1] / library[0] - 1),
    }


def _moments(x: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    mean = np.asarray(x.mean(0)).ravel()
    second = np.asarray(x.multiply(x).mean(0)).ravel()
    return mean, second - mean**2


def recognised(
    train: np.ndarray,
    labels: np.ndarray,
    cells: np.ndarray,
    asked: np.ndarray,
    seed: int = 0,
) -> float:
    """Share of cells (N, K) that a forest of training cells (M, K) takes for their type."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(TREES, min_samples_leaf=2, random_state=seed)
    return float((forest.fit(train, labels).predict(cells) == asked).mean())


def copied(train: np.ndarray, real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """Distances to the nearest training cell, against those of real cells that were not trained.

    Returns:
        nearest: median distance of made cells over that of real ones; copies have less than 1.
        close: share of made cells nearer than all but a hundredth of real ones; 0.01 is chance.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(train)
    far, near = tree.query(real)[0], tree.query(made)[0]
    limit = np.quantile(far, 0.01)
    return {
        "nearest": float(np.median(near) / np.median(far)),
        "close": float((near < limit).mean()),
    }


def realism(
    train: sp.csr_matrix,
    real: sp.csr_matrix,
    made: sp.csr_matrix,
    *,
    train_labels: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    asked: np.ndarray | None = None,
    components: Components | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """All of it.

    Args:
        train: (M, G) counts that the generator has learned from.
        real: (N, G) counts that it has not.
        made: (N, G) or more, what it made.
        train_labels: types of the training cells.
        labels: of the real ones.
        asked: of the made ones.
        components: fitted on `train` before.
        seed: of forests and halves.

    Returns:
        auc; mmd, mmd_real and their ratio; what `moment_gaps` and `copied` give; with labels
        recognised (of made cells), recognised_real and their ratio.

    Raises:
        AleatorError: too few cells.
    """
    if min(real.shape[0], made.shape[0]) < LEAST:
        raise AleatorError(
            f"{real.shape[0]} real and {made.shape[0]} generated cells: {LEAST} each are needed"
        )
    project = components or Components.fit(train, seed)
    a, b, t = project(real), project(made), project(train)
    stream = np.random.default_rng(seed)
    half = len(a) // 2
    found: dict[str, Any] = {"auc": classifier_auc(a, b, seed)}
    ratios = []
    for _ in range(5):  # halves at random, each against its complement and against made cells
        order, other = stream.permutation(len(a)), stream.permutation(len(b))[:half]
        one, two = a[order[:half]], a[order[half : 2 * half]]
        ratios.append((discrepancy(one, b[other]), discrepancy(one, two)))
    found["mmd"], found["mmd_real"] = (float(np.mean(c)) for c in zip(*ratios, strict=True))
    found["mmd_ratio"] = found["mmd"] / found["mmd_real"]
    found |= moment_gaps(real, made) | copied(t, a, b)
    if train_labels is not None and labels is not None and asked is not None:
        found["recognised"] = recognised(t, train_labels, b, asked, seed)
        found["recognised_real"] = recognised(t, train_labels, a, labels, seed)
        found["recognised_ratio"] = found["recognised"] / found["recognised_real"]
    return found
