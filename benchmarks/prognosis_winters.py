"""How far off whole winters are: what the past said of it, and what members say."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.downscale import ensemble
from apps.climate_downscaling.drift import FEWEST, YEAR, Drift
from apps.climate_downscaling.field_ridge import cross_fit_fields
from apps.climate_downscaling.prognosis import PrognosisModel
from apps.climate_downscaling.training_data import Prepared
from core.random import keyed_generator
from core.report import Row, Table

FEW = 8
"""Members that are drawn without the effect, for comparison."""


def ahead(model: PrognosisModel, prepared: Prepared) -> list[Table]:
    """Each winter as it was seen from the winters before it, one table a variable.

    Regression and drift are fitted on the winters before, with the strengths of the model, and
    the expected error is that of the model with their leverage; of the first winters, too few to
    tell of drift, there is no row. The test winters are seen from the last training winter, as in
    every other table.
    """
    fine, coarse = prepared.arrays(slice(0, prepared.test.stop))
    fine = torch.where(model.valid, fine, fine[..., model.valid].nanmean(-1)[..., None, None])
    x, z = model.predictors(coarse), model.transforms.forward(fine, keyed_generator(0, -2))
    keys = prepared.fine.time_keys()[: prepared.test.stop]
    year = winters(keys)
    last = int(year[prepared.train.stop - 1])
    rows: list[list[Row]] = [[] for _ in model.names]
    for winter in np.unique(year)[2 * FEWEST :].tolist():
        until = min(winter, last + 1)
        past, now = np.flatnonzero(year < until), np.flatnonzero(year == winter)
        if winter <= last + 1:
            mean, offset = _fitted(model, x[past], z[past], keys[past])
        found = mean.predict(x[now])
        spread = model.dispersion(found + offset, mean.leverage(x[now]))
        for v in range(len(model.names)):
            errors = (z[now] - found)[:, v, model.valid]
            after = errors - offset[v, model.valid]
            part = "test" if winter > last else "training"
            rows[v].append(
                {
                    "winter": f"{winter - 1}/{winter % 100:02d}",
                    "seen": f"{part}, from {until - 1}",
                    "before": errors.nanmean().item(),
                    "bias": after.nanmean().item(),
                    "rmse": after.square().nanmean().sqrt().item(),
                    "spread": spread[:, v, model.valid].square().mean().sqrt().item(),
                }
            )
    columns = {"winter": "winter", "seen": "seen from the winters to", "before": "mean error"}
    columns |= {"bias": "less drift", "rmse": "RMSE", "spread": "expected (rms of s)"}
    formats = {"before": "+.2f", "bias": "+.2f", "rmse": ".2f", "spread": ".2f"}
    units = [
        v.units if t.inverse(torch.tensor(2.0)) == 2 else f"({v.units})^{t.power:g}"  # type: ignore[union-attr]
        for v, t in zip(model.variables, model.transforms.each, strict=True)
    ]
    return [
        Table(rows[v], columns, formats, {}, f"Errors of the mean, {name}, in {units[v]}")
        for v, name in enumerate(model.names)
    ]


def winter_means(model: PrognosisModel, prepared: Prepared, drawn: Tensor) -> Table:
    """Means over the test winters: their error, and how members (M, T, V, H, W) vary."""
    part = prepared.test
    truth = prepared.arrays(part)[0]
    year = winters(prepared.fine.time_keys()[part])
    without = dataclasses.replace(model, years=None)
    some = min(FEW, len(drawn))
    apart = torch.from_numpy(
        ensemble(without, prepared.coarse, part.start, part.stop, members=some)
    )
    rows: list[Row] = []
    for v, name in enumerate(model.names):
        complete = model.valid & truth[:, v].isfinite().all(0)
        known = _means(truth[:, v][..., complete][None], year)[0]
        for what, members in (("no year effect", apart), ("ours", drawn)):
            found = _means(members[:, :, v][..., complete], year)
            error = (found.mean(0) - known).square().mean().sqrt()
            spread = ((1 + 1 / len(found)) * found.var(0).mean()).sqrt()
            rows.append(
                {
                    "what": f"{name}, {what}",
                    "rmse": error.item(),
                    "spread": spread.item(),
                    "ratio": (spread / error).item(),
                }
            )
    columns = {"what": "", "rmse": "RMSE of a winter's mean", "spread": "spread of members"}
    columns["ratio"] = "spread/skill"
    formats = {"rmse": ".3f", "spread": ".3f", "ratio": ".2f"}
    title = f"Means over each of the {len(np.unique(year))} test winters, {len(drawn)} members"
    title += f", {some} without the effect"
    return Table(rows, columns, formats, {}, title)


def winters(keys: np.ndarray) -> np.ndarray:
    """The year in which the winter of a time (seconds since 1970) ends."""
    return np.floor(keys / YEAR + 0.5).astype(int) + 1970


def _fitted(model: PrognosisModel, x: Tensor, z: Tensor, keys: np.ndarray) -> tuple:
    """The regression, and the drift that it sees, of some winters."""
    strengths = model.mean.strength.tolist()
    folds = {"blocks": model.config.mean.blocks, "gap": model.config.mean.gap}
    if len(set(strengths)) > 1:
        raise SystemExit("prognosis_winters: one strength for all variables is expected")
    fitted = cross_fit_fields(x, z, model.valid, strengths[:1], **folds)
    drift = Drift.fit(z - fitted.mean, keys, model.valid)
    return fitted.ridge, drift.offset


def _means(values: Tensor, year: np.ndarray) -> Tensor:
    """(M, Y, N) means over the times of each year of (M, T, N)."""
    rows = [torch.from_numpy(np.flatnonzero(year == y)) for y in np.unique(year)]
    return torch.stack([values[:, r].double().mean(1) for r in rows], 1)
