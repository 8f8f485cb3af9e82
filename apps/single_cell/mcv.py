r"""Molecular cross-validation: hold molecules out, not cells, and predict them.

Every molecule of a count x goes to the training part with probability p, independently:

    x_train ~ Binomial(x, p),    x_test = x - x_train

For Poisson noise the two parts are independent given the rates, so that a denoiser fitted on
x_train is judged by x_test without knowing the truth, on the user's own data. What is fitted —
also variable genes, components and scalings — may see x_train only.

Reference: Batson, Royer and Webber (2019), doi:10.1101/786269.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from apps.single_cell.counts import BLOCK
from core.errors import AleatorError

TARGET = 1e4
"""Molecules per cell to which the public benchmark normalises."""
TINY = 1e-6
"""What the public benchmark adds to a rate under the logarithm."""

Predict = Callable[[sp.csr_matrix], np.ndarray]
"""Training counts (B, G) of some cells -> their rates (B, G) at that depth."""


@dataclass(frozen=True)
class Split:
    """Two parts of the same molecules.

    Attributes:
        train: (N, G) CSR float32.
        test: (N, G), train + test is what was split.
        genes: (G,) mask over the genes that were split: those with a molecule in `train`. A gene
            without one cannot be predicted by anything, and is left out of both parts.
    """

    train: sp.csr_matrix
    test: sp.csr_matrix
    genes: np.ndarray

    @property
    def ratio(self) -> float:
        """Molecules in the test part for one in the training part."""
        return float(self.test.sum(dtype=np.float64) / self.train.sum(dtype=np.float64))


def thin(
    counts: sp.csr_matrix, share: float, seed: int, first: int = 0
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Share out the molecules of some cells, each cell by its own stream.

    Args:
        counts: (B, G) whole numbers, CSR.
        share: probability p of a molecule to go to the first part, in (0, 1).
        seed: of the split.
        first: place of the first of these cells among all: cell i draws from (seed, i), so that
            blocks of any size give the same split.

    Returns:
        two parts, CSR float32, whose sum is `counts`.

    Raises:
        AleatorError: the share is not in (0, 1), or a value is not whole.
    """
    x = _molecules(counts, share)
    drawn = np.empty_like(x.data)
    for row, (start, stop) in enumerate(zip(x.indptr[:-1], x.indptr[1:], strict=True)):
        stream = np.random.Generator(np.random.Philox(key=_key(seed, first + row)))
        drawn[start:stop] = stream.binomial(x.data[start:stop], share)
    return _parts(x, drawn)


def split(
    counts: sp.csr_matrix, share: float = 0.9, seed: int = 0, *, as_published: bool = False
) -> Split:
    """Split counts into training and test molecules.

    Args:
        counts: (N, G) whole numbers, CSR.
        share: of the molecules that train.
        seed: of the split.
        as_published: draw in one stream over all values, which gives the very split of the public
            benchmark (Open Problems, denoising) for the same seed.

    Returns:
        both parts, of the genes that have training molecules.

    Raises:
        AleatorError: as for `thin`; or nothing is left to train or test on.
    """
    if as_published:
        x = _molecules(counts, share)
        drawn = np.random.RandomState(seed).binomial(x.data, share)
        train, test = _parts(x, drawn)
    else:
        train, test = thin(counts, share, seed)
    genes = np.asarray(train.sum(0)).ravel() > 0
    train, test = train[:, genes], test[:, genes]
    if not train.nnz or not test.nnz:
        raise AleatorError(
            f"molecular cross-validation: {counts.sum():g} molecules split {share:g} to "
            f"{1 - share:g} leave nothing to train or test on"
        )
    return Split(train, test, genes)


def poisson_loss(rates: np.ndarray, counts: np.ndarray) -> np.ndarray:
    r"""Negative log-likelihood per value, without the constant of the counts.

        ℓ(λ, x) = λ - x log(λ + 10⁻⁶)

    Args:
        rates: λ of the held-out molecules, any shape.
        counts: x, of the same shape.
    """
    return rates - counts * np.log(rates + TINY)


def log_normalised(values: np.ndarray, target: float = TARGET) -> np.ndarray:
    """log(1 + x target / Σ x) of each row (B, G); a row without molecules stays zero."""
    total = values.sum(1, keepdims=True)
    return np.log1p(values * (target / np.where(total > 0, total, 1)))


