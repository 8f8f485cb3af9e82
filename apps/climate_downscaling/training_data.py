"""From fine data to what a model is trained on: coarse fields, parts, masks, statics.

`Prepared` holds the fine and the coarse field, still lazy, and which times are for what;
`prepare` writes it as Zarr, `train` makes one on the fly or reads it back.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.config import Config, SplitConfig
from apps.climate_downscaling.conserve import block_mean
from apps.climate_downscaling.data import Source, open_field, open_statics
from apps.climate_downscaling.derived import derived_fields
from apps.climate_downscaling.field import Field, show_time, time_keys
from apps.climate_downscaling.grid import Grid, match
from apps.climate_downscaling.sun import sun_of
from core.data import chronological_split
from core.errors import AleatorError


@dataclass(frozen=True)
class Prepared:
    """Fine data, their coarse means, and the parts.

    Attributes:
        fine: on whole blocks.
        coarse: area-weighted block means of cells that have data.
        train: time steps to learn from.
        test: time steps to judge with.
        domain: the cells of which those of `fine` may be a part.
    """

    fine: Field
    coarse: Field
    train: slice
    test: slice
    domain: Grid

    def arrays(self, part: slice) -> tuple[Tensor, Tensor]:
        """Fine (T, V, H, W) and coarse (T, V, h, w) values, NaN where there are no data."""
        fine, coarse = (
            field.read(part.start, part.stop, allow_missing=True)
            for field in (self.fine, self.coarse)
        )
        return torch.from_numpy(fine), torch.from_numpy(coarse)

    def fingerprint(self) -> str:
        """Of the data that a model is trained on: the fine ones, and predictors of their own."""
        if self.coarse.names == self.fine.names:
            return self.fine.fingerprint()
        both = self.fine.fingerprint() + self.coarse.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    def describe_split(self) -> str:
        """In words, with dates."""

        def span(part: slice) -> str:
            first, last = (show_time(self.fine.times[i]) for i in (part.start, part.stop - 1))
            return f"{part.stop - part.start} steps, {first} to {last}"

        if self.test.start == self.test.stop:
            return f"train {span(self.train)}; no test part"
        gap = self.test.start - self.train.stop
        return f"train {span(self.train)}; gap of {gap} steps; test {span(self.test)}"


def prepare_data(source: Source, config: Config) -> Prepared:
    """Open fine data and coarsen them.

    Args:
        source: file, store or dataset with the fine fields.
        config: variables, factor and split.

    Raises:
        AleatorError: the data cannot be read, are smaller than a block, or too short.
    """
    fine = open_fine(source, config)
    if fine.grid.stations:
        raise AleatorError(
            f"{fine.source}: stations have no blocks to average over; give --predictors, files to "
            "learn from, in place of --factor"
        )
    fine = fine.crop(config.factor)
    if fine.members:
        raise AleatorError(f"{fine.source}: training needs one realisation, not an ensemble")
    if config.statics:
        fine = with_statics(fine, config.statics)
    train, test = split_times(fine, config.split)
    coarse = fine.coarsen(config.factor, skipna=True)
    return Prepared(fine, coarse, train, test, fine.grid)


def open_fine(source: Source, config: Config) -> Field:
    """The fine variables, of the region and times that the config names."""
    return open_field(source, config.variables, time_range=config.time_range, region=config.region)


def with_statics(fine: Field, path: str | Path) -> Field:
    """With orography and land fraction from a file on the same cells."""
    statics, grid = open_statics(path)
    carrier = dataclasses.replace(
        fine,
        data=statics.expand_dims(time=fine.data["time"][:1]).assign_coords(y=grid.y, x=grid.x),
        grid=grid,
        statics=statics,
        source=str(path),
    )
    return dataclasses.replace(fine, statics=match(carrier, fine.grid).statics)


def split_times(field: Field, split: SplitConfig) -> tuple[slice, slice]:
    """Training and test steps.

    Raises:
        AleatorError: a part would be empty.
    """
    steps = len(field)
    if split.train_until is not None:
        stop = _steps_until(field, split.train_until)
        test = min(steps, stop + split.gap) if stop < steps else steps
        return slice(0, stop), slice(test, steps)
    if split.test_fraction == 0:
        return slice(0, steps), slice(steps, steps)
    try:
        return chronological_split(steps, split.test_fraction, split.gap)
    except AleatorError as error:
        raise AleatorError(f"{field.source}: {error} (split.test_fraction, split.gap)") from None


def _steps_until(field: Field, date: str) -> int:
    index = field.data.indexes["time"]
    try:
        stop = index.slice_indexer(None, date).stop
    except (TypeError, ValueError, KeyError) as error:
        raise AleatorError(
            f"split.train_until={date}: not a date of the {field.calendar} calendar"
        ) from error
    stop = len(field) if stop is None else int(stop)
    if not stop:
        raise AleatorError(f"split.train_until={date}: {field.source} starts later")
    return stop


def valid_cells(fine: Tensor, source: str) -> Tensor:
    """Cells (H, W) that have data at all times; the others must have none at any time.

    Raises:
        AleatorError: gaps that come and go, or no data at all.
    """
    missing = fine.isnan().any(1)
    always = missing.all(0)
    sometimes = missing.any(0) & ~always
    if sometimes.any():
        step = int(missing[:, sometimes].any(1).nonzero()[0, 0])
        raise AleatorError(
            f"{source}: {int(sometimes.sum())} cells are missing at some training times only "
            f"(first at step {step}); fill them, or cut these times out: a mask must not change"
        )
    if always.all():
        raise AleatorError(f"{source}: no cell has data")
    return ~always


def fill_missing(fine: Tensor, coarse: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Give cells without data values that change nothing: the block's, or the overall mean."""
    factor = fine.shape[-1] // coarse.shape[-1]
    has_data = block_mean(valid.to(coarse), factor) > 0
    overall = coarse[..., has_data].mean((0, -1))[:, None, None]
    coarse = torch.where(has_data, coarse, overall)
    up = coarse.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return torch.where(valid, fine, up), coarse


