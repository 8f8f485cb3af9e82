"""Which families the residual may be of, and what each is told: swapping them is one word.

All get the same condition: fields on the fine grid and the clock. Diffusion and flow matching put
them into a U-Net, Glow and residual flows into their couplings, a VAE into encoder and decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import AleatorError
from core.model import GenerativeModel
from core.path_model import PathModel
from core.settings import merge

FAMILIES = ("diffusion", "flow_matching", "glow", "residual_flow", "vae")

ANY_SIZE = ("diffusion", "flow_matching")
FEW, MODERATE = 4, 25.0
"""Steps up to which another sampler keeps more of the spread, where σ/α begins below this."""
"""Those that take fields of any size: a coarse grid in another position leaves a smaller domain,
and patches are smaller anyway."""


@dataclass(frozen=True)
class Condition:
    """What the residual's model is told, and of what shape it is.

    Attributes:
        variables: V.
        shape: (H, W).
        field_channels: channels of the context `field`.
        vector_dim: length of the context `vector`, 0 if none.
        periodic_x: the last axis wraps around.
    """

    variables: int
    shape: tuple[int, int]
    field_channels: int
    vector_dim: int
    periodic_x: bool


def family_config(family: str, condition: Condition, options: Mapping[str, Any]) -> dict[str, Any]:
    """A config for `core.build`: what the data fix, defaults, then the user's options over them.

    Options of the network, `net`, are for the families that have one; swapping diffusion for Glow
    leaves them alone.

    Raises:
        AleatorError: a family that cannot take fields as a condition.
    """
    makers = {
        "diffusion": _diffusion,
        "flow_matching": _networked,
        "glow": _glow,
        "residual_flow": _conditions,
        "vae": _vae,
    }
    if family not in makers:
        raise AleatorError(f"residual.family={family!r}; known: {', '.join(FAMILIES)}")
    defaults = makers[family](condition)
    if "net" not in defaults:
        options = {name: value for name, value in options.items() if name != "net"}
    chosen = merge(defaults, options)
    return {
        "family": family,
        **chosen,
        "event_shape": [condition.variables, *condition.shape],
    }


def sampler_of(network: GenerativeModel, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `sample` is to be given as its sampler; None of families that have none."""
    return dict(wanted) if isinstance(network, PathModel) else None


def overridden(
    network: GenerativeModel, own: Mapping[str, Any], over: Mapping[str, Any]
) -> dict[str, Any]:
    """A sampler with some options changed; the default one with very few steps is another.

    On its own grid 2M loses a seventh of the spread with four steps, even of Gaussian data; steps
    in the angle on Karras's grid keep it on paths that begin at moderate noise, as the default's
    does (docs/climate_scale.md).
    """
    plain = own.get("name") == "2m" and "grid" not in own and not {"name", "grid"} & set(over)
    few: dict[str, Any] = {}
    if plain and over.get("steps", FEW + 1) <= FEW and isinstance(network, PathModel):
        start = network.path.at(network.path.t_max)
        if start.sigma <= MODERATE * start.alpha:
            few = {"name": "angle", "grid": "karras", "log_snr_max": 4.0}
    return {**own, **over, **few}


def _networked(condition: Condition) -> dict[str, Any]:
    net = {
        "name": "unet",
        **_conditions(condition),
        "channels": 24,
        "patch": 2,
        "multipliers": [1, 2, 2],
        "dropout": 0.1,
        "periodic_x": condition.periodic_x,
    }
    return {"net": net}


def _diffusion(condition: Condition) -> dict[str, Any]:
    return {
        "path": {"name": "edm", "sigma_min": 0.01, "sigma_max": 20.0},
        "log_sigma_mean": -0.4,
        "log_sigma_std": 1.2,
        **_networked(condition),
    }


def _conditions(condition: Condition) -> dict[str, Any]:
    return {"field_channels": condition.field_channels, "vector_dim": condition.vector_dim}


def _glow(condition: Condition) -> dict[str, Any]:
    return {**_conditions(condition), "scales": 2, "steps": 6, "width": 64}


def _vae(condition: Condition) -> dict[str, Any]:
    height, width = condition.shape
    levels = 1 + sum(height % 2**n == 0 and width % 2**n == 0 for n in (1, 2))
    cells = (height // 2 ** (levels - 1)) * (width // 2 ** (levels - 1))
    coder = {
        "name": "coder",
        **_conditions(condition),
        "channels": 24,
        "multipliers": [1, 2, 2][:levels],
        "dropout": 0.1,
    }
    return {
        "latent_dim": 2 * cells,
        "likelihood": {"name": "gaussian", "learned": "element"},
        "encoder": coder,
        "decoder": copy.deepcopy(coder),
        "warmup": 500,
    }
