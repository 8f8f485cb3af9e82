"""Aleator's generative engine: noise in, conditional samples with honest densities out.

Public names are imported on first use, so that `import core` costs little.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "AleatorError": "core.errors",
    "CheckpointError": "core.errors",
    "Context": "core.model",
    "Density": "core.model",
    "GenerativeModel": "core.model",
    "Loss": "core.model",
    "build": "core.registry",
    "Diffusion": "core.diffusion",
    "FlowMatching": "core.flow_matching",
    "Denoiser": "core.denoiser",
    "Posterior": "core.denoiser",
    "FitConfig": "core.training",
    "fit": "core.training",
    "VAE": "core.vae",
    "posterior": "core.posterior",
    "EnergyModel": "core.energy",
    "HybridModel": "core.hybrid",
    "load_checkpoint": "core.checkpoint",
    "save_checkpoint": "core.checkpoint",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'core' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
