"""Where in the spectrum members lack variance, and whether the winters before could have told.

    python benchmarks/climate_spectra.py DATA [--case racmo_pr] [--recipe racmo_pr]
                                         [--models FOLDER] [--members 4] [--out FOLDER]

Each winter apart: power of the normalised residual in three bands of wavenumbers, against its mean
over the training winters, as the cross-fitted regression leaves it; and, where the network has not
seen the winter (the validation part and the test part), power of members against that of the
truth, in the units of the data. What differs between winters of the past by as much as the test
winters differ from them cannot be calibrated away on the past.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from climate import CASES, HERE, Draws
from partial import renewed
from prognosis_winters import winters
from torch import Tensor

from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.residuals import Validation, fit_view, fitted_steps
from apps.climate_downscaling.spectra import distance, radial_power
from apps.climate_downscaling.training_data import Prepared
from core.random import keyed_generator
from core.report import Row, Table, report, write_results, write_text

BANDS = {"1-3": slice(0, 3), "4-8": slice(3, 8), "9-13": slice(8, 13)}


def main(arguments: list[str] | None = None) -> None:
    """Write climate_spectra.md and climate_spectra.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--case", default="racmo_pr", choices=[*CASES], help="of climate.py")
    parser.add_argument("--recipe", help="of recipes/; default: the first of the case")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained or to train")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    case = CASES[options.case]
    recipe = options.recipe or next(iter(case.recipes))
    draws = Draws(options.data, options.models, options.members)
    model, prepared = draws.model(case, recipe)
    v = model.names.index(case.variable)
    drawn, _ = draws.drawn(case, recipe)
    found = winter_table(model, prepared, drawn, v)
    found = dataclasses.replace(found, title=f"{case.title}; {recipe}; {found.title}")
    path = options.out / "climate_spectra.json"
    tables, made_by = renewed(path, [found])
    results = write_results(path, tables, made_by=made_by)
    title = "Downscaling: spectra, winter by winter"
    write_text(options.out / "climate_spectra.md", report(results, title))
    found.print()


def winter_table(model: DownscalingModel, prepared: Prepared, drawn: Tensor, v: int) -> Table:
    """One row a winter, and one for all of the validation and of the test part.

    Args:
        model: trained.
        prepared: its data.
        drawn: (M, T, V, H, W) members of the test part.
        v: of which variable.
    """
    known = model.mean
    fixed = dataclasses.replace(
        model.config.mean, lengths=(known.length,), strengths=(known.strength,)
    )
    config = dataclasses.replace(model.config, mean=fixed)
    view = fit_view(prepared, config, prepared.train)
    steps, year = len(view.fine), winters(prepared.fine.time_keys())
    every = torch.arange(steps)
    residual = torch.cat([view.residual(every, keyed_generator(0, -1)), _of_test(model, prepared)])
    power = radial_power(residual[:, v])
    usual = power[:steps].mean(0)
    first = fitted_steps(steps, config)
    held_out = Validation.of(view, first, steps, steps - first)
    z = held_out.mean + held_out.scale * model.inflated(held_out.draw(model.trained, len(drawn)))
    unseen = model.finished(z, view.coarse[held_out.index], True)
    truth = {"validation": held_out.fine[:, v], "test": prepared.arrays(prepared.test)[0][:, v]}
    members = {"validation": unseen[:, :, v], "test": drawn[:, :, v]}
    starts = {"validation": first, "test": prepared.test.start}
    rows: list[Row] = []
    for winter in np.unique(year).tolist():
        here = np.flatnonzero(year == winter)
        row: Row = {"winter": f"{winter - 1}/{winter % 100:02d}", "part": "training"}
        row = {**row, **_bands("r", power[here].mean(0), usual)}
        for part, start in starts.items():
            now = here[(here >= start) & (here < start + len(truth[part]))] - start
            if len(now):
                row = {**row, "part": part, **_scores(members[part][:, now], truth[part][now])}
        rows.append(row)
    for part, fields in truth.items():
        rows.append({"winter": "all", "part": part, **_scores(members[part], fields)})
    columns = {"winter": "winter", "part": "part"}
    columns |= {f"r{band}": f"residual, k {band} (dB)" for band in BANDS}
    columns |= {f"m{band}": f"members, k {band} (dB)" for band in BANDS}
    columns |= {"lsd": "LSD (dB)", "ratio": "spread/skill"}
    formats = {key: "+.2f" for key in columns if key[0] in "rm" and key != "ratio"}
    formats |= {"lsd": ".2f", "ratio": ".2f"}
    return Table(rows, columns, formats, {}, f"{len(drawn)} members")


def _of_test(model: DownscalingModel, prepared: Prepared) -> Tensor:
    """Normalised residuals of the test part."""
    fine, coarse = prepared.arrays(prepared.test)
    x = model.predictors(coarse)
    mean = model.mean.predict(x)
    z = model.transforms.forward(fine, keyed_generator(0, -4))
    return (z - mean) / model.uncertainty(x, mean) * model.valid


def _bands(key: str, power: Tensor, reference: Tensor) -> Row:
    """Power (K,) against the reference's, in dB, summed over the waves of each band."""
    return {
        f"{key}{band}": (10 * torch.log10(power[k].sum() / reference[k].sum())).item()
        for band, k in BANDS.items()
    }


def _scores(members: Tensor, truth: Tensor) -> Row:
    """Of members (M, T, H, W): bands against the truth, distance of the mean spectrum, spread."""
    spectra = radial_power(members).mean((0, 1)), radial_power(truth).mean(0)
    error = (members.mean(0) - truth).square().mean()
    spread = (1 + 1 / len(members)) * members.var(0).mean()
    return {
        **_bands("m", *spectra),
        "lsd": distance(*spectra),
        "ratio": (spread / error).sqrt().item(),
    }


if __name__ == "__main__":
    main()
