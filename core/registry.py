"""From words to models: `build` is the only place that turns a config into modules.

A config is a plain mapping, as a checkpoint stores it: the family is one word, the network
another; everything else has a default. Swapping diffusion for flow matching is one word.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from core.errors import AleatorError
from core.model import GenerativeModel

FAMILIES = {
    "cnf": "core.flows.CNF",
    "consistency": "core.consistency.ConsistencyModel",
    "daed": "core.vae.DAED",
    "diffusion": "core.diffusion.Diffusion",
    "energy": "core.energy.EnergyModel",
    "flow_matching": "core.flow_matching.FlowMatching",
    "glow": "core.flows.Glow",
    "hierarchical_vae": "core.vae.BottomUpVAE",
    "hybrid": "core.hybrid.HybridModel",
    "latent_diffusion": "core.vae.LatentDiffusion",
    "latent_flow_matching": "core.vae.LatentFlowMatching",
    "maf": "core.flows.MAF",
    "nsf": "core.flows.NSF",
    "real_nvp": "core.flows.RealNVP",
    "residual_flow": "core.flows.ResidualFlow",
    "top_down_vae": "core.vae.TopDownVAE",
    "matching": "core.structured.Matching",
    "spanning_tree": "core.structured.SpanningTree",
    "joint_vae": "core.vae.JointVAE",
    "self_supervised_vae": "core.vae.SelfSupervisedVAE",
    "vae": "core.vae.VAE",
    "vq_vae": "core.vae.VQVAE",
}
NETS = {
    "coder": "core.nets.Coder",
    "dit": "core.nets.DiT",
    "mlp": "core.nets.MLP",
    "set_transformer": "core.nets.SetTransformer",
    "unet": "core.nets.UNet",
}


def build(config: Mapping[str, Any]) -> GenerativeModel:
    """Make a model.

    Args:
        config: {"family": "diffusion", "event_shape": [1, 32, 48], "net": {"name": "unet", ...},
            ...}; the other entries are keyword arguments of the family and of the network.

    Returns:
        a model with freshly initialised weights.

    Raises:
        AleatorError: an unknown family, network or option; the known ones are listed.
    """
    options = dict(config)
    family = _look_up("family", options.pop("family", None), FAMILIES)
    if "event_shape" not in options:
        raise AleatorError("model config: event_shape is missing")
    event_shape = tuple(options.pop("event_shape"))
    if not family.takes_net:  # it has several, under other names
        return _call("family", family, options, event_shape)
    net = build_net(options.pop("net", {}), event_shape, options.get("learned_variance", False))
    return _call("family", family, options, net, event_shape)


def build_net(
    config: Mapping[str, Any], event_shape: tuple[int, ...], doubled: bool = False
) -> nn.Module:
    """Make a network: {"name": "unet" | "mlp", **its options}; by default by the event's rank."""
    options = dict(config)
    name = options.pop("name", "unet" if len(event_shape) == 3 else "mlp")
    if doubled:
        options.setdefault("out_channels", 2 * event_shape[0])
    return _call("net", _look_up("net", name, NETS), options, event_shape)


def _look_up(kind: str, name: Any, known: Mapping[str, str]) -> Any:
    if name not in known:
        raise AleatorError(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
    module, _, attribute = known[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _call(kind: str, function: Any, options: dict[str, Any], *positional: Any) -> Any:
    known = _options(function)
    if unknown := set(options) - known:
        raise AleatorError(
            f"{kind} {function.__name__} has no option {sorted(unknown)[0]!r}; "
            f"it has {', '.join(sorted(known))}"
        )
    return function(*positional, **options)


def _options(function: Any) -> set[str]:
    """Parameters of a class, with those that it passes on in `**options`."""
    known: set[str] = set()
    for owner in inspect.getmro(function):
        if "__init__" not in vars(owner) or owner in (nn.Module, object):
            continue
        parameters = inspect.signature(vars(owner)["__init__"]).parameters
        known |= set(parameters)
        if "options" not in parameters:
            break
    return known - {"self", "options"}
