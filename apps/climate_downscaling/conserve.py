r"""Exact conservation: the coarse-grained member equals the coarse input.

Additive variables are shifted by the mismatch of their cell; amounts that cannot be negative are
scaled by it, so that dry cells stay dry and nothing becomes negative:

    x ← x + up(c − A x)            (temperature, wind, pressure)
    x ← x · up(c / A x)            (precipitation; a cell with c > 0 and A x = 0 gets c everywhere)

with A the (area-weighted) block mean and up its nearest-neighbour adjoint. Both are projections
onto {x : A x = c}; the first is the orthogonal one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d


def block_mean(x: Tensor, factor: int, weights: Tensor | None = None) -> Tensor:
    """Mean over factor × factor blocks.

    Args:
        x: (..., H, W) field.
        factor: cells per block side.
        weights: (H, W) cell areas; None for equal areas.

    Returns:
        (..., H / factor, W / factor).
    """
    flat = x.reshape(-1, 1, *x.shape[-2:])
    if weights is None:
        pooled = avg_pool2d(flat, factor)
    else:
        w = weights.to(x)[None, None]
        pooled = avg_pool2d(flat * w, factor) / avg_pool2d(w, factor)
    return pooled.reshape(*x.shape[:-2], *pooled.shape[-2:])


def upsample_nearest(c: Tensor, factor: int) -> Tensor:
    """Repeat every coarse cell factor × factor times: (..., h, w) -> (..., H, W)."""
    return c.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def project(
    x: Tensor, coarse: Tensor, factor: int, *, nonnegative: bool, weights: Tensor | None = None
) -> Tensor:
    """Project fine fields onto those whose block means are the coarse field.

    Args:
        x: (..., H, W) fine fields.
        coarse: (..., h, w) coarse fields, broadcastable over the leading axes.
        factor: H / h = W / w.
        nonnegative: scale (amounts) instead of shift.
        weights: (H, W) cell areas; None for equal areas.

    Returns:
        (..., H, W) with block_mean(result) = coarse up to rounding.
    """
    double = x.double()
    target = coarse.double()
    mean = block_mean(double, factor, weights)
    if not nonnegative:
        return (double + upsample_nearest(target - mean, factor)).to(x.dtype)
    target = target.clamp_min(0)
    empty = mean <= 0
    ratio = torch.where(empty, torch.zeros_like(mean), target / mean.clamp_min(1e-300))
    filled = torch.where(empty, target.expand_as(mean), torch.zeros_like(mean))
    scaled = double.clamp_min(0) * upsample_nearest(ratio, factor)
    return (scaled + upsample_nearest(filled, factor)).to(x.dtype)
