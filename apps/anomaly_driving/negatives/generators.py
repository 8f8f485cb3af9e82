"""From one word to a source of negatives: generators of `core`, over patches of the known.

All learn patches of the training frames first, and see nothing but known pictures. `vae`,
`diffusion` and `flow_matching` then fill a bank; `flow` goes on learning while the segmenter does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apps.anomaly_driving.augment import AugmentConfig, crops
from apps.anomaly_driving.frames import Frames
from apps.anomaly_driving.model import APP
from apps.anomaly_driving.negatives.config import NegativesConfig
from apps.anomaly_driving.negatives.mixer import Mixer
from apps.anomaly_driving.negatives.sources import (
    Blend,
    JointFlow,
    Pictures,
    Source,
    Textures,
    cut_patches,
    fill_bank,
    scaled,
)
from core.checkpoint import Checkpoint, load_checkpoint
from core.errors import AleatorError
from core.flows.base import Flow
from core.model import GenerativeModel
from core.registry import build
from core.settings import parse_settings
from core.training import Batches, fit

Say = Callable[[object], None]
PREFIX = "negatives."
"""Of a generator's tensors in a checkpoint."""


def generator_config(config: NegativesConfig) -> dict[str, Any]:
    """What `core.build` makes the generator of a kind from; the user's options go over it."""
    event = [3, config.patch, config.patch]
    unet = {"name": "unet", "channels": 32, "multipliers": [1, 2, 2], "blocks": 1, "patch": 2}
    coder = {"name": "coder", "channels": 16, "multipliers": [1, 2, 2]}
    gaussian = {"name": "gaussian", "scale": 0.15}
    own: dict[str, dict[str, Any]] = {
        "flow": {"family": "glow", "scales": 3, "steps": 3, "width": 32},
        "vae": {
            **{"family": "vae", "latent_dim": 64, "encoder": coder, "decoder": coder},
            **{"beta": 1.0, "warmup": 100, "likelihood": gaussian},
        },
        "diffusion": {"family": "diffusion", "net": unet, "sampler": {"name": "2m", "steps": 16}},
        "flow_matching": {
            **{"family": "flow_matching", "net": unet},
            "sampler": {"name": "2m", "steps": 16},
        },
    }
    return {**own[config.kind], "event_shape": event, **config.model}


def make_source(
    config: NegativesConfig,
    frames: Frames,
    folder: Path,
    *,
    seed: int,
    resume: bool = False,
    device: str = "auto",
    say: Say = print,
) -> tuple[Source | None, GenerativeModel | None]:
    """The source of a kind, and the generator behind it.

    Args:
        config: which.
        frames: known pictures that generators learn from.
        folder: of the generator's training run.
        seed: of its weights, batches and draws.
        resume: continue its training.
        device: where it is trained.
        say: for the log.

    Raises:
        AleatorError: options that the family does not have, a bad folder of pictures.
    """
    if config.kind == "none":
        return None, None
    if config.kind == "paste":
        return Pictures(Path(config.folder or "")), None
    if config.kind == "textures":
        return Textures(), None
    torch.manual_seed(seed)
    model = build(generator_config(config))
    count = sum(p.numel() for p in model.parameters())
    say(f"negatives: {config.kind}, {count:,} parameters, patches of {config.patch} pixels")
    if config.kind == "flow":
        if not isinstance(model, Flow):
            raise AleatorError("negatives of kind flow need a family of core.flows, e.g. glow")
        warm_up(model, frames, config, seed)
    fitted = fit(
        model,
        patch_batches(frames, config),
        dataclasses.replace(config.fit, seed=seed),
        folder=folder,
        resume=resume,
        device=device,
        job={"data": frames.fingerprint(), "negatives": generator_config(config)},
        progress="steps of the generator",
    )
    trained = fitted.model.eval()
    return _source_of(trained, config, seed), trained


def warm_up(flow: Flow, frames: Frames, config: NegativesConfig, seed: int) -> None:
    """One look at data for the layers that start from its statistics (actnorm)."""
    generator = torch.Generator().manual_seed(seed)
    x, _ = patch_batches(frames, config)(0, generator)
    flow.train()
    with torch.no_grad():
        flow.loss(x, generator=generator)


def patch_batches(frames: Frames, config: NegativesConfig) -> Batches:
    """Patches in [-1, 1] of random frames at random sizes: a function of the generator alone."""
    large = AugmentConfig(height=128, width=160, scale=(0.7, 1.5))

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, None]:
        chosen = torch.randint(len(frames), (4,), generator=generator)
        images, _ = crops(frames, chosen, large, generator)
        size = config.fit.batch_size
        return scaled(cut_patches(images, size, config.patch, generator)), None

    return batches


def make_mixer(config: NegativesConfig, source: Source | None, classes: int, void: int) -> Mixer:
    """What pastes the source's pieces, and those mixed in, into pictures of these classes."""
    if config.also and source is not None:
        source = Blend(source, Textures(), config.also_share)
    return Mixer(source, config, classes, void)


def joint_generator(source: Source | None) -> GenerativeModel | None:
    """The generator that was trained with the segmenter; None if it was trained before."""
    if isinstance(source, Blend):
        return joint_generator(source.first)
    return source.flow if isinstance(source, JointFlow) else None


def generator_tensors(model: GenerativeModel | None) -> dict[str, Tensor]:
    """A generator's weights as a checkpoint keeps them."""
    if model is None:
        return {}
    return {PREFIX + name: value for name, value in model.state_dict().items()}


def kept_generator(
    folder: Path, config: NegativesConfig, seed: int
) -> tuple[Source, GenerativeModel] | None:
    """The generator of a trained model, if it is what a config asks for; else None."""
    found = load_checkpoint(folder, app=APP)
    notes = found.config.get("notes", {}).get("negatives", {})
    if config.kind in ("none", "paste", "textures") or notes.get("kind") != config.kind:
        return None
    trained = parse_settings(NegativesConfig, notes)
    if generator_config(trained) != generator_config(config):
        return None
    model = _stored(found, config)
    return _source_of(model, config, seed), model


def stored_source(found: Checkpoint, config: NegativesConfig, seed: int) -> Source:
    """The source that a model was trained with, from its checkpoint.

    Raises:
        AleatorError: there is no generator in it.
    """
    if config.kind == "paste":
        return Pictures(Path(config.folder or ""))
    if config.kind == "textures":
        return Textures()
    return _source_of(_stored(found, config), config, seed)


def _source_of(model: GenerativeModel, config: NegativesConfig, seed: int) -> Source:
    if isinstance(model, Flow):
        return JointFlow(model, config.joint_weight, config.temperature)
    return fill_bank(model, config.bank, seed, config.temperature)


def _stored(found: Checkpoint, config: NegativesConfig) -> GenerativeModel:
    tensors: Mapping[str, Tensor] = {
        name.removeprefix(PREFIX): value.float() if value.is_floating_point() else value
        for name, value in found.tensors.items()
        if name.startswith(PREFIX)
    }
    if not tensors:
        raise AleatorError(
            f"this model was trained with negatives of kind {config.kind}: there is no generator "
            "in it; give a model trained with vae, flow, diffusion or flow_matching"
        )
    model = build(generator_config(config))
    model.load_state_dict(tensors)
    return model.eval()
