"""Bilinear interpolation between any two grids, as four weights a cell.

Predictors come on grids of their own; a model sees them on one. Beyond the outermost cell centres
a field goes on with the value of its edge, for no more than a cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.grid import Grid
from core.errors import AleatorError

BEYOND = 1.0
"""Cells by which the outermost centres may be left."""


@dataclass(frozen=True, eq=False)
class Bilinear:
    """The interpolation from one grid to another.

    Attributes:
        index: (4, H W) which cells of the flattened source.
        weight: (4, H W) of each; they sum to 1.
        shape: (H, W) of the target.
    """

    index: Tensor
    weight: Tensor
    shape: tuple[int, int]

    @classmethod
    def between(cls, source: Grid, target: Grid, where: str = "the input") -> Bilinear:
        """From latitudes and longitudes to the cell centres of any grid.

        Args:
            source: a latitude-longitude grid.
            target: any grid that knows its latitudes and longitudes.
            where: what the source is called in messages.

        Raises:
            AleatorError: the source is of another kind, or does not cover the target.
        """
        if source.kind != "latlon":
            raise AleatorError(
                f"{where}: predictors must be on latitudes and longitudes, not on "
                f"{source.describe()}; remap them first (e.g. cdo remapbil)"
            )
        lat, lon = places(target)
        lon = source.x.mean() + (lon - source.x.mean() + 180) % 360 - 180
        wrap = len(source.x) if source.is_global else 0
        rows, row_weight = _along(source.y, lat.ravel(), where, "latitudes")
        columns, column_weight = _along(source.x, lon.ravel(), where, "longitudes", wrap)
        index = rows[:, None] * len(source.x) + columns[None, :]
        weight = row_weight[:, None] * column_weight[None, :]
        return cls(
            torch.from_numpy(index.reshape(4, -1)),
            torch.from_numpy(weight.reshape(4, -1).astype(np.float32)),
            (lat.shape[0], lat.shape[1]),
        )

    def __call__(self, fields: Tensor) -> Tensor:
        """Fields (..., h, w) on the target: (..., H, W)."""
        flat = fields.flatten(-2)
        index, weight = self.index.to(fields.device), self.weight.to(fields)
        corners = [flat[..., i] * w for i, w in zip(index, weight, strict=True)]
        total = corners[0] + corners[1] + corners[2] + corners[3]
        return total.reshape(*fields.shape[:-2], *self.shape)


def places(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude (H, W) of the cells."""
    if grid.lat is not None and grid.lon is not None:
        return grid.lat, grid.lon
    lat, lon = np.meshgrid(grid.y, grid.x, indexing="ij")
    return lat, lon


def _along(
    axis: np.ndarray, wanted: np.ndarray, where: str, name: str, wrap: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two neighbours (2, N) of each place on a regular axis, and their weights (2, N)."""
    if len(axis) == 1:
        position = np.zeros_like(wanted)
    else:
        position = (wanted - axis[0]) * (len(axis) - 1) / (axis[-1] - axis[0])
    last = len(axis) - 1
    if wrap:
        position = position % wrap
        first = np.floor(position).astype(np.int64)
        share = position - first
        return np.stack([first % wrap, (first + 1) % wrap]), np.stack([1 - share, share])
    if position.min() < -BEYOND or position.max() > last + BEYOND:
        raise AleatorError(
            f"{where}: its {name} ({axis.min():g} to {axis.max():g}) do not cover those that the "
            f"model needs ({wanted.min():g} to {wanted.max():g})"
        )
    position = position.clip(0, last)
    first = np.minimum(np.floor(position).astype(np.int64), max(last - 1, 0))
    share = position - first
    return np.stack([first, np.minimum(first + 1, last)]), np.stack([1 - share, share])
