"""Trained on the cold days, judged on the warm ones: what a warmer climate does to a model.

    python benchmarks/warming.py DATA [--cases racmo,eobs] [--models FOLDER] [--steps 800]
                                 [--members 16] [--days 100] [--kinds absolute,anomalies]
                                 [--out FOLDER]

Days are ranked by the mean of temperature over the domain. The coldest 70 % are for training, the
warmest 15 % for the test; those between are a test of their own, half as far away, and keep the
two apart. DATA is the folder with `iberia/` (where it comes from: docs/climate.md). Models are
trained in FOLDER unless they are there (they take minutes), and at most `--days` days of a test,
evenly spread, are drawn. Models are trained as `train` would with `--set mean.anomalies=true` or
without: on the coarse field as it is, or on departures from its mean over the domain.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.climate_downscaling.baselines import Baseline, Dressed, Ridge, baselines
from apps.climate_downscaling.comparison import keys
from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.downscale import ensemble, ood_scores
from apps.climate_downscaling.evaluation import scores
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.train import train
from apps.climate_downscaling.training_data import Prepared, prepare_data
from core.random import Generators
from core.report import Row, Table, replacing, report, write_results, write_text

HERE = Path(__file__).parent
COOL, WARM = 0.70, 0.85
"""Ranks up to which days are for training, and from which they are the warm test."""


@dataclass(frozen=True)
class Case:
    """A data set: its name in the table, the file under DATA, and that with static fields."""

    title: str
    data: str
    statics: str | None


CASES = {
    "racmo": Case(
        "RACMO22E, Iberia, daily tas (K), 1.76 to 0.44 degrees",
        "iberia/tas_pr_EUR-44i-IBERIA*RACMO22E*.nc",
        "iberia/orog_sftlf_EUR-44i-IBERIA_etopo20_fx.nc",
    ),
    "eobs": Case("E-OBS, Iberia, daily tas (K), 2 to 0.5 degrees", "iberia/eobs_0.5deg.nc", None),
}
MODELS = {"absolute": "ours, absolute", "anomalies": "ours, anomalies"}


@dataclass
class OnAnomalies:
    """A baseline that sees departures from the mean over the coarse domain."""

    of: Baseline
    level: Tensor = field(default_factory=lambda: torch.zeros(()))

    def fit(self, coarse: Tensor, fine: Tensor) -> OnAnomalies:
        """Learn from anomalies (T, h, w) and (T, H, W)."""
        level = coarse.mean((-2, -1), keepdim=True)
        self.of.fit(coarse - level, fine - level)
        return self

    def predict(
        self, coarse: Tensor, members: int = 1, generator: Generators | None = None
    ) -> Tensor:
        """Downscale (T, h, w) to (M, T, H, W)."""
        level = coarse.mean((-2, -1), keepdim=True)
        return self.of.predict(coarse - level, members, generator) + level


def main(arguments: list[str] | None = None) -> None:
    """Run the cases and write warming.md and warming.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; default: all")
    parser.add_argument("--models", type=Path, default=Path("models/warming"))
    parser.add_argument("--steps", type=int, default=800, help="of training")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--days", type=int, default=100, help="of each test, at most")
    parser.add_argument("--kinds", default=",".join(MODELS), help="of models, comma-separated")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    for given, known in ((options.cases, CASES), (options.kinds, MODELS)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"{min(unknown)}: unknown; known are {', '.join(known)}")
    tables = []
    for name in options.cases.split(","):
        tables += run(name, options)
    results = write_results(options.out / "warming.json", tables)
    write_text(options.out / "warming.md", report(results, "Trained on cold days"))
    for found in tables:
        found.print()


