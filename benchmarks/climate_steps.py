"""How few evaluations of the network an ensemble needs: scores against evaluations, per sampler.

    python benchmarks/climate_steps.py DATA [--cases era5_tas,...] [--models FOLDER]
                                       [--evaluations 4,8,32] [--samplers 2m,unipc,ddim]
                                       [--members 16] [--out FOLDER]

The models are those of climate.py, trained before; the test times and the noise are the same in
every row, so that differences are those of the sampler alone. `change` is the CRPS relative to
the model's own sampler at the most evaluations.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from climate import CASES, HERE, Case, _model

from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.evaluation import scores
from apps.climate_downscaling.model import DownscalingModel, clock_vector
from apps.climate_downscaling.prepare import Prepared, open_prepared
from core.random import keyed_generator
from core.report import Row, Table, report, write_results, write_text

SAMPLERS = {
    "2m": {"name": "2m"},
    "unipc": {"name": "unipc"},
    "ddim": {"name": "ddim"},
}


def main(arguments: list[str] | None = None) -> None:
    """Run the cases and write climate_steps.md and climate_steps.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; default: all")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained")
    parser.add_argument("--evaluations", default="4,8,32")
    parser.add_argument("--samplers", default=",".join(SAMPLERS), help="default: all")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    counts = sorted(int(count) for count in options.evaluations.split(","))
    samplers = {name: SAMPLERS[name] for name in options.samplers.split(",")}
    tables = [
        run(CASES[name], options.data, options.models, options.members, counts, samplers)
        for name in options.cases.split(",")
    ]
    results = write_results(options.out / "climate_steps.json", tables)
    title = "Downscaling: evaluations of the network against scores"
    write_text(options.out / "climate_steps.md", report(results, title))
    for found in tables:
        found.print()


def run(
    case: Case,
    data: Path,
    models: Path,
    members: int,
    counts: list[int],
    samplers: dict[str, dict[str, str]],
) -> Table:
    """One case: every sampler at every number of evaluations, the best known one first."""
    (source,) = (str(path) for path in sorted(data.glob(case.data)))
    recipe = next(iter(case.recipes))
    statics = {"statics": str(data / case.statics)}
    config = read_config(HERE / "recipes" / f"{recipe}.json", statics)
    model = _model(models / recipe, source, config)
    prepared = open_prepared(source, config)
    v = model.names.index(case.variable)
    truth = prepared.arrays(prepared.test)[0][:, v]
    rows: list[Row] = []
    for name, sampler in samplers.items():
        for count in reversed(counts):
            started = time.perf_counter()
            drawn = draw(model, prepared, members, {**sampler, "steps": count})[:, :, v]
            seconds = time.perf_counter() - started
            found = scores(drawn, truth, amount=model.transforms.nonnegative[v])
            reference = rows[0]["crps"] if rows else found["crps"]
            change = 100 * (found["crps"] / reference - 1)
            rows.append(
                {"sampler": name, "evaluations": count, **found}
                | {"change": change, "seconds": seconds}
            )
            print(f"{case.title}: {name} {count}, {change:+.1f} %", file=sys.stderr, flush=True)
    return Table(
        rows,
        {
            "sampler": "sampler",
            "evaluations": "evaluations",
            "crps": "CRPS",
            "change": "change (%)",
            "rmse": "RMSE",
            "spread_skill": "spread/skill",
            "lsd": "LSD (dB)",
            "seconds": "seconds",
        },
        {"crps": ".4f", "change": "+.1f", "rmse": ".3f", "spread_skill": ".2f"}
        | {"lsd": ".2f", "seconds": ".1f"},
        {"crps": "min", "lsd": "min", "spread_skill": 1.0},
        f"{case.title}; {len(truth)} test times, {members} members",
    )


def draw(
    model: DownscalingModel, prepared: Prepared, members: int, sampler: dict[str, object]
) -> torch.Tensor:
    """Members (M, T, V, H, W) of the test part, with the noise that `downscale` would take."""
    field, test = prepared.coarse, prepared.test
    coarse = torch.from_numpy(field.read(test.start, test.stop, allow_missing=True))
    clock = clock_vector(field, model.clock, test.start, test.stop)
    keys = field.time_keys()[test.start : test.stop]
    out = np.empty((members, len(keys), len(model.names), *model.fine_grid.shape), np.float32)
    for t, key in enumerate(keys.tolist()):
        streams = [keyed_generator(0, member, key) for member in range(members)]
        here = slice(t, t + 1)
        drawn = model.sample(
            coarse[here], clock[here], members, generator=streams, sampler=sampler
        )
        out[:, t] = drawn[:, 0].numpy()
    return torch.from_numpy(out)


if __name__ == "__main__":
    main()
