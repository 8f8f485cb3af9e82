"""Downscaling models beside every baseline, on the same test times, in the same process.

    python benchmarks/climate.py DATA [--cases era5_tas,racmo_tas,racmo_pr,racmo_both]
                                 [--models FOLDER] [--members 16] [--add RECIPE]
                                 [--out FOLDER] [--name climate]

DATA is the folder with `era5-2mt-2019-03-uk.grib`, `era5-uk_orog_sftlf_etopo20.nc` and `iberia/`
(where they come from: docs/climate.md). A model that is not in FOLDER yet is trained there by its
file in recipes/, which can take an hour. Nothing but these scores sees the test part. `--add`
makes the rows of one model and puts them into the tables that are there. The peers of
`climate_peers` are trained here: a U-Net regression with the steps of the recipe (at most
`--peer-steps`), and quantile mapping by xsdba where it is installed. Times are of this machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from climate_joint import together
from climate_peers import UNetRegression, XsdbaMapping
from partial import renewed, rows_by
from torch import Tensor

from apps.climate_downscaling.baselines import Baseline, baselines
from apps.climate_downscaling.comparison import keys
from apps.climate_downscaling.config import Config, read_config
from apps.climate_downscaling.downscale import ensemble
from apps.climate_downscaling.evaluation import scores, table
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.train import train
from apps.climate_downscaling.training_data import Prepared
from core.report import Row, Table, report, write_results, write_text

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One variable of one data set, and the models that are tried on it.

    Attributes:
        title: of the table.
        variable: what is scored.
        data: file under DATA, may hold a pattern.
        statics: file under DATA with orography and land fraction.
        recipes: files of recipes/ -> what the table calls the model.
    """

    title: str
    variable: str
    data: str
    statics: str
    recipes: dict[str, str]


RACMO = (
    "iberia/tas_pr_EUR-44i-IBERIA*RACMO22E*.nc",
    "iberia/orog_sftlf_EUR-44i-IBERIA_etopo20_fx.nc",
)
ERA5 = ("era5-2mt-2019-03-uk.grib", "era5-uk_orog_sftlf_etopo20.nc")
CASES = {
    "era5_tas": Case(
        "ERA5, British Isles, hourly 2 m temperature, 1 to 0.25 degrees",
        *("tas", *ERA5, {"era5_tas": "ours", "era5_tas_flow": "ours, flow matching"}),
    ),
    "racmo_tas": Case(
        "RACMO22E, Iberia, daily 2 m temperature, 1.76 to 0.44 degrees",
        *("tas", *RACMO, {"racmo_tas": "ours", "racmo_joint": "ours, tas and pr together"}),
    ),
    "racmo_pr": Case(
        "RACMO22E, Iberia, daily precipitation, 1.76 to 0.44 degrees",
        *("pr", *RACMO, {"racmo_pr": "ours", "racmo_joint": "ours, tas and pr together"}),
    ),
}
BOTH = "racmo_both"
"""Not a variable: how those of the RACMO models go together."""


class Draws:
    """Trained models, and what they drew of the test part: once, however many tables want it."""

    def __init__(self, data: Path, models: Path, members: int) -> None:
        """Draw nothing yet."""
        self.data, self.models, self.members = data, models, members
        self._models: dict[str, tuple[DownscalingModel, Prepared]] = {}
        self._drawn: dict[str, tuple[Tensor, float]] = {}

    def model(self, case: Case, recipe: str) -> tuple[DownscalingModel, Prepared]:
        """A model, trained if it is not there, and its data."""
        if recipe not in self._models:
            (source,) = (str(path) for path in sorted(self.data.glob(case.data)))
            statics = {"statics": str(self.data / case.statics)}
            config = read_config(HERE / "recipes" / f"{recipe}.json", statics)
            model = _model(self.models / recipe, source, config)
            self._models[recipe] = model, open_prepared(source, config)
        return self._models[recipe]

    def drawn(
        self, case: Case, recipe: str, *, conserve: bool = True, members: int | None = None
    ) -> tuple[Tensor, float]:
        """Members (M, T, V, H, W) of the test part, and the seconds that they took.

        The fields of these cases have no missing cell: what `ensemble` conserves can be conserved
        afterwards.
        """
        count = min(members or self.members, self.members)
        model, prepared = self.model(case, recipe)
        known = self._drawn.get(recipe)
        if known is None or len(known[0]) < count:
            started = time.perf_counter()
            drawn = ensemble(
                *(model, prepared.coarse, prepared.test.start, prepared.test.stop),
                members=count,
                conserve=False,
            )
            known = torch.from_numpy(drawn), time.perf_counter() - started
            self._drawn[recipe] = known
        free, seconds = known[0][:count], known[1]
        if not conserve:
            return free, seconds
        coarse = prepared.arrays(prepared.test)[1]
        return model.conserved(free, coarse), seconds


