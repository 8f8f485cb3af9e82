"""Blocks of cells: conservative means and their adjoint, for NumPy arrays and tensors alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.errors import AleatorError


def coarsen(values: Any, factor: int, weights: Any = None, *, skipna: bool = False) -> Any:
    """Conservative block mean.

    Args:
        values: (..., H, W), a NumPy array or a tensor.
        factor: cells per block side.
        weights: (H, W) cell areas; None for equal areas.
        skipna: average over the cells that are not NaN; otherwise one NaN makes the block NaN.

    Returns:
        (..., H / factor, W / factor), of the type and precision of `values`.

    Raises:
        AleatorError: H or W is not a multiple of the factor.
    """
    refuse_partial_blocks(values.shape[-2:], factor)
    xp: Any
    wide: Any
    if isinstance(values, np.ndarray):
        xp, wide = np, values.astype(np.float64)
    else:
        import torch

        xp, wide = torch, values.double()
    split = (values.shape[-2] // factor, factor, values.shape[-1] // factor, factor)
    blocks = wide.reshape(*values.shape[:-2], *split)
    share = xp.ones_like(blocks)
    if weights is not None:
        share = share * xp.asarray(weights, dtype=wide.dtype, device=wide.device).reshape(split)
    if skipna:
        present = ~xp.isnan(blocks)
        share, blocks = share * present, xp.where(present, blocks, 0.0)
    total = share.sum((-3, -1))
    mean = (blocks * share).sum((-3, -1)) / xp.where(total > 0, total, 1.0)
    mean = xp.where(total > 0, mean, xp.nan)
    return mean.astype(values.dtype) if xp is np else mean.to(values.dtype)


def upsample_nearest(values: Any, factor: int) -> Any:
    """Repeat every cell factor × factor times: (..., h, w) -> (..., h factor, w factor)."""
    if isinstance(values, np.ndarray):
        return values.repeat(factor, -2).repeat(factor, -1)
    return values.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def refuse_partial_blocks(shape: tuple[int, ...], factor: int) -> None:
    """Raise AleatorError unless `shape` is made of whole blocks."""
    if factor < 1 or any(n % factor for n in shape):
        cells = " x ".join(str(n) for n in shape)
        raise AleatorError(
            f"{cells} cells cannot be averaged in whole blocks of {factor}: crop the field first"
        )
