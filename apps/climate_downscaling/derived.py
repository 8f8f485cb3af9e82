"""Static predictors that follow from others: latitude, and the distance to the coast."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.field import Field
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.sphere import unit_vectors
from core.errors import AleatorError

RADIUS = 6371.0
"""km."""
NEAR = 10.0
"""km: nearer differences of the distance count fully, farther ones by their logarithm."""


def derived_fields(fine: Field, channels: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    """Name and standardised field (H, W) of each static channel asked for.

    Args:
        fine: with a land fraction, `sftlf`, for "coast".
        channels: among "latitude" and "coast"; others are left alone.

    Raises:
        AleatorError: latitudes and longitudes, or the land fraction, are not known.
    """
    found = []
    for name in channels:
        if name not in ("latitude", "coast"):
            continue
        where = fine.grid.geographic()
        if where is None:
            raise AleatorError(
                f"{fine.source}: residual.channels={name} needs latitudes and longitudes"
            )
        if name == "latitude":
            values = where[0]
        else:
            if "sftlf" not in fine.statics:
                raise AleatorError(
                    f"{fine.source}: residual.channels=coast needs the land fraction (sftlf); "
                    "give a file that has it, --set statics=FILE"
                )
            far = coast_distance(fine.grid, fine.static("sftlf"))
            values = np.sign(far) * np.log1p(np.abs(far) / NEAR)
        spread = max(float(values.std()), 1e-6)
        standard = (values - values.mean()) / spread
        found.append((name, torch.from_numpy(standard.astype(np.float32))))
    return found


def coast_distance(grid: Grid, land: np.ndarray) -> np.ndarray:
    """Great-circle distance (H, W) in km from each cell to the nearest of the other kind.

    Args:
        grid: of the cells.
        land: (H, W) land fraction, %; half or more is land, what is missing is sea.

    Returns:
        positive on land, negative at sea; zero everywhere where there is only one of the two.
    """
    from scipy.spatial import KDTree

    where = grid.geographic()
    if where is None:
        raise AleatorError("distance to the coast: latitudes and longitudes are not known")
    is_land = np.nan_to_num(land) >= 50
    if is_land.all() or not is_land.any():
        return np.zeros(grid.shape)
    p = unit_vectors(*where)
    out = np.zeros(grid.shape)
    for kind, sign in ((is_land, 1.0), (~is_land, -1.0)):
        chord, _ = KDTree(p[:, ~kind].T).query(p[:, kind].T)
        out[kind] = sign * 2 * RADIUS * np.arcsin(np.minimum(1.0, chord / 2))
    return out
