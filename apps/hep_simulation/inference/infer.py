"""`infer`: sets of events in, posteriors of the parameters out, as NetCDF that says what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apps.hep_simulation.inference.data import EventSets, read_sets
from apps.hep_simulation.inference.posterior import Inference, load
from core.errors import AleatorError
from core.report import Table, replacing

if TYPE_CHECKING:
    import xarray as xr

Say = Callable[[object], None]
SAMPLE = Path(__file__).parents[1] / "samples" / "inference"
"""Bundled weights, and a few sets of events."""
ALARM = 0.01


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        source: sets of events; the bundled ones if None.
        output: POSTERIOR.nc.
        model: folder; the bundled one if None.
        draws: samples a set.
        events: use only the first so many of each set; all if None.
        seed: set k's draws depend on it and k alone.
        strict: refuse sets that look like nothing in training, rather than flag them.
        overwrite: replace an existing output.
    """

    source: Path | None
    output: Path
    model: Path | None = None
    draws: int = 1000
    events: int | None = None
    seed: int = 0
    strict: bool = False
    overwrite: bool = False


def run(request: Request, say: Say = print) -> Table:
    """Infer, write, summarise.

    Raises:
        AleatorError: input, model or output that cannot be used; with `strict`, a set unlike
            those of training.
    """
    if request.output.suffix not in (".nc", ".nc4"):
        raise AleatorError(f"{request.output}: a posterior is written as NetCDF; name it *.nc")
    if request.output.exists() and not request.overwrite:
        raise AleatorError(f"{request.output} exists; choose another name or --overwrite")
    if request.draws < 2:
        raise AleatorError(f"--samples {request.draws}: at least two are needed")
    bundled = request.source is None
    source = SAMPLE / "events.hdf5" if request.source is None else request.source
    model = load(request.model or SAMPLE)
    sets = read_sets(source)
    if request.events is not None:
        sets = sets.first(request.events)
    sets = matched(sets, model)
    if bundled:
        say(f"the bundled sets of events ({source.name}) with the bundled weights")
    result = posterior_of(sets, model, draws=request.draws, seed=request.seed)
    flagged = int(result["flagged"].sum())
    if flagged:
        first = int(np.argmax(result["flagged"].values))
        message = (
            f"{flagged} of {len(sets)} sets look unlike the simulations that the model was "
            f"trained on (first: set {first}, misfit p = {float(result['misfit_p'][first]):.2g}, "
            f"{100 * float(result['outside'][first]):.0f} % of its events beyond their range)"
        )
        if request.strict:
            raise AleatorError(message)
        say(f"warning: {message}; do not trust their posteriors")
    result.attrs |= {"source": source.name, "model": model.fingerprint}
    with replacing(request.output) as draft:
        result.to_netcdf(draft, engine="netcdf4")
    say(f"posteriors of {len(sets)} sets written to {request.output}")
    return summary(result)


def matched(sets: EventSets, model: Inference) -> EventSets:
    """The sets with the model's observables, in its order.

    Raises:
        AleatorError: an observable is missing; or the file's parameters are other ones.
    """
    if missing := [name for name in model.x_names if name not in sets.x_names]:
        raise AleatorError(
            f"{sets.source}: no observable {missing[0]!r}; it has {', '.join(sets.x_names)}; the "
            f"model needs {', '.join(model.x_names)}"
        )
    if sets.prior is not None and sets.prior.names != model.prior.names:
        raise AleatorError(
            f"{sets.source}: parameters {', '.join(sets.prior.names)}; the model infers "
            f"{', '.join(model.prior.names)}"
        )
    if sets.theta is not None:
        try:
            model.prior.to_unit(sets.theta)
        except AleatorError as error:
            raise AleatorError(f"{sets.source}: {error} (the model's prior)") from None
    order = [sets.x_names.index(name) for name in model.x_names]
    return EventSets(sets.x[:, :, order], model.x_names, sets.theta, sets.prior, sets.source)


