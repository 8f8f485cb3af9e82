r"""Between images and latents: strided residual blocks down, or upsampling ones up.

An encoder halves the grid with each level and ends in (c, h, w) features, put out as one vector
of length c h w: latents of images keep their layout, and a U-Net can learn a prior over them. A
decoder is the mirror image. Where the vector's length does not divide by the coarsest grid, one
linear layer goes between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.model import Context
from core.nets.conditions import Conditions
from core.nets.embeddings import ConditionEmbedding
from core.nets.unet import Conv, ResBlock


class Coder(nn.Module):
    """(B, C, H, W) -> (B, D) or (B, D) -> (B, C, H, W), by which of the two shapes is an image."""

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        out_shape: Sequence[int],
        vector_dim: int = 0,
        classes: int = 0,
        field_channels: int = 0,
        channels: int = 16,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        dropout: float = 0.0,
    ) -> None:
        """Assemble.

        Args:
            event_shape: of the input: (C, H, W) of an encoder, (D,) of a decoder.
            out_shape: of the output.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            field_channels: channels of the context `field`, of the image's resolution, 0 if none;
                it is averaged to the resolution of each level.
            channels: features at the finest level.
            multipliers: features of each level, in units of `channels`.
            blocks: residual blocks a level.
            dropout: probability, inside the blocks.

        Raises:
            AleatorError: not one image and one vector, or a grid that does not halve.
        """
        super().__init__()
        self.encodes = len(event_shape) == 3
        image, flat = (event_shape, out_shape) if self.encodes else (out_shape, event_shape)
        if len(image) != 3 or len(flat) != 1:
            raise AleatorError(
                f"a coder goes between (C, H, W) and (D,), not {tuple(event_shape)} and "
                f"{tuple(out_shape)}"
            )
        factor = 2 ** (len(multipliers) - 1)
        if image[1] % factor or image[2] % factor:
            raise AleatorError(
                f"a grid of {image[1]} x {image[2]} does not halve {len(multipliers) - 1} times; "
                "use fewer multipliers"
            )
        self.grid = (image[1] // factor, image[2] // factor)
        cells = math.prod(self.grid)
        latent = flat[0] // cells if flat[0] % cells == 0 else 0
        widths = [channels * m for m in multipliers]
        width = 4 * channels
        self.condition = ConditionEmbedding(width, vector_dim, classes)
        self.conditions = Conditions(vector_dim, classes, field_channels)
        self.blocks, self.resize, self.told = (nn.ModuleList() for _ in range(3))
        order = widths if self.encodes else widths[::-1]
        current = order[0]
        for level, features in enumerate(order):
            group = [
                ResBlock(current if k == 0 else features, features, width, dropout, False)
                for k in range(blocks)
            ]
            self.blocks.append(nn.ModuleList(group))
            if field_channels:
                self.told.append(nn.Conv2d(field_channels, current, 1))
            current = features
            if level + 1 < len(order):
                self.resize.append(Conv(current, current, stride=2 if self.encodes else 1))
        self.norm = nn.GroupNorm(math.gcd(8, current), current)
        if self.encodes:
            self.first: nn.Module = Conv(image[0], order[0])
            self.last: nn.Module = (
                nn.Conv2d(current, latent, 1) if latent else nn.Linear(current * cells, flat[0])
            )
        else:
            self.first = (
                nn.Conv2d(latent, order[0], 1) if latent else nn.Linear(flat[0], order[0] * cells)
            )
            self.last = Conv(current, image[0])
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, noise_level: Tensor, context: Context = None) -> Tensor:
        """Encode or decode; a network like any other, of a noise level (B,) and a context."""
        condition = F.silu(self.condition(noise_level, context))
        h = x
        if not self.encodes and isinstance(self.first, nn.Conv2d):
            h = h.reshape(len(x), -1, *self.grid)
        h = self.first(h)
        if not self.encodes:
            h = h.reshape(len(x), -1, *self.grid)
        for level, group in enumerate(self.blocks):
            assert isinstance(group, nn.ModuleList)
            if self.told:
                h = h + self.told[level](self.conditions.field(context, h))
            for block in group:
                h = block(h, condition)
            if level < len(self.resize):
                if not self.encodes:
                    h = F.interpolate(h, scale_factor=2, mode="nearest")
                h = self.resize[level](h)
        h = F.silu(self.norm(h))
        if self.encodes and isinstance(self.last, nn.Linear):
            h = h.flatten(1)
        out = self.last(h)
        return out.flatten(1) if self.encodes else out