def main(arguments: list[str] | None = None) -> None:
    """Run the cases and write climate.md and climate.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    cases = ",".join([*CASES, BOTH])
    parser.add_argument("--cases", default=cases, help="comma-separated; default: all")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained or to train")
    parser.add_argument("--members", type=int, default=16)
    recipes = sorted({recipe for case in CASES.values() for recipe in case.recipes})
    parser.add_argument("--add", choices=recipes, help="only the rows of this model, added")
    parser.add_argument("--peer-steps", type=int, default=2000, help="of the U-Net, at most")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="climate", help="of the files in --out")
    options = parser.parse_args(arguments)
    draws = Draws(options.data, options.models, options.members)
    wanted = [CASES[name] for name in options.cases.split(",") if name != BOTH]
    if options.add:
        wanted = [_only(case, options.add) for case in wanted if options.add in case.recipes]
    tables = [run(c, draws, 0 if options.add else options.peer_steps) for c in wanted]
    if BOTH in options.cases.split(",") and options.add in (None, "racmo_joint"):
        tables.append(together(draws, CASES["racmo_tas"]))
    path, made_by = options.out / f"{options.name}.json", None
    if options.add:
        tables, made_by = renewed(path, tables, rows_by("method"))
    results = write_results(path, tables, made_by=made_by)
    write_text(path.with_suffix(".md"), report(results, "Downscaling, test scores"))
    for found in tables:
        found.print()


def _only(case: Case, recipe: str) -> Case:
    return dataclasses.replace(case, recipes={recipe: case.recipes[recipe]})


def run(case: Case, draws: Draws, peer_steps: int) -> Table:
    """One case: score everything on the test part; without peers and baselines for 0 steps."""
    rows: list[Row] = []
    for recipe, title in case.recipes.items():
        model, prepared = draws.model(case, recipe)
        v = model.names.index(case.variable)
        amount = model.transforms.nonnegative[v]
        truth, coarse = (values[:, v] for values in prepared.arrays(prepared.test))
        if not rows and peer_steps:
            methods = baselines(nonnegative=amount) | peers(model, v, peer_steps)
            rows += [
                timed_row(name, method, prepared, v, (coarse, truth), draws.members)
                for name, method in methods.items()
            ]
        for conserve in (True, False):
            drawn, seconds = draws.drawn(case, recipe, conserve=conserve)
            own = scores(drawn[:, :, v], truth, amount=amount, factor=model.factor)
            method = title if conserve else f"{title}, --no-conserve"
            minutes = float((model.card or {}).get("minutes", float("nan")))
            rows.append({"method": method, **own, "training": 60 * minutes, "seconds": seconds})
            _say(f"{case.title}: {method}, {seconds:.1f} s")
    title = f"{case.title}; {len(truth)} test times, {draws.members} members"
    found = table(rows, amount=amount, units=model.variables[v].units, title=title)
    times = {"training": "training (s)", "seconds": "all draws (s)"}
    formats = dict.fromkeys(times, ".1f")
    return dataclasses.replace(
        found, columns={**found.columns, **times}, formats={**found.formats, **formats}
    )


def peers(model: DownscalingModel, v: int, steps: int) -> dict[str, Baseline]:
    """The U-Net regression, and xsdba where it is installed."""
    fit = dataclasses.replace(model.config.fit, steps=min(steps, model.config.fit.steps))
    channels = dict(model.config.residual.model.get("net", {})).get("channels", 24)
    found: dict[str, Baseline] = {
        f"U-Net regression, {fit.steps} steps": UNetRegression(
            *(model.statics, fit, channels), nonnegative=model.transforms.nonnegative[v]
        )
    }
    if importlib.util.find_spec("xsdba"):
        found["BCSD (xsdba's quantile mapping)"] = XsdbaMapping(model.transforms.nonnegative[v])
    return found


def timed_row(
    name: str,
    method: Baseline,
    prepared: Prepared,
    v: int,
    test: tuple[Tensor, Tensor],
    members: int,
) -> Row:
    """Scores of a method fitted on the training part, and how long it took."""
    fine, block = (values[:, v] for values in prepared.arrays(prepared.train))
    coarse, truth = test
    started = time.perf_counter()
    method.fit(block, fine)
    fitted = time.perf_counter()
    drawn = method.predict(coarse, members, keys(len(coarse)))
    seconds = {"training": fitted - started, "seconds": time.perf_counter() - fitted}
    amount = bool(getattr(method, "nonnegative", False))
    factor = truth.shape[-1] // coarse.shape[-1]
    _say(f"{name}: {seconds['training']:.1f} s")
    return {"method": name, **scores(drawn, truth, amount=amount, factor=factor), **seconds}


def _model(folder: Path, source: str, config: Config) -> DownscalingModel:
    """The trained model; one in the folder of another split may know the test part."""
    if not (folder / "model.json").exists():
        train(source, folder, config, resume=True, say=_say)
    model = DownscalingModel.load(folder)
    if (config.split, config.variables) != (model.config.split, model.config.variables):
        raise SystemExit(f"{folder}: trained with another split or variables; remove it")
    return model


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
