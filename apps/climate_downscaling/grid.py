r"""Horizontal grids, and what moves a field from one to another without losing any of it.

Coarsening is the area-weighted block mean: on a sphere (latitude-longitude or a rotated pole) the
weight of a cell is the area between its bounds,

    w_ij ∝ (sin φ_{i+1/2} − sin φ_{i−1/2}) Δλ_j,

on a projection in metres all cells weigh the same. Grids are regular in their own coordinates, of
either direction; longitudes compare modulo 360.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from apps.climate_downscaling.blocks import coarsen, refuse_partial_blocks, upsample_nearest
from apps.climate_downscaling.sphere import SAME_PLACE, apart, directions, unit_vectors, unrotate
from apps.climate_downscaling.station_files import match_stations
from core.errors import AleatorError

if TYPE_CHECKING:
    from apps.climate_downscaling.field import Field

__all__ = ["Grid", "coarsen", "match", "upsample_nearest"]

REGULAR = 0.01
"""Spacing may vary by this fraction (rounded coordinates, Gaussian grids away from the poles)."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Cell centres of a regular grid, or stations as a row of cells.

    Attributes:
        y: (ny,) coordinate along the rows, in either direction.
        x: (nx,) coordinate along the columns.
        y_name: what the file calls it.
        x_name: what the file calls it.
        kind: "latlon", or "projected" (rotated pole, metres, or cell numbers).
        units: of y and x: "degrees", "m", "km", or "1" for cell numbers.
        lat: (ny, nx) latitude of the cells, where the grid is projected.
        lon: (ny, nx) longitude of the cells, where the grid is projected.
        grid_mapping: CF attributes of the projection; empty where there is none.
        stations: names of the (nx,) cells of a single row that are stations; empty of maps.
    """

    y: np.ndarray
    x: np.ndarray
    y_name: str = "lat"
    x_name: str = "lon"
    kind: Literal["latlon", "projected"] = "latlon"
    units: str = "degrees"
    lat: np.ndarray | None = None
    lon: np.ndarray | None = None
    grid_mapping: Mapping[str, Any] = field(default_factory=dict)
    stations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("y", "x", "lat", "lon"):
            values = getattr(self, name)
            if values is not None:
                object.__setattr__(self, name, np.array(values, dtype=np.float64))
        object.__setattr__(self, "stations", tuple(self.stations))
        if self.kind == "latlon" and self.x.size > 1:
            object.__setattr__(self, "x", np.unwrap(self.x, period=360.0))
        for name, values in ((self.y_name, self.y), (self.x_name, self.x)):
            _refuse_irregular(name, values)

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)."""
        return self.y.size, self.x.size

    @property
    def spacing(self) -> tuple[float, float]:
        """Signed (dy, dx); a single row or column takes the other axis's."""
        dy, dx = _step(self.y), _step(self.x)
        return dy or abs(dx) or 1.0, dx or abs(dy) or 1.0

    @property
    def is_global(self) -> bool:
        """Whether the columns go once around the Earth."""
        around = self.shape[1] * abs(self.spacing[1])
        return self.kind == "latlon" and abs(around - 360) < 0.5 * abs(self.spacing[1])

    def isel(self, y: slice = slice(None), x: slice = slice(None)) -> Grid:
        """The grid of some rows and columns."""
        lat, lon = (None if v is None else v[y, x] for v in (self.lat, self.lon))
        names = self.stations[x]
        return dataclasses.replace(
            self, y=self.y[y], x=self.x[x], lat=lat, lon=lon, stations=names
        )

    def take(self, rows: np.ndarray, columns: np.ndarray) -> Grid:
        """The grid of the given rows and columns, which stay regular."""
        lat, lon = (None if v is None else v[np.ix_(rows, columns)] for v in (self.lat, self.lon))
        return dataclasses.replace(self, y=self.y[rows], x=self.x[columns], lat=lat, lon=lon)

    def crop(self, factor: int) -> Grid:
        """The first rows and columns, as many as whole blocks of `factor` take."""
        ny, nx = (n - n % factor for n in self.shape)
        if not ny or not nx:
            raise AleatorError(f"a grid of {self._cells()} is smaller than a block of {factor}")
        return self.isel(slice(ny), slice(nx))

    def coarsen(self, factor: int) -> Grid:
        """The grid of factor × factor blocks.

        Raises:
            AleatorError: the shape is not a multiple of the factor.
        """
        refuse_partial_blocks(self.shape, factor)
        lat, lon = self.lat, self.lon
        if lat is not None and lon is not None:
            lat, lon = directions(coarsen(unit_vectors(lat, lon), factor), near=lon.mean())
        y, x = (v.reshape(-1, factor).mean(1) for v in (self.y, self.x))
        if self.units == "1":  # cell numbers: those of the blocks
            y, x = ((v - (factor - 1) / 2) / factor for v in (y, x))
        return dataclasses.replace(self, y=y, x=x, lat=lat, lon=lon)

    def refine(self, factor: int) -> Grid:
        """The grid whose factor × factor blocks are these cells, where that is known exactly.

        Raises:
            AleatorError: two-dimensional coordinates that only the finer data can tell.
        """
        if (
            self.lat is not None
            and self.grid_mapping.get("grid_mapping_name") != "rotated_latitude_longitude"
        ):
            raise AleatorError(
                "the latitudes and longitudes of the finer cells are not known for this "
                "projection: take the grid from fine data"
            )
        inside = (np.arange(factor) + 0.5) / factor - 0.5
        y, x = (
            (centres[:, None] + step * inside).ravel()
            for centres, step in zip((self.y, self.x), self.spacing, strict=True)
        )
        fine = dataclasses.replace(self, y=y, x=x, lat=None, lon=None)
        if self.lat is None:
            return fine
        lat, lon = unrotate(y, x, self.grid_mapping)
        return dataclasses.replace(fine, lat=lat, lon=lon)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Cell bounds (ny, 2) and (nx, 2), in the direction of the coordinates."""
        y, x = (_bounds(v, d) for v, d in zip((self.y, self.x), self.spacing, strict=True))
        if self.units == "degrees":
            y = y.clip(-90, 90)
        return y, x

    def geographic(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Latitude and longitude of the cells (ny, nx), degrees; None where they are not known."""
        if self.kind == "latlon":
            lat, lon = np.meshgrid(self.y, self.x, indexing="ij")
            return lat, lon
        return None if self.lat is None or self.lon is None else (self.lat, self.lon)

    def area_weights(self) -> np.ndarray:
        """Cell areas (ny, nx) as multiples of their mean."""
        ny, nx = self.shape
        rows = np.ones(ny)
        if self.units == "degrees":
            rows = np.abs(np.diff(np.sin(np.deg2rad(self.bounds()[0])), axis=1)[:, 0])
        elif self.units == "1" and self.lat is not None and min(ny, nx) > 1:
            p = unit_vectors(self.lat, self.lon)  # cells of a curvilinear grid: |dp/di x dp/dj|
            down, right = np.gradient(p, axis=(1, 2))
            area = np.linalg.norm(np.cross(down, right, axis=0), axis=0)
            return area / area.mean()
        return np.broadcast_to((rows / rows.mean())[:, None], (ny, nx)).copy()

    def same_as(self, other: Grid, tolerance: float = 0.05) -> bool:
        """Whether both have the same cells in the same order.

        Args:
            other: the grid to compare with.
            tolerance: of the coordinates, in cells.

        Returns:
            True if so; longitudes are compared modulo 360.
        """
        if self.shape != other.shape or self.kind != other.kind or self.units != other.units:
            return False
        if self.stations or other.stations:
            both = bool(self.stations and other.stations)
            return both and bool(apart(self, other).max() < SAME_PLACE)
        if not _same_mapping(self, other):
            return False
        dy, dx = np.abs(self.spacing)
        apart_y, apart_x = np.abs(self.y - other.y), np.abs(self.x - other.x)
        if self.kind == "latlon":
            apart_x = np.abs((self.x - other.x + 180) % 360 - 180)
        if self.units == "1" and self.lat is not None and other.lat is not None:
            p = unit_vectors(self.lat, self.lon)
            size = np.linalg.norm(np.gradient(p, axis=1), axis=0).mean() if len(self.y) > 1 else 1
            return bool(apart(self, other).max() <= tolerance * size)
        return bool(apart_y.max() <= tolerance * dy and apart_x.max() <= tolerance * dx)

    def describe(self) -> str:
        """In words, e.g. "8 x 12 cells of 1 x 1 degrees, 57.6...50.6 N, 9.6 W...1.4 E"."""
        dy, dx = np.abs(self.spacing)
        size = f"{self._cells()} cells of {_short(dy)} x {_short(dx)} {self.units}"
        if self.kind == "latlon":
            return f"{size}, {_span(self.y, 'N', 'S')}, {_span(_wrap(self.x), 'E', 'W')}"
        where = ""
        if self.lat is not None and self.lon is not None:
            lat, lon = (np.array([v.min(), v.max()]) for v in (self.lat, _wrap(self.lon)))
            where = f", within {_span(lat, 'N', 'S')}, {_span(lon, 'E', 'W')}"
        if self.stations:
            shown = ", ".join(self.stations[:3]) + (", ..." if len(self.stations) > 3 else "")
            return f"{len(self.stations)} stations ({shown}){where}"
        if self.units == "1":
            return f"{self._cells()} cells of a curvilinear grid{where}"
        name = str(self.grid_mapping.get("grid_mapping_name", "an unnamed projection"))
        ranges = [
            f"{axis} {_short(v[0])}...{_short(v[-1])}"
            for axis, v in ((self.y_name, self.y), (self.x_name, self.x))
        ]
        return f"{size} on {name.replace('_', ' ')}, {', '.join(ranges)}{where}"

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint stores; JSON."""
        stored: dict[str, Any] = {}
        for name in (f.name for f in dataclasses.fields(self)):
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                value = value.tolist()
            elif isinstance(value, Mapping):
                value = {k: np.asarray(v).tolist() for k, v in value.items()}
            stored[name] = value
        return stored

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Grid:
        """The inverse of `to_dict`."""
        return cls(**stored)

    def _cells(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}"


def match(field: Field, grid: Grid, tolerance: float = 0.05) -> Field:
    """Bring a field onto the model's grid by selecting, flipping and rolling; never by guessing.

    Args:
        field: the input, of either direction of latitude and either convention of longitude,
            on the grid's cells or on a larger domain that has them.
        grid: the grid that the model was trained on.
        tolerance: of the coordinates, in cells.

    Returns:
        the field on `grid`; it remembers how to turn results back.

    Raises:
        AleatorError: the cells are not the model's; says both grids and what differs.
    """
    if grid.stations and field.grid.stations:
        return match_stations(field, grid)
    rows = _positions(field.grid.y, grid.y, tolerance, period=None)
    period = 360.0 if grid.kind == "latlon" else None
    columns = _positions(field.grid.x, grid.x, tolerance, period)
    alike = field.grid.kind == grid.kind and field.grid.units == grid.units
    if alike and _same_mapping(field.grid, grid) and rows is not None and columns is not None:
        selected = field.grid.take(rows, columns)
        if grid.units != "1" or selected.same_as(grid, tolerance):
            return field.onto(grid, rows, columns)
    raise AleatorError(
        f"{field.source}: its grid does not match the model's. The input has "
        f"{field.grid.describe()}; the model was trained on {grid.describe()}: "
        f"{_difference(field.grid, grid)}"
    )


def _difference(found: Grid, wanted: Grid) -> str:
    if found.kind != wanted.kind or found.units != wanted.units:
        return "the two are different kinds of grid; remap the input first (e.g. cdo remapcon)"
    if not _same_mapping(found, wanted):
        return "the two are different projections; remap the input first (e.g. cdo remapcon)"
    ratios = np.abs(np.array(found.spacing) / np.array(wanted.spacing))
    if ratios.max() > 1.02:
        return f"the input is {_short(ratios.max())} times coarser than trained"
    if ratios.min() < 0.98:
        times = _short(1 / ratios.min())
        return f"the input is {times} times finer than trained; average it to the model's cells"
    period = 360.0 if wanted.kind == "latlon" else None
    for name, a, b, wrap in (
        (wanted.y_name, found.y, wanted.y, None),
        (wanted.x_name, found.x, wanted.x, period),
    ):
        apart = _distance(a, b, wrap).min(1) / abs(_step(b) or 1.0)
        if apart.max() > 0.6:
            return f"the input does not cover the model's {name} range"
        if apart.max() > 0.01:
            return (
                f"the cell centres differ by {_short(apart.max())} cells along {name}; "
                "remap the input first (e.g. cdo remapcon)"
            )
    return "their latitudes and longitudes differ"


def _distance(a: np.ndarray, b: np.ndarray, period: float | None) -> np.ndarray:
    apart = np.abs(b[:, None] - a[None, :])
    return apart if period is None else np.abs((apart + period / 2) % period - period / 2)


def _positions(
    a: np.ndarray, b: np.ndarray, tolerance: float, period: float | None
) -> np.ndarray | None:
    """Where each of b is among a; None unless all are there."""
    apart = _distance(a, b, period)
    nearest = apart.argmin(1)
    # The spacing of both must fit: a coarse grid's centres can all be centres of a finer one.
    steps = abs(_step(a)), abs(_step(b))
    if all(steps) and abs(steps[0] / steps[1] - 1) > 0.02:
        return None
    return nearest if apart.min(1).max() <= tolerance * (max(steps) or 1.0) else None


def _refuse_irregular(name: str, values: np.ndarray) -> None:
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise AleatorError(f"{name}: expected a row of finite coordinate values")
    steps = np.diff(values)
    if not steps.size:
        return
    mean = steps.mean()
    rounding = 4 * np.finfo(np.float32).eps * np.abs(values).max()
    if mean == 0 or np.abs(steps - mean).max() > REGULAR * abs(mean) + rounding:
        raise AleatorError(
            f"{name} is irregular: its spacing varies between {_short(steps.min())} and "
            f"{_short(steps.max())}; remap the data to a regular grid first (e.g. cdo remapcon)"
        )


def _same_mapping(one: Grid, other: Grid) -> bool:
    """Whether two projections agree wherever both say something; latitudes are latitudes."""
    a, b = one.grid_mapping, other.grid_mapping
    if one.kind == other.kind == "latlon":
        return True
    spellings = {"long_name", "crs_wkt", "spatial_ref", "proj4", "proj4_params", "proj_params"}
    for key in (set(a) & set(b)) - spellings:
        p, q = np.asarray(a[key]), np.asarray(b[key])
        if p.dtype.kind in "fiu" and q.dtype.kind in "fiu":
            if p.shape != q.shape or not np.allclose(p, q, rtol=1e-6, atol=1e-6):
                return False
        elif str(a[key]) != str(b[key]):
            return False
    return True


def _step(values: np.ndarray) -> float:
    return float((values[-1] - values[0]) / (values.size - 1)) if values.size > 1 else 0.0


def _bounds(values: np.ndarray, step: float) -> np.ndarray:
    middle = (values[1:] + values[:-1]) / 2  # shared edges: no gaps between rounded centres
    edges = np.concatenate([[values[0] - step / 2], middle, [values[-1] + step / 2]])
    return np.stack([edges[:-1], edges[1:]], 1)


def _wrap(lon: np.ndarray) -> np.ndarray:
    """To -180...180 as one piece where that is possible."""
    return lon - 360 * np.round(np.mean([lon.min(), lon.max()]) / 360)


def _short(value: float) -> str:
    return f"{value:.4g}"


def _span(values: np.ndarray, plus: str, minus: str) -> str:
    a, b = float(values[0]), float(values[-1])
    first, last = (plus if v >= 0 else minus for v in (a, b))
    return f"{_short(abs(a))}{f' {first}' if first != last else ''}...{_short(abs(b))} {last}"
