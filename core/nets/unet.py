r"""The U-Net: ResNet blocks, optional self-attention, and FiLM from everything that conditions.

Context fields are concatenated to the input; noise level, vectors and labels modulate every
block, h ← h (1 + γ) + β (Perez et al. 2018, arXiv:1709.07871). Any grid size: the input is
padded inside and cropped. `periodic_x` wraps the last axis, as longitude does; `patch` folds
patch × patch pixels into channels first, which makes small networks several times cheaper.
Reference: Ho et al. (2020), arXiv:2006.11239, appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.model import Context
from core.nets.conditions import Conditions
from core.nets.embeddings import ConditionEmbedding, with_field


class Conv(nn.Conv2d):
    """A same-size (or stride-2) convolution whose last axis may be periodic."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, periodic: bool = False
    ) -> None:
        """`periodic` pads the last axis circularly instead of with zeros."""
        half = kernel // 2
        super().__init__(inputs, outputs, kernel, stride, (half, 0) if periodic else half)
        self.wrap = half if periodic else 0

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        if self.wrap:
            x = F.pad(x, (self.wrap, self.wrap, 0, 0), mode="circular")
        return super().forward(x)


class ResBlock(nn.Module):
    """Two convolutions with FiLM between them, around a skip; the identity at first."""

    def __init__(
        self, inputs: int, outputs: int, width: int, dropout: float, periodic: bool
    ) -> None:
        """`width` is that of the condition embedding."""
        super().__init__()
        self.norm_1 = nn.GroupNorm(_groups(inputs), inputs)
        self.conv_1 = Conv(inputs, outputs, periodic=periodic)
        self.film = nn.Linear(width, 2 * outputs)
        self.norm_2 = nn.GroupNorm(_groups(outputs), outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = Conv(outputs, outputs, periodic=periodic)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        _zero(self.film)
        _zero(self.conv_2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W) and (B, width) -> (B, C', H, W)."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        gamma, beta = self.film(condition)[:, :, None, None].chunk(2, 1)
        h = torch.addcmul(beta, self.norm_2(h), 1 + gamma)
        return self.skip(x) + self.conv_2(self.dropout(F.silu(h)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the cells of a feature map; the identity at first."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        """Fewer heads than asked where the channels do not divide."""
        super().__init__()
        self.heads = max(n for n in range(1, heads + 1) if channels % n == 0)
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        _zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(attended.reshape(b, c, h, w))


class UNet(nn.Module):
    """A U-Net on fields of any size."""

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        field_channels: int = 0,
        vector_dim: int = 0,
        classes: int = 0,
        out_channels: int | None = None,
        channels: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        patch: int = 1,
        dropout: float = 0.0,
        periodic_x: bool = False,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (C, H, W) of the input; H and W are not fixed by it.
            field_channels: channels of the context `field`, 0 if none.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            out_channels: channels of the output; those of the input if None.
            channels: features at the finest level.
            multipliers: features of each level, in units of `channels`.
            blocks: ResNet blocks a level on the way down (one more on the way up).
            attention: levels (0 is the finest) with self-attention.
            patch: pixels per side folded into channels at the input, unfolded at the output.
            dropout: probability, inside the blocks.
            periodic_x: the last axis wraps around.

        Raises:
            AleatorError: the event is not an image, or an attention level does not exist.
        """
        super().__init__()
        if len(event_shape) != 3:
            raise AleatorError(
                f"a U-Net needs an event (C, H, W), not {tuple(event_shape)}; use an MLP"
            )
        if any(not 0 <= level < len(multipliers) for level in attention):
            raise AleatorError(
                f"attention={tuple(attention)}: there are {len(multipliers)} levels"
            )
        self.patch, self.periodic = patch, periodic_x
        self.multiple = patch * 2 ** (len(multipliers) - 1)
        self.field_channels = field_channels
        inputs = (event_shape[0] + field_channels) * patch**2
        outputs = (out_channels or event_shape[0]) * patch**2
        widths = [channels * m for m in multipliers]
        width = 4 * channels
        self.conditions = Conditions(vector_dim, classes, field_channels)
        self.condition = ConditionEmbedding(width, vector_dim, classes)

        def block(a: int, b: int, level: int) -> nn.ModuleList:
            attend = SelfAttention(b) if level in attention else nn.Identity()
            return nn.ModuleList([ResBlock(a, b, width, dropout, periodic_x), attend])

        self.first = Conv(inputs, widths[0], periodic=periodic_x)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        skips, current = [widths[0]], widths[0]
        for level, features in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(current, features, level))
                current = features
                skips.append(current)
            if level + 1 < len(widths):
                self.shrink.append(Conv(current, current, stride=2, periodic=periodic_x))
                skips.append(current)
        self.middle = block(current, current, len(widths) - 1)
        for level, features in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), features, level))
                current = features
            if level:
                self.grow.append(Conv(current, current, periodic=periodic_x))
        self.blocks = blocks
        self.norm = nn.GroupNorm(_groups(current), current)
        self.last = Conv(current, outputs, periodic=periodic_x)
        _zero(self.last)

    def forward(self, x: Tensor, noise_level: Tensor, context: Context = None) -> Tensor:
        """Denoise.

        Args:
            x: (B, C, H, W).
            noise_level: (B,) c_noise.
            context: `field` (B, C', H', W') (interpolated if of another resolution), `vector`,
                `label`; what is missing counts as null.

        Returns:
            (B, out_channels, H, W).
        """
        height, width = x.shape[-2:]
        condition = F.silu(self.condition(noise_level, context))
        h = self._fold(with_field(x, context, self.field_channels))
        h = self.first(h)
        skips, down, up = [h], iter(self.down), iter(self.up)
        for level in range(len(self.shrink) + 1):
            for _ in range(self.blocks):
                h = _apply(next(down), h, condition)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
                skips.append(h)
        h = _apply(self.middle, h, condition)
        for level in range(len(self.grow) + 1):
            for _ in range(self.blocks + 1):
                h = _apply(next(up), torch.cat([h, skips.pop()], 1), condition)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2, mode="nearest"))
        h = self.last(F.silu(self.norm(h)))
        if self.patch > 1:
            h = F.pixel_shuffle(h, self.patch)
        return h[..., :height, :width]

    def _fold(self, x: Tensor) -> Tensor:
        """Pad to a multiple of what the levels divide by, and fold patches into channels."""
        height, width = x.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        if right:
            mode = "circular" if self.periodic else "replicate"
            x = F.pad(x, (0, right, 0, 0), mode=mode)
        if below:
            x = F.pad(x, (0, 0, 0, below), mode="replicate")
        return F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x


def _apply(block: Any, h: Tensor, condition: Tensor) -> Tensor:
    residual, attend = block
    return attend(residual(h, condition))


def _groups(channels: int) -> int:
    """As many groups as divide the channels, at most 8."""
    return max(n for n in range(1, 9) if channels % n == 0)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
