"""Aleator's generative engine: noise in, conditional samples with honest densities out.

Public names are imported on first use, so that `import core` costs little.
"""

from __future__ import annotations

from core.public import on_demand

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
    "posterior": "core.inference",
    "EnergyModel": "core.energy",
    "HybridModel": "core.hybrid",
    "load_checkpoint": "core.checkpoint",
    "save_checkpoint": "core.checkpoint",
}

__all__ = sorted(_PUBLIC)


__getattr__ = on_demand(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
