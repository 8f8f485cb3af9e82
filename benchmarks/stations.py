"""Perfect prognosis at stations: trained on them, against the nearest cells of a grid.

    python benchmarks/stations.py DATA [--models FOLDER] [--members 16] [--out FOLDER]

DATA is the folder with `iberia/` (where it comes from: docs/climate.md). The models are trained
there on NCEP predictors and 11 stations until November 1998, if FOLDER does not have them yet. The
first table says which family did best on the last training winters, which it was not trained on;
the rows "from the nearest cell" are those of results/prognosis.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from prognosis import HERE, PREDICTORS, Test

from apps.climate_downscaling.config import Config, read_config
from apps.climate_downscaling.dependence import cell_correlation, lag_one
from apps.climate_downscaling.downscale import ensemble
from apps.climate_downscaling.evaluation import scores, table
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.prognosis_fit import fit_prognosis, levelled
from apps.climate_downscaling.station_model import StationModel
from apps.climate_downscaling.train import train
from apps.climate_downscaling.training_data import Prepared
from core.report import Row, Table, report, write_results, write_text

FAMILIES = ("nsf", "diffusion", "flow_matching")
GRIDDED = ("analogues", "ours")


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, then write stations.md and stations.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained or to train")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--families", default=",".join(FAMILIES), help="of the residual")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    folder = options.data / "iberia"
    files = [str(folder / name) for name in PREDICTORS]
    config = read_config(HERE / "recipes" / "stations.json", {}, predictors=files)
    source = str(folder / "value_stations.nc")
    prepared = open_prepared(source, config)
    drawn = {
        family: _drawn(options.models / f"stations_{family}", source, config, family, prepared,
                       options.members)
        for family in options.families.split(",")
    }  # fmt: skip
    first = next(iter(drawn))
    choice = _choice({family: options.models / f"stations_{family}" for family in drawn})
    test = Test(_model(options.models / f"stations_{first}", prepared), prepared, options.members)
    test.train = fit_prognosis(prepared, test.model.config, prepared.train).fine  # without gaps
    tables = [choice, *(_scores(test, v, drawn) for v in range(2)), _together(test, drawn)]
    results = write_results(options.out / "stations.json", tables)
    write_text(options.out / "stations.md", report(results, "Perfect prognosis at stations"))
    for found in tables:
        found.print()


def _drawn(
    folder: Path, source: str, config: Config, family: str, prepared: Prepared, members: int
) -> torch.Tensor:
    """(M, T, V, 1, S) members of the test winters; trains the model if it is not there."""
    if not (folder / "model.json").exists():
        residual = dataclasses.replace(config.residual, family=family)
        chosen = dataclasses.replace(config, residual=residual)
        train(source, folder, chosen, resume=True, say=_say)
    part, model = prepared.test, _model(folder, prepared)
    if model.config.split != config.split:
        raise SystemExit(f"{folder}: trained with another split; remove it")
    found = ensemble(model, prepared.coarse, part.start, part.stop, members=members)
    return torch.from_numpy(found)


def _choice(folders: dict[str, Path]) -> Table:
    """The best score of each family on winters of the training part that it was not trained on."""
    rows: list[Row] = []
    for family, folder in folders.items():
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        noted = [entry for entry in map(json.loads, lines) if "score" in entry]
        best = min(noted, key=lambda entry: entry["score"])
        rows.append({"family": family, "score": best["score"], "step": best["step"]})
    columns = {"family": "family", "score": "CRPS of normalised residuals", "step": "at step"}
    title = "Choice of the family: the validation part of the training winters"
    return Table(rows, columns, {"score": ".4f"}, {"score": "min"}, title)


def _model(folder: Path, prepared: Prepared) -> StationModel:
    """The trained model; one of before drift and year effect were what they are gets them."""
    model = DownscalingModel.load(folder)
    if not isinstance(model, StationModel):
        raise SystemExit(f"{folder}: not a model of stations; remove it")
    if model.years is not None:
        return model
    fresh = levelled(model, prepared, prepared.train)
    assert isinstance(fresh, StationModel)
    return fresh


def _scores(test: Test, v: int, drawn: dict[str, torch.Tensor]) -> Table:
    variable, amount = test.model.variables[v], test.model.transforms.nonnegative[v]
    rows: list[Row] = [_plain(row) for row in _from_cells(v)]
    for name, members in test.methods(v):
        if name != "ours":
            rows.append({"method": name, **scores(members, test.truth[:, v], amount=amount)})
    for family, members in drawn.items():
        found = scores(members[:, :, v], test.truth[:, v], amount=amount)
        rows.append({"method": f"ours, {family}", **found})
    for row in rows:
        row.pop("lsd", None)  # stations have no spectrum
    title = (
        f"{len(test.model.fine_grid.stations)} stations, {variable.name}, learnt from themselves; "
        f"{len(test.truth)} test days, {test.members} members"
    )
    return table(rows, amount=amount, units=variable.units, title=title)


def _from_cells(v: int) -> list[dict[str, Any]]:
    """What prognosis.json says of the grid's nearest cells."""
    known = json.loads((HERE / "results" / "prognosis.json").read_text())
    tables = [t for t in known["tables"] if "from the nearest cell" in t["title"]]
    return [row for row in tables[v]["rows"] if row["method"] in GRIDDED]


def _plain(row: dict[str, Any]) -> Row:
    return {**row, "method": f"{row['method']}, from the nearest cell"}


def _together(test: Test, drawn: dict[str, torch.Tensor]) -> Table:
    """Correlation between stations, in time and between variables, beside what was observed."""
    shown = {"observed": test.truth}
    shown |= {f"a member, {family}": members[0] for family, members in drawn.items()}
    rows: list[Row] = []
    for name, fields in shown.items():
        row: Row = {"what": name}
        for v, variable in enumerate(test.model.names):
            complete = fields[:, v, 0].isfinite().all(1) & test.truth[:, v, 0].isfinite().all(1)
            pairs = torch.corrcoef(fields[complete, v, 0].T.double())
            size = len(pairs)
            row[f"between_{variable}"] = ((pairs.sum() - size) / (size * (size - 1))).item()
            row[f"lag_{variable}"] = lag_one(fields[:, v], test.keys)
        row["variables"] = cell_correlation(fields[:, 0], fields[:, 1])
        rows.append(row)
    columns = {"what": ""}
    for variable in test.model.names:
        columns |= {f"between_{variable}": f"{variable}: between stations"}
        columns |= {f"lag_{variable}": f"{variable}: lag-1"}
    columns["variables"] = " with ".join(test.model.names)
    formats = {name: ".3f" for name in columns if name != "what"}
    return Table(rows, columns, formats, {}, "Correlations")


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
