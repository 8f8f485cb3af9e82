"""Unexpected objects in traffic: synthesised, trained with, scored at every pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.public import on_demand

if TYPE_CHECKING:
    from apps.anomaly_driving.files import read_image
    from apps.anomaly_driving.using import open_scorer

__all__ = ["open_scorer", "read_image"]

_HOMES = {
    "open_scorer": "apps.anomaly_driving.using",
    "read_image": "apps.anomaly_driving.files",
}

__getattr__ = on_demand(__name__, _HOMES)
