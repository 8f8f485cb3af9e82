"""What known monthly means do to members that were never trained for them.

    python benchmarks/time_means.py DATA --models FOLDER [--members 3] [--out FOLDER]

The first month of RACMO22E's test part, by the models `racmo_tas` and `racmo_pr` that
benchmarks/climate.py trains in FOLDER: drawn freely, and given the month's true mean in forty
cells picked at random or in all of them, as --time-means does, with its default errors. DATA is
the folder with `iberia/` (where it comes from: docs/climate.md).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.downscale import Downscaler, ensemble
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.stations import Seen
from apps.climate_downscaling.time_means import ERRORS, Period, TimeMeans
from core.report import Row, Table, report, write_results, write_text

HERE = Path(__file__).parent
DAYS, CELLS = 31, 40
UNITS = {"tas": "K", "pr": "mm day-1"}


def main(arguments: list[str] | None = None) -> None:
    """Draw, judge, and write time_means.md and time_means.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    rows = [
        row
        for name in UNITS
        for row in judged(name, options.data, options.models, options.members)
    ]
    columns = {
        "variable": "variable",
        "drawn": "drawn",
        "seen": "mean, given cells",
        "unseen": "mean, other cells",
        "daily": "days, all cells",
        "spread": "spread of members",
        "seconds": "s a member and day",
    }
    formats = dict.fromkeys(("seen", "unseen", "daily", "spread"), ".3f") | {"seconds": ".2f"}
    title = f"Root mean square errors, K and mm/day, {DAYS} days, {options.members} members"
    found = Table(rows, columns, formats, {}, title)
    results = write_results(options.out / "time_means.json", [found])
    write_text(options.out / "time_means.md", report(results, "Members given monthly means"))
    found.print()


def judged(name: str, data: Path, models: Path, members: int) -> list[Row]:
    """Errors of one variable, drawn freely and given means."""
    statics = data / "iberia" / "orog_sftlf_EUR-44i-IBERIA_etopo20_fx.nc"
    (source,) = sorted(data.glob("iberia/tas_pr_EUR-44i-IBERIA*RACMO22E*.nc"))
    recipe = HERE / "recipes" / f"racmo_{name}.json"
    prepared = open_prepared(str(source), read_config(recipe, {"statics": str(statics)}))
    model = Downscaler.load(models / f"racmo_{name}", "cpu").model
    start, stop = prepared.test.start, prepared.test.start + DAYS
    truth = prepared.fine.read(start, stop)
    monthly = truth.mean(0).ravel().astype(np.float64)
    first = int(prepared.coarse.time_keys()[start])
    every = np.arange(len(monthly))
    some = np.sort(np.random.default_rng(0).choice(every, CELLS, replace=False))
    rows = []
    for words, cells in (("freely", None), (f"given {CELLS} cells", some), ("given all", every)):
        means = None
        if cells is not None:
            error = np.full(len(cells), ERRORS[UNITS[name]])
            seen = Seen(cells, monthly[cells], error)
            means = TimeMeans("truth", (Period(first, first + DAYS * 86400, seen),))
        started = time.perf_counter()
        drawn = ensemble(model, prepared.coarse, start, stop, members=members, means=means)
        seconds = (time.perf_counter() - started) / members / DAYS
        apart = drawn.mean(1).reshape(members, -1) - monthly
        at = some if cells is None else cells
        rows.append(
            {
                "variable": name,
                "drawn": words,
                "seen": _rms(apart[:, at]),
                "unseen": _rms(np.delete(apart, at, 1)) if len(at) < len(every) else None,
                "daily": _rms(drawn.mean(0) - truth),
                "spread": float(drawn.std(0, ddof=1).mean()),
                "seconds": seconds,
            }
        )
    return rows


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


if __name__ == "__main__":
    main()
