"""The residual by diffusion, flow matching, Glow and a VAE: one word of the config, one table.

    python benchmarks/climate_families.py [--families diffusion,...] [--steps 600]
                                          [--members 16] [--models FOLDER] [--out FOLDER]

On the bundled ERA5 sample: the same mean, dispersion, split, batches and number of training steps
for all; what differs is `residual.family`. The last row is the residual drawn from past ones.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from apps.climate_downscaling.comparison import baseline_rows
from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.data import sample_path
from apps.climate_downscaling.downscale import ensemble
from apps.climate_downscaling.evaluation import scores
from apps.climate_downscaling.families import sampler_of
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.train import train
from core.report import Row, Table, report, write_results, write_text

HERE = Path(__file__).parent
BASELINE = "ridge + held-out residuals"


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, score, write climate_families.md and climate_families.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--families", default="diffusion,flow_matching,glow,vae")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for family in options.families.split(","):
        settings = {"residual": {"family": family}, "fit": {"steps": options.steps}}
        config = read_config(HERE / "recipes" / "era5_tas.json", settings)
        folder = options.models / f"era5_{family}_{options.steps}"
        if not (folder / "model.json").exists():
            train(str(sample_path()), folder, config, resume=True, say=_say)
        rows.append(row(family, DownscalingModel.load(folder), options.members))
        _say(rows[-1])
    model = DownscalingModel.load(folder)
    prepared = open_prepared(str(sample_path()), model.config)
    truth, coarse = (values[:, 0] for values in prepared.arrays(prepared.test))
    rest = (False, coarse, truth, options.members, prepared, model, [BASELINE])
    rows += [{"family": r["method"], **r} for r in baseline_rows(0, *rest)]
    columns = {
        "family": "residual.family",
        "crps": "CRPS",
        "rmse": "RMSE",
        "spread_skill": "spread/skill",
        "coverage_90": "90 % covers",
        "lsd": "LSD (dB)",
        "evaluations": "evaluations",
        "parameters": "parameters",
        "minutes": "training (min)",
        "milliseconds": "ms a field",
    }
    formats = {"crps": ".4f", "rmse": ".3f", "spread_skill": ".2f", "coverage_90": ".2f"}
    formats |= {"lsd": ".2f", "parameters": ",d", "minutes": ".1f", "milliseconds": ".1f"}
    best = {"crps": "min", "rmse": "min", "lsd": "min", "spread_skill": 1.0, "coverage_90": 0.9}
    of = f"{options.members} members, {options.steps} steps"
    title = f"ERA5 sample, {len(truth)} test hours, {of}"
    table = Table(rows, columns, formats, best, title)
    results = write_results(options.out / "climate_families.json", [table])
    write_text(options.out / "climate_families.md", report(results, "The family is one word"))
    table.print()


def row(family: str, model: DownscalingModel, members: int) -> Row:
    """Scores of the test part, and what they cost."""
    prepared = open_prepared(str(sample_path()), model.config)
    test = prepared.test
    truth = prepared.arrays(test)[0][:, 0]
    started = time.perf_counter()
    drawn = ensemble(model, prepared.coarse, test.start, test.stop, members=members)[:, :, 0]
    seconds = time.perf_counter() - started
    sampler = sampler_of(model.trained, model.config.residual.sampler)
    card = model.card or {}
    return {
        "family": family,
        **scores(torch.from_numpy(drawn), truth),
        "evaluations": 1 if sampler is None else sampler["steps"],
        "parameters": card["parameters"],
        "minutes": card["minutes"],
        "milliseconds": 1000 * seconds / drawn[:, :, 0, 0].size,
    }


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
