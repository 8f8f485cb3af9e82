r"""What users would pick instead, on one interface: training counts in, rates out.

Every method is fitted on counts (N, G) and gives the expected counts of any cells at their own
depth: rates whose sum is the cell's number of molecules. Where a method works on transformed
values, its output is brought back to counts and rescaled, which can only help it.
The order of strength on held-out molecules is not the order of fame: the library mean beats
neighbours, diffusion and components, and Poisson factors beat the library mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import scipy.sparse as sp

from apps.single_cell.counts import BLOCK
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
    r"""Non-negative factors fitted by Poisson likelihood (KL divergence), sparse.

        x_ig ~ Poisson(Σ_k w_ik h_kg),   Σ_g h_kg = 1,   by expectation maximisation:
        r = x / (w h),   w_ik ← w_ik Σ_g r_ig h_kg,   h_kg ∝ h_kg Σ_i w_ik r_ig

    One pass over the counts updates both; the likelihood never falls.

    Attributes:
        rank: number of factors.
        iterations: updates of both factors, at most.
        tolerance: gain in loss per molecule and update below which it stops.
        seed: of the start.

    Reference: Lee and Seung (2001); Hofmann (1999) for the joint update.
    """

    rank: int = 20
    iterations: int = 200
    tolerance: float = 1e-5
    seed: int = 0
    factors: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    losses: list[float] = field(default_factory=list)

    def fit(self, counts: sp.csr_matrix) -> Self:
        """Find the factors."""
        _refuse_rank(self.rank, counts)
        stream = np.random.default_rng(self.seed)
        mean = np.asarray(counts.mean(0, dtype=np.float64)).ravel() + 1e-12
        start = mean * stream.gamma(2.0, 0.5, (self.rank, counts.shape[1]))
        self.factors = (start / start.sum(1, keepdims=True)).astype(np.float32)
        weights = stream.gamma(2.0, 0.5, (counts.shape[0], self.rank)).astype(np.float32)
        weights *= _depth(counts).astype(np.float32) / weights.sum(1, keepdims=True)
        self.losses = []
        for _ in range(self.iterations):
            weights, factors, loss = self._update(counts, weights)
            self.factors = factors / np.maximum(factors.sum(1, keepdims=True), 1e-30)
            self.losses.append(loss)
            if len(self.losses) > 1 and self.losses[-2] - loss < self.tolerance:
                break
        return self

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """Weights of each cell with the factors held fixed, and their rates."""
        weights = np.repeat(_depth(counts) / self.rank, self.rank, 1).astype(np.float32)
        for _ in range(min(self.iterations, 60)):
            weights, _, _ = self._update(counts, weights)
        return _at_depth(weights @ self.factors, counts)

    def _update(
        self, counts: sp.csr_matrix, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """New weights, unnormalised new factors, and the loss per molecule before the update."""
        found, total, loss = np.empty_like(weights), np.zeros_like(self.factors), 0.0
        for first in range(0, len(weights), BLOCK):
            rows, w = counts[first : first + BLOCK], weights[first : first + BLOCK]
            at = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
            rate = np.maximum((w @ self.factors)[at, rows.indices], 1e-30)
            ratio = sp.csr_matrix((rows.data / rate, rows.indices, rows.indptr), rows.shape)
            loss -= float(rows.data @ np.log(rate))
            found[first : first + BLOCK] = w * (ratio @ self.factors.T)
            total += (ratio.T @ w).T
        return found, self.factors * total, loss / float(counts.sum())


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


@dataclass
class Thresholded:
    r"""Principal directions of logarithms, values near zero set to zero (after ALRA).

        R = A V Vᵀ,   A = log(1 + 10⁴ x / n);   R_g is zero below |its lowest quantile|,
        the others are brought to mean and deviation of the gene's positive A; seen values stay

    A gene that some cells do not express is reconstructed symmetrically around zero there, which
    is what its negative values tell. Directions are not centred.

    Attributes:
        rank: of V; None takes the singular values whose spacing is above that of the noise, the
            80th and on, by 6 of their standard deviations.
        quantile: the lowest.
        seed: of the solver.

    Reference: Linderman et al. (2022), doi:10.1038/s41467-021-27729-z; an independent
    implementation, not the authors' code.
    """

    rank: int | None = None
    quantile: float = 0.001
    seed: int = 0
    directions: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    limit: np.ndarray = field(default_factory=lambda: np.empty(0))
    slope: np.ndarray = field(default_factory=lambda: np.empty(0))
    level: np.ndarray = field(default_factory=lambda: np.empty(0))

    def fit(self, counts: sp.csr_matrix) -> Self:
        """Find directions, limits and scales; genes by the block."""
        from sklearn.utils.extmath import randomized_svd

        values = normalised(counts, 1e4).log1p()
        tried = self.rank or min(100, min(counts.shape) - 1)
        _refuse_rank(tried, counts)
        _, size, directions = randomized_svd(values, tried, n_iter=4, random_state=self.seed)
        self.directions = directions[: self.rank or _above_noise(size)]
        scores, genes = values @ self.directions.T, counts.shape[1]
        self.limit, self.slope, self.level = np.zeros(genes), np.ones(genes), np.zeros(genes)
        for start in range(0, genes, BLOCK):
            part = slice(start, start + BLOCK)
            found, seen = scores @ self.directions[:, part], values[:, part].toarray()
            self.limit[part] = np.abs(np.quantile(found, self.quantile, axis=0))
            mean, spread = _positive(np.where(found > self.limit[part], found, 0))
            wanted, wide = _positive(seen)
            ok = (spread > 0) & (wide > 0)
            self.slope[part] = np.where(ok, wide / np.where(ok, spread, 1), 1)
            self.level[part] = np.where(ok, wanted - mean * self.slope[part], 0)
        return self

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """Onto the directions, zeros, and scaled."""
        seen = normalised(counts, 1e4).log1p()
        found = (seen @ self.directions.T) @ self.directions
        scaled = np.maximum(found * self.slope + self.level, 0)
        kept = np.where(found > self.limit, scaled, 0)
        return _at_depth(np.expm1(np.where(kept > 0, kept, seen.toarray())), counts)


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
        "PCA (log)": Components(15, "log", seed),
        "PCA (square root)": Components(15, "sqrt", seed),
        "low rank with zeros (ALRA)": Thresholded(seed=seed),
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


def _above_noise(size: np.ndarray) -> int:
    """How many singular values (up to 100, falling) are above the noise; all of fewer than 90."""
    gaps = -np.diff(size)
    if len(size) < 90:
        return len(size)
    noise = gaps[79:]
    return int(np.flatnonzero(gaps > noise.mean() + 6 * noise.std()).max(initial=0)) + 1


def _positive(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (G,) of the positive values of each column; 0 for none."""
    above = values > 0
    n = above.sum(0)
    mean = values.sum(0, where=above) / np.maximum(n, 1)
    square = np.square(values - mean).sum(0, where=above)
    return mean, np.sqrt(square / np.maximum(n - 1, 1))


def _rows_sum_to_one(kernel: sp.csr_matrix) -> sp.csr_matrix:
    return sp.csr_matrix(sp.diags(1 / np.asarray(kernel.sum(1)).ravel()) @ kernel)


def _refuse_rank(rank: int, counts: sp.csr_matrix) -> None:
    if not 1 <= rank < min(counts.shape):
        cells, genes = counts.shape
        raise AleatorError(
            f"rank {rank} for {cells} cells and {genes} genes: it must be at least 1 and smaller "
            "than both"
        )
