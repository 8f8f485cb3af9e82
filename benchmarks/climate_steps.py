"""How few evaluations of the network an ensemble needs: scores against evaluations, per sampler.

    python benchmarks/climate_steps.py DATA [--cases era5_tas,...] [--models FOLDER]
                                       [--evaluations 4,8,32] [--samplers 2m,angle,...]
                                       [--members 16] [--every 1] [--validation]
                                       [--out FOLDER]

The models are those of climate.py, trained before; the test times and the noise are the same in
every row, so that differences are those of the sampler alone. `change` is the CRPS relative to
the first row, 2m at the most evaluations. What FOLDER holds of other cases, and of other samplers
and counts of the same case, stays in the tables: they can be made piece by piece. With
`--validation` times are those of the training part that the network has not been fitted to, with
means that have not seen them either: what is chosen by scores is chosen there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from climate import CASES, HERE, Case, _model
from partial import renewed
from torch import Tensor

from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.evaluation import scores
from apps.climate_downscaling.field import Field
from apps.climate_downscaling.model import DownscalingModel, clock_vector
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.residuals import Validation, fit_view, fitted_steps
from apps.climate_downscaling.training_data import Prepared
from core.random import keyed_generator
from core.report import Row, Table, report, write_results, write_text

SAMPLERS: dict[str, dict[str, Any]] = {
    "2m": {"name": "2m"},
    "unipc": {"name": "unipc"},
    "ddim": {"name": "ddim"},
    "2m-karras": {"name": "2m", "grid": "karras"},
    "unipc-karras": {"name": "unipc", "grid": "karras"},
    "angle": {"name": "angle", "log_snr_max": 4.0},
    "angle-karras": {"name": "angle", "grid": "karras", "log_snr_max": 4.0},
}
"""The last four are for few steps: of Gaussian data they keep most of the spread."""


def main(arguments: list[str] | None = None) -> None:
    """Run the cases and write climate_steps.md and climate_steps.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; default: all")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained")
    parser.add_argument("--evaluations", default="4,8,32")
    parser.add_argument("--samplers", default="2m,unipc,ddim", help=", ".join(SAMPLERS))
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--every", type=int, default=1, help="only every nth test time")
    parser.add_argument("--validation", action="store_true", help="of the training part, instead")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    counts = sorted(int(count) for count in options.evaluations.split(","))
    for given, known in ((options.cases, CASES), (options.samplers, SAMPLERS)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"{min(unknown)}: unknown; known are {', '.join(known)}")
    samplers = {name: SAMPLERS[name] for name in options.samplers.split(",")}
    tables = [run(CASES[name], options, counts, samplers) for name in options.cases.split(",")]
    path = options.out / "climate_steps.json"
    tables, made_by = renewed(path, tables, joined)
    results = write_results(path, tables, made_by=made_by)
    title = "Downscaling: evaluations of the network against scores"
    write_text(options.out / "climate_steps.md", report(results, title))
    for found in tables:
        found.print()


def run(
    case: Case,
    options: argparse.Namespace,
    counts: list[int],
    samplers: dict[str, dict[str, Any]],
) -> Table:
    """One case: every sampler at every number of evaluations, the most first."""
    data, members = options.data, options.members
    (source,) = (str(path) for path in sorted(data.glob(case.data)))
    recipe = next(iter(case.recipes))
    statics = {"statics": str(data / case.statics)}
    config = read_config(HERE / "recipes" / f"{recipe}.json", statics)
    model = _model(options.models / recipe, source, config)
    prepared = open_prepared(source, config)
    v = model.names.index(case.variable)
    if options.validation:
        held_out, truth, coarse = unseen(model, prepared, options.every)
        truth, part = truth[:, v], "validation"
    else:
        times = range(prepared.test.start, prepared.test.stop, options.every)
        truth, part = prepared.arrays(prepared.test)[0][:: options.every, v], "test"
    rows: list[Row] = []
    for name, sampler in samplers.items():
        for count in reversed(counts):
            started = time.perf_counter()
            chosen = {**sampler, "steps": count}
            if options.validation:
                drawn = draw_unseen(model, held_out, coarse, members, chosen)
            else:
                drawn = draw(model, prepared.coarse, times, members, chosen)
            seconds = time.perf_counter() - started
            found = scores(drawn[:, :, v], truth, amount=model.transforms.nonnegative[v])
            row = {"sampler": name, "evaluations": count, **found, "seconds": seconds}
            rows.append(row)
            line = f"{case.title}: {name} {count}, CRPS {found['crps']:.4f}"
            print(line, file=sys.stderr, flush=True)
    return table(rows, f"{case.title}; {len(truth)} {part} times, {members} members")


