"""Bias adjustment of a global model, judged in winters that it was not adjusted with.

    python benchmarks/adapt.py DATA [--out FOLDER] [--steps N]

CNRM-CM5 (historical) is adjusted to the NCEP reanalysis on every other winter and judged on the
others, both ways round: each series is compared with the reanalysis of the same winters, whose
weather it does not share. The first rows say how small differences can be: two halves of the
reanalysis differ, and so do two halves of the model. DATA is the folder with `iberia/` (where it
comes from: docs/climate.md). The second table has the change to 2080-2100 under RCP8.5.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import torch

from apps.climate_downscaling.adapt import METHODS, WET, Method, adjusted_values
from apps.climate_downscaling.bridge import BridgeConfig
from apps.climate_downscaling.dependence import spatial_gap, variable_gap
from apps.climate_downscaling.field import Field
from apps.climate_downscaling.predictors import open_predictors
from apps.climate_downscaling.times import season_years
from core.evaluation import energy_distance
from core.report import Row, Table, report, write_results, write_text

HERE = Path(__file__).parent
EOFS = 20


@dataclasses.dataclass(frozen=True)
class Series:
    """Values (T, V, h, w), places in the year (T,), and the winter of each day (T,)."""

    values: np.ndarray
    season: np.ndarray
    winter: np.ndarray

    @classmethod
    def of(cls, field: Field) -> Series:
        """Of a field, read whole."""
        return cls(field.read(), field.year_fraction(), season_years(field.times))

    def where(self, days: np.ndarray) -> Series:
        """Some days (T,)."""
        return Series(self.values[days], self.season[days], self.winter[days])


def main(arguments: list[str] | None = None) -> None:
    """Make both tables and write adapt.md and adapt.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--steps", type=int, default=BridgeConfig.steps, help="of the bridge")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    folder, config = options.data / "iberia", BridgeConfig(steps=options.steps)
    files = [folder / "ncep_pressure_2.5deg.nc", folder / "ncep_surface_T62.nc"]
    opened = open_predictors(files)
    names, reference = opened.names, Series.of(opened)
    runs = {
        run: Series.of(
            open_predictors([folder / f"day_CNRM-CM5_{run}_iberia_DJF.nc"], names, opened.grid)
        )
        for run in ("historical", "rcp85")
    }
    tables = [held_out(runs["historical"], reference, names, config)]
    tables.append(changes(runs, reference, names, config))
    results = write_results(options.out / "adapt.json", tables)
    write_text(options.out / "adapt.md", report(results, "Bias adjustment of CNRM-CM5 to NCEP"))
    for found in tables:
        found.print()


def held_out(
    history: Series, reference: Series, names: tuple[str, ...], config: BridgeConfig
) -> Table:
    """Distances from the reanalysis in winters that the adjustment has not seen, two halves."""
    found: dict[str, list[Row]] = {}
    winters = np.unique(reference.winter)
    for half in (winters[::2], winters[1::2]):
        test, then = (s.where(np.isin(s.winter, half)) for s in (reference, history))
        fit, past = (s.where(~np.isin(s.winter, half)) for s in (reference, history))
        rows = {"reanalysis, the other winters": fit.values}
        seconds = {}
        drift = distances(past.values, then.values)
        found.setdefault("model's winters against its others", []).append(drift)
        rows["model as it is"] = then.values
        for method, words in METHODS.items():
            started = time.perf_counter()
            rows[words] = _adjusted(method, then, past, fit, names, config)
            seconds[words] = time.perf_counter() - started
            _say(f"{words}: {seconds[words]:.1f} s")
        for words, values in rows.items():
            row = distances(values, test.values) | {"seconds": seconds.get(words)}
            found.setdefault(words, []).append(row)
    rows = [{"series": words, **_mean(halves)} for words, halves in found.items()]
    columns = {
        "series": "series",
        "marginal": "cells' distributions (sd)",
        "q99": "99 % (sd)",
        "space": "correlation of cells",
        "between": "correlation of variables",
        "energy": "energy distance",
        "seconds": "seconds",
    }
    formats = dict.fromkeys(columns, ".3f") | {"seconds": ".1f", "energy": ".4f"}
    title = "Differences from the reanalysis in winters held out; mean of both halves"
    return Table(rows, columns, formats, {}, title)


