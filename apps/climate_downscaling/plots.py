"""The pictures that the field expects: what was downscaled, and whether to believe it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.climate_downscaling.field import Variable
from apps.climate_downscaling.grid import Grid
from core.report import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"pr": "YlGnBu", "tas": "RdYlBu_r", "tasmax": "RdYlBu_r", "tasmin": "RdYlBu_r"}
COLOURS |= {"uas": "PuOr_r", "vas": "PuOr_r"}
SPREAD = "magma"
TRUTH, MODEL, THIRD = "#222222", "#c1440e", "#3b6ea5"


def draw_downscaled(
    path: Path | str,
    *,
    coarse: np.ndarray,
    members: np.ndarray,
    truth: np.ndarray | None,
    coarse_grid: Grid,
    fine_grid: Grid,
    variable: Variable,
    time: str,
    ood: float | None = None,
) -> None:
    """Draw the input, the ensemble's mean, two members, their spread, and the truth.

    Args:
        path: picture to write, its format by its suffix.
        coarse: (h, w).
        members: (M, H, W).
        truth: (H, W); a third member is shown where it is not known.
        coarse_grid: of the input.
        fine_grid: of the members.
        variable: what it is.
        time: in words.
        ood: out-of-distribution score of this time.
    """
    panels: list[tuple[int, str, np.ndarray, Grid]] = [
        (0, "coarse input", coarse, coarse_grid),
        (1, "ensemble mean", members.mean(0), fine_grid),
    ]
    panels += [
        (3 + m, f"member {m + 1}", members[m], fine_grid) for m in range(min(2, len(members)))
    ]
    if truth is not None:
        panels.append((5, "truth", truth, fine_grid))
    elif len(members) > 2:
        panels.append((5, "member 3", members[2], fine_grid))
    figure = _figure(3, _panel_aspect(fine_grid), rows=2)
    axes = figure.subplots(2, 3).ravel()
    low, high = _limits([values for _, _, values, _ in panels], variable)
    colours = COLOURS.get(variable.name, "viridis")
    for place, title, values, grid in panels:
        image = _map(axes[place], values, grid, colours, low, high)
        axes[place].set_title(title)
    spread = members.std(0, ddof=1) if len(members) > 1 else np.zeros_like(members[0])
    shown = _map(axes[2], spread, fine_grid, SPREAD, 0.0, max(float(np.nanmax(spread)), 1e-12))
    axes[2].set_title("spread (standard deviation)")
    for ax in axes[[i for i in range(6) if not axes[i].has_data()]]:
        ax.set_visible(False)
    label = f"{variable.long_name or variable.name} ({variable.units})"
    figure.colorbar(image, ax=axes[[0, 1, 3, 4, 5]].tolist(), location="bottom", label=label,
                    shrink=0.6, aspect=45, pad=0.03)  # fmt: skip
    figure.colorbar(shown, ax=axes[2], location="right", label=variable.units, aspect=15)
    heading = f"{label.split(' (')[0].capitalize()}, {time}"
    if ood is not None:
        heading += f"   (out-of-distribution score {ood:.2f}; above 1 is unusual)"
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11)
    _save(figure, path)


def draw_verification(
    folder: Path | str,
    name: str,
    *,
    ranks: np.ndarray,
    reliability: Mapping[float, float],
    binned: Sequence[tuple[float, float]],
    spectra: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    grid: Grid,
    units: str,
    independent: float,
) -> Path:
    """Draw one sheet: is the ensemble calibrated, does it look like nature, where is it bad?

    Args:
        folder: where the sheet goes, as NAME.png.
        name: of the variable.
        ranks: (M + 1,) rank histogram.
        reliability: nominal coverage -> found.
        binned: (spread, error) of bins of equal spread.
        spectra: power by wavenumber of "truth", "member" and "mean".
        maps: titles and (H, W) fields.
        grid: of the maps.
        units: of the variable.
        independent: how many independent truths there are, for the histogram's band.

    Returns:
        the file.
    """
    figure = _figure(3, 0.85, rows=2)
    axes = figure.subplots(2, 3).ravel()
    _draw_ranks(axes[0], ranks, independent)
    _draw_reliability(axes[1], reliability)
    _draw_spread(axes[2], binned, units)
    _draw_spectra(axes[3], spectra)
    for ax, (title, values) in zip(axes[4:], maps.items(), strict=False):
        signed = bool(np.nanmin(values) < 0)
        top = float(np.nanmax(np.abs(values))) or 1.0
        colours = "RdBu_r" if signed else SPREAD
        image = _map(ax, values, grid, colours, -top if signed else 0.0, top)
        ax.set_title(title)
        figure.colorbar(image, ax=ax, label=units, shrink=0.8)
    figure.suptitle(f"Verification of {name}", x=0.01, ha="left", fontsize=11)
    path = Path(folder) / f"{name}.png"
    _save(figure, path)
    return path


def _draw_ranks(ax: Axes, ranks: np.ndarray, independent: float) -> None:
    share = ranks / ranks.sum() * len(ranks)
    ax.bar(np.arange(len(ranks)), share, width=0.9, color=THIRD)
    band = 1.96 * np.sqrt((len(ranks) - 1) / max(independent, 1.0))
    ax.axhspan(1 - band, 1 + band, color=TRUTH, alpha=0.12, lw=0)
    ax.axhline(1.0, color=TRUTH, lw=1)
    ax.set(title="rank histogram", xlabel="rank of the truth", ylabel="frequency / expected")


def _draw_reliability(ax: Axes, reliability: Mapping[float, float]) -> None:
    ax.plot([0, 1], [0, 1], color=TRUTH, lw=1)
    ax.plot(list(reliability), list(reliability.values()), "o-", color=MODEL, ms=4)
    ax.set(title="coverage of central intervals", xlabel="nominal", ylabel="found")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def _draw_spread(ax: Axes, binned: Sequence[tuple[float, float]], units: str) -> None:
    spread, error = np.array(binned).T
    top = 1.05 * max(spread.max(), error.max())
    ax.plot([0, top], [0, top], color=TRUTH, lw=1)
    ax.plot(spread, error, "o-", color=MODEL, ms=4)
    ax.set(title="spread and skill", xlabel=f"spread ({units})", ylabel=f"error ({units})")
    ax.set(xlim=(0, top), ylim=(0, top), aspect="equal")


def _draw_spectra(ax: Axes, spectra: Mapping[str, np.ndarray]) -> None:
    style = {"truth": (TRUTH, 2.0), "member": (MODEL, 1.4), "mean": (THIRD, 1.4)}
    for name, power in spectra.items():
        colour, width = style.get(name, ("#888888", 1.2))
        ax.loglog(np.arange(1, len(power) + 1), power, color=colour, lw=width, label=name)
    ax.set(title="power spectra", xlabel="cycles across the domain", ylabel="power")
    ax.legend(frameon=False)


def _figure(columns: int, aspect: float, rows: int) -> Figure:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False}):
        width = 3.5
        return Figure((columns * width, rows * width * aspect + 0.9), layout="constrained")


def _panel_aspect(grid: Grid) -> float:
    """Height over width of a panel, within reason."""
    (dy, dx), (ny, nx) = np.abs(grid.spacing), grid.shape
    return float(np.clip(ny * dy * _stretch(grid) / (nx * dx), 0.5, 1.6)) + 0.1


def _stretch(grid: Grid) -> float:
    """How much longer a degree of latitude is than one of longitude, on a plain lat-lon map."""
    return 1 / max(np.cos(np.deg2rad(np.mean(grid.y))), 0.2) if grid.kind == "latlon" else 1.0


def _map(ax: Axes, values: np.ndarray, grid: Grid, colours: str, low: float, high: float) -> Any:
    y, x = (np.append(b[:, 0], b[-1, 1]) for b in grid.bounds())
    image = ax.pcolormesh(x, y, values, cmap=colours, vmin=low, vmax=high, rasterized=True)
    ax.set_aspect(_stretch(grid))
    ax.set_xlim(min(x), max(x))
    ax.set_ylim(min(y), max(y))
    if grid.kind == "latlon":
        ax.xaxis.set_major_formatter(lambda v, _: _degrees(v, "E", "W"))
        ax.yaxis.set_major_formatter(lambda v, _: _degrees(v, "N", "S"))
    ax.xaxis.set_major_locator(_ticks())
    ax.yaxis.set_major_locator(_ticks())
    ax.tick_params(labelsize=8, length=2)
    return image


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def _degrees(value: float, plus: str, minus: str) -> str:
    value = (value + 180) % 360 - 180 if plus == "E" else value
    return f"{abs(value):g}°{'' if value == 0 else plus if value > 0 else minus}"


def _limits(fields: Sequence[np.ndarray], variable: Variable) -> tuple[float, float]:
    """One scale for all panels: the range of nearly all values; amounts start at zero."""
    values = np.concatenate([f.ravel() for f in fields])
    low, high = np.nanquantile(values, [0.002, 0.998])
    if variable.name == "pr":
        low = 0.0
    return float(low), float(high) if high > low else float(low) + 1.0


def _save(figure: Figure, path: Path | str) -> None:
    with replacing(path) as draft:
        figure.savefig(draft, dpi=160, format=Path(path).suffix.lstrip(".") or "png")
