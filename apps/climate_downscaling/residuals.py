"""What the residual's model is trained on: normalised errors of the mean, in context, in batches.

A `View` is one position of the coarse grid over the fine data. Training may use several: the same
fine fields, coarsened from other corners, are further examples of how fine follows from coarse,
each with its own regression.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.config import Config
from apps.climate_downscaling.conserve import block_mean
from apps.climate_downscaling.dispersion import Dispersion
from apps.climate_downscaling.families import sampler_of
from apps.climate_downscaling.mean import cross_fit, level_of, upsample
from apps.climate_downscaling.model import DownscalingModel, clock_vector
from apps.climate_downscaling.ood import OutOfDistribution
from apps.climate_downscaling.patches import Windows
from apps.climate_downscaling.preprocessing import Transforms
from apps.climate_downscaling.scratch import BUFFER, Scratch, pieces, run_of
from apps.climate_downscaling.training_data import (
    Prepared,
    clock_of,
    fill_missing,
    static_fields,
    valid_cells,
)
from core.data import batch_indices, chunked_batch_indices
from core.errors import AleatorError
from core.evaluation import crps_ensemble
from core.model import GenerativeModel
from core.random import keyed_generator
from core.training import Batches

MOST_VALUES = 2**22
"""Of a field that is looked at whole, at once: errors of the mean, residuals to judge with. Some
twenty such arrays are held for the spread of errors: this bounds memory, whatever the length."""
MOST_DRAWN = 2**19
"""Values of members that are drawn in one batch to judge a network."""
OWN_SHARE = 0.25
"""How often a batch is of the model's own position rather than of a shifted one."""


