r"""What users would pick instead, on one interface: training counts in, rates out.

Every method is fitted on counts (N, G) and gives the expected counts of any cells at their own
depth: rates whose sum is the cell's number of molecules. Where a method works on transformed
values, its output is brought back to counts and rescaled, which can only help it.
The order of strength on held-out molecules is not the order of fame: the library mean beats
neighbours, diffusion and components, and Poisson factors beat the library mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import scipy.sparse as sp

from core.errors import AleatorError


class Baseline(Protocol):
    """A method of denoising."""

    def fit(self, counts: sp.csr_matrix) -> Self:
        """Fit to training counts (N, G)."""

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """Rates (B, G) float32 of cells with the given counts (B, G), at their depth."""


@dataclass
class Raw:
    """No denoising: the rate is the count."""

    def fit(self, counts: sp.csr_matrix) -> Self:
        """Nothing to fit."""
        return self

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """The counts themselves."""
        return counts.toarray().astype(np.float32)


@dataclass
class LibraryMean:
    r"""Every cell is the average cell at its own depth, λ_ig = n_i Σ_j x_jg / Σ_j n_j.

    What is left if cells do not differ, and the maximum-likelihood Poisson model of rank one.
    """

    profile: np.ndarray = field(default_factory=lambda: np.empty(0))

    def fit(self, counts: sp.csr_matrix) -> Self:
        """The share (G,) of each gene in all molecules."""
        total = np.asarray(counts.sum(0, dtype=np.float64)).ravel()
        self.profile = total / total.sum()
        return self

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """The profile at each cell's depth."""
        return (_depth(counts) * self.profile).astype(np.float32)


@dataclass
class PoissonFactors:
    r"""Non-negative factors W H fitted by Poisson likelihood (KL divergence).

        max Σ x log(W H) - W H,    W, H >= 0,    by multiplicative updates, sparse

    Attributes:
        rank: number of factors.
        iterations: updates of both factors, at most.
        seed: of the start.

    Reference: Lee and Seung (2001); Févotte and Idier (2011), as in scikit-learn.
    """

    rank: int = 20
    iterations: int = 200
    seed: int = 0
    model: Any = None

    def fit(self, counts: sp.csr_matrix) -> Self:
        """Find both factors."""
        from sklearn.decomposition import NMF

        _refuse_rank(self.rank, counts)
        self.model = NMF(
            self.rank,
            init="random",
            solver="mu",
            beta_loss="kullback-leibler",
            max_iter=self.iterations,
            random_state=self.seed,
            tol=1e-5,
        )
        with _as_far_as_it_goes():
            self.model.fit(counts.astype(np.float64))
        return self

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """Weights of each cell with the factors held fixed, and their rates."""
        with _as_far_as_it_goes():
            weights = self.model.transform(counts.astype(np.float64))
        return _at_depth(weights @ self.model.components_, counts)


