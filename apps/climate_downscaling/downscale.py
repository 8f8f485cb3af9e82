"""Downscaling: a trained model and a coarse field in, an ensemble of fine fields out.

Noise is keyed by (seed, member, time stamp) and the members of a time step are computed together,
whatever else is computed beside them: numbers depend neither on chunks, nor on workers, nor on
which part of a series is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from apps.climate_downscaling.coherence import streams_of
from apps.climate_downscaling.data import Source, open_field, sample_path, select_times
from apps.climate_downscaling.field import Field, Layout
from apps.climate_downscaling.grid import match
from apps.climate_downscaling.model import DownscalingModel, clock_vector
from apps.climate_downscaling.predictors import open_predictors, sources_of
from apps.climate_downscaling.prognosis import PrognosisModel
from apps.climate_downscaling.remap import on_grid
from apps.climate_downscaling.side_by_side import side_by_side
from apps.climate_downscaling.stations import Seen, Stations, read_stations
from apps.climate_downscaling.template import OOD, Encoder, template
from apps.climate_downscaling.time_means import (
    TimeMeans,
    draw_period,
    fill_periods,
    read_time_means,
)
from apps.climate_downscaling.training_data import Prepared, prepare_data
from core.errors import AleatorError
from core.training.fit import resolve_device

GROUP = 64
"""Members drawn in one batch; more are drawn in several."""


class Downscaler:
    """A trained model, ready to use.

    Example:
        >>> downscaler = Downscaler.load("my_model")  # doctest: +SKIP
        >>> fine = downscaler.downscale(xr.open_dataset("coarse.nc"), members=16)  # doctest: +SKIP
    """

    def __init__(self, model: DownscalingModel, device: str = "auto") -> None:
        """Put a model on a device."""
        self.device = resolve_device(device)
        self.model = model.to(self.device)

    @classmethod
    def load(cls, folder: Path | str | None = None, device: str = "auto") -> Downscaler:
        """Read a model folder that `train` made; the bundled one if None.

        Raises:
            CheckpointError: it cannot be read, or is of another application.
        """
        return cls(DownscalingModel.load(folder or bundled_model()), device)

    def downscale(
        self,
        dataset: Source,
        members: int = 16,
        *,
        seed: int = 0,
        steps: int | None = None,
        conserve: bool = True,
        coherent: bool = False,
        observations: str | Path | None = None,
        observation_error: Mapping[str, float] | None = None,
        time_means: str | Path | None = None,
        time_mean_error: Mapping[str, float] | None = None,
        time_range: str | None = None,
        regrid: str | None = None,
    ) -> xr.Dataset:
        """Downscale in memory; for long series use `python -m pipelines.climate downscale`.

        Args:
            dataset: coarse fields: an xarray object, or a path to NetCDF, Zarr or GRIB.
            members: ensemble members M.
            seed: same seed, same numbers.
            steps: network evaluations a sample; the model's own if None.
            conserve: make every member's coarse-cell means equal the input exactly.
            coherent: let neighbouring times of a member go together as they do in nature.
            observations: file of stations that members are to agree with; see `stations`.
            observation_error: variable -> standard deviation of an observation.
            time_means: file of means over time that they are to agree with; see `time_means`.
            time_mean_error: variable -> standard deviation of such a mean.
            time_range: "A:B", both inclusive.
            regrid: "bilinear", "conservative" or "nearest", for input on another grid than the
                model's; None refuses it.

        Returns:
            dataset (member, time, y, x) in the input's units and under its names, with
            `ood_score` (time).

        Raises:
            AleatorError: the input does not fit the model.
        """
        field = self.field(dataset, time_range, regrid)
        described = self.template(field, members)
        drawn = ensemble(
            *(self.model, field, 0, len(field)),
            members=members,
            seed=seed,
            steps=steps,
            conserve=conserve,
            coherent=coherent,
            stations=self.stations(observations, observation_error),
            means=self.time_means(time_means, time_mean_error),
            device=self.device,
        )
        encoder = encoder_of(self.model, field)
        arrays = {**encoder(drawn), OOD: ood_scores(self.model, field, 0, len(field))}
        return described.assign(
            {n: described[n].variable._replace(data=array) for n, array in arrays.items()}
        )

    def stations(
        self, source: str | Path | None, errors: Mapping[str, float] | None = None
    ) -> Stations | None:
        """Observations on the model's cells; None of None.

        Raises:
            AleatorError: they cannot be read, or do not belong to the model.
        """
        if source is None:
            return None
        model = self.model
        found = read_stations(
            source, model.variables, model.fine_grid, model.valid.cpu().numpy(), errors
        )
        order, size = model.transforms.order, model.valid.numel()
        for channel in order.differences if order else ():
            if any((seen.cells // size == channel).any() for seen in found.by_time.values()):
                name, anchor = model.names[channel], model.names[order.anchor if order else 0]
                raise AleatorError(
                    f"{source}: {name} is modelled as its difference to {anchor} and cannot be "
                    "observed; leave it out, or train with --set ordered=false"
                )
        return found

    def time_means(
        self, source: str | Path | None, errors: Mapping[str, float] | None = None
    ) -> TimeMeans | None:
        """Known means over time on the model's cells; None of None.

        Raises:
            AleatorError: they cannot be read, or do not belong to the model.
        """
        if source is None:
            return None
        model = self.model
        return read_time_means(
            source, model.variables, model.fine_grid, model.valid.cpu().numpy(), errors
        )

    def field(
        self, source: Source, time_range: str | None = None, regrid: str | None = None
    ) -> Field:
        """Open coarse input and bring it onto the model's grid; arguments as for `downscale`.

        Raises:
            AleatorError: it cannot be read, or its grid is not the model's.
        """
        if isinstance(self.model, PrognosisModel):
            return open_predictors(
                sources_of(source),
                self.model.predictor_names,
                self.model.coarse_grid,
                self.model.config.predictors.lags,
                time_range,
                method=regrid,
            )
        found = open_field(source, self.model.names, time_range=time_range)
        if found.members:
            raise AleatorError(
                f"{found.source}: an ensemble of {found.members} members; select one first, e.g. "
                "ncks -d member,0"
            )
        return on_grid(found, self.model.coarse_grid, regrid)

    def template(self, field: Field, members: int, **options: Any) -> xr.Dataset:
        """The output without its numbers; see `template.template`."""
        fingerprint = self.model.fingerprint
        attributes = {"aleator_model": fingerprint, **options.pop("attributes", {})}
        return template(
            *(_frame(self.model, field), self.model.fine_grid, members),
            variables=self.model.variables,
            attributes=attributes,
            **options,
        )


def encoder_of(model: DownscalingModel, field: Field) -> Encoder:
    """What writes the model's members of this input."""
    return Encoder.of(_frame(model, field), model.fine_grid, model.variables)


