"""Downscaling models beside every baseline, on the same test times, in the same process.

    python benchmarks/climate.py DATA [--cases era5_tas,racmo_tas,racmo_pr] [--models FOLDER]
                                 [--members 16] [--out FOLDER]

DATA is the folder with `era5-2mt-2019-03-uk.grib`, `era5-uk_orog_sftlf_etopo20.nc` and `iberia/`
(where they come from: docs/climate.md). A model that is not in FOLDER/CASE yet is trained there
by recipes/CASE.json, which can take an hour. Nothing but the last table sees the test part.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from apps.climate_downscaling.baselines import baselines
from apps.climate_downscaling.comparison import baseline_rows
from apps.climate_downscaling.config import Config, read_config
from apps.climate_downscaling.downscale import ensemble
from apps.climate_downscaling.evaluation import scores, table
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.train import train
from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One data set and recipe.

    Attributes:
        title: of the table.
        data: file under DATA, may hold a pattern.
        statics: file under DATA with orography and land fraction.
    """

    title: str
    data: str
    statics: str


RACMO = "iberia/tas_pr_EUR-44i-IBERIA*RACMO22E*.nc"
FIXED = "iberia/orog_sftlf_EUR-44i-IBERIA_etopo20_fx.nc"
CASES = {
    "era5_tas": Case(
        *("ERA5, British Isles, hourly 2 m temperature, 1 to 0.25 degrees",),
        *("era5-2mt-2019-03-uk.grib", "era5-uk_orog_sftlf_etopo20.nc"),
    ),
    "racmo_tas": Case(
        "RACMO22E, Iberia, daily 2 m temperature, 1.76 to 0.44 degrees", RACMO, FIXED
    ),
    "racmo_pr": Case("RACMO22E, Iberia, daily precipitation, 1.76 to 0.44 degrees", RACMO, FIXED),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the cases and write climate.md and climate.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; default: all")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained or to train")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    tables = [
        run(name, options.data, options.models / name, options.members)
        for name in options.cases.split(",")
    ]
    results = write_results(options.out / "climate.json", tables)
    write_text(options.out / "climate.md", report(results, "Downscaling, test scores"))
    for found in tables:
        found.print()


def run(name: str, data: Path, folder: Path, members: int) -> Table:
    """One case: train if need be, then score everything on the test part."""
    case = CASES[name]
    (source,) = (str(path) for path in sorted(data.glob(case.data)))
    overrides = {"statics": str(data / case.statics)}
    config = read_config(HERE / "recipes" / f"{name}.json", overrides)
    if not (folder / "model.json").exists():
        train(source, folder, config, resume=True, say=_say)
    model = DownscalingModel.load(folder)
    _refuse_other_recipe(name, config, model.config)
    prepared = open_prepared(source, model.config)
    truth, coarse = (values[:, 0] for values in prepared.arrays(prepared.test))
    amount = model.transforms.nonnegative[0]
    rows = baseline_rows(
        *(0, amount, coarse, truth, members, prepared, model, list(baselines(nonnegative=amount)))
    )
    own = {"amount": amount, "factor": model.factor}
    for title, conserve in (("ours", False), ("ours, conserving coarse means", True)):
        started = time.perf_counter()
        drawn = ensemble(
            *(model, prepared.coarse, prepared.test.start, prepared.test.stop),
            members=members,
            conserve=conserve,
        )
        _say(f"{name}, {title}: {time.perf_counter() - started:.1f} s")
        rows.append({"method": title, **scores(torch.from_numpy(drawn[:, :, 0]), truth, **own)})
    units = model.variables[0].units
    return table(rows, amount=amount, units=units, title=f"{case.title}; {len(truth)} test times")


def _refuse_other_recipe(name: str, wanted: Config, found: Config) -> None:
    """A model in the folder must be of this recipe's split: else it may know the test part."""
    if (wanted.split, wanted.variables) != (found.split, found.variables):
        raise SystemExit(f"{name}: the model there was trained with another split; remove it")


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
