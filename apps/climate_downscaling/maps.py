"""Maps: cells drawn as cells, unsmoothed, on the grid's own axes at the right aspect, north up.

Latitude-longitude grids have degrees along their sides; over any other grid go true parallels and
meridians. Missing cells are grey. Figures are objects of their own, outside pyplot.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.climate_downscaling.cf import QUANTITIES
from apps.climate_downscaling.field import Variable
from apps.climate_downscaling.grid import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}
MISSING = "0.86"
CLIP = (0.002, 0.998)
"""Quantiles at the ends of a colour scale: a few cells must not use up the colours."""


def new_figure(size: tuple[float, float]) -> Figure:
    """A white figure of that many inches with an Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path | str) -> Path:
    """Write a PNG so that it is there whole or not at all."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(draft, format="png")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def draw_map(axes: Axes, values: np.ndarray, grid: Grid, *, norm: Any, cmap: Any) -> Any:
    """Draw the cells of a field.

    Args:
        axes: where to draw.
        values: (ny, nx); NaN is missing.
        grid: of the values.
        norm: matplotlib norm of the colours.
        cmap: matplotlib colour map.

    Returns:
        the image, for a colour bar.
    """
    if grid.stations:
        return _draw_stations(axes, values, grid, norm=norm, cmap=cmap)
    dy, dx = grid.spacing
    ends = [
        edge
        for v, d in ((grid.x, dx), (grid.y, dy))
        for edge in (v.min() - abs(d) / 2, v.max() + abs(d) / 2)
    ]
    axes.set_facecolor(MISSING)
    image = axes.imshow(
        np.ma.masked_invalid(values[:: 1 if dy > 0 else -1, :: 1 if dx > 0 else -1]),
        origin="lower",
        extent=tuple(ends),
        aspect=_aspect(grid),
        norm=norm,
        cmap=cmap,
        interpolation="nearest",
    )
    _tick(axes, grid)
    return image


def _draw_stations(axes: Axes, values: np.ndarray, grid: Grid, *, norm: Any, cmap: Any) -> Any:
    """Stations as dots at their places."""
    lat, lon = (v.ravel() for v in grid.geographic() or ())
    image = axes.scatter(
        *(lon, lat),
        c=np.ravel(values),
        norm=norm,
        cmap=cmap,
        s=36,
        edgecolors="0.3",
        linewidths=0.4,
    )
    margin = max(0.5, 0.05 * np.ptp(lon))
    axes.set_xlim(lon.min() - margin, lon.max() + margin)
    axes.set_ylim(lat.min() - margin, lat.max() + margin)
    axes.set_aspect(_aspect(grid))
    _tick(axes, grid)
    return image


def map_bar(axes: Axes, image: Any, heading: str, units: str, extend: str) -> None:
    """A heading over a map and a colour bar beside it."""
    axes.set_title(heading)
    bar = axes.figure.colorbar(image, ax=axes, extend=extend, shrink=0.9, aspect=25, pad=0.02)
    bar.outline.set_linewidth(0.5)
    bar.set_label(units, labelpad=2)


def ratio(grid: Grid) -> float:
    """Height over width of the domain as drawn."""
    if grid.stations:
        high, wide = (max(1.0, 1.1 * np.ptp(v)) for v in grid.geographic() or ())
        return high * _aspect(grid) / wide
    (dy, dx), (ny, nx) = grid.spacing, grid.shape
    return abs(ny * dy) * _aspect(grid) / abs(nx * dx)


def words(variable: Variable) -> tuple[str, str]:
    """Name in words, and the units as people write them."""
    known = QUANTITIES.get(variable.name)
    name = (known.long_name if known else variable.long_name) or variable.name
    units = {"mm day-1": "mm/day", "m s-1": "m/s", "W m-2": "W/m²"}
    said = name if name == variable.name else f"{name} ({variable.name})"
    return said[:1].upper() + said[1:], units.get(variable.units, variable.units)


def field_scale(variable: Variable, fields: Sequence[np.ndarray]) -> tuple[Any, str, str]:
    """One scale for several fields: norm, colour map and ends of the colour bar."""
    from matplotlib.colors import Normalize, PowerNorm

    known = QUANTITIES.get(variable.name)
    low, high = _range(fields)
    if known is not None and known.water:
        # the root tells light rain from none and still ends at the heaviest
        return PowerNorm(0.5, 0.0, max(high, 1.0)), "YlGnBu", "max"
    colours = "RdYlBu_r" if known is not None and known.units == "K" else "viridis"
    return Normalize(low, high if high > low else low + 1.0), colours, "both"


def positive_scale(values: np.ndarray) -> Any:
    """Norm from zero to the largest values, of what cannot be negative."""
    from matplotlib.colors import Normalize

    return Normalize(0.0, _range([values])[1] or 1.0)


def signed_scale(values: np.ndarray) -> Any:
    """Norm symmetric about zero."""
    from matplotlib.colors import Normalize

    most = max(map(abs, _range([values]))) or 1.0
    return Normalize(-most, most)


def _range(fields: Sequence[np.ndarray]) -> tuple[float, float]:
    pooled = np.concatenate([f[np.isfinite(f)].ravel() for f in fields])
    low, high = np.quantile(pooled, CLIP) if pooled.size else (0.0, 1.0)
    return float(low), float(high)


def _tick(axes: Axes, grid: Grid) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if grid.kind == "latlon" or grid.stations:
        for axis, marks in ((axes.xaxis, "EW"), (axes.yaxis, "NS")):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 3, 5, 10]))
            axis.set_major_formatter(FuncFormatter(lambda v, _, m=marks: _degrees(v, m)))
        return
    axes.set_xticks([])  # degrees from a rotated pole would pass for degrees
    axes.set_yticks([])
    if min(grid.shape) > 1:
        _graticule(axes, grid)


def _graticule(axes: Axes, grid: Grid) -> None:
    """True parallels and meridians, named where they leave at the left and at the bottom."""
    if grid.lat is None or grid.lon is None:
        return
    lon = np.rad2deg(np.unwrap(np.unwrap(np.deg2rad(grid.lon), axis=1), axis=0))
    y, x = _to_edges(grid.y), _to_edges(grid.x)
    lat, lon = (_to_edges(_to_edges(v).T).T for v in (grid.lat, lon))
    for values, marks, edge, along, axis in (
        (lat, "NS", lat[:, x.argmin()], y, axes.yaxis),
        (lon, "EW", lon[y.argmin()], x, axes.xaxis),
    ):
        span = np.ptp(values)
        step = next((s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if span / s <= 6), 30)
        levels = step * np.arange(np.ceil(values.min() / step), values.max() / step)
        if not levels.size:
            continue
        axes.contour(
            *(x, y, values),
            levels=levels,
            colors="0.2",
            linewidths=0.4,
            linestyles="solid",
            alpha=0.6,
        )
        order = np.argsort(edge)
        named = levels[(levels >= edge.min()) & (levels <= edge.max())]
        places = np.interp(named, edge[order], along[order])
        axis.set_ticks(places, [_degrees(level, marks) for level in named])


def _to_edges(values: np.ndarray) -> np.ndarray:
    """Go on by half a cell at both ends of the first axis: from centres to the map's edges."""
    first, last = (1.5 * values[i] - 0.5 * values[j] for i, j in ((0, 1), (-1, -2)))
    return np.concatenate([first[None], values, last[None]])


def _degrees(value: float, marks: str) -> str:
    """As on maps: 3°W, 0°, 12.5°N."""
    value = (value + 180) % 360 - 180 if marks == "EW" else value
    if abs(value) < 1e-9:
        return "0°"
    return f"{abs(value):.6g}°{marks[int(value < 0)]}"


def _aspect(grid: Grid) -> float:
    """Length of a unit of y over one of x."""
    if grid.stations and grid.lat is not None:
        return 1 / max(0.1, float(np.cos(np.deg2rad(grid.lat.mean()))))
    if grid.units != "degrees":
        return 1.0
    return 1 / max(0.1, float(np.cos(np.deg2rad((grid.y[0] + grid.y[-1]) / 2))))
