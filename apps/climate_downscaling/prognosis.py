r"""Perfect prognosis: the coarse field is not a block mean of the fine one, but other variables.

    z = μ(c) + s(c) · r,    r ~ p(r | context),    y = T⁻¹(z)

as in `model`, with c upper-air and surface predictors on a grid of their own, at neighbouring
times too; μ is a ridge on all of them (`field_ridge`) at the level of the next year (`drift`), and
members are off for a whole year in common (`year_effect`).
Nothing is conserved: observations owe the reanalysis nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apps.climate_downscaling.drift import Rule
from apps.climate_downscaling.field import Variable
from apps.climate_downscaling.field_dispersion import FieldDispersion
from apps.climate_downscaling.field_ridge import FieldRidge
from apps.climate_downscaling.model import OWN, DownscalingModel
from apps.climate_downscaling.predictors import base_name
from apps.climate_downscaling.preprocessing import Transforms
from apps.climate_downscaling.regrid import Bilinear
from apps.climate_downscaling.tensors import prefixed, without
from apps.climate_downscaling.year_effect import YearEffect


@dataclass
class PrognosisModel(DownscalingModel):
    """A model whose predictors are other variables, on another grid.

    Attributes:
        predictor_variables: the P channels of a coarse field, lags included.
        rules: (V,) of `drift`, for the record.
        years: what the errors of a year have in common; None of models of before.
    """

    mean: FieldRidge  # type: ignore[assignment]
    dispersion: FieldDispersion  # type: ignore[assignment]
    predictor_variables: tuple[Variable, ...] = ()
    rules: tuple[Rule, ...] = ()
    years: YearEffect | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [base_name(variable.name) for variable in self.predictor_variables]
        self.predictor_names = tuple(dict.fromkeys(names))
        self.predictor_transforms = Transforms.of(names)
        self.lift = Bilinear.between(self.coarse_grid, self.fine_grid)

    @property
    def needs(self) -> Tensor:
        """(h, w) all coarse cells: every one is a predictor."""
        return torch.ones(self.coarse_grid.shape, dtype=torch.bool)

    def predictors(self, coarse: Tensor) -> Tensor:
        """Transformed predictors (B, P, h, w)."""
        return self.predictor_transforms.coarse(coarse)

    def uncertainty(self, predictors: Tensor, mean: Tensor) -> Tensor:
        """S (B, V, H, W), given predictors (B, P, h, w) and μ of them."""
        return self.dispersion(mean, self.mean.leverage(predictors))

    def _weather(self, coarse: Tensor, predictors: Tensor, mean: Tensor) -> list[Tensor]:
        usual, spread = self.dispersion.usual.to(mean)
        return [self.lift(self.standardised(predictors)), (mean - usual) / spread]

    @property
    def weather_channels(self) -> int:
        """Channels of the context that depend on the time."""
        return len(self.predictor_variables) + len(self.names)

    def conserved(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """The same: observations owe the predictors nothing."""
        return fine

    def year_of(self, seed: int, members: range, key: int) -> tuple[Tensor, Tensor] | None:
        """What members share in the year of a time; see `YearEffect`.

        Args:
            seed: of the noise.
            members: which.
            key: seconds since 1970.

        Returns:
            (M, 1, V, H, W) to be added to μ, and a factor (V, H, W) on s; None of old models.
        """
        if self.years is None:
            return None
        return self.years.draw(seed, members, key), self.years.daily

    def describe(self) -> list[str]:
        """The regression in words, a line each."""
        lags = ", ".join(f"{lag:+d}" if lag else "0" for lag in self.config.predictors.lags)
        lines = [
            f"predictors: {', '.join(self.predictor_names)}, at time steps {lags}",
            f"mean: {self.mean.describe()}",
        ]
        for v, name in enumerate(self.names):
            level = self.rules[v].describe(self.mean.offset[v, self.valid].mean().item())
            lines.append(f"error of the mean, {name}: {level}{self.dispersion.describe(v)}")
        if self.years is not None and len(self.years.maps):
            pairs = zip(self.names, self.years.spread(self.valid), strict=True)
            lines.append("years differ by: " + ", ".join(f"{n} {s:.3f}" for n, s in pairs))
        return lines

    def facts(self) -> dict[str, Any]:
        """What the checkpoint stores of this kind of model, beside tensors."""
        predictors = [vars(variable) for variable in self.predictor_variables]
        rules = [vars(rule) for rule in self.rules]
        return {"kind": "prognosis", "predictors": predictors, "drift": rules}

    def own_tensors(self) -> dict[str, Tensor]:
        """Tensors of the checkpoint beside those of every model."""
        return {} if self.years is None else prefixed("years", self.years.tensors())

    @classmethod
    def parts(cls, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments from tensors, and from what `facts` stored."""
        years = without("years", tensors)
        rules = stored["drift"] if "drift" in stored else [{"memory": m} for m in stored["memory"]]
        return {
            **{name: tensors[name] for name in OWN},
            "mean": FieldRidge(**without("mean", tensors)),
            "dispersion": FieldDispersion(**without("dispersion", tensors)),
            "predictor_variables": tuple(Variable(**facts) for facts in stored["predictors"]),
            "rules": tuple(Rule(**rule) for rule in rules),
            "years": YearEffect(**years) if years else None,
        }
