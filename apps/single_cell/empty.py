r"""Is a barcode a cell, or a droplet that caught nothing but the soup around the cells?

    p(x | n) = Dirichlet-multinomial(n, α a),    P = (1 + #{simulated ≤ observed}) / (1 + R)

a is the ambient profile and P the share of droplets of n ambient molecules whose counts are no
likelier than those of the cell, by simulation: uniform for droplets without a cell, next to zero
for cells that differ from the soup. α is learned from the ambient barcodes; without them it is
infinite, which is the multinomial law. One sequence of molecules serves all depths n, as its first
n molecules.

What is ambient: barcodes with few molecules, where the file still has them (unfiltered matrices).
Filtered matrices have none; the soup is then taken to be the sum of all cells, and a cell that is
like their average cannot be told from it: with one kind of cells only, P says nothing.

Reference: Lun et al. (2019) doi:10.1186/s13059-019-1662-y (EmptyDrops).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln

from apps.single_cell.counts import Counts

AMBIENT = 100
"""Barcodes with at most so many molecules are ambient."""
LEAST = 50
"""Barcodes below which they do not tell a profile."""
RUNS = 1000
"""Simulated sequences of molecules."""
LEVEL = 0.01
"""False-discovery rate at which cells are told from the soup."""


@dataclass(frozen=True)
class Soup:
    """What a droplet without a cell holds.

    Attributes:
        share: a (G,), adds to one; half a molecule is added to every gene.
        alpha: α, how alike droplets are; infinite for the multinomial law.
        barcodes: that it was learned from.
        filtered: it is the sum of all cells, for want of ambient barcodes.
    """

    share: np.ndarray
    alpha: float
    barcodes: int
    filtered: bool

    @classmethod
    def fit(cls, counts: Counts, totals: np.ndarray, most: int = AMBIENT) -> Soup:
        """From the barcodes with few molecules, or from all.

        Args:
            counts: (N, G).
            totals: (N,) molecules.
            most: molecules of an ambient barcode.
        """
        ambient = (totals > 0) & (totals <= most)
        filtered = int(ambient.sum()) < LEAST
        used = totals > 0 if filtered else ambient
        summed = np.full(counts.shape[1], 0.5)
        rows = []
        for start, stop, block in counts.blocks():
            own = block[used[start:stop]]
            summed += np.asarray(own.sum(0, dtype=np.float64)).ravel()
            if not filtered:
                rows.append(own)
        share = summed / summed.sum()
        found = cls(share, np.inf, int(used.sum()), filtered)
        return found if filtered else found._with_alpha(rows)

    def _with_alpha(self, rows: list[sp.csr_matrix]) -> Soup:
        """The α that makes the ambient barcodes likeliest."""
        from scipy.optimize import minimize_scalar

        def loss(log_alpha: float) -> float:
            soup = Soup(self.share, float(np.exp(log_alpha)), self.barcodes, self.filtered)
            return -sum(float(soup.log_prob(part).sum()) for part in rows)

        best = minimize_scalar(loss, bounds=(0.0, 16.0), method="bounded", options={"maxiter": 25})
        return Soup(self.share, float(np.exp(best.x)), self.barcodes, self.filtered)

    def log_prob(self, x: sp.csr_matrix) -> np.ndarray:
        """Log-mass of counts (B, G), CSR, given their totals; (B,) nats."""
        n = np.asarray(x.sum(1, dtype=np.float64)).ravel()
        data, a = x.data.astype(np.float64), self.share[x.indices]
        if np.isinf(self.alpha):
            terms, base = data * np.log(a) - gammaln(data + 1), gammaln(n + 1)
        else:
            own = self.alpha * a
            terms = gammaln(data + own) - gammaln(own) - gammaln(data + 1)
            base = gammaln(n + 1) + gammaln(self.alpha) - gammaln(n + self.alpha)
        row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
        return base + np.bincount(row, terms, x.shape[0])

    def sentence(self, empty: int, cells: int) -> str:
        """What a user should know."""
        found = f"{empty} of {cells} barcodes are not told from empty droplets"
        if self.filtered:
            return f"{found}; the soup is the sum of all cells here, for want of ambient barcodes"
        return f"{found}; the soup is that of {self.barcodes} ambient barcodes"

    def path(self, length: int, stream: np.random.Generator) -> np.ndarray:
        """Log-masses (length,) of the first 1, 2, ... molecules of one simulated droplet."""
        share = self.share
        if not np.isinf(self.alpha):
            share = stream.standard_gamma(self.alpha * share)
        edges = np.cumsum(share)
        drawn = np.searchsorted(edges, stream.random(length) * edges[-1], side="right")
        drawn = np.minimum(drawn, len(share) - 1)
        order = np.argsort(drawn, kind="stable")
        first = np.r_[True, np.diff(drawn[order]) > 0]
        start = np.maximum.accumulate(np.where(first, np.arange(length), 0))
        before = np.empty(length)  # how often the gene came before
        before[order] = np.arange(length) - start
        k, a = np.arange(length), self.share[drawn]
        if np.isinf(self.alpha):
            step = np.log(a)
        else:
            step = np.log(self.alpha * a + before) - np.log(self.alpha + k)
        return np.cumsum(step + np.log1p(k) - np.log1p(before))


def empty_scores(
    counts: Counts,
    totals: np.ndarray,
    *,
    soup: Soup | None = None,
    runs: int = RUNS,
    seed: int = 0,
) -> np.ndarray:
    """P of each cell, (N,) in (0, 1]: large for what looks like the soup; 1 without molecules.

    Args:
        counts: (N, G) whole numbers.
        totals: (N,) molecules.
        soup: `Soup.fit` of these cells if None.
        runs: R; P is no less than 1 / (R + 1).
        seed: of the simulation.
    """
    soup = soup or Soup.fit(counts, totals)
    observed = np.concatenate([soup.log_prob(block) for _, _, block in counts.blocks()])
    place = totals.astype(np.int64) - 1
    some, below = place >= 0, np.zeros(len(totals), np.int64)
    for run in range(runs if some.any() else 0):
        path = soup.path(int(place.max()) + 1, np.random.default_rng([seed, run]))
        near = 1e-9 * np.abs(observed[some])  # equal counts may differ in rounding
        below[some] += path[place[some]] <= observed[some] + near
    return np.where(some, (1 + below) / (1 + runs), 1.0).astype(np.float32)


def like_empty(scores: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Mask (N,) of the cells that are not told from the soup at a false-discovery rate."""
    order = np.argsort(scores, kind="stable")
    passed = scores[order] <= level * np.arange(1, len(scores) + 1) / len(scores)
    last = np.flatnonzero(passed)
    mask = np.ones(len(scores), bool)
    mask[order[: last[-1] + 1 if len(last) else 0]] = False
    return mask
