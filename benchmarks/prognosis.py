"""Perfect prognosis: from a reanalysis to observations, then driven by a global model.

    python benchmarks/prognosis.py DATA [--models FOLDER] [--members 16] [--out FOLDER]
                                   [--tables winters,cells,dependence,stations,century]
                                   [--steps N]

DATA is the folder with `iberia/` (where it comes from: docs/climate.md). The model is trained
there on NCEP predictors and E-OBS until November 1998, if FOLDER does not have it yet; one that
was trained before drift and year effect were what they are gets them from the same data. Tables:
how far off whole winters are, those of the past as they were seen from the winters before; the
test winters on E-OBS's cells and at stations; and what the global model CNRM-CM5 becomes at the
end of the century, where there is no truth to score against. `--tables` makes some of them and
keeps the others that are there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from partial import renewed
from prognosis_winters import ahead, winter_means
from torch import Tensor

from apps.climate_downscaling.adapt import Request, adapt
from apps.climate_downscaling.baselines import QuantileMapping
from apps.climate_downscaling.config import Config, read_config
from apps.climate_downscaling.dependence import cell_correlation, correlation_length, lag_one
from apps.climate_downscaling.downscale import Downscaler, ensemble, ood_scores
from apps.climate_downscaling.evaluation import scores, table
from apps.climate_downscaling.field_ridge import cross_fit_fields
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.prognosis import PrognosisModel
from apps.climate_downscaling.prognosis_fit import levelled
from apps.climate_downscaling.train import train
from apps.climate_downscaling.training_data import Prepared
from core.random import keyed_generator
from core.report import Row, Table, report, write_results, write_text

HERE = Path(__file__).parent
PREDICTORS = ("ncep_pressure_2.5deg.nc", "ncep_surface_T62.nc")
CHANGES = ("tas", "tas_sd", "pr", "wet", "q99")
TABLES = ("winters", "cells", "dependence", "stations", "century")
CENTURY = {"1982-2002": "historical", "2080-2100": "rcp85"}


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, then write prognosis.md and prognosis.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained or to train")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--tables", default=",".join(TABLES), help="comma-separated; default: all")
    parser.add_argument("--steps", type=int, help="evaluations a sample, of the century's table")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    wanted = options.tables.split(",")
    if unknown := set(wanted) - set(TABLES):
        raise SystemExit(f"--tables {min(unknown)}: there are {', '.join(TABLES)}")
    folder = options.data / "iberia"
    files = [str(folder / name) for name in PREDICTORS]
    config = read_config(HERE / "recipes" / "eobs.json", {}, predictors=files)
    source = str(folder / "eobs_0.5deg.nc")
    prepared = open_prepared(source, config)
    model = _model(options.models / "eobs", source, config)
    if model.years is None:
        model = levelled(model, prepared, prepared.train)
    test = None
    if set(wanted) & {"cells", "dependence", "stations", "winters"}:
        test = Test(model, prepared, options.members)
    tables = []
    for name in wanted:
        if name == "century":
            tables.append(century(model, folder, files, steps=options.steps))
        else:
            assert test is not None
            tables += _tables(name, test, folder)
        _say(name)
    path, made_by = options.out / "prognosis.json", None
    if set(wanted) != set(TABLES):
        tables, made_by = renewed(path, tables)
    results = write_results(path, tables, made_by=made_by)
    text = report(results, "Perfect prognosis: reanalysis to observations, then a global model")
    write_text(options.out / "prognosis.md", text)
    for found in tables:
        found.print()


def _tables(name: str, test: Test, folder: Path) -> list[Table]:
    if name == "winters":
        both = test.model, test.prepared
        return [*ahead(*both), winter_means(*both, test.ours)]
    if name == "cells":
        return [test.cells(v) for v in range(len(test.model.names))]
    if name == "dependence":
        return [test.dependence()]
    return stations(test, folder / "value_stations.nc")


class Test:
    """The test winters: truth, our members, and what others make of the same predictors."""

    def __init__(self, model: PrognosisModel, prepared: Prepared, members: int) -> None:
        """Draw our members and fit the baselines."""
        self.model, self.prepared, self.members = model, prepared, members
        self.valid = model.valid
        fine, coarse = prepared.arrays(prepared.train)
        self.train = fine.where(self.valid, torch.nan)
        truth, test_coarse = prepared.arrays(prepared.test)
        self.truth = truth.where(self.valid, torch.nan)
        now = [i for i, v in enumerate(model.predictor_variables) if "[" not in v.name]
        self.now = now
        x, q = (model.predictors(c) for c in (coarse, test_coarse))
        self.x, self.q = (model.standardised(c)[:, now] for c in (x, q))
        self.raw, self.raw_test = coarse[:, now], test_coarse[:, now]
        self.mean = model.transforms.inverse(model.mean.predict(q))
        part = prepared.test
        drawn = ensemble(model, prepared.coarse, part.start, part.stop, members=members)
        self.ours = torch.from_numpy(drawn)
        self.keys = prepared.fine.time_keys()[part]

    def methods(self, v: int) -> Iterator[tuple[str, Tensor]]:
        """Name and members (M, T, H, W) of every method for variable v."""
        name, amount = self.model.names[v], self.model.transforms.nonnegative[v]
        filled = torch.where(self.valid, self.train[:, v], 0.0)
        i = [self.model.predictor_variables[c].name for c in self.now].index(name)
        lift = self.model.lift
        yield "reanalysis, bilinear", lift(self.raw_test[:, i])[None]
        mapping = QuantileMapping(nonnegative=amount).fit(lift(self.raw[:, i]), filled)
        yield "reanalysis, quantile-mapped", mapping.predict(lift(self.raw_test[:, i]))
        yield "climatology", filled[self._random_days()].transpose(0, 1)
        fitted = cross_fit_fields(
            *(self.x, filled[:, None], self.valid, self.model.config.predictors.strengths),
            blocks=self.model.config.mean.blocks,
            gap=self.model.config.mean.gap,
        )
        mean = fitted.ridge.predict(self.q)[:, 0]
        yield "ridge", _kept(mean[None], amount)
        residual = filled - fitted.ridge.predict(self.x)[:, 0]
        dressed = mean + residual[self._random_days()].transpose(0, 1)
        yield "ridge + dressed residuals", _kept(dressed, amount)
        held_out = mean + (filled - fitted.mean[:, 0])[self._random_days()].transpose(0, 1)
        yield "ridge + held-out residuals", _kept(held_out, amount)
        yield "analogues", filled[self._analogues()].transpose(0, 1)
        yield "our mean", self.mean[None, :, v]
        yield "ours", self.ours[:, :, v]

    def _random_days(self) -> Tensor:
        """(T, M) training days."""
        days = [
            torch.randint(len(self.x), (self.members,), generator=keyed_generator(0, t))
            for t in range(len(self.q))
        ]
        return torch.stack(days)

    def _analogues(self) -> Tensor:
        """(T, M) the training days whose predictors are nearest, in principal components."""
        rows, queries = self.x.flatten(1).double(), self.q.flatten(1).double()
        _, s, basis = torch.linalg.svd(rows, full_matrices=False)
        share = s.square().cumsum(0) / s.square().sum()
        basis = basis[: int((share < 0.95).sum()) + 1].T
        distance = torch.cdist(queries @ basis, rows @ basis)
        return distance.topk(self.members, largest=False).indices

    def cells(self, v: int) -> Table:
        """Scores on the cells of the observations."""
        variable, amount = self.model.variables[v], self.model.transforms.nonnegative[v]
        rows: list[Row] = []
        for name, drawn in self.methods(v):
            rows.append({"method": name, **scores(drawn, self.truth[:, v], amount=amount)})
            _say(f"{variable.name}, {name}")
        title = (
            f"NCEP reanalysis to E-OBS 0.5 degrees, Iberia, {variable.name}; "
            f"{len(self.truth)} test days, {int(self.valid.sum())} land cells, "
            f"{self.members} members"
        )
        return table(rows, amount=amount, units=variable.units, title=title)

    def dependence(self) -> Table:
        """How members hang together in space, time and between variables, beside nature."""
        grid = self.model.fine_grid
        lat, lon = np.meshgrid(grid.y, grid.x, indexing="ij")
        part, rows = self.prepared.test, list[Row]()
        coherent = ensemble(
            *(self.model, self.prepared.coarse, part.start, part.stop), members=1, coherent=True
        )
        shown = {"observed": self.truth, "a member": self.ours[0]}
        shown["a member, --coherent"] = torch.from_numpy(coherent[0])
        for name, fields in shown.items():
            row: Row = {"what": name}
            for v, variable in enumerate(self.model.names):
                row[f"length_{variable}"] = correlation_length(fields[:, v], lat, lon)
                row[f"lag_{variable}"] = lag_one(fields[:, v], self.keys)
            row["between"] = cell_correlation(fields[:, 0], fields[:, 1])
            rows.append(row)
        columns = {"what": ""}
        for variable in self.model.names:
            columns |= {f"length_{variable}": f"{variable}: length (km)"}
            columns |= {f"lag_{variable}": f"{variable}: lag-1"}
        columns["between"] = " with ".join(self.model.names)
        formats = {k: ".0f" if k.startswith("length") else ".3f" for k in columns if k != "what"}
        return Table(rows, columns, formats, {}, "Correlations in space, time, between variables")


def stations(test: Test, path: Path) -> list[Table]:
    """Scores at stations, each from its nearest cell, at the level of the training winters."""
    data = xr.open_dataset(path)
    model, prepared = test.model, test.prepared
    place = _nearest_cells(model, data["lat"].values, data["lon"].values)
    days = prepared.fine.times.astype("datetime64[D]")
    known = data.sel(time=days)
    found = []
    for v, variable in enumerate(model.variables):
        amount = model.transforms.nonnegative[v]
        seconds = 86400 if amount and data[variable.name].attrs["units"] == "kg m-2 s-1" else 1
        truth = torch.from_numpy(known[variable.name].values.astype(np.float32)) * seconds
        past, now = truth[prepared.train], truth[prepared.test]
        cells = test.train[:, v, place[0], place[1]]
        rows: list[Row] = []
        for name, drawn in test.methods(v):
            at = drawn[..., place[0], place[1]]
            moved = _levelled(at, cells, past, amount)
            moved = moved.transpose(0, 1)[..., None].transpose(0, 1)
            row = scores(moved, now[..., None], amount=amount)
            row.pop("lsd")  # stations have no spectrum
            rows.append({"method": name, **row})
        title = f"{len(place[0])} stations, {variable.name}, from the nearest cell"
        found.append(table(rows, amount=amount, units=variable.units, title=title))
    return found


def century(
    model: PrognosisModel,
    folder: Path,
    reference: list[str],
    members: int = 4,
    steps: int | None = None,
) -> Table:
    """The change from 1982-2002 to 2080-2100 in CNRM-CM5, and in what the model makes of it."""
    rows: list[Row] = []
    found: dict[str, list[Row]] = {}
    for period, run in CENTURY.items():
        source = folder / f"day_CNRM-CM5_{run}_iberia_DJF.nc"
        for what, climate in _driven(model, source, folder, reference, members, steps):
            found.setdefault(what, []).append(climate)
            rows.append({"what": f"{what}, {period}", **climate})
        _say(f"CNRM-CM5 {run}")
    for what, (before, after) in found.items():
        change: Row = {k: _minus(after[k], before[k]) for k in before if k in CHANGES}
        rows.append({"what": f"{what}, change", **change})
    columns = {
        "what": "",
        "tas": "tas (K)",
        "tas_between": "± members",
        "tas_sd": "day-to-day sd (K)",
        "pr": "pr (mm/day)",
        "pr_between": "± members",
        "wet": "wet days",
        "q99": "q99 of pr",
        "far": "share of days out of distribution",
    }
    formats = dict.fromkeys(columns, ".2f") | {"wet": ".3f", "q99": ".1f"}
    formats |= {"tas_between": ".3f", "pr_between": ".3f"}
    formats.pop("what")
    return Table(
        rows,
        columns,
        formats,
        {},
        f"Winters of a global model, land cells of E-OBS, {members} members",
    )


def _driven(
    model: PrognosisModel,
    source: Path,
    folder: Path,
    reference: list[str],
    members: int,
    steps: int | None,
) -> Iterator[tuple[str, Row]]:
    """The climate of a run, and of its downscaling as it is and adjusted to the reanalysis."""
    downscaler = Downscaler(model)
    with tempfile.TemporaryDirectory() as place:
        adjusted = Path(place) / "adjusted.nc"
        history = (str(folder / "day_CNRM-CM5_historical_iberia_DJF.nc"),)
        adapt(Request((str(source),), history, tuple(reference), adjusted), say=lambda line: None)
        for what, path in (("downscaled", source), ("adjusted, downscaled", adjusted)):
            field = downscaler.field(path)
            far = {"far": float((ood_scores(model, field, 0, len(field)) > 1).mean())}
            if path == source:
                names = [v.name for v in model.predictor_variables]
                own = torch.from_numpy(field.read())[:, [names.index(n) for n in model.names]]
                lifted = model.lift(own)[None].where(model.valid, torch.nan)
                yield "CNRM-CM5", _climate(lifted)
            drawn = ensemble(model, field, 0, len(field), members=members, steps=steps)
            drawn = torch.from_numpy(drawn)
            yield what, {**_climate(drawn), **far}


def _minus(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _climate(drawn: Tensor) -> Row:
    """Statistics of (M, T, 2, H, W) tas and pr, cells without data left out."""
    valid = drawn[0, 0].isfinite().all(0)
    tas, pr = (drawn[:, :, v][..., valid].double() for v in (0, 1))
    levels = torch.quantile(pr.flatten(0, 1), 0.99, dim=0)
    several = len(drawn) > 1
    return {
        "tas": tas.mean().item(),
        "tas_between": tas.mean((1, 2)).std().item() if several else None,
        "tas_sd": tas.std(1).mean().item(),
        "pr": pr.mean().item(),
        "pr_between": pr.mean((1, 2)).std().item() if several else None,
        "wet": (pr > 1).double().mean().item(),
        "q99": levels.mean().item(),
    }


def _levelled(at: Tensor, cells: Tensor, past: Tensor, amount: bool) -> Tensor:
    """Values at cells (M, T, S) moved to the mean of the stations over the training part."""
    both = cells.isfinite() & past.isfinite()
    zero = torch.zeros(())
    cell, station = (
        torch.where(both, values, zero).sum(0) / both.sum(0) for values in (cells, past)
    )
    return at * (station / cell) if amount else at + (station - cell)


def _nearest_cells(model: PrognosisModel, lat: np.ndarray, lon: np.ndarray) -> tuple:
    """Rows and columns of the nearest cells that have data."""
    grid = model.fine_grid
    rows, columns = (i.numpy() for i in model.valid.nonzero().T)
    dy = grid.y[rows][None] - lat[:, None]
    dx = (grid.x[columns][None] - lon[:, None]) * np.cos(np.deg2rad(lat))[:, None]
    nearest = np.hypot(dy, dx).argmin(1)
    return rows[nearest], columns[nearest]


def _kept(members: Tensor, amount: bool) -> Tensor:
    return members.clamp_min(0) if amount else members


def _model(folder: Path, source: str, config: Config) -> PrognosisModel:
    """The trained model; one in the folder of another split may know the test part."""
    if not (folder / "model.json").exists():
        train(source, folder, config, resume=True, say=_say)
    model = DownscalingModel.load(folder)
    if not isinstance(model, PrognosisModel) or model.config.split != config.split:
        raise SystemExit(f"{folder}: another model, or trained with another split; remove it")
    return model


def _say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
