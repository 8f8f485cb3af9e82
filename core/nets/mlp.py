"""The multilayer perceptron: residual blocks on vectors, modulated by what conditions them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from core.model import Context
from core.nets.conditions import Conditions
from core.nets.embeddings import ConditionEmbedding


class MLP(nn.Module):
    """Residual perceptron; any event shape, flattened inside."""

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        vector_dim: int = 0,
        classes: int = 0,
        out_channels: int | None = None,
        out_shape: Sequence[int] | None = None,
        width: int = 128,
        blocks: int = 3,
        dropout: float = 0.0,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            out_channels: size of the first event axis of the output; as the input's if None.
            out_shape: shape of the output, where it is not that of the input: encoders, decoders.
            width: hidden features.
            blocks: residual blocks.
            dropout: probability, inside the blocks.
        """
        super().__init__()
        self.out_shape = tuple(out_shape or (out_channels or event_shape[0], *event_shape[1:]))
        self.conditions = Conditions(vector_dim, classes)
        self.condition = ConditionEmbedding(width, vector_dim, classes)
        self.first = nn.Linear(math.prod(event_shape), width)
        self.blocks = nn.ModuleList(_Block(width, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, math.prod(self.out_shape))
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, noise_level: Tensor, context: Context = None) -> Tensor:
        """(B, *E), (B,) and context -> (B, *E)."""
        condition = F.silu(self.condition(noise_level, context))
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = block(h, condition)
        return self.last(F.silu(self.norm(h))).reshape(len(x), *self.out_shape)


class _Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(width, 2 * width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.film, self.second):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.film(condition).chunk(2, 1)
        h = self.first(F.silu(self.norm(x) * (1 + gamma) + beta))
        return x + self.second(self.dropout(F.silu(h)))
