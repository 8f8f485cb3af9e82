r"""The set transformer: point clouds, in no order, some of them padded.

    h ← block([m, h]):   points attend to one another, modulated by what conditions them
    induced points m     a few learned tokens through which all attend: O(N M) in place of O(N²)

A permutation of the points permutes the output; with `mask` (B, N) in the context, padded points
neither are seen nor put anything out. References: Lee et al. (2019) arXiv:1810.00825; blocks as in
Peebles and Xie (2023) arXiv:2212.09748.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.model import Context
from core.nets.dit import AdaLNBlock
from core.nets.embeddings import ConditionEmbedding


class InducedBlock(nn.Module):
    """Points to a few induced ones, and back: two cross-attentions; the identity at first."""

    def __init__(self, width: int, heads: int, induced: int) -> None:
        """`induced` is M, the number of learned points."""
        super().__init__()
        self.points = nn.Parameter(torch.randn(induced, width) / width**0.5)
        self.gather = nn.MultiheadAttention(width, heads, batch_first=True)
        self.spread = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Points (B, N, W) and conditions (B, W) -> (B, N, W); `mask` (B, N): real ones."""
        g_1, b_1, a_1, g_2, b_2, a_2 = self.modulation(condition)[:, None].chunk(6, 2)
        inner = self.norm_1(h) * (1 + g_1) + b_1
        centre = self.points.expand(len(h), -1, -1)
        hidden = None if mask is None else ~mask
        few, _ = self.gather(centre, inner, inner, key_padding_mask=hidden, need_weights=False)
        many, _ = self.spread(inner, few, few, need_weights=False)
        h = h + a_1 * many
        return h + a_2 * self.down(F.gelu(self.up(self.norm_2(h) * (1 + g_2) + b_2)))


class SetTransformer(nn.Module):
    """A network on sets of points (B, N, D), equivariant to their order."""

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        vector_dim: int = 0,
        classes: int = 0,
        out_channels: int | None = None,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        induced: int = 0,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (N, D) of the input; N is not fixed by it.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            out_channels: features that are put out for each point; those of the input if None.
            width: features of a point inside, divisible by `heads`.
            depth: blocks.
            heads: of the attention.
            induced: learned points through which all attend; 0 for attention of all to all.

        Raises:
            AleatorError: the event is no set of points, or a width that does not divide.
        """
        super().__init__()
        if len(event_shape) != 2:
            raise AleatorError(
                f"a set transformer needs an event (N, D), not {tuple(event_shape)}; use an MLP"
            )
        if width % heads or induced < 0:
            raise AleatorError(
                f"set transformer: width={width} does not divide by heads={heads}, or "
                f"induced={induced} is negative"
            )
        self.condition = ConditionEmbedding(width, vector_dim, classes)
        self.first = nn.Linear(event_shape[1], width)
        self.blocks = nn.ModuleList(
            InducedBlock(width, heads, induced) if induced else AdaLNBlock(width, heads)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, out_channels or event_shape[1])
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, noise_level: Tensor, context: Context = None) -> Tensor:
        """(B, N, D), c_noise (B,) and context, with `mask` (B, N) where points are padded.

        Raises:
            AleatorError: a mask of another shape, or one that leaves a set empty.
        """
        mask = context.get("mask") if isinstance(context, Mapping) else None
        if mask is not None:
            if mask.shape != x.shape[:2] or mask.dtype != torch.bool or not mask.any(1).all():
                raise AleatorError(
                    f"mask of shape {tuple(mask.shape)}: bool {tuple(x.shape[:2])} is needed, "
                    "with a point in every set"
                )
        condition = F.silu(self.condition(noise_level, context))
        h = self.first(x)
        for block in self.blocks:
            h = block(h, condition, mask)
        out = self.last(F.silu(self.norm(h)))
        return out if mask is None else out * mask[:, :, None]
