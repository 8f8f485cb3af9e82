r"""A network along the depth of a shower: dilated convolutions over its layers.

    h ← h + W₂ SiLU(FiLM_c(Norm(W₁ * SiLU(h)))),   W₁ over three layers, 1, 2, 4, ... apart
    out = W SiLU(h) + g(c) x

What goes together in a shower goes together with its neighbours in depth, less the further they
are: a transformer has to learn that first, and costs four times as much a layer. The gate g lets
a number through as it came. So does `turning`, for a consistency model: with nothing learnt, its
f = cos φ y + sin φ F is then y itself, the right answer for a number that stands alone; and with
its teacher's weights f = y + sin φ F, about one step of its teacher's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.model import Context
from core.nets.embeddings import ConditionEmbedding, with_field


class DepthNet(nn.Module):
    """Residual blocks over events (S, 1, L): S numbers in each of L layers."""

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        field_channels: int = 0,
        vector_dim: int = 0,
        classes: int = 0,
        out_channels: int | None = None,
        width: int = 96,
        blocks: int = 4,
        turning: bool = False,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (S, 1, L).
            field_channels: channels of the context `field`, 0 if none.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            out_channels: numbers in each layer of the output; S if None.
            width: hidden features a layer.
            blocks: residual blocks; their reach doubles up to 8 layers either way, then begins
                anew.
            turning: add tan(φ / 2) x to the output, with φ = arctan(σ / α).

        Raises:
            AleatorError: events of another rank, a width or number of blocks that cannot be.
        """
        super().__init__()
        if len(event_shape) != 3 or event_shape[1] != 1:
            raise AleatorError(f"a DepthNet needs an event (S, 1, L), not {tuple(event_shape)}")
        if width < 2 or width % 2 or blocks < 1:
            raise AleatorError(
                f"DepthNet: width={width}, blocks={blocks}; an even width and at least one block "
                "are needed"
            )
        self.field_channels, self.turning = field_channels, turning
        self.condition = ConditionEmbedding(width, vector_dim, classes)
        self.first = nn.Conv1d(event_shape[0] + field_channels, width, 1)
        self.blocks = nn.ModuleList(_Block(width, 2 ** (k % 4)) for k in range(blocks))
        self.last = nn.Conv1d(width, out_channels or event_shape[0], 1)
        self.gate = nn.Linear(width, event_shape[0]) if out_channels is None else None
        for layer in (self.last, self.gate):
            for parameter in [] if layer is None else layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, noise_level: Tensor, context: Context = None) -> Tensor:
        """(B, S, 1, L), c_noise (B,) and context -> (B, out_channels, 1, L)."""
        condition = F.silu(self.condition(noise_level, context))
        h = self.first(with_field(x, context, self.field_channels)[:, :, 0])
        for block in self.blocks:
            h = block(h, condition)
        found = self.last(F.silu(h))[:, :, None]
        if self.gate is not None:
            found = found + self.gate(condition)[:, :, None, None] * x
        if self.turning:
            angle = torch.atan((4 * noise_level).exp())
            found = found + torch.tan(angle / 2)[:, None, None, None] * x
        return found


class _Block(nn.Module):
    def __init__(self, width: int, apart: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(width, width, 3, padding=apart, dilation=apart)
        self.norm = nn.GroupNorm(8 if width % 8 == 0 else 1, width, affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.second = nn.Conv1d(width, width, 1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.film(condition)[:, :, None].chunk(2, 1)
        inner = self.norm(self.first(F.silu(h))) * (1 + gamma) + beta
        return h + self.second(F.silu(inner))
