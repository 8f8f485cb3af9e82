r"""Large images by tiles: overlapping, with weights that fade to zero at inner borders.

    y(p) = sum_t w_t(p) y_t(p) / sum_t w_t(p)

w_t is zero within `margin` of an inner border, where a tile does not see what the whole image
would show the network, and rises linearly from there. With a margin of at least the radius of the
receptive field, tiled equals whole; networks with global pooling (DeepLab's image branch) see the
whole image everywhere, and there tiles are an approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from apps.anomaly_driving.model import STRIDE, Outputs
from core.errors import AleatorError


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        size: rows and columns of a tile, a multiple of the network's stride of 32.
        overlap: of neighbouring tiles in pixels, a multiple of the stride.
        margin: pixels at inner borders that do not count; less than half of the overlap.
    """

    size: int = 1024
    overlap: int = 256
    margin: int = 64

    def __post_init__(self) -> None:
        if self.size % STRIDE or self.overlap % STRIDE or self.size < STRIDE:
            raise AleatorError(
                f"tiles of {self.size} that overlap by {self.overlap}: both must be multiples of "
                f"{STRIDE}"
            )
        if not 0 <= self.overlap < self.size:
            raise AleatorError(
                f"tiles of {self.size} that overlap by {self.overlap}: the overlap must be less "
                "than the tile"
            )
        if not 0 <= 2 * self.margin <= max(self.overlap - 2, 0):
            raise AleatorError(
                f"a margin of {self.margin} at both sides of an overlap of {self.overlap} leaves "
                "nothing to blend; raise the overlap"
            )


def tiled_outputs(
    network: Callable[[Tensor], Outputs], images: Tensor, tiling: Tiling | None
) -> Outputs:
    """Outputs of images (B, 3, H, W), by tiles where they are larger than one.

    Logits, outlier logits and features are blended, each on its own grid; scores come after.
    """
    height, width = images.shape[2:]
    if tiling is None or max(height, width) <= tiling.size:
        return network(images)
    canvases: dict[str, _Canvas] = {}
    for top, left in _starts(height, width, tiling):
        part = images[:, :, top : top + tiling.size, left : left + tiling.size]
        found = network(part)
        for name in ("logits", "d_out", "features"):
            value = getattr(found, name)
            if value is None or not value.numel():
                continue
            stacked = value[:, None] if name == "d_out" else value
            stride = max(1, round(part.shape[3] / stacked.shape[3]))
            if name not in canvases:
                canvases[name] = _Canvas(stacked, height, width, stride)
            canvases[name].add(stacked, top // stride, left // stride, tiling)
    d_out = canvases["d_out"].mean()[:, 0] if "d_out" in canvases else None
    features = canvases["features"].mean() if "features" in canvases else found.features
    return Outputs(canvases["logits"].mean(), d_out, features)


class _Canvas:
    """Weighted sum of tiles on one grid."""

    def __init__(self, like: Tensor, height: int, width: int, stride: int) -> None:
        self.stride = stride
        self.rows, self.columns = -(-height // stride), -(-width // stride)
        self.total = like.new_zeros(*like.shape[:2], self.rows, self.columns)
        self.weight = like.new_zeros(self.rows, self.columns)

    def add(self, value: Tensor, top: int, left: int, tiling: Tiling) -> None:
        rows, columns = value.shape[2:]
        margin, overlap = tiling.margin / self.stride, tiling.overlap / self.stride
        weight = (
            _ramp(rows, top > 0, top + rows < self.rows, margin, overlap)[:, None]
            * _ramp(columns, left > 0, left + columns < self.columns, margin, overlap)[None]
        ).to(value)
        self.total[:, :, top : top + rows, left : left + columns] += weight * value
        self.weight[top : top + rows, left : left + columns] += weight

    def mean(self) -> Tensor:
        return self.total / self.weight


def _ramp(cells: int, before: bool, after: bool, margin: float, overlap: float) -> Tensor:
    """Weights along one side: 0 within the margin of an inner border, 1 beyond the overlap."""
    position = torch.arange(cells, dtype=torch.float64) + 0.5
    weight = torch.ones(cells, dtype=torch.float64)
    rise = max(overlap - 2 * margin, 1e-9)
    if before:
        weight = weight.minimum(((position - margin) / rise).clamp(0, 1))
    if after:
        weight = weight.minimum(((cells - position - margin) / rise).clamp(0, 1))
    return weight


def _starts(height: int, width: int, tiling: Tiling) -> Iterator[tuple[int, int]]:
    for top in _along(height, tiling):
        for left in _along(width, tiling):
            yield top, left


def _along(length: int, tiling: Tiling) -> list[int]:
    """Starts of tiles along a side; all but the last are whole, all at multiples of the stride."""
    step = tiling.size - tiling.overlap
    starts = [0]
    while starts[-1] + tiling.size < length:
        starts.append(starts[-1] + step)
    return starts
