r"""Masked autoregressive transform: y_i = f(x_i; θ_i(x_1, ..., x_{i-1}, context)).

One evaluation of a masked network gives all θ, hence the density; the inverse goes feature by
feature, and evaluates for each only what became known with it (`core.nets.made`).
Reference: Papamakarios et al. (2017) arXiv:1705.07057.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.model import Context
from core.nets.conditions import Conditions
from core.nets.made import MADE, FeatureByFeature
from core.transforms.affine import Univariate
from core.transforms.base import Transform, check_channels


class Autoregressive(Transform):
    """Autoregressive transform of vectors (B, D), in their order."""

    def __init__(
        self,
        univariate: Univariate,
        features: int,
        conditions: Conditions | None = None,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        """Assemble.

        Args:
            univariate: the family of functions.
            features: D.
            conditions: the parts of the context that θ depends on.
            hidden: units of the masked network's hidden layers.
        """
        super().__init__()
        self.univariate = univariate
        self.features = features
        self.conditions = conditions or Conditions()
        context_dim = self.conditions.size
        self.net = MADE(features, univariate.size, context_dim=context_dim, hidden=hidden)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise, in one pass."""
        check_channels(x, self.features, "this autoregressive transform")
        theta = self.net(x, self.conditions.vector(context, x))
        y, log_slope = self.univariate(x, theta)
        return y, log_slope.sum(1)

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data, feature by feature."""
        check_channels(y, self.features, "this autoregressive transform")
        steps = FeatureByFeature(self.net, y, self.conditions.vector(context, y))
        columns, log_slopes = [], []
        for i, column in enumerate(y.unbind(1)):
            x, log_slope = self.univariate.inverse(column, steps.outputs(i))
            steps.push(i, x)
            columns.append(x)
            log_slopes.append(log_slope)
        return torch.stack(columns, 1), torch.stack(log_slopes).sum(0)
