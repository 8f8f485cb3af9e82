"""The main job: open, check, downscale chunk by chunk, finish, then show and judge the result.

Everything that can be refused is refused before anything is computed, and nothing has the
output's name before it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.downscale import (
    Downscaler,
    bundled_model,
    open_input,
    sample_training,
)
from apps.climate_downscaling.field import Field, show_time
from apps.climate_downscaling.grid import match
from apps.climate_downscaling.job import Job
from apps.climate_downscaling.ood import WARN_ABOVE
from apps.climate_downscaling.output import create_store, exporter
from apps.climate_downscaling.remap import METHODS
from apps.climate_downscaling.stations import Stations, describe_stations
from apps.climate_downscaling.template import OOD
from apps.climate_downscaling.time_means import TimeMeans
from core.errors import AleatorError
from core.report import command_line
from core.streaming import PartialStore, stream

Say = Callable[[object], None]
CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class Request:
    """What `downscale` was asked for; see `python -m pipelines.climate downscale --help`."""

    sources: tuple[str, ...] = ()
    output: Path = Path("downscaled.nc")
    model: Path | None = None
    members: int = 16
    steps: int | None = None
    seed: int = 0
    time_range: str | None = None
    regrid: str | None = None
    conserve: bool = True
    coherent: bool = False
    observations: str | None = None
    observation_error: tuple[tuple[str, float], ...] = ()
    time_means: str | None = None
    time_mean_error: tuple[tuple[str, float], ...] = ()
    workers: int | None = None
    scheduler: str | None = None
    chunk: int | None = None
    device: str = "auto"
    truth: str | None = None
    figure: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("members", "steps", "workers", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise AleatorError(f"--{name} {value}: at least one is needed")
        if self.regrid is not None and self.regrid not in METHODS:
            raise AleatorError(f"--regrid {self.regrid}: known are {', '.join(METHODS)}")
        exporter(self.output)
        if self.output.exists() and not self.overwrite:
            raise AleatorError(f"{self.output} exists; choose another name or --overwrite")
        if not self.output.absolute().parent.is_dir():
            raise AleatorError(f"{self.output.parent}: no such folder")


def run(request: Request, say: Say = print) -> Path:
    """Do the job.

    Args:
        request: what is wanted.
        say: for the log.

    Returns:
        path of the output.

    Raises:
        AleatorError: anything wrong with the input, the model, the options or the disk.
    """
    downscaler = Downscaler.load(request.model, request.device)
    field, truth = open_input(downscaler, request.sources, request.time_range, request.regrid)
    if request.truth is not None:
        known = open_field(request.truth, downscaler.model.names, time_range=request.time_range)
        truth = match(known, downscaler.model.fine_grid)
    say(field.describe())
    stations = downscaler.stations(request.observations, dict(request.observation_error))
    if stations is not None:
        say(describe_stations(stations, field))
    means = downscaler.time_means(request.time_means, dict(request.time_mean_error))
    if means is not None:
        say(means.describe(field))
    store = _compute(request, downscaler, field, stations, means)
    output = store.finish(exporter(request.output))
    say(f"wrote {request.output}: {request.members} members, model {downscaler.model.fingerprint}")
    _warn(output, field, say)
    if request.figure:
        picture = request.output.with_suffix(".png")
        _draw(picture, output, downscaler, field, truth)
        say(f"drew {picture}")
    if truth is not None:
        from apps.climate_downscaling.comparison import compare

        prepared = None if request.sources else sample_training(downscaler.model)
        for found in compare(output, downscaler.model, field, truth, prepared):
            found.print()
    return output


def _compute(
    request: Request,
    downscaler: Downscaler,
    field: Field,
    stations: Stations | None,
    means: TimeMeans | None,
) -> PartialStore:
    """Fill a partial store, or what is missing of it."""
    chunk = min(request.chunk or _chunk(request, downscaler), len(field))
    described = downscaler.template(
        field, request.members, time_chunk=chunk, history=command_line()
    )
    names = ("members", "seed", "steps", "conserve", "coherent")
    options: dict[str, Any] = {name: getattr(request, name) for name in names}
    store = PartialStore.open(
        request.output,
        length=len(field),
        job={"input": field.fingerprint(), "model": downscaler.model.fingerprint, **options}
        | ({"observations": stations.fingerprint()} if stations else {})
        | ({"time_means": means.fingerprint()} if means else {})
        | ({"regrid": request.regrid} if request.regrid else {}),
        create=lambda path: create_store(described, path),
        overwrite=request.overwrite,
    )
    workers = request.workers or 1
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
    folder = (request.model or bundled_model()).absolute()
    sources = [s if "://" in s else str(Path(s).absolute()) for s in request.sources]
    job = Job(
        *(folder, sources, request.time_range, request.device, threads, request.regrid),
        stations=stations,
        means=means,
        **options,
    )
    if workers == 1 and request.scheduler is None:
        job.use(downscaler, field)
    fields = [str(n) for n in described.data_vars if "member" in described[n].dims]
    stream(
        job,
        store,
        chunk=chunk,
        arrays={**dict.fromkeys(fields, 1), OOD: 0},
        workers=workers,
        scheduler=request.scheduler,
        progress="time steps",
    )
    return store


def _chunk(request: Request, downscaler: Downscaler) -> int:
    """Time steps a task: about 16 MiB of output."""
    cells = int(np.prod(downscaler.model.fine_grid.shape)) * len(downscaler.model.names)
    return max(1, CHUNK_BYTES // (4 * request.members * cells))


def _warn(output: Path, field: Field, say: Say) -> None:
    """Name the times whose coarse field is further from the training data than usual."""
    with _open(output) as result:
        score = result[OOD].values
    far = np.flatnonzero(score > WARN_ABOVE)
    if len(far):
        worst = int(score.argmax())
        say(
            f"warning: {len(far)} of {len(score)} time steps are unlike the training data "
            f"(ood_score > {WARN_ABOVE:g}; most at {show_time(field.times[worst])}: "
            f"{score[worst]:.2f}); trust these members less"
        )


def _draw(
    picture: Path, output: Path, downscaler: Downscaler, field: Field, truth: Field | None
) -> None:
    """OUT.png of the time step in the middle, first variable."""
    from apps.climate_downscaling.plots import draw_downscaled

    model, step = downscaler.model, len(field) // 2
    with _open(output) as result:
        ood = float(result[OOD].values[step])
    members = open_field(output, model.names, ensemble=True)
    fine = match(members, model.fine_grid).read(step, step + 1, allow_missing=True)[:, 0, 0]
    known = None
    if truth is not None:
        known = _at_time(truth, field, step)
    draw_downscaled(
        picture,
        coarse=_shown(field, model.names[0], step),
        members=fine,
        truth=known,
        coarse_grid=model.coarse_grid,
        fine_grid=model.fine_grid,
        variable=model.variables[0],
        time=show_time(field.times[step]),
        ood=ood,
    )


def _shown(field: Field, name: str, step: int) -> np.ndarray | None:
    """The coarse field of a variable, if it is among the predictors."""
    if name not in field.names:
        return None
    return field.read(step, step + 1, allow_missing=True)[0, field.names.index(name)]


def _at_time(truth: Field, field: Field, step: int) -> np.ndarray | None:
    found = np.flatnonzero(truth.time_keys() == field.time_keys()[step])
    if not len(found):
        return None
    return truth.read(int(found[0]), int(found[0]) + 1, allow_missing=True)[0, 0]


def _open(output: Path) -> xr.Dataset:
    return xr.open_zarr(output) if output.is_dir() else xr.open_dataset(output)