@dataclass
class Tally:
    """Scores of one method, block by block.

    Attributes:
        ratio: `Split.ratio`, by which rates at training depth become rates of test molecules.
        poisson: per-cell means of the corrected Poisson loss, one array a block.
    """

    ratio: float
    poisson: list[np.ndarray] = field(default_factory=list)
    _swapped: float = 0.0
    _squared: float = 0.0
    _values: int = 0

    def add(self, rates: np.ndarray, test: sp.csr_matrix) -> None:
        """Count some cells.

        Args:
            rates: (B, G) at the depth of the training part, not negative.
            test: (B, G) test molecules.

        Raises:
            AleatorError: shapes differ, or a rate is negative or not a number.
        """
        if rates.shape != test.shape:
            raise AleatorError(f"rates {rates.shape} and test counts {test.shape} differ in shape")
        rates = np.asarray(rates, np.float64)
        if not (rates >= 0).all():
            raise AleatorError("a rate is negative or not a number")
        x = test.toarray().astype(np.float64)
        expected = rates * self.ratio
        self.poisson.append(poisson_loss(expected, x).mean(1))
        self._swapped += float(poisson_loss(x, expected).sum())
        self._squared += float(np.square(log_normalised(x) - log_normalised(rates)).sum())
        self._values += x.size

    def per_cell(self) -> np.ndarray:
        """(N,) corrected Poisson losses, for paired comparisons on the same split."""
        return np.concatenate(self.poisson)

    def scores(self) -> dict[str, float]:
        """Less is better, for the first two.

        Returns:
            poisson: the corrected loss, nats per value: what to judge by.
            mse: squared error of log-normalised values as the public benchmark codes it. Its
                optimum is the mean of the logarithm of *noisy* values, not that of the rates.
            poisson_as_published: the public benchmark's score, whose arguments are swapped
                (rates and counts), so that it rewards an output near zero. For comparison only.
        """
        return {
            "poisson": float(self.per_cell().mean()),
            "mse": self._squared / self._values,
            "poisson_as_published": self._swapped / self._values,
        }


def cross_validate(predict: Predict, molecules: Split, block: int = BLOCK) -> Tally:
    """Score a method that was fitted on the training part.

    Args:
        predict: training counts of some cells -> rates at that depth.
        molecules: the split.
        block: cells at once; what is dense is no larger than block x G.

    Returns:
        the tally of all cells.
    """
    tally = Tally(molecules.ratio)
    for start in range(0, molecules.train.shape[0], block):
        stop = start + block
        tally.add(predict(molecules.train[start:stop]), molecules.test[start:stop])
    return tally


def difference(ours: Tally, theirs: Tally) -> tuple[float, float]:
    """Paired difference of the corrected Poisson loss, ours - theirs, and its standard error.

    Both must be of the same split: then most of the noise of the split cancels.

    Raises:
        AleatorError: they are of different numbers of cells.
    """
    a, b = ours.per_cell(), theirs.per_cell()
    if len(a) != len(b):
        raise AleatorError(f"{len(a)} cells against {len(b)}: not the same split")
    apart = a - b
    return float(apart.mean()), float(apart.std(ddof=1) / np.sqrt(len(apart)))


def _molecules(counts: sp.csr_matrix, share: float) -> sp.csr_matrix:
    if not 0 < share < 1:
        raise AleatorError(f"share={share}: expected a probability between 0 and 1")
    x = counts.tocsr()
    if (x.data % 1 != 0).any() or (x.data < 0).any():
        raise AleatorError("molecules cannot be split: a count is negative or not whole")
    return x.astype(np.int64)


def _parts(x: sp.csr_matrix, drawn: np.ndarray) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    found = []
    for data in (drawn, x.data - drawn):
        part = sp.csr_matrix((data.astype(np.float32), x.indices, x.indptr), shape=x.shape)
        part = part.copy()
        part.eliminate_zeros()
        found.append(part)
    return found[0], found[1]


def _key(seed: int, cell: int) -> np.ndarray:
    return np.array([seed % 2**64, cell], dtype=np.uint64)
