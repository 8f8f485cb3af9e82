"""Figures: what was downscaled, and how right the ensemble is.

Fields that are compared share one colour scale and one colour bar; spread has its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.climate_downscaling.diagnostics import LEVELS, Diagnosis, interval
from apps.climate_downscaling.field import Variable
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.maps import (
    STYLE,
    draw_map,
    field_scale,
    map_bar,
    new_figure,
    positive_scale,
    ratio,
    save,
    signed_scale,
    words,
)
from apps.climate_downscaling.ood import WARN_ABOVE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL, GAP_X, GAP_Y = 3.0, 0.22, 0.36
LEFT, RIGHT, TOP, BOTTOM = 0.55, 0.2, 0.78, 0.85
"""Inches."""
TRUTH, MEMBERS, MEAN = "black", "#c44601", "#0073a8"


def draw_downscaled(
    path: Path | str,
    *,
    coarse: np.ndarray | None,
    members: np.ndarray,
    truth: np.ndarray | None,
    coarse_grid: Grid,
    fine_grid: Grid,
    variable: Variable,
    time: str,
    ood: float | None = None,
) -> None:
    """Draw one time step: coarse input, ensemble mean, two members, truth and spread.

    Args:
        path: PNG to write.
        coarse: (h, w) input; None if it is of other variables.
        members: (M, H, W) output; a single one has neither mean nor spread.
        truth: (H, W), or None, which shows a third member instead.
        coarse_grid: of the input.
        fine_grid: of the output.
        variable: what is drawn.
        time: when, in words.
        ood: out-of-distribution score of the input, if known.
    """
    import matplotlib as mpl

    several = len(members) > 1
    cells = " × ".join(map(str, coarse_grid.shape))
    panels = []
    if coarse is not None:
        panels.append((f"coarse input ({cells} cells)", np.asarray(coarse), coarse_grid))
    if several:
        panels.append((f"mean of {len(members)} members", members.mean(0), fine_grid))
    if truth is not None:
        panels.append(("truth", np.asarray(truth), fine_grid))
    shown = members[: 3 if truth is None else 2]
    panels += [(f"member {i + 1}", member, fine_grid) for i, member in enumerate(shown)]
    name, units = words(variable)
    note = "" if ood is None else f"out-of-distribution score {ood:.2f}"
    if ood is not None and ood > WARN_ABOVE:
        note += f": the input is unlike the training data (score > {WARN_ABOVE:g})"
    norm, colours, extend = field_scale(variable, [values for _, values, _ in panels])
    with mpl.rc_context(STYLE):
        sheet = _Sheet(fine_grid, len(panels) + several)
        sheet.title(f"{name}, {time}", note)
        for place, (heading, values, grid) in enumerate(panels):
            axes = sheet.panel(place, heading)
            image = draw_map(axes, values, grid, norm=norm, cmap=colours)
        sheet.bar(image, sheet.columns - several, 0, f"{variable.name} ({units})", extend)
        if several:
            spread = members.std(0, ddof=1)
            axes = sheet.panel(sheet.count - 1, "spread (standard deviation)")
            scale = positive_scale(spread)
            image = draw_map(axes, spread, fine_grid, norm=scale, cmap="magma_r")
            sheet.bar(image, 1, sheet.columns - 1, f"spread ({units})", "max")
        save(sheet.figure, path)


Box = tuple[float, float, float, float]


class _Sheet:
    """Panels of one size in rows of up to three, laid out in inches so that nothing overlaps.

    The last panel, the spread, is always in the last column, above its own colour bar.
    """

    def __init__(self, grid: Grid, count: int) -> None:
        self.columns = min(3, count)
        self.rows = -(-count // self.columns)
        self.count = count
        self._places = [divmod(place, self.columns) for place in range(count - 1)]
        self._places.append((self.rows - 1, self.columns - 1))
        shape = min(2.2, max(0.3, ratio(grid)))
        self.width = PANEL if shape < 1.3 else PANEL * 1.3 / shape
        self.height = self.width * shape
        wide = self.columns * self.width + (self.columns - 1) * GAP_X
        high = self.rows * self.height + (self.rows - 1) * GAP_Y
        self.size = (max(4.4, LEFT + wide + RIGHT), TOP + high + BOTTOM)
        self.figure = new_figure(self.size)

    def panel(self, place: int, heading: str) -> Axes:
        """Axes number `place`, by rows from the top left."""
        row, column = self._places[place]
        bottom = self.size[1] - TOP - (row + 1) * self.height - row * GAP_Y
        axes = self.figure.add_axes(self._box(self._left(column), bottom, self.width, self.height))
        axes.tick_params(labelleft=column == 0, labelbottom=(row + 1, column) not in self._places)
        axes.set_title(heading, pad=4)
        return axes

    def title(self, text: str, note: str) -> None:
        """What is drawn and when, as large as fits; a remark in smaller type."""
        left, top = LEFT / self.size[0], 1 - 0.14 / self.size[1]
        bold = self.figure.text(left, top, text, va="top", size=11, weight="bold")
        room = (self.size[0] - LEFT - 0.1) * self.figure.dpi
        bold.set_fontsize(11 * min(1.0, room / bold.get_window_extent().width))
        self.figure.text(left, top - 0.2 / self.size[1], note, va="top", size=8, color="0.35")

    def bar(self, image: Any, columns: int, first: int, text: str, extend: str) -> None:
        """A horizontal colour bar under some columns."""
        wide = columns * self.width + (columns - 1) * GAP_X
        box = self._box(self._left(first) + 0.04 * wide, 0.44, 0.92 * wide, 0.13)
        bar = self.figure.colorbar(
            image, cax=self.figure.add_axes(box), orientation="horizontal", extend=extend
        )
        bar.outline.set_linewidth(0.5)
        bar.set_label(text, labelpad=2)

    def _left(self, column: int) -> float:
        return LEFT + column * (self.width + GAP_X)

    def _box(self, left: float, bottom: float, wide: float, high: float) -> Box:
        across, up = self.size
        return left / across, bottom / up, wide / across, high / up


def draw_verification(
    folder: Path | str, found: Diagnosis, grid: Grid, variable: Variable, *, title: str = ""
) -> list[Path]:
    """Draw a sheet on how right an ensemble is.

    Spectra and maps of CRPS and bias; of an ensemble also the rank histogram, the coverage of
    central intervals and the spread–skill diagram.

    Args:
        folder: where `verification_NAME.png` goes.
        found: what to show.
        grid: of the maps.
        variable: of the scores.
        title: over the sheet.

    Returns:
        the files written.
    """
    import matplotlib as mpl

    name, units = words(variable)
    several = found.members > 1
    with mpl.rc_context(STYLE):
        figure = new_figure((9.6, 6.3 if several else 3.5))
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.05)
        figure.suptitle(title or name, size=11, weight="bold", x=0.01, ha="left")
        axes = figure.subplots(2 if several else 1, 3, squeeze=False)
        if several:
            _draw_ranks(axes[0, 0], found)
            _draw_coverage(axes[0, 1], found)
            _draw_spread(axes[0, 2], found, units)
        _draw_spectra(axes[-1, 0], found, units)
        score = "mean CRPS" if several else "mean absolute error"
        image = draw_map(
            axes[-1, 1], found.crps, grid, norm=positive_scale(found.crps), cmap="magma_r"
        )
        map_bar(axes[-1, 1], image, score, units, "max")
        image = draw_map(
            axes[-1, 2], found.bias, grid, norm=signed_scale(found.bias), cmap="RdBu_r"
        )
        map_bar(axes[-1, 2], image, "bias of the mean" if several else "bias", units, "both")
        return [save(figure, Path(folder) / f"verification_{variable.name}.png")]


def _draw_ranks(axes: Axes, found: Diagnosis) -> None:
    """Frequencies of ranks over those of a calibrated ensemble, and how far chance takes them."""
    from matplotlib.ticker import MaxNLocator

    count = found.members + 1
    mean = found.ranks.mean(0) * count
    axes.bar(range(count), mean, width=0.9, color=MEAN, zorder=2)
    ranges = [interval(found.ranks[:, r] * count, draws=400) for r in range(count)]
    known = [(r, i) for r, i in enumerate(ranges) if i is not None]
    if known:
        x = np.array([[r - 0.5, r + 0.5] for r, _ in known]).ravel()
        low, high = (
            np.repeat([1 + getattr(i, end) - i.mean for _, i in known], 2)
            for end in ("low", "high")
        )
        axes.fill_between(x, low, high, color="0.4", alpha=0.35, lw=0, zorder=3)
    axes.axhline(1, color=TRUTH, lw=0.8, zorder=4)
    axes.set(title="rank histogram", xlabel="rank of the truth", ylabel="frequency / uniform")
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_ylim(0, max(1.7, 1.3 * mean.max()))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _remark(axes, "grey: what a calibrated ensemble\nreaches by chance (95 %)", "upper")


def _draw_coverage(axes: Axes, found: Diagnosis) -> None:
    covered = found.covered()
    mean = covered.mean(0)
    axes.plot([0, 1], [0, 1], color=TRUTH, lw=0.8)
    ranges = [i for column in covered.T if (i := interval(column, draws=400)) is not None]
    if len(ranges) == len(mean):
        errors = [
            [m - i.low for m, i in zip(mean, ranges, strict=True)],
            [i.high - m for m, i in zip(mean, ranges, strict=True)],
        ]
        axes.errorbar(LEVELS, mean, np.clip(errors, 0, None), fmt="none", ecolor=MEAN, lw=1)
    axes.plot(LEVELS, mean, "o-", color=MEAN, ms=3.5, lw=1)
    axes.set(title="coverage of central intervals", xlim=(0, 1), ylim=(0, 1))
    axes.set(xlabel="nominal", ylabel="of the truth inside", aspect="equal")
    _remark(axes, "below: over-confident", "lower")


def _draw_spread(axes: Axes, found: Diagnosis, units: str) -> None:
    ends = np.concatenate([found.spread, found.skill])
    ends = ends[np.isfinite(ends)]
    most = 1.08 * float(ends.max()) if ends.size and ends.max() > 0 else 1.0
    axes.plot([0, most], [0, most], color=TRUTH, lw=0.8)
    axes.plot(found.spread, found.skill, "o-", color=MEAN, ms=3.5, lw=1)
    axes.set(title="spread and skill", xlim=(0, most), ylim=(0, most), aspect="equal")
    axes.set(xlabel=f"spread ({units})", ylabel=f"RMSE of the mean ({units})")
    _remark(axes, "above: over-confident", "lower")


def _draw_spectra(axes: Axes, found: Diagnosis, units: str) -> None:
    from matplotlib.ticker import NullLocator, ScalarFormatter

    power = found.spectra
    height, width = found.crps.shape
    axes.set(title="power spectra", xlabel="wavelength (cells)")
    axes.set_ylabel(f"power (({units})²)" if "/" in units else f"power ({units}²)")
    if not len(power["truth"]):
        axes.set(xticks=[], yticks=[])
        _remark(axes, "none: stations, or fewer than four cells a side", "upper")
        return
    n = min(height, width)
    x = n / np.arange(1, len(power["truth"]) + 1)
    styles = {
        "truth": (TRUTH, 1.6, "-"),
        "members": (MEMBERS, 1.2, "-"),
        "mean": (MEAN, 1.2, "--"),
    }
    labels = {"truth": "truth", "members": "members", "mean": "ensemble mean"}
    if "mean" not in power:
        labels["members"] = "prediction"
    for key, values in power.items():
        colour, lw, ls = styles[key]
        axes.plot(x, values, color=colour, lw=lw, ls=ls, label=labels[key])
    axes.set(xscale="log", yscale="log", xlim=(x[0], x[-1]))
    ticks = [t for t in (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512) if x[-1] <= t <= x[0]]
    axes.set_xticks(ticks[:: max(1, len(ticks) // 6)])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, loc="lower left", handlelength=1.6)


def _remark(axes: Axes, text: str, side: str) -> None:
    x, y, ha, va = (
        (0.97, 0.97, "right", "top") if side == "upper" else (0.97, 0.04, "right", "bottom")
    )
    axes.text(x, y, text, transform=axes.transAxes, ha=ha, va=va, size=7, color="0.35", zorder=5)
