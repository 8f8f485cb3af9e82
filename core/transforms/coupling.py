r"""Coupling: one part of the features turns the other, elementwise, and stays as it is.

    y_a = x_a,    y_b = f(x_b; θ(x_a, context)),    ln|det| = Σ ln f'

so that the Jacobian is triangular, and both directions cost one evaluation of the network.
References: Dinh et al. (2017) arXiv:1605.08803; Kingma and Dhariwal (2018) arXiv:1807.03039.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.model import Context
from core.nets.conditions import Conditions
from core.transforms.affine import Univariate
from core.transforms.base import Transform, check_channels


class Coupling(Transform):
    """Coupling of the first axis of events (D,) or (C, H, W): one half turns the other."""

    def __init__(self, univariate: Univariate, net: nn.Module, features: int) -> None:
        """Assemble.

        Args:
            univariate: the family of functions.
            net: (x_a, context) -> (univariate.size * (features - features // 2), ...), e.g. a
                `CouplingMLP` or a `CouplingConv`.
            features: length of the first axis; the first half of it (rounded down) stays.

        Raises:
            AleatorError: there is nothing to couple.
        """
        super().__init__()
        if features < 2:
            raise AleatorError("coupling needs two features; take an autoregressive flow for one")
        self.univariate, self.net = univariate, net
        self.features, self.kept = features, features // 2

    def _theta(self, kept: Tensor, context: Context) -> Tensor:
        theta = self.net(kept, context)
        theta = theta.unflatten(1, (self.univariate.size, self.features - self.kept))
        return theta.movedim(1, 0)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        check_channels(x, self.features, "this coupling")
        kept, turned = x.tensor_split([self.kept], 1)
        turned, log_slope = self.univariate(turned, self._theta(kept, context))
        return torch.cat([kept, turned], 1), log_slope.flatten(1).sum(1)

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        check_channels(y, self.features, "this coupling")
        kept, turned = y.tensor_split([self.kept], 1)
        turned, log_slope = self.univariate.inverse(turned, self._theta(kept, context))
        return torch.cat([kept, turned], 1), log_slope.flatten(1).sum(1)


class CouplingMLP(nn.Module):
    """(B, inputs) and context -> (B, outputs)."""

    def __init__(
        self, inputs: int, outputs: int, conditions: Conditions, hidden: Sequence[int] = (64, 64)
    ) -> None:
        """`hidden`: units of the hidden layers."""
        super().__init__()
        self.conditions = conditions
        sizes = [inputs + conditions.size, *hidden, outputs]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        with torch.no_grad():
            layers[-1].weight.mul_(0.1)
            layers[-1].bias.zero_()

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Evaluate."""
        vector = self.conditions.vector(context, x)
        h = (x if vector is None else torch.cat([x, vector], 1)).T
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):  # features first, as the splines want them
            h = torch.addmm(layer.bias[:, None], layer.weight, h)  # type: ignore[index, arg-type]
            h = h if i == last else F.relu(h)
        return h.T


class CouplingConv(nn.Module):
    """(B, inputs, H, W) and context -> (B, outputs, H, W); zero at birth."""

    def __init__(self, inputs: int, outputs: int, conditions: Conditions, width: int = 64) -> None:
        """`width`: hidden channels."""
        super().__init__()
        self.conditions = conditions
        self.first = nn.Conv2d(inputs + conditions.field_channels, width, 3, padding=1)
        self.vector = nn.Linear(conditions.size, width, bias=False) if conditions.size else None
        self.second = nn.Conv2d(width, width, 1)
        self.last = nn.Conv2d(width, outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Evaluate."""
        field = self.conditions.field(context, x)
        h = self.first(x if field is None else torch.cat([x, field], 1))
        if self.vector is not None:
            h = h + self.vector(self.conditions.vector(context, x))[:, :, None, None]
        return self.last(F.relu(self.second(F.relu(h))))