@dataclass(frozen=True)
class View:
    """The training part in memory, seen from one position of the coarse grid.

    Attributes:
        model: mean, dispersion and statics of this position; no residual yet.
        fine: (T, V, H, W) canonical units, filled where missing.
        coarse: (T, V, h, w).
        mean: (T, V, H, W) cross-fitted μ.
        scale: (T, V, H, W) s.
        clock: (T, K).
        chunk: neighbouring times that are read together; None where any order is as good.
    """

    model: DownscalingModel
    fine: Tensor
    coarse: Tensor
    mean: Tensor
    scale: Tensor
    clock: Tensor
    chunk: int | None = None

    def residual(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Normalised residuals (B, V, H, W); zero where there are no data."""
        z = self.model.transforms.forward(self.fine[index], generator)
        return (z - self.mean[index]) / self.scale[index] * self.model.valid

    def context(self, index: Tensor) -> dict[str, Tensor]:
        """What they are conditioned on."""
        coarse, mean, scale = self.coarse[index], self.mean[index], self.scale[index]
        x = self.model.predictors(coarse)
        return self.model.context(coarse, x, mean, scale, self.clock[index])


def fit_view(
    prepared: Prepared,
    config: Config,
    part: slice,
    scratch: Scratch | None = None,
    like: Dispersion | None = None,
) -> View:
    """Fit everything but the residual's model: mask, transforms, regression, dispersion, OOD.

    Args:
        prepared: the data.
        config: settled options.
        part: time steps to fit on.
        scratch: where fields go; in memory if None.
        like: a dispersion whose features are taken.

    Raises:
        AleatorError: gaps that come and go, or too few times.
    """
    scratch = scratch or Scratch()
    fine, coarse = prepared.arrays(part, scratch)
    valid = valid_cells(fine, prepared.fine.source)
    fine, coarse = fill_missing(fine, coarse, valid)
    transforms = Transforms.of(config.variables, config.transforms, ordered=config.ordered)
    if transforms.order:
        transforms.order.refuse_crossed(fine, config.variables, prepared.fine.source)
    x = transforms.coarse(coarse)
    z, stream = scratch.empty(fine.shape), keyed_generator(config.fit.seed, -2)
    for rows in map(run_of, pieces(len(fine), fine)):
        z[rows] = transforms.forward(fine[rows], stream)
    level = _level(valid, config.factor, transforms) if config.mean.anomalies else None
    if level is not None:  # cells without data have no anomaly
        needed = level.amax(0) > 0
        x = torch.where(needed, x, level_of(x, level))
    fitted = cross_fit(x, z, config.mean, level, scratch)
    regression, mean = fitted.ridge, fitted.mean
    standard, seen = regression.standardised(x), x - regression.of_level(x)
    some = some_times(fine)
    error = (z[some] - mean[some]) * valid
    gap = math.ceil(config.mean.gap * len(error) / len(fine))  # of the times looked at
    known = (x[some], standard[some], mean[some], fitted.leverage[some])
    dispersion = Dispersion.fit(error, *known, blocks=config.mean.blocks, gap=gap, like=like)
    increment = mean[some] - upsample(x[some], config.factor, "nearest")
    increment = increment.std((0, 2, 3)).clamp_min(1e-6)
    extra = config.residual.channels
    clock = clock_of(prepared.fine.times[part], extra)
    model = DownscalingModel(
        config=config,
        variables=prepared.fine.variables,
        fine_grid=prepared.fine.grid,
        coarse_grid=prepared.coarse.grid,
        clock=clock,
        statics=static_fields(prepared.fine, config.factor, prepared.domain, extra)[0],
        valid=valid,
        mean=regression,
        dispersion=_floored(dispersion, valid),
        context_scale=torch.stack(
            [seen.mean((0, 2, 3)), seen.std((0, 2, 3)).clamp_min(1e-6), increment]
        ),
        inflation=torch.ones(len(config.variables)),
        persistence=torch.full((len(config.variables),), torch.nan),
        time_step=0,
        ood=OutOfDistribution.fit((x - regression.centres) / regression.scale),
    )
    scale = scratch.empty(fine.shape)
    for rows in map(run_of, pieces(len(fine), fine)):
        scale[rows] = model.dispersion(x[rows], standard[rows], mean[rows], fitted.leverage[rows])
    hours = clock_vector(prepared.fine, clock, part.start, part.stop)
    return View(model, fine, coarse, mean, scale, hours, scratch.chunk)


def _level(valid: Tensor, factor: int, transforms: Transforms) -> Tensor:
    """Weights (V, h, w) of the coarse cells in the level of a variable; no amount has one.

    Raises:
        AleatorError: all are amounts.
    """
    if all(transforms.nonnegative):
        raise AleatorError(
            "mean.anomalies: amounts (pr) have no level that could move; leave it out"
        )
    needed = (block_mean(valid.float(), factor) > 0).float()
    fixed = transforms.order.differences if transforms.order else ()
    moving = torch.tensor([not n and v not in fixed for v, n in enumerate(transforms.nonnegative)])
    return (needed / needed.sum()) * moving[:, None, None]


def some_times(fine: Tensor) -> slice | Tensor:
    """All times, or as many, evenly spread, as features of their dispersion fit into memory."""
    most = _most_times(fine)
    if len(fine) <= most:
        return slice(None)
    return torch.linspace(0, len(fine) - 1, most).long().unique()


def _most_times(fine: Tensor) -> int:
    return max(32, MOST_VALUES // math.prod(fine.shape[1:]))


def note_persistence(view: View, keys: np.ndarray, most: int = 4096) -> None:
    """Tell the model how residuals of neighbouring times correlate, and how far apart those are.

    Args:
        view: of the training part.
        keys: (T,) seconds.
        most: times that are looked at, the last ones.
    """
    model = view.model
    model.time_step = int(np.median(np.diff(keys)))
    most = min(most, _most_times(view.fine))
    index = torch.arange(max(0, len(keys) - most), len(keys))
    r = view.residual(index, keyed_generator(model.config.fit.seed, -3)).double()
    pairs = torch.from_numpy(np.flatnonzero(np.diff(keys[index.numpy()]) == model.time_step))
    now, then, overall = r[pairs], r[pairs + 1], (0, 2, 3)
    power = (now.square().sum(overall) * then.square().sum(overall)).sqrt()
    correlation = (now * then).sum(overall) / power.clamp_min(1e-30)
    model.persistence = correlation.clamp(0, 0.99).float()


def shifted_views(
    prepared: Prepared, own: View, part: slice, count: int, scratch: Scratch | None = None
) -> list[View]:
    """Views from `count` other positions of the coarse grid, spread over the block.

    Raises:
        AleatorError: more positions than a block has.
    """
    if not count:
        return []
    factor = own.model.factor
    if not 0 <= count < factor**2:
        raise AleatorError(
            f"residual.positions={count}: with factor {factor} there are {factor**2 - 1} others"
        )
    chosen = own.model.mean
    fixed = dataclasses.replace(
        own.model.config.mean, lengths=(chosen.length,), strengths=(chosen.strength,)
    )
    config = dataclasses.replace(own.model.config, mean=fixed)
    places = torch.linspace(1, factor**2 - 1, count).round().long().tolist()
    like = own.model.dispersion
    return [
        fit_view(shifted(prepared, p // factor, p % factor, factor), config, part, scratch, like)
        for p in places
    ]


def shifted(prepared: Prepared, dy: int, dx: int, factor: int) -> Prepared:
    """The same fine data under a coarse grid that begins dy rows and dx columns later."""
    fine = prepared.fine.isel(y=slice(dy, None), x=slice(dx, None)).crop(factor)
    coarse = fine.coarsen(factor, skipna=True)
    return dataclasses.replace(prepared, fine=fine, coarse=coarse)


def make_batches(views: Sequence[View], fitted_steps: int) -> Batches:
    """Normalised residuals of the first `fitted_steps` times and their context, for `fit`."""
    config = views[0].model.config
    seed, size, mix = config.fit.seed, config.fit.batch_size, config.residual.mix or 0.0
    crop = config.residual.crop

    def batch(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        view = views[0]
        if len(views) > 1 and torch.rand((), generator=generator) > OWN_SHARE:
            view = views[int(torch.randint(1, len(views), (), generator=generator))]
        if view.chunk is None:
            index = batch_indices(seed, step, size, fitted_steps)
        else:
            index = chunked_batch_indices(seed, step, size, fitted_steps, view.chunk, BUFFER)
        r = view.residual(index, generator)
        if mix:
            angle = torch.rand(len(r), 1, 1, 1, generator=generator) * mix * math.pi / 2
            other = torch.randint(fitted_steps, (len(r),), generator=generator)
            r = angle.cos() * r + angle.sin() * view.residual(other, generator)
        context = view.context(index)
        if crop is None:
            return r, context
        shape = (r.shape[-2], r.shape[-1])
        windows = Windows(len(r), crop, shape, generator)
        return windows.cut(r), windows.cut_all(context)

    return batch


def fitted_steps(steps: int, config: Config) -> int:
    """How many training times are learnt from; the later ones are for validation.

    Raises:
        AleatorError: too few.
    """
    held_out = math.ceil(config.split.validation_fraction * steps)
    left = steps - (held_out + config.split.gap if held_out else 0)
    if left < 2:
        raise AleatorError(
            f"{steps} training steps are too few for split.validation_fraction="
            f"{config.split.validation_fraction} and split.gap={config.split.gap}"
        )
    return left


@dataclass(frozen=True)
class Validation:
    """Times to judge a network with, and the truth there; patches of a model that is trained on.

    Attributes:
        model: what is judged belongs to it.
        index: (N,) time steps.
        truth: (N, V, H, W) normalised residuals.
        context: of these.
        mean: (N, V, H, W) μ.
        scale: (N, V, H, W) s.
        fine: (N, V, H, W) canonical units.
        valid: (N, 1, H, W) cells that have data.
    """

    model: DownscalingModel
    index: Tensor
    truth: Tensor
    context: dict[str, Tensor]
    mean: Tensor
    scale: Tensor
    fine: Tensor
    valid: Tensor

    @classmethod
    def of(cls, view: View, first: int, last: int, times: int) -> Validation:
        """At most `times` steps, evenly spread over first ... last - 1."""
        model, config = view.model, view.model.config
        times = min(times, last - first, _most_times(view.fine))
        index = torch.linspace(first, last - 1, times).long().unique()
        truth = view.residual(index, keyed_generator(config.fit.seed, -1))
        fields = [truth, view.mean[index], view.scale[index], view.fine[index]]
        fields.append(model.valid.expand(len(index), 1, -1, -1))
        context = view.context(index)
        if config.residual.crop is not None:
            shape = (truth.shape[-2], truth.shape[-1])
            places = keyed_generator(config.fit.seed, -4)
            windows = Windows(len(index), config.residual.crop, shape, places)
            fields, context = [windows.cut(f) for f in fields], windows.cut_all(context)
        truth, mean, scale, fine, valid = fields
        return cls(model, index, truth, context, mean, scale, fine, valid)

    def draw(self, network: GenerativeModel, members: int) -> Tensor:
        """(M, N, V, H, W) members, always from the same noise."""
        device = next(network.parameters()).device
        some = max(1, MOST_DRAWN // (members * self.truth[0].numel()))
        parts = []
        for rows in torch.arange(len(self.index)).split(some):
            keys = [
                keyed_generator(0, m, int(i)) for m in range(members) for i in self.index[rows]
            ]
            drawn = network.sample(
                (members,),
                {name: value[rows].to(device) for name, value in self.context.items()},
                sampler=sampler_of(network, self.model.config.residual.sampler),
                generator=keys,
            )
            parts.append(drawn.cpu())
        return torch.cat(parts, 1)

    def score(self, network: GenerativeModel) -> float:
        """Fair CRPS of normalised residuals."""
        crps = crps_ensemble(self.draw(network, 8), self.truth)
        return crps[self.valid.expand_as(crps)].mean().item()

    def inflation(self, network: GenerativeModel, members: int = 8) -> Tensor:
        """(V,) factor on generated residuals with which spread/skill is 1, in physical units.

        It lies within 0.8 and 1.25: what is further off is wrong in another way.
        """
        drawn = self.draw(network, members)
        low = torch.full((drawn.shape[2],), 0.8)
        high = torch.full_like(low, 1.25)
        for _ in range(12):
            middle = (low + high) / 2
            narrow = self._spread_skill(drawn, middle) < 1
            low, high = torch.where(narrow, middle, low), torch.where(narrow, high, middle)
        return (low + high) / 2

    def _spread_skill(self, drawn: Tensor, factor: Tensor) -> Tensor:
        """(V,) of residuals (M, N, V, H, W) times a factor (V,)."""
        z = self.mean + self.scale * factor[:, None, None] * drawn
        transforms = self.model.transforms
        y, fine = transforms.parts(z).double(), transforms.split(self.fine)
        here, where = self.valid.double(), (0, 2, 3)
        error = (y.mean(0) - fine).square()
        variance = (1 + 1 / len(y)) * y.var(0)
        return ((variance * here).sum(where) / (error * here).sum(where)).sqrt()


def _floored(dispersion: Dispersion, valid: Tensor) -> Dispersion:
    """Cells without data take the typical scale; no scale is zero."""
    typical = dispersion.scale[:, valid].mean(-1)[:, None, None]
    scale = torch.where(valid, torch.maximum(dispersion.scale, 1e-3 * typical), typical)
    return dataclasses.replace(dispersion, scale=scale)
