"""What `train` is asked for: frozen dataclasses, validated where they enter.

A config file is JSON with the same names; `--set negatives.kind=flow` overrides one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from apps.anomaly_driving.augment import AugmentConfig
from apps.anomaly_driving.losses import LossConfig
from apps.anomaly_driving.model import CAMVID
from apps.anomaly_driving.negatives import NegativesConfig
from apps.anomaly_driving.segmenter import SegmenterConfig
from core.settings import parse_settings, read_settings
from core.training import FitConfig


@dataclass(frozen=True)
class Config:
    """How a model is made.

    Attributes:
        classes: names of the label ids 0 to K - 1.
        void: label id of pixels without a class.
        held_out: a class that training must not see: its frames are left out.
        rows: height to which frames are resized when they are read; as stored if None.
        segmenter: the network.
        augment: how pictures vary.
        negatives: what is pasted.
        loss: weights of the terms.
        fit: the training.
    """

    classes: tuple[str, ...] = CAMVID
    void: int = 11
    held_out: str | None = None
    rows: int | None = None
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    negatives: NegativesConfig = field(default_factory=NegativesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            steps=2400, batch_size=8, learning_rate=2e-3, warmup=100, validate_every=0
        )
    )

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return TypeAdapter(Config).dump_python(self, mode="json")


def read_config(file: Path | None, *overrides: Mapping[str, Any]) -> Config:
    """Put a config together: the file, then overrides in their order.

    Raises:
        AleatorError: the file cannot be read, an option is unknown or has a bad value.
    """
    return parse_settings(Config, read_settings(file, *overrides))
