r"""Perfect prognosis: the coarse field is not a block mean of the fine one, but other variables.

    z = μ(c) + s(c) · r,    r ~ p(r | context),    y = T⁻¹(z)

as in `model`, with c upper-air and surface predictors on a grid of their own, at neighbouring
times too; μ is a ridge on all of them (`field_ridge`) at the level of recent years (`drift`).
Nothing is conserved: observations owe the reanalysis nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apps.climate_downscaling.field import Variable
from apps.climate_downscaling.field_dispersion import FieldDispersion
from apps.climate_downscaling.field_ridge import FieldRidge
from apps.climate_downscaling.model import OWN, DownscalingModel, without
from apps.climate_downscaling.predictors import base_name
from apps.climate_downscaling.preprocessing import Transforms
from apps.climate_downscaling.regrid import Bilinear


@dataclass
class PrognosisModel(DownscalingModel):
    """A model whose predictors are other variables, on another grid.

    Attributes:
        predictor_variables: the P channels of a coarse field, lags included.
        memory: (V,) λ of `drift`, for the record.
    """

    mean: FieldRidge  # type: ignore[assignment]
    dispersion: FieldDispersion  # type: ignore[assignment]
    predictor_variables: tuple[Variable, ...] = ()
    memory: tuple[float, ...] = ()

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

    def _conserve(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return fine

    def describe(self) -> list[str]:
        """The regression in words, a line each."""
        lags = ", ".join(f"{lag:+d}" if lag else "0" for lag in self.config.predictors.lags)
        lines = [
            f"predictors: {', '.join(self.predictor_names)}, at time steps {lags}",
            f"mean: {self.mean.describe()}",
        ]
        for v, name in enumerate(self.names):
            drift = self.mean.offset[v, self.valid].mean().item()
            level = "" if self.memory[v] == 1 else f"{drift:+.3f} for recent years; "
            lines.append(f"error of the mean, {name}: {level}{self.dispersion.describe(v)}")
        return lines

    def facts(self) -> dict[str, Any]:
        """What the checkpoint stores of this kind of model, beside tensors."""
        predictors = [vars(variable) for variable in self.predictor_variables]
        return {"kind": "prognosis", "predictors": predictors, "memory": list(self.memory)}

    @classmethod
    def parts(cls, stored: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments from tensors, and from what `facts` stored."""
        return {
            **{name: tensors[name] for name in OWN},
            "mean": FieldRidge(**without("mean", tensors)),
            "dispersion": FieldDispersion(**without("dispersion", tensors)),
            "predictor_variables": tuple(Variable(**facts) for facts in stored["predictors"]),
            "memory": tuple(stored["memory"]),
        }