def _frame(model: DownscalingModel, field: Field) -> Field:
    """What the output takes names, axes and times from: the input, or the model's own grid."""
    if not isinstance(model, PrognosisModel):
        return field
    layout = Layout(time_name=field.layout.time_name)
    return dataclasses.replace(
        field, grid=model.fine_grid, variables=model.variables, layout=layout
    )


def bundled_model() -> Path:
    """Folder of the weights that come with the package."""
    return sample_path("era5_uk_t2m")


def ensemble(
    model: DownscalingModel,
    field: Field,
    start: int,
    stop: int,
    *,
    members: int,
    seed: int = 0,
    steps: int | None = None,
    conserve: bool = True,
    coherent: bool = False,
    stations: Stations | None = None,
    means: TimeMeans | None = None,
    device: str = "auto",
) -> np.ndarray:
    """Members of some time steps.

    Args:
        model: trained.
        field: coarse input on the model's grid.
        start: first time step.
        stop: one past the last.
        members: M.
        seed: of the noise.
        steps: network evaluations; the model's own if None.
        conserve: see `DownscalingModel.sample`.
        coherent: see `coherence`.
        stations: observations that members are to agree with.
        means: known means over time that they are to agree with; see `time_means`.
        device: where to compute.

    Returns:
        (M, T, V, H, W) float32 in canonical units.

    Raises:
        AleatorError: members or steps below 1; missing cells; coherence that is not known.
    """
    if members < 1:
        raise AleatorError(f"members={members}: at least one is needed")
    if steps is not None and steps < 1:
        raise AleatorError(f"steps={steps}: at least one is needed")
    place = resolve_device(device)
    model.to(place)
    coarse = torch.from_numpy(read_coarse(model, field, start, stop)).to(place)
    clock = clock_vector(field, model.clock, start, stop).to(place)
    streams = streams_of(model, field, seed, coherent)
    keys = field.time_keys()
    sampler = {} if steps is None else {"steps": steps}
    shape = (members, stop - start, len(model.names), *model.fine_grid.shape)
    out = np.empty(shape, np.float32)

    def draw_days(days: slice, given: Seen, member: int) -> np.ndarray:
        fields = torch.from_numpy(read_coarse(model, field, days.start, days.stop)).to(place)
        hours = clock_vector(field, model.clock, days.start, days.stop).to(place)
        noise = [streams(member, t) for t in range(days.start, days.stop)]
        seen = stations.among(keys[days].tolist()) if stations is not None else {}
        known = (model, fields, hours, given, noise)
        drawn = draw_period(*known, sampler=sampler, conserve=conserve, stations=seen)
        return drawn.cpu().numpy()

    single = np.ones(stop - start, bool)
    if means is not None:
        single = fill_periods(means.blocks(keys), start, out, draw_days)

    def draw(t: int) -> None:
        seen = stations.at(int(keys[start + t])) if stations is not None else None
        for first in range(0, members, GROUP):
            group = range(first, min(first + GROUP, members))
            year = model.year_of(seed, group, int(keys[start + t])) if seen is None else None
            drawn = model.sample(
                *(coarse[t : t + 1], clock[t : t + 1], len(group)),
                generator=[streams(member, start + t) for member in group],
                sampler=sampler,
                conserve=conserve,
                seen=seen,
                year=year,
            )
            out[group.start : group.stop, t] = drawn[:, 0].cpu().numpy()

    side_by_side(draw, np.flatnonzero(single).tolist(), place)
    return out