def table(rows: Sequence[Row], title: str) -> Table:
    """Rows with their change from the first one."""
    first = rows[0]["crps"]
    return Table(
        [{**row, "change": 100 * (row["crps"] / first - 1)} for row in rows],
        {
            "sampler": "sampler",
            "evaluations": "evaluations",
            "crps": "CRPS",
            "change": "change (%)",
            "rmse": "RMSE",
            "spread_skill": "spread/skill",
            "lsd": "LSD (dB)",
        },
        {"crps": ".4f", "change": "+.1f", "rmse": ".3f", "spread_skill": ".2f", "lsd": ".2f"},
        {"crps": "min", "lsd": "min", "spread_skill": 1.0},
        title,
    )


def joined(old: Table, new: Table) -> Table:
    """Rows of both; those that are made again take the place of the old ones."""
    rows = {_name(row): row for row in (*old.rows, *new.rows)}
    return table(sorted(rows.values(), key=_order), new.title)


def _name(row: Row) -> tuple[str, int]:
    return row["sampler"], row["evaluations"]


def _order(row: Row) -> tuple[int, int]:
    return list(SAMPLERS).index(row["sampler"]), -row["evaluations"]


def unseen(
    model: DownscalingModel, prepared: Prepared, every: int
) -> tuple[Validation, Tensor, Tensor]:
    """Times that the network was not fitted to, truth (T, V, H, W) and coarse fields there."""
    known = model.mean
    fixed = dataclasses.replace(
        model.config.mean, lengths=(known.length,), strengths=(known.strength,)
    )
    view = fit_view(prepared, dataclasses.replace(model.config, mean=fixed), prepared.train)
    steps = len(view.fine)
    first = fitted_steps(steps, model.config)
    held_out = Validation.of(view, first, steps, -(-(steps - first) // every))
    return held_out, held_out.fine, view.coarse[held_out.index]


def draw_unseen(
    model: DownscalingModel,
    held_out: Validation,
    coarse: Tensor,
    members: int,
    sampler: dict[str, object],
) -> Tensor:
    """Members (M, T, V, H, W) of such times."""
    residual = dataclasses.replace(model.config.residual, sampler=sampler)
    judged = dataclasses.replace(
        model, config=dataclasses.replace(model.config, residual=residual)
    )
    drawn = dataclasses.replace(held_out, model=judged).draw(model.trained, members)
    z = held_out.mean + held_out.scale * model.inflated(drawn)
    return model.finished(z, coarse, True)


def draw(
    model: DownscalingModel,
    field: Field,
    times: range,
    members: int,
    sampler: dict[str, object],
) -> torch.Tensor:
    """Members (M, T, V, H, W) of some times, with the noise that `downscale` would take."""
    keys = field.time_keys()
    out = np.empty((members, len(times), len(model.names), *model.fine_grid.shape), np.float32)
    for i, t in enumerate(times):
        coarse = torch.from_numpy(field.read(t, t + 1, allow_missing=True))
        clock = clock_vector(field, model.clock, t, t + 1)
        streams = [keyed_generator(0, member, int(keys[t])) for member in range(members)]
        drawn = model.sample(coarse, clock, members, generator=streams, sampler=sampler)
        out[:, i] = drawn[:, 0].numpy()
    return torch.from_numpy(out)


if __name__ == "__main__":
    main()
