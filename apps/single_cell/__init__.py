"""From noisy counts of single cells to biological signal, with its uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.public import on_demand

if TYPE_CHECKING:
    from apps.single_cell.config import Config
    from apps.single_cell.denoise import Denoiser
    from apps.single_cell.layers import Output

__all__ = ["Config", "Denoiser", "Output"]

_HOMES = {
    "Config": "apps.single_cell.config",
    "Denoiser": "apps.single_cell.denoise",
    "Output": "apps.single_cell.layers",
}

__getattr__ = on_demand(__name__, _HOMES)