def read_coarse(model: DownscalingModel, field: Field, start: int, stop: int) -> np.ndarray:
    """Coarse values (T, V, h, w); missing cells are refused where the model needs data."""
    has_data = model.needs.numpy()
    values = field.read(start, stop, allow_missing=not has_data.all())
    if not has_data.all():
        values[..., ~has_data] = 0.0  # whatever there is, the model does not look at it
        field.refuse_bad(values, start)
    if model.transforms.order and field.names == model.names:
        own = torch.from_numpy(values[..., has_data])[..., None]
        model.transforms.order.refuse_crossed(own, model.names, field.source)
    return values


def ood_scores(model: DownscalingModel, field: Field, start: int, stop: int) -> np.ndarray:
    """How far each coarse field is from the training data, (T,) float32; see `ood`."""
    coarse = torch.from_numpy(read_coarse(model, field, start, stop))
    standard = model.standardised(model.predictors(coarse))
    return model.ood.score(standard).float().numpy()


def open_input(
    downscaler: Downscaler,
    sources: Sequence[str],
    time_range: str | None = None,
    regrid: str | None = None,
) -> tuple[Field, Field | None]:
    """The coarse input on the model's grid.

    Args:
        downscaler: a model.
        sources: paths; none for the bundled sample's test period, coarsened.
        time_range: "A:B".
        regrid: how the input is remapped, see `Downscaler.downscale`.

    Returns:
        the input, and the sample's fine truth where the input is the sample.
    """
    if sources:
        several: Source = sources[0] if len(sources) == 1 else sources
        return downscaler.field(several, time_range, regrid), None
    model = downscaler.model
    if isinstance(model, PrognosisModel):
        raise AleatorError("no input: give the files that hold the model's predictors")
    truth = open_field(sample_path(), model.names).crop(model.factor)
    start = (model.card or {}).get("test_start")
    if start is not None:
        truth = select_times(truth, f"{start}:")
    if time_range is not None:
        truth = select_times(truth, time_range)
    truth = match(truth, model.fine_grid)
    coarse = truth.coarsen(model.factor)
    words = f"{Path(truth.source).name}, averaged over {model.factor} x {model.factor} cells"
    return match(dataclasses.replace(coarse, source=words), model.coarse_grid), truth


def sample_training(model: DownscalingModel) -> Prepared | None:
    """The bundled sample as the model was trained on it, for baselines; None for other models."""
    try:
        prepared = prepare_data(sample_path(), model.config)
    except AleatorError:
        return None
    return prepared if prepared.fine.grid.same_as(model.fine_grid) else None