def run(name: str, options: argparse.Namespace) -> list[Table]:
    """One data set: split it, train what is missing, score both tests."""
    case, data, folder = CASES[name], options.data, options.models / name
    steps = options.steps
    (source,) = (str(path) for path in sorted(data.glob(case.data)))
    folder.mkdir(parents=True, exist_ok=True)
    parts, means = split(source, folder, options.days)
    settings: dict[str, Any] = {
        "split": {"test_fraction": 0, "gap": 0},
        "residual": {"positions": 1},
        "fit": {"steps": steps, "batch_size": 48, "validate_every": max(1, steps // 4)},
    }
    if case.statics:
        settings["statics"] = str(data / case.statics)
    models = {}
    for kind in options.kinds.split(","):
        anomalies = {"mean": {"gap": 2, "anomalies": kind == "anomalies"}}
        config = read_config(None, settings | anomalies, variables="tas", factor=4)
        where = folder / kind
        if not (where / "model.json").exists():
            train(str(parts["cool"]), where, config, resume=True, say=_say)
        models[kind] = DownscalingModel.load(where)
        prepared = {part: prepare_data(path, config) for part, path in parts.items()}
    tables = []
    for part, words in (("between", "the 15 % above them"), ("warm", "the warmest 15 %")):
        rows = rows_of(models, prepared["cool"], prepared[part], options.members)
        away = means[part] - means["cool"]
        title = f"{case.title}: trained on the coldest 70 %, judged on {words} ({away:+.1f} K)"
        tables.append(table(rows, title))
        _say(title)
    return tables


def split(source: str, folder: Path, most: int) -> tuple[dict[str, Path], dict[str, float]]:
    """Files with the cool, and some middle and warm days, and their mean temperatures."""
    with xr.open_dataset(source) as whole:
        axes = [axis for axis in whole["tas"].dims if axis != "time"]
        tas = whole["tas"].mean(axes).values
        rank = tas.argsort().argsort() / len(tas)
        chosen = {"cool": rank < COOL, "between": (rank >= COOL) & (rank < WARM)}
        chosen["warm"] = rank >= WARM
        parts = {}
        for part, here in chosen.items():
            parts[part] = folder / f"{part}.nc"
            days = np.flatnonzero(here)
            if part != "cool":
                days = days[:: -(-len(days) // most)]
            with replacing(parts[part]) as draft:
                whole.isel(time=days).to_netcdf(draft, engine="netcdf4")
    return parts, {part: float(tas[here].mean()) for part, here in chosen.items()}


def rows_of(
    models: dict[str, DownscalingModel], cool: Prepared, test: Prepared, members: int
) -> list[Row]:
    """Scores of baselines and models at the times of a test."""
    fine, block = (values[:, 0] for values in cool.arrays(cool.train))
    truth, coarse = (values[:, 0] for values in test.arrays(test.train))
    some = next(iter(models.values()))
    valid = some.valid
    fine = torch.where(valid, fine, fine[:, valid].mean())  # cells that no score looks at
    known = baselines()
    methods: dict[str, Baseline] = {
        "bicubic": known["bicubic"],
        "analogues": known["analogues"],
        "ridge": known["ridge"],
        "ridge on anomalies": OnAnomalies(Ridge()),
        "ridge + held-out residuals": known["ridge + held-out residuals"],
        "ridge on anomalies + held-out residuals": Dressed(OnAnomalies(Ridge()), held_out=True),
    }
    truth = truth.where(valid, torch.nan)
    rows: list[Row] = []
    block, coarse = (torch.nan_to_num(c, nan=float(c.nanmean())) for c in (block, coarse))
    for name, method in methods.items():
        drawn = method.fit(block, fine).predict(coarse, members, keys(len(coarse)))
        rows.append({"method": name, **judged(drawn, truth)})
    steps = len(test.coarse)
    for kind, model in models.items():
        drawn = torch.from_numpy(ensemble(model, test.coarse, 0, steps, members=members)[:, :, 0])
        score = ood_scores(model, test.coarse, 0, steps)
        beyond = {"ood": float(np.median(score)), "beyond": float((score > 1).mean())}
        rows.append({"method": MODELS[kind], **judged(drawn, truth), **beyond})
    return rows


def judged(drawn: Tensor, truth: Tensor) -> Row:
    """Scores, and the mean over cells of the absolute bias: coarse means are the input's."""
    bias = (drawn.mean(0) - truth).nanmean(0).abs().nanmean().item()
    return {**scores(drawn, truth, amount=False, factor=4), "cell_bias": bias}


def table(rows: list[Row], title: str) -> Table:
    """CRPS, error, bias and spread, and how far the days are from those of training."""
    columns = {
        "method": "method",
        "crps": "CRPS",
        "rmse": "RMSE",
        "cell_bias": "bias of a cell",
        "spread_skill": "spread/skill",
        "coverage_90": "90 % covers",
        "lsd": "LSD (dB)",
        "ood": "ood_score, median",
        "beyond": "share above 1",
    }
    formats = dict.fromkeys(("crps", "rmse", "cell_bias"), ".3f") | {"lsd": ".2f"}
    formats |= dict.fromkeys(("spread_skill", "coverage_90", "ood", "beyond"), ".2f")
    best = {"crps": "min", "rmse": "min", "cell_bias": "min", "spread_skill": 1.0}
    return Table(rows, columns, formats, best, title)


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
