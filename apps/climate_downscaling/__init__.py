"""Climate downscaling: coarse climate fields in, calibrated fine-scale ensembles out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.public import on_demand

if TYPE_CHECKING:
    from apps.climate_downscaling.config import Config
    from apps.climate_downscaling.data import open_field, sample_path
    from apps.climate_downscaling.downscale import Downscaler

__all__ = ["Config", "Downscaler", "open_field", "sample_path"]

_HOMES = {
    "Config": "apps.climate_downscaling.config",
    "Downscaler": "apps.climate_downscaling.downscale",
    "open_field": "apps.climate_downscaling.data",
    "sample_path": "apps.climate_downscaling.data",
}

__getattr__ = on_demand(__name__, _HOMES)
