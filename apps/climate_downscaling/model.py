r"""The model: a regressed mean plus a generated residual, on the transformed variables.

    z = μ(c) + s(c) · r,    r ~ p(r | context),    y = T⁻¹(z), projected so that A y = c

μ is a local ridge (`mean`), s the standard deviation of its error here and now (`dispersion`),
p any family of `core`. Everything is fitted on the training part and travels in one checkpoint.
Reference for the split into mean and residual: Mardani et al. (2025), arXiv:2309.15214.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.config import Config, parse_config
from apps.climate_downscaling.conserve import block_mean, project, upsample_nearest
from apps.climate_downscaling.dispersion import Dispersion
from apps.climate_downscaling.families import Condition, family_config, overridden, sampler_of
from apps.climate_downscaling.field import Field, Variable
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.mean import LocalRidge, upsample
from apps.climate_downscaling.ood import OutOfDistribution
from apps.climate_downscaling.patches import tile
from apps.climate_downscaling.preprocessing import Transforms
from apps.climate_downscaling.stations import Seen
from apps.climate_downscaling.sun import SUNS, sun_columns, sunshine
from core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from core.errors import AleatorError
from core.model import GenerativeModel
from core.random import Generators
from core.registry import build

APP = "climate_downscaling"
OWN = ("statics", "valid", "context_scale", "inflation", "persistence")
"""Tensors that are the model's own rather than a part's."""
KINDS = {
    "blocks": "apps.climate_downscaling.model.DownscalingModel",
    "prognosis": "apps.climate_downscaling.prognosis.PrognosisModel",
    "stations": "apps.climate_downscaling.station_model.StationModel",
}
"""What a coarse field is: block means of the fine one, or predictors of their own."""


@dataclass
class DownscalingModel:
    """Everything that turns a coarse field into fine members.

    Attributes:
        config: what it was made with.
        variables: names, units and other facts of the V variables.
        fine_grid: H × W cells.
        coarse_grid: h × w cells, factor times larger.
        clock: which cycles condition the residual: "hour", "season"; and "sun" or "daily_sun".
        statics: (S, H, W) standardised orography etc. and position.
        valid: (H, W) cells that have data; the others are NaN in every output.
        mean: the regression μ.
        dispersion: s.
        context_scale: (3, V) mean and standard deviation of the predictors, and standard
            deviation of the increments of μ over them: what standardises the context.
        inflation: (V,) factor on generated residuals: networks regress to the mean, and what
            they generate varies a little less than what they were trained on.
        persistence: (V,) correlation of the residuals of neighbouring times; NaN if not known.
        time_step: seconds between them.
        ood: distance of a coarse field from the training data.
        residual: p(r | context); None until it is trained.
        fingerprint: of the checkpoint; empty before it is saved.
        card: what the checkpoint says about its making.
    """

    config: Config
    variables: tuple[Variable, ...]
    fine_grid: Grid
    coarse_grid: Grid
    clock: tuple[str, ...]
    statics: Tensor
    valid: Tensor
    mean: LocalRidge
    dispersion: Dispersion
    context_scale: Tensor
    inflation: Tensor
    persistence: Tensor
    time_step: int
    ood: OutOfDistribution
    residual: GenerativeModel | None = None
    fingerprint: str = ""
    card: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        options = {"ordered": self.config.ordered}
        self.transforms = Transforms.of(self.names, self.config.transforms, **options)
        area = torch.from_numpy(self.fine_grid.area_weights())
        self.weights = area * self.valid
        if self.factor:  # blocks without data: any weights, but no 0 / 0
            dead = ~upsample_nearest(self.needs, self.factor)
            self.weights = torch.where(dead, area, self.weights)

    @property
    def needs(self) -> Tensor:
        """(h, w) the coarse cells that it looks at: those with fine cells that have data."""
        return block_mean(self.valid.float(), self.factor) > 0

    @property
    def names(self) -> tuple[str, ...]:
        """Short names of the variables."""
        return tuple(variable.name for variable in self.variables)

    @property
    def factor(self) -> int:
        """Fine cells per side of a coarse cell; 0 for coarse fields of another kind."""
        return self.config.factor

    @property
    def trained(self) -> GenerativeModel:
        """The model of the residual.

        Raises:
            AleatorError: there is none yet.
        """
        if self.residual is None:
            raise AleatorError("the model of the residual is not trained yet")
        return self.residual

    def predictors(self, coarse: Tensor) -> Tensor:
        """Transformed coarse fields (B, V, h, w); cells without data stand at their mean."""
        x = self.transforms.coarse(coarse)
        usual = self.mean.centres.to(x) + self.mean.of_level(x)
        return torch.where(self.needs.to(x.device), x, usual)

    def standardised(self, predictors: Tensor) -> Tensor:
        """Predictors (B, V, h, w) in units of their training spread, cell by cell."""
        return (predictors - self.mean.centres.to(predictors)) / self.mean.scale.to(predictors)

    def uncertainty(self, predictors: Tensor, mean: Tensor) -> Tensor:
        """S (B, V, H, W), given predictors (B, V, h, w) and μ of them."""
        leverage = self.mean.leverage(predictors)
        return self.dispersion(predictors, self.mean.standardised(predictors), mean, leverage)

    def context(
        self, coarse: Tensor, predictors: Tensor, mean: Tensor, scale: Tensor, clock: Tensor
    ) -> dict[str, Tensor]:
        """What the residual is conditioned on.

        Args:
            coarse: (B, V, h, w) in canonical units.
            predictors: the same, transformed.
            mean: (B, V, H, W) μ of them.
            scale: (B, V, H, W) s of them.
            clock: (B, K) from `clock_vector`.

        Returns:
            `field` (B, C, H, W), and `vector` (B, K) if there is a clock.
        """
        usual = self.dispersion.scale.to(mean)
        level = usual[:, self.valid].mean(-1)[:, None, None]
        fields = [self.statics.to(mean).expand(len(mean), -1, -1, -1)]
        cycles, sun = clock.to(mean).tensor_split([2 * len(self.cycles)], 1)
        if sun.shape[1]:
            fields.append(sunshine(sun, self.fine_grid))
        if self.config.residual.context == "static":
            return {"field": torch.cat([*fields, (usual / level).log().expand_as(mean)], 1)}
        fields += [(scale / level).log(), *self._weather(coarse, predictors, mean)]
        context = {"field": torch.cat(fields, 1)}
        return {**context, "vector": cycles} if self.cycles else context

    @property
    def cycles(self) -> tuple[str, ...]:
        """Those of the clock that are told as sine and cosine, before the sun."""
        return tuple(name for name in self.clock if name not in SUNS)

    def _weather(self, coarse: Tensor, predictors: Tensor, mean: Tensor) -> list[Tensor]:
        """What the residual is told of the coarse field and the mean, (B, ·, H, W) each."""
        centre, spread, increment = self.context_scale.to(mean)[:, :, None, None]
        near = upsample(predictors, self.factor, "nearest")
        fields = [
            upsample(self.mean.standardised(predictors), self.factor, "bilinear"),
            (near - self.mean.of_level(predictors) - centre) / spread,
            (mean - near) / increment,
        ]
        if self.transforms.dry_channels:
            fields.append(upsample(self.transforms.dry(coarse), self.factor, "nearest"))
        return fields

    @property
    def weather_channels(self) -> int:
        """Channels of the context that depend on the time."""
        return 3 * len(self.names) + self.transforms.dry_channels

    @torch.no_grad()
    def sample(
        self,
        coarse: Tensor,
        clock: Tensor,
        members: int,
        *,
        generator: Generators | None = None,
        sampler: Mapping[str, Any] | None = None,
        conserve: bool = True,
        seen: Seen | None = None,
    ) -> Tensor:
        """Draw members.

        Args:
            coarse: (B, V, h, w) in canonical units.
            clock: (B, K).
            members: M.
            generator: one stream, or M B of them, member-major.
            sampler: overrides the config's.
            conserve: make the block means equal the input exactly.
            seen: observations that members are to agree with, of a single time (B = 1).

        Returns:
            (M, B, V, H, W) in canonical units; NaN where there are no data.
        """
        mean, scale, context = self.conditions(coarse, clock)
        options: dict[str, Any] = {
            "sampler": self.sampler(sampler),
            "generator": generator,
        }
        if seen is None:
            drawn = self.trained.sample((members,), context, **options)
        else:
            from apps.climate_downscaling.constraints import draw_given

            facts = (self.trained, seen, self.transforms, context, mean, self.inflated(scale))
            drawn = draw_given(*facts, members=members, **options)
        return self.finished(mean + scale * self.inflated(drawn), coarse, conserve)

    def conditions(
        self, coarse: Tensor, clock: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """μ and s (B, V, H, W) of coarse fields (B, V, h, w), and the context of the residual."""
        x = self.predictors(coarse)
        mean = self.mean.predict(x)
        scale = self.uncertainty(x, mean)
        return mean, scale, self.context(coarse, x, mean, scale, clock)

    def finished(self, z: Tensor, coarse: Tensor, conserve: bool) -> Tensor:
        """Fields z (..., B, V, H, W) of the model in canonical units; NaN where no data are."""
        fine = self.transforms.inverse(z)
        if conserve:
            fine = self._conserve(fine, coarse)
        return torch.where(self.valid.to(fine.device), fine, torch.nan)

    def sampler(self, over: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The config's sampler with some options changed; None of families that have none."""
        own = sampler_of(self.trained, self.config.residual.sampler)
        return own if own is None else overridden(self.trained, own, over or {})

    def inflated(self, drawn: Tensor) -> Tensor:
        """Residuals, or their scale, times the model's factor."""
        return self.inflation.to(drawn)[:, None, None] * drawn

    def _conserve(self, fine: Tensor, coarse: Tensor) -> Tensor:
        parts, wanted = self.transforms.split(fine), self.transforms.split(coarse)
        channels = [
            project(
                *(parts[..., v, :, :], wanted[..., v, :, :], self.factor),
                nonnegative=transform.nonnegative,
                weights=self.weights,
            )
            for v, transform in enumerate(self.transforms.each)
        ]
        return self.transforms.join(torch.stack(channels, -3))

    def to(self, device: str) -> DownscalingModel:
        """Move the network; everything else follows its input."""
        if self.residual is not None:
            self.residual.to(device)
        return self

    def save(self, folder: Path | str, card: Mapping[str, Any], data: str) -> Checkpoint:
        """Write a checkpoint with its card and the fingerprint of the training data."""
        config = {
            "config": self.config.to_dict(),
            "residual": self.residual_config(),
            **self.facts(),
            "variables": [vars(variable) for variable in self.variables],
            "fine_grid": self.fine_grid.to_dict(),
            "coarse_grid": self.coarse_grid.to_dict(),
            "clock": list(self.clock),
            "time_step": self.time_step,
        }
        tensors = {name: getattr(self, name) for name in OWN}
        for name in ("mean", "dispersion", "ood"):
            tensors |= _prefixed(name, getattr(self, name).tensors())
        tensors |= _prefixed("residual", self.trained.state_dict())
        return save_checkpoint(
            folder, app=APP, config=config, tensors=tensors, card=card, data_fingerprint=data
        )

    def residual_config(self, crop: int | None = None) -> dict[str, Any]:
        """The config of the residual's model, for `core.build`: what the data fix, then options.

        Args:
            crop: side of the patches that it is trained on; None for the whole domain.
        """
        channels = len(self.statics) + len(self.names) + len(self.clock) - len(self.cycles)
        residual = self.config.residual
        coarse = residual.context == "coarse"
        if coarse:
            channels += self.weather_channels
        condition = Condition(
            variables=len(self.names),
            shape=(crop, crop) if crop else self.fine_grid.shape,
            field_channels=channels,
            vector_dim=2 * len(self.cycles) if coarse else 0,
            periodic_x=self.fine_grid.is_global and residual.crop is None,
        )
        return family_config(residual.family, condition, residual.model)

    def describe(self) -> list[str]:
        """The regression in words, a line each."""
        errors = [
            f"error of the mean, {name}: {self.dispersion.describe(v)}"
            for v, name in enumerate(self.names)
        ]
        return [f"mean: {self.mean.describe()}", *errors]

    def facts(self) -> dict[str, Any]:
        """What the checkpoint stores of this kind of model, beside tensors."""
        return {"mean": {n: getattr(self.mean, n) for n in ("base", "length", "strength")}}

    @classmethod
    def parts(cls, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments from tensors, and from what `facts` stored."""
        return {
            **{name: tensors[name] for name in OWN},
            "mean": LocalRidge(**without("mean", tensors), **stored["mean"]),
            "dispersion": Dispersion(**without("dispersion", tensors)),
        }

    @staticmethod
    def load(folder: Path | str) -> DownscalingModel:
        """Read a checkpoint, of whatever kind.

        Raises:
            CheckpointError: it cannot be read, or is of another application.
        """
        found = load_checkpoint(folder, app=APP)
        stored, tensors = found.config, dict(found.tensors)
        unknown = torch.full((len(stored["variables"]),), torch.nan)  # to models of before
        tensors.setdefault("persistence", unknown)
        residual = build(stored["residual"])
        residual.load_state_dict(without("residual", tensors))
        stored["config"].setdefault("ordered", False)  # models of before
        config, fine_grid = parse_config(stored["config"]), Grid.from_dict(stored["fine_grid"])
        tile(residual, config.residual.crop, fine_grid)
        module, _, name = KINDS[stored.get("kind", "blocks")].rpartition(".")
        kind: type[DownscalingModel] = getattr(importlib.import_module(module), name)
        return kind(
            config=config,
            variables=tuple(Variable(**facts) for facts in stored["variables"]),
            fine_grid=fine_grid,
            coarse_grid=Grid.from_dict(stored["coarse_grid"]),
            clock=tuple(stored["clock"]),
            time_step=stored.get("time_step", 0),
            ood=OutOfDistribution(**without("ood", tensors)),
            residual=residual.eval(),
            fingerprint=found.fingerprint,
            card=found.card,
            **kind.parts(stored, tensors),
        )


def clock_vector(field: Field, clock: Sequence[str], start: int, stop: int) -> Tensor:
    """Sine and cosine of the hour of the day (UTC) and of the season, then the sun, (T, K)."""
    phases = {"hour": lambda: field.hour() / 24, "season": field.year_fraction}
    columns = []
    for name in clock:
        if name in SUNS:
            columns += sun_columns(field, name, start, stop)
            continue
        angle = 2 * np.pi * phases[name]()[start:stop]
        columns += [np.sin(angle), np.cos(angle)]
    if not columns:
        return torch.zeros(stop - start, 0)
    return torch.from_numpy(np.stack(columns, 1).astype(np.float32))


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors of one part, under its own names for them."""
    start = prefix + "."
    return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