def static_fields(
    fine: Field, factor: int, domain: Grid, channels: tuple[str, ...] = ()
) -> tuple[Tensor, tuple[str, ...]]:
    """Standardised static predictors (S, H, W) and their names.

    Position in the domain always; where the data have them, orography, its departure from the
    coarse cell (what the coarse field cannot know), and land fraction; then those of `channels`
    that follow from these. A factor of 0 is for coarse fields of another kind.
    """
    fields = list(
        torch.meshgrid(
            _position(fine.grid.y, domain.y), _position(fine.grid.x, domain.x), indexing="ij"
        )
    )
    names = ["y", "x"]
    for name in fine.statics:
        values = torch.from_numpy(np.nan_to_num(fine.static(str(name)).astype(np.float32)))
        spread = values.std().clamp_min(1e-6)
        fields.append((values - values.mean()) / spread)
        names.append(str(name))
        if name == "orog" and factor:
            mean = block_mean(values, factor)
            up = mean.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
            fields.append((values - up) / spread)
            names.append("orog_within_cell")
    for name, derived in derived_fields(fine, channels):
        fields.append(derived)
        names.append(name)
    return torch.stack(fields), tuple(names)


def _position(values: np.ndarray, domain: np.ndarray) -> Tensor:
    """From -1 to 1 along the domain."""
    extent = domain[-1] - domain[0] or 1.0  # a single row stands at -1
    return torch.from_numpy((2 * (values - domain[0]) / extent - 1).astype(np.float32))


def clock_of(
    times: np.ndarray, channels: tuple[str, ...] = (), season_days: float = 60.0
) -> tuple[str, ...]:
    """Which cycles the training times cover well enough to learn from, and the sun if wanted."""
    keys = time_keys(times)
    clock = []
    if len(np.unique(keys % 86400)) > 1:
        clock.append("hour")
    days = np.unique(keys // 86400 % 365)
    if len(days) > season_days:
        clock.append("season")
    if "sun" in channels:
        clock.append(sun_of(times))
    return tuple(clock)
