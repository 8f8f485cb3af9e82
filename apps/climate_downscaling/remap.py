r"""From any grid to another where the user asks for it: bilinear, conservative or nearest.

    y = W x,    conservative: W_ij = |cell i ∩ cell j| / |cell i|

one sparse matrix each. On latitudes and longitudes the overlaps of cells are products, of
differences of sin φ and of λ, so that integrals over whole cells are exact. Bilinear weights of
grids with two-dimensional coordinates are barycentric, in triangles between cell centres.
Reference: Jones (1999), doi:10.1175/1520-0493(1999)127<2204:FASOCR>2.0.CO;2.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from apps.climate_downscaling.field import Field, Layout
from apps.climate_downscaling.grid import Grid, match
from apps.climate_downscaling.regrid import BEYOND, Bilinear, places
from apps.climate_downscaling.sphere import unit_vectors
from core.errors import AleatorError

METHODS = ("bilinear", "conservative", "nearest")
KNOWN = 0.5
"""Share of a cell's area that must have data, for a conservative mean."""
_COVER = 0.999


@dataclass(frozen=True, eq=False)
class Remap:
    """The map from one grid to another; small, and pickles.

    Attributes:
        weights: (H W, h w) sparse; rows sum to 1.
        shape: (H, W) of the target.
        method: one of `METHODS`.
    """

    weights: Any
    shape: tuple[int, int]
    method: str

    @classmethod
    def between(cls, source: Grid, target: Grid, method: str, where: str = "the input") -> Remap:
        """Weights from one grid to another.

        Args:
            source: any grid that knows its latitudes and longitudes.
            target: the same; on latitudes and longitudes for "conservative", as the source.
            method: one of `METHODS`.
            where: what the source is called in messages.

        Raises:
            AleatorError: no such method, coordinates that are not known or do not fit the
                method, or a target that the source does not cover.
        """
        if method not in METHODS:
            raise AleatorError(f"--regrid {method}: known are {', '.join(METHODS)}")
        for grid in (source, target):
            if grid.geographic() is None or grid.stations:
                raise AleatorError(
                    f"{where}: cannot be remapped from {source.describe()} to "
                    f"{target.describe()}: latitudes and longitudes of a map are needed"
                )
        maker = {"bilinear": _bilinear, "conservative": _conservative, "nearest": _nearest}
        return cls(maker[method](source, target, where), target.shape, method)

    def __call__(self, fields: np.ndarray) -> np.ndarray:
        """Fields (..., h, w) on the target, (..., H, W); cells without data stay without."""
        flat = fields.reshape(-1, fields.shape[-2] * fields.shape[-1]).astype(np.float64)
        if self.method == "conservative" and np.isnan(flat).any():
            known = np.isfinite(flat)
            share = (self.weights @ known.T.astype(np.float64)).T
            total = (self.weights @ np.where(known, flat, 0.0).T).T
            with np.errstate(invalid="ignore", divide="ignore"):
                moved = np.where(share >= KNOWN, total / share, np.nan)
        else:
            moved = (self.weights @ flat.T).T
        return moved.reshape(*fields.shape[:-2], *self.shape).astype(fields.dtype)


def on_grid(field: Field, grid: Grid, method: str | None) -> Field:
    """A field on the model's grid: as it is where the cells are the model's, else remapped.

    Args:
        field: the input.
        grid: the model's.
        method: one of `METHODS`; None refuses other grids.

    Raises:
        AleatorError: another grid and no method, or one that does not fit.
    """
    try:
        return match(field, grid)
    except AleatorError as error:
        if method is None:
            raise AleatorError(f"{error}; or let --regrid remap it") from None
    move = Remap.between(field.grid, grid, method, field.source)
    arrays = {name: moved(field.data[name], move, grid) for name in field.names}
    times = {name: field.data.coords[name] for name in field.extras}
    data = xr.Dataset(arrays).assign_coords(times)
    return dataclasses.replace(
        field,
        data=data.assign_coords(time=field.data["time"], y=grid.y, x=grid.x),
        grid=grid,
        statics=xr.Dataset(),
        layout=Layout(time_name=field.layout.time_name),
        notes=(*field.notes, f"remapped ({method}) from {field.grid.describe()}"),
    )


def moved(array: xr.DataArray, move: Any, grid: Grid) -> xr.DataArray:
    """A lazy array (..., y, x) on another grid.

    Args:
        array: of dask.
        move: (..., h, w) to (..., H, W), numpy.
        grid: H × W cells.
    """
    whole = array.chunk(y=-1, x=-1).data
    sizes = (*whole.chunks[:-2], (grid.shape[0],), (grid.shape[1],))
    return xr.DataArray(whole.map_blocks(move, chunks=sizes, dtype=array.dtype), dims=array.dims)


