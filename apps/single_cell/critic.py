r"""Which of several drawn cells to keep: those that could be told apart from real ones are rarer.

    w(x) = p(real | x) / p(drawn | x),    of candidates x_k one with probability w(x_k) / Σ w(x_j)

This is sampling-importance resampling (Rubin 1988) with a ratio of densities that a classifier has
learned (Grover et al. 2019, arXiv:1906.09531). The classifier is a logistic regression on
principal components and the logarithm of the library, their squares and products: two Gaussians
could be told apart by no other. Components are fitted to one half of the real cells and the
classifier to the other, and the other way round, since cells that components were fitted to vary
more along them than any others; the two logarithms of w are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from apps.single_cell.realism import Components
from core.errors import CheckpointError
from core.random import keyed_generator

CANDIDATES = 10
"""Cells that are drawn for each one that is kept."""
REFERENCE = 2
"""Drawn cells from which the classifier learns, for each real one."""
FEW, MOST = 200, 4000
"""Real cells below which it does not learn, and those that it learns from at most."""
PENALTY = 100.0
"""Of the squared weights, on standardised features: an inverse variance."""
LIMIT = 5.0
"""Nats that the logarithm of w is cut at: a ratio beyond was not learned from anything."""


@dataclass(frozen=True)
class Critic:
    """Two classifiers, each learned on one half of the real cells.

    Attributes:
        mean: (2, G) of log-normalised counts.
        axes: (2, K, G) principal components.
        centre: (2, F) of components and log library, F = K + 1.
        width: (2, F) their standard deviations.
        bias: (2,)
        linear: (2, F)
        square: (2, F, F) symmetric.
    """

    mean: Tensor
    axes: Tensor
    centre: Tensor
    width: Tensor
    bias: Tensor
    linear: Tensor
    square: Tensor

    @classmethod
    def fit(cls, real: sp.csr_matrix, drawn: list[sp.csr_matrix], seed: int = 0) -> Critic:
        """Learn to tell drawn cells from real ones.

        Args:
            real: (N, G) counts.
            drawn: counts of that shape, the same conditions row by row; several draws.
            seed: of the halves.
        """
        order = torch.randperm(real.shape[0], generator=keyed_generator(seed, 0)).numpy()
        one, two = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
        members = [_member(real, drawn, *parts, seed) for parts in ((one, two), (two, one))]
        stacked = (torch.from_numpy(np.stack(part)).float() for part in zip(*members, strict=True))
        return cls(*stacked)

    def log_ratio(self, counts: sp.csr_matrix) -> np.ndarray:
        """Ln w (N,) of counts (N, G), between -`LIMIT` and `LIMIT`."""
        total = np.zeros(counts.shape[0])
        for k in range(len(self.bias)):
            mean, axes, centre, width = (
                part[k].double().numpy()
                for part in (self.mean, self.axes, self.centre, self.width)
            )
            u = (_features(Components(mean, axes), counts) - centre) / width
            linear, square = self.linear[k].double().numpy(), self.square[k].double().numpy()
            total += self.bias[k].item() + u @ linear + ((u @ square) * u).sum(1)
        return np.clip(total / len(self.bias), -LIMIT, LIMIT)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Critic:
        """Undo `tensors`.

        Raises:
            CheckpointError: some are missing, or there are others.
        """
        names = {entry.name for entry in fields(cls)}
        if differing := names ^ set(tensors):
            raise CheckpointError(
                f"the prior's critic is incomplete ({', '.join(sorted(differing))}); train again"
            )
        return cls(**tensors)


def choose(log_ratio: np.ndarray, seed: int, first: int = 0) -> np.ndarray:
    """Which candidate of each cell is kept, with probability in proportion to w.

    Args:
        log_ratio: (K, N) ln w of K candidates for each of N cells.
        seed: of the draw.
        first: place of the first cell: cell i draws from (seed, i), whatever the blocks.

    Returns:
        (N,) from 0 to K - 1.
    """
    streams = [keyed_generator(seed, 2, first + i) for i in range(log_ratio.shape[1])]
    u = torch.stack(
        [torch.rand(len(log_ratio), generator=g, dtype=torch.float64) for g in streams]
    )
    gumbel = -(-u.clamp(min=1e-300).log()).log().numpy().T
    return np.argmax(log_ratio + gumbel, axis=0)


def _member(
    real: sp.csr_matrix,
    drawn: list[sp.csr_matrix],
    fitted: np.ndarray,
    judged: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, ...]:
    """Components of some cells, and the classifier of the others; as `Critic` has them."""
    from sklearn.linear_model import LogisticRegression

    components = Components.fit(real[fitted], seed)
    x = [_features(components, part[judged]) for part in (real, *drawn)]
    label = np.repeat([1, *[0] * len(drawn)], len(judged))
    values = np.concatenate(x)
    centre, width = values.mean(0), np.maximum(values.std(0), 1e-6)
    terms, upper = _terms((values - centre) / width)
    middle, spread = terms.mean(0), np.maximum(terms.std(0), 1e-6)
    model = LogisticRegression(C=1 / PENALTY, max_iter=500)
    model.fit((terms - middle) / spread, label)
    weight = model.coef_[0] / spread
    f = values.shape[1]
    square = np.zeros((f, f))
    square[upper] = weight[f:] / 2
    prior = np.log(len(drawn))  # so many drawn cells for one real one
    bias = model.intercept_[0] - weight @ middle + prior
    return (
        *(components.mean, components.axes, centre, width),
        *(np.asarray(bias), weight[:f], square + square.T),
    )


def _terms(u: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Features (N, F), then their products; and which products these are."""
    upper = np.triu_indices(u.shape[1])
    return np.concatenate([u, u[:, upper[0]] * u[:, upper[1]]], 1), upper


def _features(components: Components, counts: sp.csr_matrix) -> np.ndarray:
    """Components and the logarithm of the library, (N, F)."""
    library = np.maximum(np.asarray(counts.sum(1, dtype=np.float64)), 1.0)
    return np.concatenate([components(counts), np.log(library)], 1)