@dataclass
class Components:
    """Principal components of transformed, depth-normalised counts, and back.

    Attributes:
        rank: number of components.
        transform: "log", log(1 + x), or "sqrt", of counts at the median depth.
        seed: of the solver.
    """

    rank: int = 15
    transform: str = "log"
    seed: int = 0
    target: float = 1.0
    model: Any = None

    def fit(self, counts: sp.csr_matrix) -> Self:
        """Find the components, sparse."""
        from sklearn.decomposition import PCA

        if self.transform not in ("log", "sqrt"):
            raise AleatorError(f"transform={self.transform}: expected log or sqrt")
        _refuse_rank(self.rank, counts)
        self.target = float(np.median(_depth(counts)))
        self.model = PCA(self.rank, svd_solver="arpack", random_state=self.seed)
        self.model.fit(self.forward(counts))
        return self

    def forward(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Transformed counts (B, G), sparse."""
        x = normalised(counts, self.target)
        return x.log1p() if self.transform == "log" else x.sqrt()

    def scores(self, counts: sp.csr_matrix) -> np.ndarray:
        """Coordinates (B, rank) of cells."""
        return self.model.transform(self.forward(counts))

    def rates(self, scores: np.ndarray, counts: sp.csr_matrix) -> np.ndarray:
        """From coordinates to rates at the depth of `counts`."""
        x = np.maximum(self.model.inverse_transform(scores), 0)
        return _at_depth(np.expm1(x) if self.transform == "log" else np.square(x), counts)

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """Onto the components and back."""
        return self.rates(self.scores(counts), counts)


@dataclass
class Neighbours:
    """The mean profile of the nearest training cells in principal components.

    Attributes:
        k: neighbours; a training cell is its own first one.
        components: where distances are taken.
    """

    k: int = 15
    components: Components = field(default_factory=lambda: Components(rank=30))
    profiles: sp.csr_matrix = field(default_factory=lambda: sp.csr_matrix((0, 0)))
    index: Any = None

    def fit(self, counts: sp.csr_matrix) -> Self:
        """Keep the profiles and an index of the coordinates."""
        from sklearn.neighbors import NearestNeighbors

        if not 1 <= self.k <= counts.shape[0]:
            raise AleatorError(f"{self.k} neighbours among {counts.shape[0]} cells")
        self.components.fit(counts)
        self.profiles = normalised(counts, 1.0)
        self.index = NearestNeighbors(n_neighbors=self.k).fit(self.components.scores(counts))
        return self

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """The mean of the neighbours' profiles, at each cell's depth."""
        graph = self.index.kneighbors_graph(self.components.scores(counts))
        return _at_depth((graph @ self.profiles).toarray(), counts)


@dataclass
class Diffusion:
    r"""Diffusion over a graph of similar cells, in principal components (after MAGIC).

        K_ij = exp(-d_ij / σ_i),   σ_i the distance of the k-th neighbour,   M = D⁻¹ (K + Kᵀ)/2,
        z_i ← row_i(D⁻¹ K) M^(t-1) z

    Distances and z are principal components of square-rooted counts at a common depth.

    Attributes:
        t: steps.
        k: neighbour that sets the width; the kernel ends at 3 k.
        components: in which values diffuse.

    Reference: van Dijk et al. (2018), doi:10.1016/j.cell.2018.05.061; an independent
    implementation, not the authors' code.
    """

    t: int = 3
    k: int = 5
    components: Components = field(default_factory=lambda: Components(100, "sqrt"))
    diffused: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    index: Any = None

    def fit(self, counts: sp.csr_matrix) -> Self:
        """Diffuse the training cells t - 1 steps."""
        from sklearn.neighbors import NearestNeighbors

        n = counts.shape[0]
        if self.t < 1 or not 1 <= self.k <= n:
            raise AleatorError(f"{self.t} steps over {self.k} neighbours of {n} cells")
        scores = self.components.fit(counts).scores(counts)
        self.index = NearestNeighbors(n_neighbors=min(3 * self.k, n)).fit(scores)
        kernel = self._kernel(scores)
        step = _rows_sum_to_one(kernel + kernel.T)
        for _ in range(self.t - 1):
            scores = step @ scores
        self.diffused = scores
        return self

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """The last step, from any cell to the training cells."""
        step = _rows_sum_to_one(self._kernel(self.components.scores(counts)))
        return self.components.rates(step @ self.diffused, counts)

    def _kernel(self, scores: np.ndarray) -> sp.csr_matrix:
        distance, neighbour = self.index.kneighbors(scores)
        width = np.maximum(distance[:, self.k - 1 : self.k], 1e-12)
        row = np.repeat(np.arange(len(scores)), distance.shape[1])
        values = np.exp(-distance / width).ravel()
        shape = (len(scores), self.index.n_samples_fit_)
        return sp.csr_matrix((values, (row, neighbour.ravel())), shape=shape)


def baselines(*, seed: int = 0) -> dict[str, Baseline]:
    """All of them by name, unfitted.

    Args:
        seed: of those that start at random.
    """
    return {
        "raw": Raw(),
        "library mean": LibraryMean(),
        "nearest neighbours": Neighbours(),
        "diffusion (MAGIC)": Diffusion(components=Components(100, "sqrt", seed)),
        "PCA, log": Components(15, "log", seed),
        "PCA, square root": Components(15, "sqrt", seed),
        "Poisson NMF": PoissonFactors(seed=seed),
    }


def normalised(counts: sp.csr_matrix, target: float) -> sp.csr_matrix:
    """Counts (B, G) of every cell scaled to `target` molecules, sparse; empty cells stay so."""
    total = _depth(counts).ravel()
    scale = np.divide(target, total, out=np.zeros_like(total), where=total > 0)
    return sp.csr_matrix(sp.diags(scale) @ counts)


def _depth(counts: sp.csr_matrix) -> np.ndarray:
    """Molecules (B, 1) of each cell, float64."""
    return np.asarray(counts.sum(1, dtype=np.float64)).reshape(-1, 1)


def _at_depth(rates: np.ndarray, counts: sp.csr_matrix) -> np.ndarray:
    """Rates whose rows sum up to the molecules of each cell, float32."""
    total = rates.sum(1, keepdims=True)
    return (rates * (_depth(counts) / np.where(total > 0, total, 1))).astype(np.float32)


def _rows_sum_to_one(kernel: sp.csr_matrix) -> sp.csr_matrix:
    return sp.csr_matrix(sp.diags(1 / np.asarray(kernel.sum(1)).ravel()) @ kernel)


def _refuse_rank(rank: int, counts: sp.csr_matrix) -> None:
    if not 1 <= rank < min(counts.shape):
        cells, genes = counts.shape
        raise AleatorError(
            f"rank {rank} for {cells} cells and {genes} genes: it must be at least 1 and smaller "
            "than both"
        )


@contextmanager
def _as_far_as_it_goes() -> Iterator[None]:
    """Without the warning that all allowed updates were used, which is how it is meant."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
