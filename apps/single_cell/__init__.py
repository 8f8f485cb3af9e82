"""From noisy counts of single cells to biological signal, with its uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.single_cell.config import Config
    from apps.single_cell.denoise import Denoiser
    from apps.single_cell.layers import Output

__all__ = ["Config", "Denoiser", "Output"]


def __getattr__(name: str) -> Any:
    """Public names, imported on first use."""
    import importlib

    homes = {"Denoiser": "denoise", "Output": "layers", "Config": "config"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"apps.single_cell.{homes[name]}"), name)
