"""Rows of a downscaling job, for `core.streaming`: pickles small, loads on first use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.climate_downscaling.downscale import (
    Downscaler,
    encoder_of,
    ensemble,
    ood_scores,
    open_input,
)
from apps.climate_downscaling.field import Field
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.template import OOD, Encoder

Loaded = tuple[DownscalingModel, Field, Encoder]


class Job:
    """Rows of a downscaling job, for `core.streaming`: pickles small, loads on first use."""

    def __init__(
        self,
        model: Path,
        sources: Sequence[str],
        time_range: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        regrid: str | None = None,
        **options: Any,
    ) -> None:
        """Note what to do.

        Args:
            model: folder of the model.
            sources: paths of the coarse input; the bundled sample if there are none.
            time_range: of the input.
            device: where to compute.
            threads: of a worker; as many as it finds if None.
            regrid: how the input is remapped.
            **options: of `ensemble`.
        """
        self.model, self.sources, self.time_range = model, tuple(sources), time_range
        self.device, self.threads, self.options = device, threads, options
        self.regrid = regrid
        self._loaded: Loaded | None = None

    def use(self, downscaler: Downscaler, field: Field) -> Loaded:
        """Work with what is open already."""
        model = downscaler.model
        self._loaded = model, field, encoder_of(model, field)
        return self._loaded

    def _load(self) -> Loaded:
        if self.threads:
            torch.set_num_threads(self.threads)
        downscaler = Downscaler.load(self.model, self.device)
        opened = open_input(downscaler, self.sources, self.time_range, self.regrid)
        return self.use(downscaler, opened[0])

    def __call__(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Name -> rows start:stop of that array of the output."""
        model, field, encoder = self._loaded or self._load()
        drawn = ensemble(model, field, start, stop, device=self.device, **self.options)
        return {**encoder(drawn), OOD: ood_scores(model, field, start, stop)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}
