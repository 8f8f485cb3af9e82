r"""Interpolation of a coarse field onto the cells inside its own cells, as one matrix per axis.

    fine = M_y · coarse · M_xᵀ

Cell centres are kept where they are (no shift by half a cell), and the field continues with the
value of its edge beyond the edge. Order 0 repeats cells, 1 is bilinear, 3 is the bicubic spline
that passes through every coarse value.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ORDERS = {"nearest": 0, "bilinear": 1, "bicubic": 3}


@lru_cache(maxsize=64)
def interpolation_matrix(cells: int, factor: int, kind: str, wrap: bool = False) -> Tensor:
    """What turns `cells` coarse values in a row into `cells · factor` fine ones.

    Args:
        cells: coarse cells along the axis.
        factor: fine cells per coarse cell.
        kind: "nearest", "bilinear" or "bicubic".
        wrap: the axis is a circle (longitudes of a global grid).

    Returns:
        (cells · factor, cells), float64; every row sums to 1.
    """
    from scipy.ndimage import zoom

    order, mode = ORDERS[kind], "grid-wrap" if wrap else "nearest"
    unit = np.eye(cells)
    return torch.from_numpy(zoom(unit, (factor, 1), order=order, mode=mode, grid_mode=True))


def interpolate(
    coarse: Tensor, factor: int, kind: str = "bicubic", *, wrap: bool = False
) -> Tensor:
    """Interpolate fields onto a grid `factor` times finer.

    Args:
        coarse: (..., h, w) fields.
        factor: fine cells per side of a coarse cell.
        kind: "nearest", "bilinear" or "bicubic".
        wrap: the columns go once around the Earth.

    Returns:
        (..., h · factor, w · factor), in the dtype of `coarse`; computed in float64.
    """
    height, width = coarse.shape[-2:]
    rows = interpolation_matrix(height, factor, kind).to(coarse.device)
    columns = interpolation_matrix(width, factor, kind, wrap).to(coarse.device)
    return (rows @ coarse.double() @ columns.T).to(coarse.dtype)
