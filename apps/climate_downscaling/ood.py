r"""How far a coarse field is from what the model was trained on.

A probabilistic principal-component analysis of the training fields gives the Mahalanobis distance

    d²(c) = sum_k (u_k·c)² / λ_k + |c − U Uᵀ c|² / λ_rest

of a centred field c. Distances of *held-out* blocks of the training period (neighbouring hours
look alike: in-sample distances would flatter) set the unit: a score of 1 is their 99th
percentile, so more than 1 reads "further from the training data than 99 % of unseen data of
the same climate". Reference: Tipping and Bishop (1999), doi:10.1111/1467-9868.00196.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WARN_ABOVE = 1.0
"""Scores above this are reported in the log."""


@dataclass(frozen=True)
class OutOfDistribution:
    """The fitted score.

    Attributes:
        centre: (D,) mean of the flattened training fields.
        basis: (D, K) principal directions.
        variance: (K,) variance along them.
        rest: () mean variance of the remaining directions.
        unit: () the 99th percentile of held-out distances.
    """

    centre: Tensor
    basis: Tensor
    variance: Tensor
    rest: Tensor
    unit: Tensor

    @classmethod
    def fit(cls, fields: Tensor, *, blocks: int = 5, explained: float = 0.99) -> OutOfDistribution:
        """Fit on training fields.

        Args:
            fields: (T, ...) training fields in time order.
            blocks: contiguous blocks of time, each scored by a fit on the others.
            explained: fraction of variance that the principal directions keep.

        Returns:
            the score, with `unit` from held-out distances.
        """
        rows = fields.reshape(len(fields), -1).double()
        held_out = []
        for block in torch.arange(len(rows)).tensor_split(min(blocks, len(rows))):
            keep = torch.ones(len(rows), dtype=torch.bool)
            keep[block] = False
            if keep.sum() > 1:
                held_out.append(_pca(rows[keep], explained).distance(rows[block]))
        whole = _pca(rows, explained)
        distances = torch.cat(held_out) if held_out else whole.distance(rows)
        unit = torch.quantile(distances, 0.99).clamp_min(1e-12)
        return cls(whole.centre, whole.basis, whole.variance, whole.rest, unit)

    def distance(self, fields: Tensor) -> Tensor:
        """Mahalanobis distance d of fields (T, ...), shape (T,)."""
        rows = fields.reshape(len(fields), -1).to(self.centre) - self.centre
        along = rows @ self.basis
        across = rows.square().sum(1) - along.square().sum(1)
        return ((along.square() / self.variance).sum(1) + across.clamp_min(0) / self.rest).sqrt()

    def score(self, fields: Tensor) -> Tensor:
        """Distance in units of the held-out 99th percentile, shape (T,), dimensionless."""
        return self.distance(fields) / self.unit

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def _pca(rows: Tensor, explained: float) -> OutOfDistribution:
    centre = rows.mean(0)
    _, singular, basis = torch.linalg.svd(rows - centre, full_matrices=False)
    variance = singular.square() / max(len(rows) - 1, 1)
    total = variance.sum().clamp_min(1e-12)
    kept = int((variance.cumsum(0) / total < explained).sum()) + 1
    kept = min(kept, len(variance))
    # A floor keeps directions that never varied in training from dividing by zero.
    rest = ((total - variance[:kept].sum()) / max(rows.shape[1] - kept, 1)).clamp_min(
        1e-4 * total / rows.shape[1]
    )
    variance = torch.maximum(variance[:kept], rest)
    one = torch.ones((), dtype=rows.dtype)
    return OutOfDistribution(centre, basis[:kept].T, variance, rest, one)
