"""An ensemble on disk against the truth on disk: results.json, a report, and figures.

Times are matched by date, cells by coordinates, and both files are read a piece at a time, so
that memory does not follow their length. All cells count alike, as in the benchmarks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.cf import QUANTITIES
from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.diagnostics import Diagnosis, Diagnostics, block_length, interval
from apps.climate_downscaling.evaluation import Tally, table
from apps.climate_downscaling.field import Field, Variable, show_time
from apps.climate_downscaling.grid import match
from apps.climate_downscaling.structure import Structure, structure_table
from apps.climate_downscaling.tails import Rare, Tails
from apps.climate_downscaling.times import season_years
from core.errors import AleatorError
from core.evaluation import Interval
from core.progress import progress_bar
from core.report import Table, report, write_results, write_text

STEPS = 64
"""Times read at once, at most."""
VALUES = 1 << 23
"""Values of the ensemble read at once, at most, unless one time has more."""

_ALIKE = {"standard", "gregorian", "proleptic_gregorian"}
"""Calendars that name the same days since 1582."""


def verify(
    prediction: str | Path,
    truth: str | Path,
    output: Path,
    *,
    time_range: str | None = None,
    overwrite: bool = False,
) -> None:
    """Score a downscaled file and write a folder with what was found.

    Args:
        prediction: what `downscale` wrote, or any file of the same kind; one without members is
            a deterministic forecast.
        truth: fine truth on the same cells, for some of the same times.
        output: folder for results.json, report.md and the figures.
        time_range: "A:B", only these times.
        overwrite: replace a report that is there.

    Raises:
        AleatorError: the output exists; the files have no variable, cells or times in common,
            or dates of different calendars; anything wrong with either file.
    """
    output = Path(output)
    _refuse_existing(output, overwrite)
    forecast = open_field(prediction, ensemble=True, time_range=time_range)
    known = open_field(truth, forecast.names, time_range=time_range)
    forecast, known = _on_one_grid(forecast, known)
    times = _common_times(forecast, known)
    with _new_folder(output) as folder:
        judged, structure = _judge(forecast, known, times)
        tables = _write(folder, forecast, known, times, judged, structure)
    for shown in tables:
        shown.print()
    _note(f"wrote {output}: results.json, report.md, figures")


@dataclass(frozen=True)
class Judgement:
    """What was found about one variable.

    Attributes:
        variable: which.
        scores: as of `evaluation.scores`.
        intervals: score -> its 95 % interval, where there are times enough.
        block: times per block of the bootstrap of the CRPS.
        diagnosis: for the first sheet of figures.
        rare: for the second.
    """

    variable: Variable
    scores: dict[str, float]
    intervals: dict[str, Interval]
    block: int
    diagnosis: Diagnosis
    rare: Rare

    @property
    def amount(self) -> bool:
        """Whether it is a precipitation."""
        return is_amount(self.variable)


def is_amount(variable: Variable) -> bool:
    """Whether wet days and relative extremes make sense: fluxes of water."""
    known = QUANTITIES.get(variable.name)
    return known is not None and known.water


def read_steps(field: Field, steps: np.ndarray) -> np.ndarray:
    """Some time steps of a field, in any order; neighbours are read together.

    Args:
        field: with or without members.
        steps: (T,) positions.

    Returns:
        (T, V, H, W), or (M, T, V, H, W) of an ensemble; missing cells are NaN.
    """
    runs = np.split(steps, np.flatnonzero(np.diff(steps) != 1) + 1)
    parts = [field.read(int(r[0]), int(r[-1]) + 1, allow_missing=True) for r in runs]
    return np.concatenate(parts, axis=-4)


def _on_one_grid(forecast: Field, known: Field) -> tuple[Field, Field]:
    """Both on the cells of the smaller of the two."""
    with contextlib.suppress(AleatorError):
        return forecast, match(known, forecast.grid)
    with contextlib.suppress(AleatorError):
        return match(forecast, known.grid), known
    raise AleatorError(
        f"{known.source} and {forecast.source} are on different grids: the truth has "
        f"{known.grid.describe()}; the prediction has {forecast.grid.describe()}; remap the truth "
        "to the prediction's cells first (e.g. cdo remapcon)"
    )


def _common_times(forecast: Field, known: Field) -> np.ndarray:
    """(2, T) positions of the common times in the two files, in order of time."""
    calendars = {forecast.calendar, known.calendar}
    if len(calendars) > 1 and not calendars <= _ALIKE:
        raise AleatorError(
            f"the calendars differ: {forecast.source} has {forecast.calendar}, {known.source} has "
            f"{known.calendar}; convert one of them (e.g. xarray's convert_calendar)"
        )
    _, ours, theirs = np.intersect1d(forecast.time_keys(), known.time_keys(), return_indices=True)
    if not len(ours):
        raise AleatorError(
            f"no common times: {forecast.source} has {_range(forecast)}, {known.source} has "
            f"{_range(known)}; dates must agree to the second, hour of the day included"
        )
    _note(
        f"{len(ours)} common times, of {len(forecast)} in the prediction and {len(known)} in "
        "the truth"
    )
    return np.stack([ours, theirs])


def _judge(
    forecast: Field, known: Field, times: np.ndarray
) -> tuple[list[Judgement], dict[str, Any]]:
    """All variables, a piece of time at once."""
    members = forecast.members or 1
    cells = int(np.prod(forecast.grid.shape))
    most = members * times.shape[1] * cells
    tallies = [Tally(most, amount=is_amount(v)) for v in forecast.variables]
    studies = [Diagnostics() for _ in forecast.variables]
    rare = [Tails(forecast.grid.shape, amount=is_amount(v)) for v in forecast.variables]
    structure = Structure(forecast.names, forecast.grid)
    keys, years = forecast.time_keys(), season_years(forecast.times[times[0]])
    step = max(1, min(STEPS, VALUES // (members * cells * len(forecast.variables))))
    with progress_bar(times.shape[1], "time steps") as advance:
        for start in range(0, times.shape[1], step):
            ours, theirs = times[:, start : start + step]
            drawn, truth = _read(forecast, ours, ensemble=True), _read(known, theirs)
            structure.add(drawn, truth, keys[ours].tolist())
            here = years[start : start + len(ours)]
            for v, (tally, study, tails) in enumerate(zip(tallies, studies, rare, strict=True)):
                tally.add(drawn[:, :, v], truth[:, v])
                study.add(drawn[:, :, v], truth[:, v], keys[ours].tolist())
                tails.add(drawn[:, :, v], truth[:, v], here)
            advance(len(ours))
    judged = [
        _conclude(*parts) for parts in zip(forecast.variables, tallies, studies, rare, strict=True)
    ]
    return judged, structure.result()


def _read(field: Field, steps: np.ndarray, *, ensemble: bool = False) -> Tensor:
    values = torch.from_numpy(read_steps(field, steps))
    return values[None] if ensemble and field.members is None else values


def _conclude(variable: Variable, tally: Tally, study: Diagnostics, tails: Tails) -> Judgement:
    try:
        found = tally.scores()
    except AleatorError:
        raise AleatorError(
            f"{variable.name}: nothing to score, at every common cell and time the truth or a "
            "member is missing"
        ) from None
    crps, square = (interval(tally.series(name), draws=2000) for name in ("crps", "square"))
    intervals = {}
    if crps is not None and square is not None:
        roots = (float(np.sqrt(v)) for v in (square.mean, square.low, square.high))
        intervals = {"crps": crps, "rmse": Interval(*roots)}
    block = block_length(tally.series("crps"))
    return Judgement(variable, found, intervals, block, study.result(), tails.result())


def _write(
    folder: Path,
    forecast: Field,
    known: Field,
    times: np.ndarray,
    judged: list[Judgement],
    structure: dict[str, Any],
) -> list[Table]:
    """Everything into the folder; returns the tables."""
    from apps.climate_downscaling.plots import draw_verification
    from apps.climate_downscaling.plots_tails import draw_tails

    count = times.shape[1]
    first, last = (show_time(forecast.times[times[0][i]]) for i in (0, -1))
    tables, pictures = [], []
    for j in judged:
        title = f"{j.variable.name}, {count} time steps, {first} to {last}"
        row: dict[str, Any] = {"method": Path(forecast.source).name, **j.scores}
        if "crps" in j.intervals:
            row["crps_interval"] = _words(j.intervals["crps"])
        tables.append(table([row], amount=j.amount, units=j.variable.units, title=title))
        pictures += draw_verification(folder, j.diagnosis, forecast.grid, j.variable, title=title)
        pictures += draw_tails(folder, j.rare, forecast.grid, j.variable, title=title)
    tables.append(structure_table(structure))
    results = write_results(
        folder / "results.json",
        tables,
        prediction=forecast.source,
        truth=known.source,
        members=forecast.members or 1,
        times={"count": count, "first": first, "last": last},
        grid=forecast.grid.describe(),
        variables={j.variable.name: _record(j) for j in judged},
        structure=structure,
    )
    text = report(results, f"{Path(forecast.source).name} against {Path(known.source).name}")
    images = "".join(f"\n![{picture.stem}]({picture.name})\n" for picture in pictures)
    write_text(folder / "report.md", f"{text}{images}\n{_method(judged)}")
    return tables


def _record(judged: Judgement) -> dict[str, Any]:
    """One variable in results.json."""
    found = judged.diagnosis
    levels = {"truth_rank_frequency": found.ranks.mean(0)} if found.members > 1 else {}
    return {
        "units": judged.variable.units,
        "scores": judged.scores,
        "intervals_95": {k: [i.low, i.high] for k, i in judged.intervals.items()},
        "bootstrap_block": judged.block,
        "spectra": found.spectra,
        **levels,
        **judged.rare.record(),
    }


def _method(judged: list[Judgement]) -> str:
    """How the numbers are defined, for readers of the report."""
    blocks = ", ".join(f"{j.block} ({j.variable.name})" for j in judged)
    return (
        "CRPS is fair (of one member: the absolute error); RMSE, MAE and bias are of the ensemble "
        "mean; spread/skill is 1 if calibrated; LSD is the log-spectral distance of member 1; "
        "q99.9 is the error of the 99.9 % quantile pooled over members, cells and times. Return "
        "levels are of extreme value distributions, fitted to the yearly maxima of each cell by "
        "L-moments; the fractions skill score is of members, each as a forecast. All "
        "common times are used and all cells count alike, except those missing in the truth or in "
        "a member. Intervals are 95 %, by a circular bootstrap of blocks of time as long as twice "
        f"the scores' integrated autocorrelation: {blocks} time steps.\n"
    )


def _words(found: Interval) -> str:
    return f"{found.low:.4f}–{found.high:.4f}"


def _range(field: Field) -> str:
    return f"{show_time(field.times[0])} to {show_time(field.times[-1])}"


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _refuse_existing(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise AleatorError(f"{output} exists; choose another folder or --overwrite")
    # --overwrite must not be able to delete somebody's home
    if not output.is_dir() or (any(output.iterdir()) and not (output / "results.json").exists()):
        raise AleatorError(f"{output} exists and is not a report: choose another folder")


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output that takes its place once it is whole, or vanishes."""
    draft = output.with_name(f".{output.name}.{os.getpid()}.partial")
    draft.mkdir(parents=True, exist_ok=True)
    try:
        yield draft
        if output.exists():
            shutil.rmtree(output)
        os.replace(draft, output)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
