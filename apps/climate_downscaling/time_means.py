r"""Known means over time as a condition that was not trained for: all days of a period together.

    r_1 ... r_T ~ Π_t p(r_t | context_t)  given  m = (1/T) Σ_t y_t(r_t) + ε,    ε ~ N(0, σ²)

in some cells or all, y_t the finished field of day t, coarse means kept. Monthly climatologies and
gridded analyses are such means. Days are independent given their coarse fields, but not given the
mean: a period is drawn at once, by moment matching on the product of its days (Rozet et al. 2024,
arXiv:2405.13712), whatever chunk of it is asked for. Observations of its days (`stations`) are
conditions of the same draw.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from apps.climate_downscaling.constraints import Points
from apps.climate_downscaling.data import open_field, open_source
from apps.climate_downscaling.field import Field, Variable, time_keys
from apps.climate_downscaling.grid import Grid, match
from apps.climate_downscaling.stations import Seen, read_stations
from apps.climate_downscaling.times import whole_seconds, with_dates
from core.denoiser import Posterior
from core.errors import AleatorError
from core.guidance.inverse import MomentMatching
from core.operators import Operator
from core.path_model import PathModel
from core.random import Stream, randn
from core.solvers import make_sampler

if TYPE_CHECKING:
    from apps.climate_downscaling.model import DownscalingModel

ERRORS = {"K": 0.1, "mm day-1": 0.2, "m s-1": 0.2, "Pa": 10.0}
"""Unit -> standard deviation of a known mean, where none is given."""


@dataclass(frozen=True, eq=False)
class Period:
    """A known mean.

    Attributes:
        first: seconds since 1970.
        last: one past the end.
        seen: the means, on cells of a field (V, H, W).
    """

    first: int
    last: int
    seen: Seen


@dataclass(frozen=True, eq=False)
class TimeMeans:
    """Known means of some periods.

    Attributes:
        source: where they came from.
        periods: in order, apart from each other.
    """

    source: str
    periods: tuple[Period, ...]

    def fingerprint(self) -> str:
        """16 hexadecimal digits of all periods, places, values and errors."""
        digest = hashlib.sha256()
        for period in self.periods:
            digest.update(np.array([period.first, period.last]).tobytes())
            for values in (period.seen.cells, period.seen.values, period.seen.errors):
                digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()[:16]

    def blocks(self, keys: np.ndarray) -> Iterator[tuple[slice, Seen]]:
        """Steps of a series (T,) of seconds for every period that is in it from end to end."""
        step = float(np.median(np.diff(keys))) if len(keys) > 1 else 0.0
        for period in self.periods:
            start, stop = np.searchsorted(keys, [period.first, period.last])
            if step and (stop - start) * step >= period.last - period.first - step / 2:
                yield slice(int(start), int(stop)), period.seen

    def describe(self, field: Field) -> str:
        """Which of them apply to a field, in words.

        Raises:
            AleatorError: none does.
        """
        keys = field.time_keys()
        found = list(self.blocks(keys))
        if not found:
            first, last = (np.datetime64(int(keys[i]), "s") for i in (0, -1))
            raise AleatorError(
                f"{self.source}: no period of its {len(self.periods)} is wholly in the input "
                f"({first} to {last}); a mean needs all of its days"
            )
        count = sum(len(seen.cells) for _, seen in found)
        return (
            f"{self.source}: means of {len(found)} of {len(self.periods)} periods, "
            f"{count} values; the other periods are not wholly in the input"
            if len(found) < len(self.periods)
            else f"{self.source}: means of {len(found)} periods, {count} values"
        )


def read_time_means(
    source: str | Path,
    variables: tuple[Variable, ...],
    grid: Grid,
    valid: np.ndarray,
    errors: Mapping[str, float] | None = None,
) -> TimeMeans:
    """Read means over time: of all cells, or of stations.

    Args:
        source: NetCDF of fields on the model's grid, or of stations (time, station), or a CSV as
            for observations. Periods are the time bounds; where there are none, the calendar
            months of the times.
        variables: of the model.
        grid: of the model.
        valid: (H, W) cells that have data.
        errors: variable -> standard deviation in canonical units; see `ERRORS`.

    Raises:
        AleatorError: it cannot be read, or periods are not clear or overlap.
    """
    path, names = Path(source), [variable.name for variable in variables]
    if not path.exists():
        raise AleatorError(f"{path}: no such file")
    spreads = _errors(variables, errors or {})
    table = path.suffix.lower() in {".csv", ".txt"}
    dataset = None if table else open_source(path)[0]
    if dataset is None or "station" in dataset.dims:
        by_time = dict(read_stations(path, variables, grid, valid, spreads).by_time)
    else:
        by_time = _of_fields(path, dataset, names, grid, valid, spreads)
    spans = _spans(path, dataset, sorted(by_time))
    periods = sorted(
        (Period(*spans[key], seen) for key, seen in by_time.items()), key=lambda p: p.first
    )
    for before, after in itertools.pairwise(periods):
        if after.first < before.last:
            when = np.datetime64(after.first, "s")
            raise AleatorError(f"{path}: two of its periods overlap, at {when}")
    return TimeMeans(str(path), tuple(periods))


def _of_fields(
    path: Path,
    dataset: xr.Dataset,
    names: Sequence[str],
    grid: Grid,
    valid: np.ndarray,
    errors: Mapping[str, float],
) -> dict[int, Seen]:
    """Seconds -> means of the cells that have one."""
    known = [name for name in names if name in open_field(dataset, None).names]
    if not known:
        raise AleatorError(f"{path}: none of the model's variables ({', '.join(names)})")
    field = match(open_field(dataset, known), grid)
    values, size = field.read(allow_missing=True), int(np.prod(grid.shape))
    found = {}
    for key, fields in zip(field.time_keys().tolist(), values, strict=True):
        parts = []
        for name, cells in zip(known, fields, strict=True):
            there = np.flatnonzero((np.isfinite(cells) & valid).ravel())
            spread = np.full(len(there), errors[name])
            parts.append((names.index(name) * size + there, cells.ravel()[there], spread))
        cells, means, spreads = (np.concatenate(column) for column in zip(*parts, strict=True))
        if len(cells):
            found[key] = Seen(cells, means.astype(np.float64), spreads)
    if not found:
        raise AleatorError(f"{path}: no mean in any cell of the model")
    return found


def _errors(variables: tuple[Variable, ...], given: Mapping[str, float]) -> dict[str, float]:
    names = [variable.name for variable in variables]
    if strange := set(given) - set(names):
        raise AleatorError(
            f"--time-mean-error {min(strange)}: the model's variables are {', '.join(names)}"
        )
    found = {}
    for variable in variables:
        error = given.get(variable.name, ERRORS.get(variable.units, 0.0))
        if not error > 0:
            raise AleatorError(
                f"--time-mean-error {variable.name}=VALUE: a positive one is needed"
            )
        found[variable.name] = float(error)
    return found


def _spans(
    path: Path, dataset: xr.Dataset | None, keys: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """Seconds of a time -> first second of its period and one past the last."""
    if dataset is not None:
        dataset, _ = with_dates(dataset, "time", str(path))
        time = dataset["time"]
        name = time.attrs.get("bounds", time.encoding.get("bounds"))
        if name in dataset.variables and dataset[name].dtype.kind in "MO":
            stamps = time_keys(whole_seconds(time.values)).tolist()
            edges = [time_keys(whole_seconds(dataset[name].values[:, k])) for k in (0, 1)]
            return dict(zip(stamps, zip(*(e.tolist() for e in edges), strict=True), strict=True))
    months = [np.datetime64(key, "s").astype("datetime64[M]") for key in keys]
    if len(set(months)) < len(months):
        raise AleatorError(
            f"{path}: several means in a month, and no time bounds that say of what; give the "
            "time coordinate bounds (CF)"
        )
    first, last = (
        [int((m + k).astype("datetime64[s]").astype(int)) for m in months] for k in (0, 1)
    )
    return dict(zip(keys, zip(first, last, strict=True), strict=True))


@dataclass(frozen=True, eq=False)
class PeriodMean(Operator):
    """Means over time of finished fields in some cells, in units of their errors.

    Attributes:
        model: that finishes fields.
        coarse: (T, V, h, w) of the days.
        mean: (T, V, H, W) μ.
        scale: (T, V, H, W) what residuals are multiplied by.
        place: (K,) positions in a flattened field.
        errors: (K,) standard deviations.
        conserve: coarse means are kept.
    """

    model: DownscalingModel
    coarse: Tensor
    mean: Tensor
    scale: Tensor
    place: Tensor
    errors: Tensor
    conserve: bool
    linear: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """(N, K) means of residuals (N, T, V, H, W)."""
        fine = self.model.finished(self.mean + self.scale * x, self.coarse, self.conserve)
        return fine.flatten(2)[..., self.place].mean(1) / self.errors


@dataclass(frozen=True, eq=False)
class Both(Operator):
    """Means over a period, and observations of some of its days.

    Attributes:
        means: of the period.
        days: day of the period -> what was observed on it, of residuals (N, V, H, W).
    """

    means: PeriodMean
    days: Mapping[int, Points]
    linear: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """(N, K) of residuals (N, T, V, H, W): the means, then the observations day by day."""
        return torch.cat([self.means(x), *(seen(x[:, t]) for t, seen in self.days.items())], 1)


class _Days:
    """A model of a day as one of T days, each in its own context."""

    def __init__(self, model: PathModel, context: Any) -> None:
        self.model, self.context, self.denoiser = model, context, model.denoiser

    def denoise(self, x_t: Tensor, t: Any, context: Any = None) -> Posterior:
        """Of days (1, T, V, H, W); all at the same noise level t."""
        found = self.model.denoise(x_t[0], t, self.context)
        return Posterior(found.mean[None], x_t, found.point)


def fill_periods(
    blocks: Iterable[tuple[slice, Seen]],
    start: int,
    out: np.ndarray,
    draw: Callable[[slice, Seen, int], np.ndarray],
) -> np.ndarray:
    """Draw every period that reaches into a chunk, whole, and keep what belongs to the chunk.

    Args:
        blocks: steps of the series and the means over them.
        start: first step of the chunk.
        out: (M, T, ...) of the chunk, to be filled.
        draw: (steps, means, member) -> (steps, ...).

    Returns:
        (T,) which steps of the chunk are in no period.
    """
    members, steps = out.shape[:2]
    left = np.ones(steps, bool)
    for days, seen in blocks:
        first, last = max(days.start, start), min(days.stop, start + steps)
        if first < last:
            left[first - start : last - start] = False
            for member in range(members):
                whole = draw(days, seen, member)
                part = whole[first - days.start : last - days.start]
                out[member, first - start : last - start] = part
    return left


def draw_period(
    model: DownscalingModel,
    coarse: Tensor,
    clock: Tensor,
    seen: Seen,
    streams: Sequence[Stream],
    *,
    sampler: Mapping[str, Any] | None = None,
    conserve: bool = True,
    stations: Mapping[int, Seen] | None = None,
) -> Tensor:
    """One member of all days of a period, given means over it.

    Args:
        model: trained, its residual's family diffusion or flow matching.
        coarse: (T, V, h, w) in canonical units.
        clock: (T, K).
        seen: the means.
        streams: T of them.
        sampler: overrides the config's.
        conserve: make the block means equal the input exactly.
        stations: day of the period -> what was observed on it, if anything was.

    Returns:
        (T, V, H, W) in canonical units; NaN where there are no data.

    Raises:
        AleatorError: another family.
    """
    residual = model.trained
    if not isinstance(residual, PathModel):
        raise AleatorError(
            f"--time-means needs a residual of diffusion or flow matching, not of "
            f"{model.config.residual.family}"
        )
    mean, scale, context = model.conditions(coarse, clock)
    device = mean.device
    values, errors = (torch.from_numpy(v).to(mean) for v in (seen.values, seen.errors))
    place = torch.from_numpy(seen.cells).to(device)
    days = (coarse, mean, model.inflated(scale), place, errors, conserve)
    means = PeriodMean(model, *days)
    points = {
        t: Points.of(day, model.transforms, mean[t], model.inflated(scale)[t])
        for t, day in (stations or {}).items()
    }
    operator = Both(means, {t: point for t, (point, _) in points.items()}) if points else means
    known = torch.cat([values / errors, *(observed for _, observed in points.values())])
    guidance = MomentMatching(known[None], operator, 1.0)
    noise = residual.prior_std * randn(mean.shape, streams, device=device, dtype=mean.dtype)
    chosen = make_sampler(model.sampler(sampler))
    drawn = chosen(guidance.bind(_Days(residual, context), None), noise[None], path=residual.path)
    with torch.no_grad():
        return model.finished(mean + model.inflated(scale) * drawn[0], coarse, conserve)
