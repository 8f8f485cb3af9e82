"""Solvers: time grids, ODE integrators, and the samplers of diffusion and flow matching."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from core.errors import AleatorError
from core.solvers.base import Denoise, Sampler
from core.solvers.deterministic import DDIM, Angle, Euler, Heun, ProbabilityFlow, TwoM, UniPC
from core.solvers.stochastic import Ancestral, EulerMaruyama

SAMPLERS: dict[str, type[Sampler]] = {
    "2m": TwoM,
    "angle": Angle,
    "ddim": DDIM,
    "ddpm": Ancestral,
    "euler": Euler,
    "heun": Heun,
    "ode": ProbabilityFlow,
    "sde": EulerMaruyama,
    "unipc": UniPC,
}

__all__ = [
    "SAMPLERS",
    "Denoise",
    "Sampler",
    "make_sampler",
    *(c.__name__ for c in SAMPLERS.values()),
]


def make_sampler(config: str | Mapping[str, Any] | Sampler | None, **defaults: Any) -> Sampler:
    """Make a sampler from its name, or from {"name": ..., **options}; None is the default, 2M.

    Args:
        config: what to make.
        defaults: options used where the config does not set them, e.g. steps=16.

    Raises:
        AleatorError: the name or an option is unknown.
    """
    if isinstance(config, Sampler):
        return config
    options = {"name": config or "2m"} if not isinstance(config, Mapping) else dict(config)
    name = options.pop("name", "2m")
    if name not in SAMPLERS:
        raise AleatorError(f"unknown sampler {name!r}; known: {', '.join(sorted(SAMPLERS))}")
    known = {f.name for f in dataclasses.fields(SAMPLERS[name])}
    if unknown := set(options) - known:
        raise AleatorError(
            f"sampler {name!r} has no option {sorted(unknown)[0]!r}; it has {sorted(known)}"
        )
    return SAMPLERS[name](**{**{k: v for k, v in defaults.items() if k in known}, **options})
