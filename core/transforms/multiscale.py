r"""Squeeze and split: what makes an image flow multiscale.

Squeezing trades resolution for channels; splitting sends half of the channels to noise early.
What leaves, x_b, is standardised given what stays, x_a, as Glow's learned prior does:

    z_b = (x_b - m(x_a)) exp(-s(x_a)),    ln|det| = -Σ s + that of what becomes of x_a,

so that noise is N(0, 1) throughout and nothing is left out of the density.
References: Dinh et al. (2017) arXiv:1605.08803; Kingma and Dhariwal (2018) arXiv:1807.03039.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import AleatorError
from core.model import Context
from core.random import Generators
from core.transforms.base import Transform
from core.transforms.coupling import Coupling


class Squeeze(Transform):
    """(C, H, W) to (4C, H/2, W/2): blocks of 2 x 2 pixels become channels."""

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Pixels to channels."""
        if x.dim() != 4 or x.shape[-1] % 2 or x.shape[-2] % 2:
            raise AleatorError(
                f"squeeze needs images of even height and width, not {tuple(x.shape[1:])}"
            )
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Channels to pixels."""
        if y.dim() != 4 or y.shape[1] % 4:
            raise AleatorError(
                f"undoing a squeeze needs a multiple of 4 channels, not {tuple(y.shape[1:])}"
            )
        return F.pixel_shuffle(y, 2), y.new_zeros(len(y))


class Split(Transform):
    """Half of the channels become noise, the other half goes on: (C, H, W) to (C H W,)."""

    def __init__(self, event_shape: Sequence[int], leave: Coupling, rest: Transform) -> None:
        """Assemble.

        Args:
            event_shape: (C, H, W) of what comes in.
            leave: coupling of the C channels; what it turns leaves.
            rest: what becomes of the first C // 2 channels; must return flat events.
        """
        super().__init__()
        channels, *grid = event_shape
        self.kept_shape = (channels // 2, *grid)
        self.left_shape = (channels - channels // 2, *grid)
        self.leave, self.rest = leave, rest
        self.exact = rest.exact

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        y, log_det = self.leave(x, context)
        kept, left = y.tensor_split([self.kept_shape[0]], 1)
        z, more = self.rest(kept, context)
        return torch.cat([z, left.flatten(1)], 1), log_det + more

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        z, left = self._parts(y)
        kept, log_det = self.rest.inverse(z, context)
        x, more = self.leave.inverse(torch.cat([kept, left], 1), context)
        return x, log_det + more

    def invert(self, y: Tensor, context: Context = None) -> Tensor:
        """Noise to data."""
        z, left = self._parts(y)
        kept = self.rest.invert(z, context)
        return self.leave.invert(torch.cat([kept, left], 1), context)

    def estimate(
        self,
        x: Tensor,
        context: Context = None,
        *,
        probes: int = 1,
        generator: Generators | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, with the estimates of the rest."""
        y, log_det = self.leave(x, context)
        kept, left = y.tensor_split([self.kept_shape[0]], 1)
        z, more = self.rest.estimate(kept, context, probes=probes, generator=generator)
        return torch.cat([z, left.flatten(1)], 1), log_det + more

    def _parts(self, y: Tensor) -> tuple[Tensor, Tensor]:
        inner = math.prod(self.kept_shape)
        total = inner + math.prod(self.left_shape)
        if y.dim() != 2 or y.shape[1] != total:
            raise AleatorError(
                f"noise of this split is (B, {total}), got a batch of shape {tuple(y.shape)}"
            )
        return y[:, :inner], y[:, inner:].reshape(len(y), *self.left_shape)
