"""The downscaled ensemble beside what users would pick instead, scored against the truth.

Baselines are fitted on the training part of the same data where it is at hand (the bundled
sample); otherwise only those that need none are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.baselines import Baseline, baselines
from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.evaluation import scores, table
from apps.climate_downscaling.field import Field, show_time
from apps.climate_downscaling.grid import match
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.training_data import Prepared
from core.errors import AleatorError
from core.random import keyed_generator
from core.report import Row, Table

UNTRAINED = ("nearest", "bilinear", "bicubic")
SHOWN = ("bicubic", "quantile mapping", "ridge", "ridge + dressed residuals", "analogues")
MOST_STEPS = 512


def compare(
    output: Path,
    model: DownscalingModel,
    field: Field,
    truth: Field,
    prepared: Prepared | None = None,
) -> list[Table]:
    """Tables of scores, one a variable.

    Args:
        output: what was downscaled.
        model: that did it.
        field: the coarse input on the model's grid.
        truth: fine fields on the model's grid, some of whose times are those of the input.
        prepared: data to fit baselines on; without, only interpolations are compared.

    Raises:
        AleatorError: truth and output have no time in common.
    """
    ours, theirs = _common(field, truth)
    found = match(open_field(output, model.names, ensemble=True), model.fine_grid)
    members = torch.from_numpy(_read(found, ours)).movedim(-3, 0)  # (V, M, T, H, W)
    known = torch.from_numpy(_read(truth, theirs)).movedim(-3, 0)
    coarse = torch.from_numpy(_read(field, ours)).movedim(-3, 0)
    first, last = (show_time(field.times[i]) for i in (ours[0], ours[-1]))
    tables = []
    for v, variable in enumerate(model.variables):
        amount = model.transforms.nonnegative[v]
        rows: list[Row] = []
        if model.factor:
            given = (coarse[v], known[v], members.shape[1], prepared, model)
            rows = baseline_rows(v, amount, *given)
        own = scores(members[v], known[v], amount=amount, factor=model.factor or None)
        rows.append({"method": "this model", **own})
        title = f"{variable.name}, {len(ours)} time steps, {first} to {last}"
        tables.append(table(rows, amount=amount, units=variable.units, title=title))
    return tables


def baseline_rows(
    v: int,
    amount: bool,
    coarse: Tensor,
    truth: Tensor,
    members: int,
    prepared: Prepared | None,
    model: DownscalingModel,
    names: Sequence[str] | None = None,
) -> list[Row]:
    """Scores of baselines for variable `v`, one row each."""
    known = baselines(nonnegative=amount)
    if prepared is None:
        shown: Sequence[str] = UNTRAINED
        fit_coarse, fit_fine = coarse, truth  # only the factor is taken from these
    else:
        shown = names or SHOWN
        fine, block = prepared.arrays(prepared.train)
        fit_coarse, fit_fine = block[:, v], fine[:, v]
    rows: list[Row] = []
    for name in shown:
        method: Baseline = known[name].fit(fit_coarse, fit_fine)
        drawn = method.predict(coarse, members, keys(len(coarse)))
        found = scores(drawn, truth, amount=amount, factor=model.factor)
        rows.append({"method": name, **found})
    return rows


def keys(steps: int, seed: int = 0) -> list[torch.Generator]:
    """One stream a time step, for baselines that draw."""
    return [keyed_generator(seed, step) for step in range(steps)]


def _common(field: Field, truth: Field) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the common times in both, thinned evenly to what fits in memory."""
    _, ours, theirs = np.intersect1d(field.time_keys(), truth.time_keys(), return_indices=True)
    if not len(ours):
        raise AleatorError(
            f"{truth.source} ({show_time(truth.times[0])} to {show_time(truth.times[-1])}) and "
            f"the input ({show_time(field.times[0])} to {show_time(field.times[-1])}) have no "
            "time in common"
        )
    every = -(-len(ours) // MOST_STEPS)
    return ours[::every], theirs[::every]


def _read(field: Field, steps: np.ndarray) -> np.ndarray:
    """Some time steps of a field, in runs of neighbours."""
    runs = np.split(steps, np.flatnonzero(np.diff(steps) != 1) + 1)
    axis = 1 if field.members else 0
    parts = [field.read(int(r[0]), int(r[-1]) + 1, allow_missing=True) for r in runs]
    return np.concatenate(parts, axis)
