"""Jets as particle clouds: a model beside the floor, replay and independent constituents.

    python benchmarks/hep_clouds.py TRAIN.hdf5 TEST.hdf5 --model FOLDER [--model FOLDER ...]
                                    [--steps 24] [--jets 2500] [--out FOLDER]

Both files are in JetNet's layout and of one simulation; the models were trained on TRAIN alone.
For the table that is kept:

    python -m pipelines.hep simulate --oracle pythia-clouds -n 10000 --seed 11 -o TRAIN.hdf5
    python -m pipelines.hep simulate --oracle pythia-clouds -n 5000 --seed 22 -o TEST.hdf5

Writes hep_clouds.{md,json}.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.hep_simulation.clouds.data import Clouds, read_clouds
from apps.hep_simulation.clouds.evaluate import table_rows
from apps.hep_simulation.clouds.evaluation import COLUMNS, FORMATS
from apps.hep_simulation.clouds.features import relative
from apps.hep_simulation.clouds.model import CloudModel
from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> None:
    """Judge every model, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--model", type=Path, action="append", required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[24])
    parser.add_argument("--jets", type=int, default=2500, help="of each file that are compared")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    known, truth = (relative(read_clouds(p)) for p in (options.train, options.test))
    train = known.rows(np.random.default_rng(0).permutation(len(known))[: options.jets])
    truth = truth.rows(slice(0, options.jets))
    samples, facts = {}, []
    for folder in options.model:
        model = CloudModel.load(folder)
        for steps in options.steps:
            name = f"{folder.name}, {steps} evaluations"
            samples[name], pace = _drawn(model, truth, options.seed, steps)
            facts.append({**_facts(model), "sample": name, "ms": pace})
    rows = table_rows(samples, truth, train)
    title = (
        f"{len(truth)} jets of the test file's pT, η and kinds; W1, FPD and KPD × 10³, W1 n as it "
        "is; NN ratio: 1 is fair, near 0 is replay"
    )
    tables = [
        Table(rows, COLUMNS, FORMATS, title=title),
        Table(
            facts,
            {"sample": "model", "ms": "CPU ms a jet", "minutes": "CPU minutes of training",
             "parameters": "weights", "data": "data"},
            {"ms": ".1f", "minutes": ".1f", "parameters": ",d"}, title="What they cost",
        ),
    ]  # fmt: skip
    results = write_results(options.out / "hep_clouds.json", tables)
    write_text(options.out / "hep_clouds.md", report(results, "Jets as particle clouds"))
    for table in tables:
        table.print()


def _drawn(model: CloudModel, truth: Clouds, seed: int, steps: int) -> tuple[Clouds, float]:
    """Clouds for the conditions of the test jets, and CPU milliseconds each."""
    since = time.process_time()
    made = model.sample(truth.pt, truth.eta, truth.kind, seed=seed, steps=steps)
    return made, 1000 * (time.process_time() - since) / len(truth)


def _facts(model: CloudModel) -> dict[str, Any]:
    return {name: model.card[name] for name in ("minutes", "parameters", "data")}


if __name__ == "__main__":
    main()