def posterior_of(sets: EventSets, model: Inference, *, draws: int, seed: int) -> xr.Dataset:
    """Posteriors of all sets.

    Returns:
        `theta` (set, sample, parameter), `log_density` (set, sample) in nats, of θ in its units,
        `mean`, `std`, `quantile`, `predictive_p` (set, observable), `misfit_p`, `outside`,
        `flagged`; where the truth is known `truth` and `log_density_of_truth`. Attributes
        say how far to trust it.
    """
    import xarray as xr

    dims = model.prior.dims
    theta = np.empty((len(sets), draws, dims))
    log_q, kind = np.empty((len(sets), draws)), "exact"
    log_truth = np.full(len(sets), np.nan)
    check = np.empty((len(sets), len(model.x_names)))
    for k, x in enumerate(sets.x):
        theta[k] = model.sample(x, draws, seed=seed, number=k)
        asked = theta[k] if sets.theta is None else np.concatenate([theta[k], sets.theta[k][None]])
        found = model.log_prob(_inside(asked, model), x)
        kind, log_q[k] = found.kind, found.value[:draws].numpy()
        if sets.theta is not None:
            log_truth[k] = float(found.value[draws])
        u = torch.as_tensor(model.prior.to_unit(_inside(theta[k], model)))
        check[k] = model.guard.predictive(model.standardised(x), u).numpy()
    events = model.standardised(sets.x)
    p, out = model.guard.misfit(events), model.guard.outside(events)
    levels = [0.025, 0.16, 0.5, 0.84, 0.975]
    each = ("set", "parameter")
    data: dict[str, Any] = {
        "theta": (("set", "sample", "parameter"), theta),
        "log_density": (("set", "sample"), log_q, {"units": "nats", "kind": kind}),
        "mean": (each, theta.mean(1)),
        "std": (each, theta.std(1, ddof=1)),
        "quantile": (("level", *each), np.quantile(theta, levels, axis=1)),
        "misfit_p": ("set", p.numpy(), {"long_name": "share of training sets that fit as badly"}),
        "outside": ("set", out.numpy(), {"long_name": "share of events beyond training's range"}),
        "flagged": ("set", alarming(p, out, sets.x.shape[1]).numpy()),
        "predictive_p": (
            ("set", "observable"),
            check,
            {"long_name": "posterior predictive P(mean of new events < observed mean)"},
        ),
        "prior_low": ("parameter", list(model.prior.low)),
        "prior_high": ("parameter", list(model.prior.high)),
    }
    if sets.theta is not None:
        data["truth"] = (each, sets.theta)
        data["log_density_of_truth"] = ("set", log_truth, {"units": "nats", "kind": kind})
    coords = {
        "parameter": list(model.prior.names), "level": levels, "observable": list(model.x_names),
    }  # fmt: skip
    return xr.Dataset(data, coords, attrs=_attributes(model, sets, seed))


def alarming(p: torch.Tensor, outside: torch.Tensor, events: int) -> torch.Tensor:
    """Sets that fit worse than 99 % of training, or with too many events beyond its range."""
    return (p < ALARM) | (outside > max(0.02, 1.5 / events))


def _inside(theta: np.ndarray, model: Inference) -> np.ndarray:
    """Draws next to a bound may round onto it."""
    low, high = np.asarray(model.prior.low), np.asarray(model.prior.high)
    return np.clip(theta, np.nextafter(low, high), np.nextafter(high, low))


def _attributes(model: Inference, sets: EventSets, seed: int) -> dict[str, Any]:
    events = sets.x.shape[1]
    rows = model.card.get("scores") or []
    near: dict[str, Any] = min(
        rows, key=lambda row: abs(np.log(row["events"] / events)), default={}
    )
    return {
        "title": "posterior of the parameters given sets of independent events",
        "method": model.config["method"],
        "prior": "uniform between prior_low and prior_high",
        "events_per_set": events,
        "seed": seed,
        "log_density_of_prior": -model.prior.log_volume,
        "trained_on": str(model.card.get("data", "")),
        "out_of_fold_events": near.get("events", 0),
        "out_of_fold_coverage_68": near.get("68 % coverage", np.nan),
        "out_of_fold_mean_log_q_over_prior": near.get("mean ln q", np.nan),
    }


def summary(result: xr.Dataset) -> Table:
    """One row a parameter: how much was learned, and, where truths are known, how well."""
    rows = []
    for name in result["parameter"].values:
        one = result.sel(parameter=name)
        width = float((one["prior_high"] - one["prior_low"]) / np.sqrt(12))
        row = {
            "parameter": str(name),
            "mean": float(one["mean"].mean()),
            "std": float(one["std"].mean()),
            "shrink": float(one["std"].mean()) / width,
        }
        if "truth" in result:
            low, high = one["quantile"].sel(level=0.16), one["quantile"].sel(level=0.84)
            row["inside"] = float(((one["truth"] > low) & (one["truth"] < high)).mean())
        rows.append(row)
    columns = {
        "parameter": "parameter", "mean": "mean", "std": "std", "shrink": "std / prior's",
    }  # fmt: skip
    if "truth" in result:
        columns["inside"] = "truth in 68 %"
    title = f"{result.sizes['set']} sets of {result.attrs['events_per_set']} events"
    return Table(rows, columns, {"shrink": ".2f", "inside": ".2f"}, title=title)
