"""Training on pieces of a domain that is too large to train on whole.

A patch is a window of fine cells, its place drawn for every example; static fields tell the
network where it is. The same size is then the tile of sampling (`core.tiling`), so that a network
only ever sees fields of the size that it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from apps.climate_downscaling.grid import Grid
from core.errors import AleatorError
from core.model import GenerativeModel
from core.path_model import PathModel
from core.tiling import Tiles

MULTIPLE = 8
"""Patches begin at multiples of this many cells: by as many a U-Net of three levels divides."""


def checked_crop(crop: int | None, shape: tuple[int, int]) -> int | None:
    """The size of patches; None where the domain is no larger.

    Raises:
        AleatorError: not a multiple of 8, or too small.
    """
    if crop is None or crop >= max(shape):
        return None
    if crop < 2 * MULTIPLE or crop % MULTIPLE:
        raise AleatorError(
            f"residual.crop={crop}: a multiple of {MULTIPLE} fine cells is needed, at least "
            f"{2 * MULTIPLE}"
        )
    if crop > min(shape):
        raise AleatorError(
            f"residual.crop={crop}: larger than the shorter side of the domain, {min(shape)} cells"
        )
    return crop


def tiles_of(crop: int, grid: Grid) -> Tiles:
    """Tiles of the size of patches: neighbours share half of it on a side, and fade."""
    overlap = max(MULTIPLE, crop // 2 // MULTIPLE * MULTIPLE)
    return Tiles(crop, overlap, multiple=MULTIPLE, periodic_x=grid.is_global)


def tile(residual: GenerativeModel, crop: int | None, grid: Grid) -> None:
    """Let a model that was trained on patches denoise in tiles of their size.

    Raises:
        AleatorError: it is of a family that has no denoiser.
    """
    if crop is None:
        return
    if not isinstance(residual, PathModel):
        raise AleatorError(
            f"residual.crop={crop}: patches are for diffusion and flow matching, not for "
            f"{type(residual).__name__}"
        )
    residual.tiles = tiles_of(crop, grid)


class Windows:
    """A window of each example of a batch.

    Attributes:
        rows: (B, crop).
        columns: (B, crop).
    """

    def __init__(
        self, count: int, crop: int, shape: tuple[int, int], generator: torch.Generator
    ) -> None:
        """Draw the places of `count` windows of `crop` x `crop` cells."""
        places = []
        for length in shape:
            last = (length - crop) // MULTIPLE + 1
            start = MULTIPLE * torch.randint(last, (count, 1), generator=generator)
            places.append(start + torch.arange(crop))
        self.rows, self.columns = places
        self.shape = shape

    def cut(self, fields: Tensor) -> Tensor:
        """(..., B, C, H, W) -> (..., B, C, crop, crop); whatever is no field as it is."""
        if fields.dim() < 4:
            return fields
        batch = torch.arange(len(self.rows))
        moved = fields.movedim(-3, -1)  # (..., B, H, W, C): the places come together
        cut = moved[..., batch[:, None, None], self.rows[:, :, None], self.columns[:, None, :], :]
        return cut.movedim(-1, -3)

    def cut_all(self, context: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every field of a context."""
        return {name: self.cut(value) for name, value in context.items()}