def _sparse(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: Any) -> Any:
    from scipy.sparse import csr_array

    return csr_array((values.ravel(), (rows.ravel(), columns.ravel())), shape=shape)


def _bilinear(source: Grid, target: Grid, where: str) -> Any:
    if source.kind == "latlon":
        found = Bilinear.between(source, target, where)
        index, weight = found.index.numpy(), found.weight.numpy().astype(np.float64)
        rows = np.broadcast_to(np.arange(index.shape[1]), index.shape)
        return _sparse(rows, index, weight, (index.shape[1], int(np.prod(source.shape))))
    return _triangles(source, target, where)


def _triangles(source: Grid, target: Grid, where: str) -> Any:
    """Barycentric weights between the three nearest centres, on a plane about the domain."""
    from scipy.spatial import Delaunay

    p, q = (unit_vectors(*places(g)).reshape(3, -1) for g in (source, target))
    centre = p.mean(1) / np.linalg.norm(p.mean(1))
    east = np.cross([0.0, 0.0, 1.0], centre)
    east = east / np.linalg.norm(east) if np.linalg.norm(east) > 1e-9 else np.array([1.0, 0, 0])
    axes = np.stack([east, np.cross(centre, east)])
    if (centre @ p).min() <= 0.05 or (centre @ q).min() <= 0.05:
        raise AleatorError(f"{where}: bilinear remapping of more than a hemisphere; use nearest")
    flat, wanted = ((axes @ v / (centre @ v)).T for v in (p, q))  # great circles are straight
    mesh = Delaunay(flat)
    inside = mesh.find_simplex(wanted)
    index, near = _nearest_cells(source, target)
    step = np.linalg.norm(np.diff(p.reshape(3, *source.shape), axis=2), axis=0).max(initial=0.0)
    if (near[inside < 0] > 1.5 * BEYOND * step).any():
        raise AleatorError(f"{where}: {source.describe()} does not cover {target.describe()}")
    edges = mesh.transform[inside]
    first = np.einsum("nij,nj->ni", edges[:, :2], wanted - edges[:, 2])
    weight = np.column_stack([first, 1 - first.sum(1)])
    corners = mesh.simplices[inside].copy()
    weight[inside < 0], corners[inside < 0] = [1.0, 0.0, 0.0], index[inside < 0, None]
    rows = np.broadcast_to(np.arange(len(wanted))[:, None], corners.shape)
    return _sparse(rows, corners, weight, (len(wanted), p.shape[1]))


def _nearest(source: Grid, target: Grid, where: str) -> Any:
    index, near = _nearest_cells(source, target)
    p = unit_vectors(*places(source))
    steps = [np.linalg.norm(np.diff(p, axis=a), axis=0).max(initial=0.0) for a in (1, 2)]
    if near.max() > 1.5 * BEYOND * max(steps):
        raise AleatorError(f"{where}: {source.describe()} does not cover {target.describe()}")
    rows = np.arange(len(index))
    return _sparse(rows, index, np.ones(len(index)), (len(index), int(np.prod(source.shape))))


def _nearest_cells(source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(H W,) nearest source cells and their distances on the unit sphere."""
    from scipy.spatial import KDTree

    p, q = (unit_vectors(*places(g)).reshape(3, -1).T for g in (source, target))
    near, index = KDTree(p).query(q)
    return index, near


def _conservative(source: Grid, target: Grid, where: str) -> Any:
    from scipy.sparse import kron

    for grid in (source, target):
        if grid.kind != "latlon":
            raise AleatorError(
                f"{where}: conservative remapping is between grids of latitudes and longitudes, "
                f"not {grid.describe()}; use bilinear or nearest, or remap it first (cdo remapcon)"
            )
    (y, x), (wanted_y, wanted_x) = source.bounds(), target.bounds()
    rows = _overlap(*(np.sin(np.deg2rad(np.sort(b, 1))) for b in (y, wanted_y)))
    x, wanted_x = np.sort(x, 1), np.sort(wanted_x, 1)
    columns = np.sum([_overlap(x + 360.0 * turn, wanted_x) for turn in range(-2, 3)], axis=0)
    for share, name in ((rows, "latitudes"), (columns, "longitudes")):
        if share.sum(1).min() < _COVER:
            raise AleatorError(
                f"{where}: its {name} do not cover {target.describe()}; it has {source.describe()}"
            )
    return kron(_normalised(rows), _normalised(columns), format="csr")


def _overlap(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Share (H, h) of each target interval that lies in each source interval."""
    low = np.maximum(target[:, None, 0], source[None, :, 0])
    high = np.minimum(target[:, None, 1], source[None, :, 1])
    return (high - low).clip(0) / (target[:, 1] - target[:, 0])[:, None]


def _normalised(share: np.ndarray) -> Any:
    from scipy.sparse import csr_array

    return csr_array(share / share.sum(1, keepdims=True))
