"""The second sheet of a verification: distributions, extremes, and where they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from apps.climate_downscaling.field import Variable
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.maps import (
    STYLE,
    draw_map,
    map_bar,
    new_figure,
    positive_scale,
    save,
    signed_scale,
    words,
)
from apps.climate_downscaling.tails import Rare

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRUTH, MEMBERS = "black", "#c44601"


def draw_tails(
    folder: Path | str, found: Rare, grid: Grid, variable: Variable, *, title: str = ""
) -> list[Path]:
    """Draw quantiles against quantiles, return levels, fractions skill scores, and maps.

    Args:
        folder: where `extremes_NAME.png` goes.
        found: what to show; what it does not have is left out.
        grid: of the maps.
        variable: of the scores.
        title: over the sheet.

    Returns:
        the files written.
    """
    import matplotlib as mpl

    _, units = words(variable)
    amount = found.fractions is not None
    panels = [lambda axes: _draw_quantiles(axes, found, units, amount)]
    if found.returns is not None:
        panels.append(lambda axes: _draw_returns(axes, found, units))
    if amount:
        panels.append(lambda axes: _draw_fractions(axes, found, units))
    panels.append(lambda axes: _draw_maxima(axes, found, grid, units, amount))
    if np.isfinite(found.spread).any():
        panels.append(lambda axes: _draw_spread(axes, found, grid, units))
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        figure = new_figure((3.2 * columns, 3.1 * rows + 0.3))
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.05)
        figure.suptitle(title or variable.name, size=11, weight="bold", x=0.01, ha="left")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for place, draw in zip(axes, panels, strict=False):
            draw(place)
        for place in axes[len(panels) :]:
            place.set_axis_off()
        return [save(figure, Path(folder) / f"extremes_{variable.name}.png")]


def _draw_quantiles(axes: Axes, found: Rare, units: str, amount: bool) -> None:
    low, high = (f(np.concatenate([found.truth, found.members])) for f in (np.nanmin, np.nanmax))
    axes.plot([low, high], [low, high], color=TRUTH, lw=0.8)
    axes.plot(found.truth, found.members, "o-", color=MEMBERS, ms=3.5, lw=1)
    if amount and high > 0:
        axes.set(xscale="symlog", yscale="symlog")  # dry days are at zero
    for level in (0.5, 0.99, 0.9999):
        if level in found.levels:
            at = found.levels.index(level)
            axes.annotate(
                *(f"{100 * level:g} %", (found.truth[at], found.members[at])),
                textcoords="offset points",
                xytext=(5, -9),
                size=7,
                color="0.35",
            )
    axes.set(title="quantiles", xlabel=f"truth ({units})", ylabel=f"members ({units})")


def _draw_returns(axes: Axes, found: Rare, units: str) -> None:
    from matplotlib.ticker import NullLocator, ScalarFormatter

    levels = found.returns
    assert levels is not None
    axes.fill_between(levels.periods, levels.low, levels.high, color=MEMBERS, alpha=0.2, lw=0)
    axes.plot(levels.periods, levels.truth, "o-", color=TRUTH, ms=3.5, lw=1, label="truth")
    axes.plot(levels.periods, levels.members, "o-", color=MEMBERS, ms=3.5, lw=1, label="members")
    axes.set(title="return levels, mean of cells", xscale="log")
    axes.set(xlabel="return period (years)", ylabel=f"exceeded once ({units})")
    axes.set_xticks(levels.periods)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, loc="upper left", handlelength=1.6)


def _draw_fractions(axes: Axes, found: Rare, units: str) -> None:
    from matplotlib import colormaps

    assert found.fractions is not None
    assert found.useful is not None
    shades = colormaps["YlGnBu"](np.linspace(0.4, 1, len(found.thresholds)))
    for threshold, scores, useful, shade in zip(
        found.thresholds, found.fractions, found.useful, shades, strict=True
    ):
        if np.isfinite(scores).any():
            axes.plot(
                found.scales, scores, "o-", color=shade, ms=3.5, lw=1, label=f"{threshold:g}"
            )
            axes.axhline(useful, color=shade, lw=0.6, ls=":")
    axes.set(title="fractions skill score", ylim=(0, 1.02), xscale="log")
    axes.set(xlabel="window (cells)", ylabel="FSS; dotted: useful")
    axes.set_xticks(found.scales, [str(n) for n in found.scales])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right", title=f"> {units}", title_fontsize=7)


def _draw_maxima(axes: Axes, found: Rare, grid: Grid, units: str, amount: bool) -> None:
    values = 100 * found.maxima if amount else found.maxima
    image = draw_map(axes, values, grid, norm=signed_scale(values), cmap="RdBu_r")
    heading = "error of the yearly maximum" if found.years > 1 else "error of the maximum"
    map_bar(axes, image, heading, "%" if amount else units, "both")


def _draw_spread(axes: Axes, found: Rare, grid: Grid, units: str) -> None:
    image = draw_map(axes, found.spread, grid, norm=positive_scale(found.spread), cmap="magma_r")
    map_bar(axes, image, "spread (standard deviation)", units, "max")