def distances(values: np.ndarray, reference: np.ndarray) -> Row:
    """How far a series is from the reference, cells in units of the reference's spread.

    Means over cells and variables of the Wasserstein distance, of the error of the 99 % quantile,
    and of the errors of correlations; and the energy distance in the leading EOFs of the
    reference, each in units of its spread.
    """
    centre, spread = reference.mean(0), reference.std(0).clip(1e-12)
    ours, theirs = (
        ((x - centre) / spread).reshape(len(x), -1).astype(np.float64) for x in (values, reference)
    )
    levels = (np.arange(200) + 0.5) / 200
    a, b = (np.quantile(x, levels, axis=0) for x in (ours, theirs))
    top = [np.quantile(x, 0.99, axis=0) for x in (ours, theirs)]
    _, singular, basis = np.linalg.svd(theirs, full_matrices=False)
    unit = singular[:EOFS] / np.sqrt(len(theirs))
    along = [torch.from_numpy(x @ basis[:EOFS].T / unit) for x in (ours, theirs)]
    variables = range(values.shape[1])
    return {
        "marginal": float(np.abs(a - b).mean()),
        "q99": float(np.abs(top[0] - top[1]).mean()),
        "space": float(np.mean([spatial_gap(values[:, v], reference[:, v]) for v in variables])),
        "between": float(np.mean([variable_gap(values, reference, v) for v in variables])),
        "energy": energy_distance(along[0], along[1], groups=2).value,
    }


def changes(
    runs: dict[str, Series], reference: Series, names: tuple[str, ...], config: BridgeConfig
) -> Table:
    """Change from the historical run to the scenario, of means, spread and extremes."""
    past, future = runs["historical"], runs["rcp85"]
    rows = []
    series = {"model as it is": (past.values, future.values)}
    for method, words in METHODS.items():
        series[words] = tuple(
            _adjusted(method, run, past, reference, names, config) for run in (past, future)
        )
    for name in ("tas", "pr"):
        v = names.index(name)
        for words, (then, now) in series.items():
            rows.append(
                {"variable": name, "series": words, **_change(then[:, v], now[:, v], name)}
            )
    columns = {
        "variable": "variable",
        "series": "series",
        "mean": "mean",
        "sd": "sd, ratio",
        "q99": "99 %",
        "wet": "wet days, points",
    }
    formats = dict.fromkeys(("mean", "q99"), "+.2f") | {"sd": ".3f", "wet": "+.1f"}
    title = "Change from 1982-2002 to 2080-2100, RCP8.5, means over cells (K, mm/day)"
    return Table(rows, columns, formats, {}, title)


def _change(then: np.ndarray, now: np.ndarray, name: str) -> Row:
    tops = [np.quantile(x, 0.99, axis=0).mean() for x in (then, now)]
    wet = 100 * float((now > WET).mean() - (then > WET).mean())
    return {
        "mean": float(now.mean() - then.mean()),
        "sd": float((now.std(0) / then.std(0)).mean()),
        "q99": float(tops[1] - tops[0]),
        "wet": wet if name == "pr" else None,
    }


def _adjusted(
    method: Method,
    series: Series,
    past: Series,
    reference: Series,
    names: tuple[str, ...],
    config: BridgeConfig,
) -> np.ndarray:
    return adjusted_values(
        *(series.values, past.values, reference.values),
        (series.season, past.season, reference.season),
        names,
        method=method,
        bridge=config,
    )


def _mean(rows: list[Row]) -> Row:
    keys = rows[0]
    kept = {key: [row[key] for row in rows] for key in keys if rows[0][key] is not None}
    return {key: float(np.mean(values)) for key, values in kept.items()}


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
