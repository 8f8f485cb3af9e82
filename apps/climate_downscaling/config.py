"""What `train` is asked for: frozen dataclasses, validated where they enter.

A config file is JSON with the same names; `--set residual.family=flow_matching` overrides one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from apps.climate_downscaling.mean import MeanConfig
from apps.climate_downscaling.predictors import PredictorConfig
from core.errors import AleatorError
from core.settings import merge, parse_settings, read_settings
from core.training import FitConfig


@dataclass(frozen=True)
class SplitConfig:
    """Which times are for what; chronological, never shuffled.

    Attributes:
        test_fraction: last part of the series, for the final scores and nothing else; 0 for none.
        validation_fraction: last part of the training part, for early stopping; 0 for none.
        gap: time steps between parts that belong to neither.
        train_until: instead of a fraction: times after this date (e.g. 1998-05-31) are the test.
    """

    test_fraction: float = 0.2
    validation_fraction: float = 0.15
    gap: int = 24
    train_until: str | None = None

    def __post_init__(self) -> None:
        for name in ("test_fraction", "validation_fraction"):
            if not 0 <= getattr(self, name) < 0.9:
                raise AleatorError(f"{name}={getattr(self, name)}: expected 0 <= {name} < 0.9")
        if self.gap < 0:
            raise AleatorError(f"gap={self.gap}: it must not be negative")


@dataclass(frozen=True)
class ResidualConfig:
    """The generative model of what the mean leaves.

    Attributes:
        family: "diffusion", "flow_matching", "glow", "residual_flow" or "vae"; of stations
            "diffusion", "flow_matching", "nsf", "maf" or "real_nvp". "auto" is diffusion on maps
            and nsf at stations.
        context: "coarse": the coarse field, the mean, the clock, and what is static;
            "static": only the latter, for series too short to learn more than one climate of
            residuals from (a few hundred independent fields); "auto": static below 1000 fields.
        channels: further predictors, of time and place alone: "sun", the cosine of its zenith
            angle; "coast", the distance to the coast, where there is a land fraction; "latitude".
        mix: fields are mixed in training, r ← cos(θ) r + sin(θ) r', θ ~ U(0, mix π/2), which
            keeps means (zero) and covariances and stops a network from learning fields by heart.
            None is 1 for a static context, else 0.
        positions: of the coarse grid over the fine data, beside its own, that training uses too;
            at most factor² - 1. None is up to 4 for a coarse context, else 0. Diffusion and flow
            matching only: other families know one size of field.
        crop: side of the patches, in fine cells, that training cuts from a large domain; sampling
            then goes by tiles of that size. None takes the domain whole.
        sampler: how members are drawn, e.g. {"name": "2m", "steps": 12}.
        model: further options of `core.build`, e.g. {"net": {"channels": 32}}.
    """

    family: str = "auto"
    context: Literal["auto", "coarse", "static"] = "auto"
    channels: tuple[Literal["sun", "coast", "latitude"], ...] = ()
    mix: float | None = None
    positions: int | None = None
    crop: int | None = None
    sampler: Mapping[str, Any] = field(default_factory=lambda: {"name": "2m", "steps": 12})
    model: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """How a downscaling model is made.

    Attributes:
        variables: CMIP short names, in order.
        factor: fine cells per side of a coarse cell; 0 with predictors of their own.
        predictors: files to learn from in place of block means of the fine data.
        time_range: "A:B", the part of the data that is used; None for all.
        region: "lat0:lat1,lon0:lon1" of the same, with predictors that of the fine data.
        statics: file with orography and land fraction, if the data do not have them.
        transforms: options of the transforms by variable; see `preprocessing`.
        ordered: keep tasmin ≤ tas ≤ tasmax where two of them are modelled; see `ordering`.
        split: which times are for what.
        mean: the regression.
        residual: the generative model.
        fit: training of the generative model.
        memory: GiB that the fields of a training may take; beyond, they are kept in the folder of
            the run and shuffled in chunks.
    """

    variables: tuple[str, ...]
    factor: int = 0
    predictors: PredictorConfig = field(default_factory=PredictorConfig)
    time_range: str | None = None
    region: str | None = None
    statics: str | None = None
    transforms: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    ordered: bool = True
    split: SplitConfig = field(default_factory=SplitConfig)
    mean: MeanConfig = field(default_factory=MeanConfig)
    residual: ResidualConfig = field(default_factory=ResidualConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    memory: float = 8.0

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if not self.variables:
            raise AleatorError("no variables: name at least one, e.g. --variables tas")
        if len(set(self.variables)) != len(self.variables):
            raise AleatorError(f"variables {', '.join(self.variables)}: one is named twice")
        if self.predictors.files and self.factor:
            raise AleatorError("give either a factor (block means) or predictors, not both")
        if self.memory < 0:
            raise AleatorError(f"memory={self.memory}: GiB, none below zero")
        if self.predictors.files and self.mean.anomalies:
            raise AleatorError("mean.anomalies is for block means (a factor), not for predictors")
        if not self.predictors.files and self.factor < 2:
            raise AleatorError(f"factor={self.factor}: at least 2 is needed")

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint stores; JSON."""
        stored = json.loads(json.dumps(dataclasses.asdict(self)))
        if not self.predictors.files:
            del stored["predictors"]
        if self.memory == Config.memory:
            del stored["memory"]
        if not self.mean.anomalies:
            del stored["mean"]["anomalies"]
        return stored


for _part in (SplitConfig, ResidualConfig, MeanConfig, PredictorConfig, FitConfig):
    setattr(_part, "__pydantic_config__", ConfigDict(extra="forbid"))  # noqa: B010


def read_config(
    file: Path | None,
    overrides: Mapping[str, Any],
    *,
    variables: str | None = None,
    factor: int | None = None,
    predictors: Sequence[str] = (),
    time_range: str | None = None,
    region: str | None = None,
    base: Mapping[str, Any] | None = None,
) -> Config:
    """Put a config together: the file, then overrides, then the main options.

    Args:
        file: JSON; None for the defaults.
        overrides: nested mapping.
        variables: comma-separated names.
        factor: fine cells per coarse cell.
        predictors: files.
        time_range: "A:B" of the data.
        region: "lat0:lat1,lon0:lon1" of the data.
        base: what holds where neither file nor options say anything.

    Raises:
        AleatorError: the file cannot be read, an option is unknown or has a bad value, or
            variables are missing, or both factor and predictors are.
    """
    merged = merge(dict(base or {}), read_settings(file, overrides))
    if variables is not None:
        merged["variables"] = [name.strip() for name in variables.split(",") if name.strip()]
    if factor is not None:
        merged["factor"] = factor
    if predictors:
        merged = merge(merged, {"predictors": {"files": list(predictors)}})
    merged |= {
        name: value
        for name, value in (("time_range", time_range), ("region", region))
        if value is not None
    }
    if "variables" not in merged:
        raise AleatorError("--variables is missing; give it, or put it in the config file")
    if "factor" not in merged and not merged.get("predictors", {}).get("files"):
        raise AleatorError(
            "--factor is missing; give it, or put it in the config file (or give --predictors, to "
            "learn from files of their own)"
        )
    return parse_config(merged)


def parse_config(values: Mapping[str, Any]) -> Config:
    """Validate a nested mapping.

    Raises:
        AleatorError: naming the option.
    """
    return parse_settings(Config, values)
