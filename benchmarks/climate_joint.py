"""How two variables go together in members drawn jointly, and in members that were not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apps.climate_downscaling.conserve import block_mean, upsample_nearest
from apps.climate_downscaling.dependence import cell_correlation, variable_gap
from apps.climate_downscaling.evaluation import WET_DAY
from core.report import Row, Table

if TYPE_CHECKING:
    from climate import Case, Draws

MEMBERS = 4
"""That are looked at: correlations and quantiles are of single members."""
TITLE = "RACMO22E, Iberia: daily temperature and precipitation of the same member"


def together(draws: Draws, case: Case) -> Table:
    """Measures of both variables: the model's own, drawn apart, and drawn jointly."""
    model, prepared = draws.model(case, "racmo_joint")
    truth = prepared.arrays(prepared.test)[0]
    joint, _ = draws.drawn(case, "racmo_joint", members=MEMBERS)
    single = [draws.drawn(case, name, members=MEMBERS)[0] for name in ("racmo_tas", "racmo_pr")]
    rows: list[Row] = [{"method": "RACMO22E itself", **measures(truth[None], truth, model.factor)}]
    for name, drawn in (
        ("ours, each variable alone", torch.cat(single, 2)),
        ("ours, tas and pr together", joint),
    ):
        rows.append({"method": name, **measures(drawn, truth, model.factor)})
    columns = {
        "method": "",
        "correlation": "tas with pr",
        "gap": "off by, cell by cell",
        "within": "within coarse cells",
        "within_gap": "off by, cell by cell ",
        "wet": "wet days",
        "q99": "q99 of pr, rel.",
    }
    formats = dict.fromkeys(("correlation", "gap", "within", "within_gap"), ".3f")
    formats |= {"wet": "+.3f", "q99": "+.3f"}
    title = f"{TITLE}; {len(truth)} test times, {len(joint)} members"
    return Table(rows, columns, formats, {}, title)


def measures(members: Tensor, truth: Tensor, factor: int) -> Row:
    """Of members (M, T, 2, H, W), tas and pr, beside the truth (T, 2, H, W).

    Returns:
        correlation in time of the two in a cell, mean over cells and members, and how far it is
        from the truth's on average over cells; the same of departures from the coarse cell's
        mean; errors of the share of wet days, and (relative) of the 99 % quantile of pr.
    """
    row: dict[str, float] = {}
    for name, part in (("correlation", 0), ("within", 1)):
        fields = [_departures(m, factor) if part else m for m in members]
        known = _departures(truth, factor) if part else truth
        row[name] = sum(_pair(m) for m in fields) / len(fields)
        gap = f"{name}_gap" if part else "gap"
        row[gap] = sum(variable_gap(m.numpy(), known.numpy(), 0) for m in fields) / len(fields)
    pr, rain = members[:, :, 1], truth[:, 1]
    row["wet"] = ((pr > WET_DAY).double().mean() - (rain > WET_DAY).double().mean()).item()
    quantiles = [_quantile(values) for values in (pr, rain)]
    row["q99"] = quantiles[0] / quantiles[1] - 1
    return row


def _pair(fields: Tensor) -> float:
    return cell_correlation(fields[:, 0], fields[:, 1])


def _departures(fields: Tensor, factor: int) -> Tensor:
    return fields - upsample_nearest(block_mean(fields, factor), factor)


def _quantile(values: Tensor, level: float = 0.99) -> float:
    ordered = values.flatten().sort().values.double()
    place = level * (len(ordered) - 1)
    below = int(place)
    return torch.lerp(ordered[below], ordered[below + 1], place - below).item()
