"""How a shower model is made; every field has a sensible default and is checked at the border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from core.errors import AleatorError
from core.settings import read_settings
from core.training import FitConfig

FAMILIES = ("cascade", "consistency", "diffusion", "flow", "flow_matching", "vae")
"""Families of the voxels: one word."""


@dataclass(frozen=True)
class Config:
    """Options of `train`.

    Attributes:
        family: of the voxels given the layer energies.
        model: options of the family: of `SplittingCascade`, or of core's.
        validation: share of the showers that is held out, for early stopping and the certificate.
        rotate: rotations and reflections of a shower are as likely; None where the geometry says.
        fit: of the training loop.
    """

    family: str = "cascade"
    model: Mapping[str, Any] = field(default_factory=dict)
    validation: float = 0.1
    rotate: bool | None = None
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            steps=3000,
            batch_size=32,
            learning_rate=3e-3,
            weight_decay=0.01,
            ema=0.995,
            validate_every=250,
            save_every=250,
        )
    )

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise AleatorError(f"family {self.family!r}; known: {', '.join(FAMILIES)}")
        if not 0.02 <= self.validation <= 0.5:
            raise AleatorError(f"validation={self.validation}: expected 0.02 to 0.5")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "model": dict(self.model)}


def parse_config(values: Mapping[str, Any]) -> Config:
    """A config from a nested mapping; what is not given keeps its default.

    Raises:
        AleatorError: an unknown option, or a value that does not fit.
    """
    options = dict(values)
    if unknown := set(options) - {f.name for f in fields(Config)}:
        known = ", ".join(f.name for f in fields(Config))
        raise AleatorError(f"config: no option {min(unknown)!r}; known: {known}")
    default = Config()
    chosen = dict(options.pop("fit", {}))
    if unknown := set(chosen) - {f.name for f in fields(FitConfig)}:
        known = ", ".join(f.name for f in fields(FitConfig))
        raise AleatorError(f"config: no option fit.{min(unknown)}; known: {known}")
    try:
        return Config(fit=FitConfig(**{**asdict(default.fit), **chosen}), **options)
    except TypeError as error:
        raise AleatorError(f"config: a value is of the wrong type ({error})") from None


def read_config(path: Path | None, overrides: Mapping[str, Any]) -> Config:
    """A config from a JSON file, then `--set` options over it."""
    return parse_config(read_settings(path, overrides))
