"""What is in a model folder, a shower file or a binning file, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.clouds.data import JETS, PARTICLES, is_clouds, read_clouds
from apps.hep_simulation.clouds.model import APP as CLOUD_APP
from apps.hep_simulation.clouds.model import KIND_NAMES, CloudModel
from apps.hep_simulation.data import ENERGIES, PDG, SHOWERS, open_hdf5
from apps.hep_simulation.geometry import KNOWN_VOXELS, read_geometry
from apps.hep_simulation.inference.posterior import APP as INFERENCE_APP
from apps.hep_simulation.jets.model import APP as JET_APP
from apps.hep_simulation.model import APP as SHOWER_APP
from apps.hep_simulation.model import ShowerModel
from apps.hep_simulation.particles import particle_name
from core.cards import model_card
from core.checkpoint import load_checkpoint
from core.errors import AleatorError


def describe(path: Path) -> str:
    """In words.

    Raises:
        AleatorError: nothing there, or of no kind that is known.
    """
    if not path.exists():
        raise AleatorError(f"{path}: no such file or folder")
    if path.is_dir():
        return _any_model(path)
    if path.suffix == ".xml":
        geometry = read_geometry(path)
        return f"binning of {geometry.particle} ({geometry.pid}): {geometry.describe()}"
    return _clouds(path) if is_clouds(path) else _showers(path)


def _any_model(path: Path) -> str:
    """Showers, jets or posteriors; the card at the end."""
    found = load_checkpoint(path)
    known = {
        SHOWER_APP: _model, JET_APP: _jets, INFERENCE_APP: _inference, CLOUD_APP: _cloud_model,
    }  # fmt: skip
    if found.app not in known:
        raise AleatorError(f"{path}: a model of {found.app}, not of colliders")
    card = f"\n\n{model_card(found.card)}" if found.card else ""
    return known[found.app](path) + card


def _jets(path: Path) -> str:
    found = load_checkpoint(path, app=JET_APP)
    size = sum(tensor.numel() for tensor in found.tensors.values())
    name = f"model {found.fingerprint}: reconstructed jets of generator-level ones"
    return f"{name}, {size:,} weights"


def _cloud_model(path: Path) -> str:
    model = CloudModel.load(path)
    size = sum(p.numel() for part in (model.shape, model.cloud) for p in part.parameters())
    return (
        f"model {model.fingerprint}: jets as clouds, {model.config['cloud']['family']}, {size:,} "
        f"weights\nknows: {model.reach()}; up to {model.most} constituents"
    )


def _clouds(path: Path) -> str:
    found = read_clouds(path)
    kinds = ", ".join(
        f"{int((found.kind == k).sum())} {KIND_NAMES[k]}" for k in np.unique(found.kind)
    )
    return (
        f"{len(found)} jets as clouds ({PARTICLES}, {JETS}) of {found.counts.min()} to "
        f"{found.counts.max()} constituents\n{found.pt.min():.4g} to {found.pt.max():.4g} GeV, "
        f"|η| up to {np.abs(found.eta).max():.3g}; {kinds}"
    )


def _inference(path: Path) -> str:
    found = load_checkpoint(path, app=INFERENCE_APP)
    prior, networks = found.config["prior"], found.config["networks"]
    ranges = zip(prior["names"], prior["low"], prior["high"], strict=True)
    return "\n".join(
        [
            f"model {found.fingerprint}: {networks['method']}, {networks['count']} networks",
            f"infers: {', '.join(f'{n} in {a:g} to {b:g}' for n, a, b in ranges)}",
            f"from: {', '.join(found.config['x_names'])}",
        ]
    )


def _model(path: Path) -> str:
    model = ShowerModel.load(path)
    low, high = (energy / 1000 for energy in model.energy_range)
    lines = [
        f"model {model.fingerprint}: {model.config.family}, "
        f"{sum(p.numel() for p in model.generator.parameters()):,} parameters",
        f"geometry: {model.geometry.describe()}",
        f"knows: {', '.join(particle_name(p) for p in model.particles)}, "
        f"{low:.4g} to {high:.4g} GeV; voxels from {model.threshold:.5f} MeV",
    ]
    for name, found in model.closure.items():
        sign = "at least " if found["at_least"] else ""
        lines.append(
            f"closure of {name}: bias {found['bias']:+.3f} ± {found['bias_error']:.3f} sd, worth "
            f"{sign}{found['worth']:.0f} oracle events"
        )
    return "\n".join(lines)


def _showers(path: Path) -> str:
    with open_hdf5(path) as file:
        if SHOWERS not in file or ENERGIES not in file:
            there = ", ".join(sorted(file)) or "nothing"
            raise AleatorError(f"{path}: not a file of showers; it has {there}")
        energies = np.asarray(file[ENERGIES][:], np.float64).reshape(-1)
        count, voxels = file[SHOWERS].shape
        known = KNOWN_VOXELS.get(voxels)
        lines = [f"{count} showers of {voxels} voxels" + (f" (as {known})" if known else "")]
        if count:
            lines.append(f"{energies.min() / 1000:.4g} to {energies.max() / 1000:.4g} GeV")
        if PDG in file:
            numbers, counts = np.unique(np.asarray(file[PDG][:]), return_counts=True)
            named = zip(numbers, counts, strict=True)
            lines.append(", ".join(f"{n} of {particle_name(int(p))}" for p, n in named))
        lines += _origin(file.attrs)
        return "\n".join(lines)


def _origin(attributes: Mapping[str, Any]) -> list[str]:
    """What a simulated file says about itself."""
    if "flagged" not in attributes:
        return []
    lines = [
        f"made by {attributes['generator']} ({attributes['model']}), seed {attributes['seed']}; "
        f"{attributes['flagged']} showers outside of what it may be trusted with"
    ]
    if "oracle_events_worth" in attributes:
        worth = json.loads(attributes["oracle_events_worth"])
        lines.append("worth in oracle events: " + ", ".join(f"{n} {v}" for n, v in worth.items()))
    return lines
