r"""The small networks and densities that the parts of the shower model share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 32
"""Rows are padded to a multiple of this when sampling."""


class Perceptron(nn.Module):
    """Two hidden layers; what embeds the kind of a row is added to the first one."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, outputs)
        nn.init.normal_(self.last.weight, std=0.05)
        nn.init.normal_(self.last.bias, std=0.5)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def standardise(self, rows: Tensor) -> None:
        """Take mean and spread of the inputs from examples (M, inputs), if there are any."""
        if len(rows) < 2:
            return
        self.mean = rows.mean(0)
        spread = rows.std(0)
        self.scale = torch.where(spread > 1e-6, spread, 1.0)

    def forward(self, rows: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(M, inputs), and (M, hidden) -> (M, outputs)."""
        count = len(rows)
        if not torch.is_grad_enabled() and count % BLOCK:
            # matrix products round differently for other numbers of rows: always whole blocks,
            # so that what comes of a row does not depend on its company
            rows = F.pad(rows, (0, 0, 0, -count % BLOCK))
            if embedding is not None:
                embedding = F.pad(embedding, (0, 0, 0, -count % BLOCK))
        h = self.first((rows - self.mean) / self.scale)
        h = F.silu(h if embedding is None else h + embedding)
        return self.last(F.silu(self.second(h)) + h)[:count]


def normal_mixture(x: Tensor, logits: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Ln density of a mixture of normal laws at x (M,), given (M, K) parameters."""
    z = (x[:, None] - mean) * (-log_scale).exp()
    parts = -0.5 * z.square() - log_scale - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(logits.log_softmax(-1) + parts, -1)
