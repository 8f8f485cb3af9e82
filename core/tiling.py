r"""Fields larger than memory, or than what a network was trained on: denoise in tiles, blend.

    x̂_0(x_t) = Σ_k w_k x̂_0(x_t[tile k]) / Σ_k w_k

at every evaluation, not once at the end: tiles look at one noisy field, whose noise knows nothing
of tiles, so that what one of them draws the next one sees. w falls linearly to zero over the
overlap, and is zero in its outer `margin`, where a network sees the tile's border: with a margin
of the network's reach the result is that of the whole field. Tiles begin at multiples of
`multiple`, by which a network divides; at the domain's own border there is nothing to fade.
Reference: Bar-Tal et al. (2023), "MultiDiffusion", arXiv:2302.08113.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.denoiser import Posterior
from core.errors import AleatorError
from core.model import Context, map_context


@dataclass(frozen=True)
class Tiles:
    """How a field (..., H, W) is cut.

    Attributes:
        size: side of a tile, in pixels.
        overlap: what neighbours have in common, in pixels.
        margin: outer part of the overlap that does not count.
        multiple: of which tiles begin at multiples.
        periodic_x: the last axis wraps around.
    """

    size: int
    overlap: int
    margin: int = 0
    multiple: int = 8
    periodic_x: bool = False

    def __post_init__(self) -> None:
        if self.multiple < 1 or self.size < 1 or self.size % self.multiple:
            raise AleatorError(
                f"tiles: size={self.size} must be a multiple of {self.multiple}, by which the "
                "network divides"
            )
        if not 0 <= 2 * self.margin < self.overlap < self.size:
            raise AleatorError(
                f"tiles: 0 ≤ 2 margin < overlap < size is needed, not margin={self.margin}, "
                f"overlap={self.overlap}, size={self.size}"
            )

    def starts(self, length: int, periodic: bool = False) -> list[int]:
        """Where tiles begin along an axis; together they cover it."""
        if self.size >= length:
            return [0]
        step = max(self.multiple, (self.size - self.overlap) // self.multiple * self.multiple)
        if periodic:
            if length % self.multiple:
                raise AleatorError(f"tiles: a periodic axis of {length} pixels must divide too")
            return list(range(0, length, step))
        last = (length - self.size) // self.multiple * self.multiple
        return [*range(0, last, step), last]

    def denoise(
        self,
        denoiser: Callable[[Tensor, Any, Context], Posterior],
        x_t: Tensor,
        t: Tensor | float,
        context: Context = None,
    ) -> Posterior:
        """Posterior of x_0, tile by tile.

        Args:
            denoiser: of a tile.
            x_t: (B, C, H, W).
            t: (B,) times, or one number.
            context: tensors (B, C', H, W) in it are cut as x_t is.

        Raises:
            AleatorError: not images, or a field of another resolution in the context.
        """
        if x_t.dim() != 4:
            raise AleatorError(f"tiles are of images (B, C, H, W), not {tuple(x_t.shape)}")
        height, width = x_t.shape[-2:]
        if self.size >= height and self.size >= width:
            return denoiser(x_t, t, context)
        total, fraction, point = torch.zeros_like(x_t), None, None
        for cut, weight in _plan(self, height, width, x_t.dtype, x_t.device):
            found = denoiser(cut(x_t), t, map_context(context, cut))
            point = found.point
            cut.add(total, weight * found.mean)
            if found.variance_fraction is not None:
                fraction = torch.zeros_like(x_t) if fraction is None else fraction
                cut.add(fraction, weight * found.variance_fraction)
        assert point is not None
        return Posterior(total, x_t, point, fraction)

    def _span(self, start: int, length: int, periodic: bool) -> tuple[Tensor, Tensor]:
        """Pixels of a tile along an axis, and their weights."""
        if self.size >= length:
            return torch.arange(length), torch.ones(length)
        if periodic:
            return torch.arange(start, start + self.size) % length, self._ramps(self.size)
        last = start + self.size + self.multiple > length  # nothing is left beyond this tile
        stop = length if last else start + self.size
        weight = self._ramps(stop - start)
        middle = len(weight) // 2
        if start == 0:
            weight[:middle] = 1.0
        if last:
            weight[middle:] = 1.0
        return torch.arange(start, stop), weight

    def _ramps(self, size: int) -> Tensor:
        """Up, one, down."""
        distance = torch.arange(size, dtype=torch.float64)
        distance = torch.minimum(distance, distance.flip(0)) + 0.5 - self.margin
        return (distance / (self.overlap - 2 * self.margin)).clamp(0, 1)


class _Cut:
    """A piece of every tensor that has the size of the field, in slices: views, no copies.

    A tile that wraps around is two pieces side by side.
    """

    def __init__(self, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> None:
        self.rows = slice(int(rows[0]), int(rows[-1]) + 1)
        breaks = (columns.diff() != 1).nonzero()[:, 0] + 1
        runs = columns.tensor_split(breaks)
        self.columns = [slice(int(run[0]), int(run[-1]) + 1) for run in runs]
        self.shape = shape

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.dim() < 4:
            return tensor
        if tuple(tensor.shape[-2:]) != self.shape:
            raise AleatorError(
                f"tiles: a context field of {tuple(tensor.shape[-2:])} pixels for a field of "
                f"{self.shape}; interpolate it first"
            )
        rows = tensor[..., self.rows, :]
        runs = [rows[..., columns] for columns in self.columns]
        return runs[0] if len(runs) == 1 else torch.cat(runs, -1)

    def add(self, total: Tensor, piece: Tensor) -> None:
        """Add to the field what belongs to this piece of it."""
        rows, first = total[..., self.rows, :], 0
        for columns in self.columns:
            last = first + columns.stop - columns.start
            rows[..., columns] += piece[..., first:last]
            first = last


@functools.lru_cache(maxsize=16)
def _plan(
    tiles: Tiles, height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[_Cut, Tensor], ...]:
    """Every tile of a field, and its share of the blend: the shares of a pixel sum to one."""
    cuts, weights, total = [], [], torch.zeros(height, width, dtype=torch.float64)
    for top in tiles.starts(height):
        rows, down = tiles._span(top, height, False)
        for left in tiles.starts(width, tiles.periodic_x):
            columns, across = tiles._span(left, width, tiles.periodic_x)
            cuts.append(_Cut(rows, columns, (height, width)))
            weights.append(torch.outer(down.double(), across.double()))
            cuts[-1].add(total, weights[-1])
    shares = [
        weight / cut(total[None, None])[0, 0] for cut, weight in zip(cuts, weights, strict=True)
    ]
    return tuple((cut, share.to(device, dtype)) for cut, share in zip(cuts, shares, strict=True))
