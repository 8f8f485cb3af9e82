r"""The diffusion transformer: images as patches, conditions as modulation (AdaLN-Zero).

    h ← h + g_1 Attention((1 + γ_1) LN(h) + β_1),   h ← h + g_2 MLP((1 + γ_2) LN(h) + β_2)

with γ, β, g linear in the condition and zero at first, so that every block starts as the identity.
Places are sines and cosines of row and column, hence any grid size; the input is padded to whole
patches and cropped. Reference: Peebles and Xie (2023) arXiv:2212.09748.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.model import Context
from core.nets.embeddings import ConditionEmbedding, with_field


class AdaLNBlock(nn.Module):
    """Self-attention and a perceptron over tokens, modulated; the identity at first."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        """`width` features in `heads` heads."""
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, W) and conditions (B, W) -> (B, N, W); `mask` (B, N): real ones."""
        g_1, b_1, a_1, g_2, b_2, a_2 = self.modulation(condition)[:, None].chunk(6, 2)
        h = h + a_1 * self._attend(self.norm_1(h) * (1 + g_1) + b_1, mask)
        inner = F.gelu(self.up(self.norm_2(h) * (1 + g_2) + b_2))
        return h + a_2 * self.down(self.dropout(inner))

    def _attend(self, h: Tensor, mask: Tensor | None) -> Tensor:
        b, n, w = h.shape
        q, k, v = self.qkv(h).reshape(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(attended.transpose(1, 2).reshape(b, n, w))


class DiT(nn.Module):
    """A transformer on patches of images of any size."""

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        field_channels: int = 0,
        vector_dim: int = 0,
        classes: int = 0,
        out_channels: int | None = None,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (C, H, W) of the input; H and W are not fixed by it.
            field_channels: channels of the context `field`, 0 if none.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            out_channels: channels of the output; those of the input if None.
            patch: pixels per side of a patch.
            width: features of a token, divisible by 4 and by `heads`.
            depth: blocks.
            heads: of the attention.
            dropout: probability, inside the perceptrons.

        Raises:
            AleatorError: the event is not an image, or a width that does not divide.
        """
        super().__init__()
        if len(event_shape) != 3:
            raise AleatorError(
                f"a DiT needs an event (C, H, W), not {tuple(event_shape)}; use an MLP"
            )
        if width % heads or width % 4 or patch < 1:
            raise AleatorError(
                f"DiT: width={width}, heads={heads}, patch={patch}; a width divisible by 4 and "
                "by the heads, and a positive patch are needed"
            )
        self.patch, self.field_channels = patch, field_channels
        inputs = (event_shape[0] + field_channels) * patch**2
        outputs = (out_channels or event_shape[0]) * patch**2
        self.condition = ConditionEmbedding(width, vector_dim, classes)
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(AdaLNBlock(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.last = nn.Linear(width, 2 * width), nn.Linear(width, outputs)
        for layer in (self.modulation, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, noise_level: Tensor, context: Context = None) -> Tensor:
        """(B, C, H, W), c_noise (B,) and context -> (B, out_channels, H, W)."""
        height, width = x.shape[-2:]
        condition = F.silu(self.condition(noise_level, context))
        tokens, grid = self.patchify(with_field(x, context, self.field_channels))
        h = self.first(tokens)
        h = h + places(*grid, h.shape[2]).to(h)
        for block in self.blocks:
            h = block(h, condition)
        gamma, beta = self.modulation(condition)[:, None].chunk(2, 2)
        h = self.last(self.norm(h) * (1 + gamma) + beta)
        return self.unpatchify(h, grid)[..., :height, :width]

    def patchify(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, N, C p²) of images (B, C, H, W), padded to whole patches, and their grid."""
        below, right = -x.shape[-2] % self.patch, -x.shape[-1] % self.patch
        folded: Any = F.pixel_unshuffle(F.pad(x, (0, right, 0, below), "replicate"), self.patch)
        return folded.flatten(2).mT, (folded.shape[2], folded.shape[3])

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The inverse of `patchify`, but for the padding."""
        return F.pixel_shuffle(tokens.mT.reshape(len(tokens), -1, *grid), self.patch)


def places(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of row and column at geometric frequencies, (rows · columns, width)."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(width // 4) / (width // 4))
    parts = []
    for index in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"):
        angles = index.flatten()[:, None] * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, 1)
