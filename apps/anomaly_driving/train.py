"""`train`: a segmenter from scratch, or from a model that is there, with or without negatives."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.anomaly_driving.augment import AugmentConfig, crops
from apps.anomaly_driving.closed import frames_miou
from apps.anomaly_driving.config import Config
from apps.anomaly_driving.exposure import Exposure
from apps.anomaly_driving.frames import Frames, image_files, read_frames, training_files
from apps.anomaly_driving.losses import LossConfig
from apps.anomaly_driving.model import AnomalyModel, ModelConfig, channels_last, load
from apps.anomaly_driving.negatives.generators import (
    generator_tensors,
    joint_generator,
    kept_generator,
    make_mixer,
    make_source,
)
from apps.anomaly_driving.negatives.sources import Source
from apps.anomaly_driving.segmenter import read_weights
from apps.anomaly_driving.shared import SEEN, digests, must_not_share
from core.cards import write_card
from core.errors import AleatorError
from core.report import command_line, hardware
from core.training import Batches, fit

Say = Callable[[object], None]
TEACHERS = ("keep", "hold")
"""Terms of the loss that ask another model."""


def train(
    data: Path,
    output: Path,
    config: Config,
    *,
    seed: int = 0,
    start: Path | None = None,
    weights: Path | None = None,
    validation: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = print,
) -> AnomalyModel:
    """Train and save a model.

    Args:
        data: folder of labelled frames; see `frames`.
        output: folder for the model; `training/` in it keeps the log and state of the run.
        config: how.
        seed: of everything random.
        start: model to go on from, whose network and classes are kept, and whose generator of
            negatives is, if it is of the kind and shape that `config` asks for.
        weights: safetensors file with the network's initial weights, or the encoder's.
        validation: labelled frames whose closed mIoU the card tells; `data`/val if there is one.
        resume: continue a run that was stopped.
        device: where to train.
        overwrite: replace a model that is there.
        say: for the log.

    Returns:
        the trained model.

    Raises:
        AleatorError: bad data or options, or a model is there already.
    """
    refuse_keeping_nothing(config, start)
    judge = validation or data / "val"
    _check(output, overwrite, judge, data)
    config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, seed=seed))
    frames = training_frames(data, config, say)
    torch.manual_seed(seed)
    model = initial_model(frames, config, start, weights)
    say(f"{config.segmenter.arch}, {config.segmenter.encoder}: {_size(model):,} parameters")
    # before a generator is trained for minutes
    teachers = {term: teacher(term, config.loss, start, model) for term in TEACHERS}
    work = output / "training"
    kept = kept_generator(start, config.negatives, seed) if start is not None else None
    where = (config.negatives, frames, work / "generator")
    source, generator = kept or make_source(
        *where, seed=seed, resume=resume, device=device, say=say
    )
    exposure = exposed(model, frames, source, config, teachers)
    fitted = fit(
        exposure,
        make_batches(frames, config.augment, config.fit.batch_size),
        config.fit,
        folder=work,
        resume=resume,
        device=device,
        job={"data": frames.fingerprint(), "config": _what(config)},
    )
    trained = fitted.model
    assert isinstance(trained, Exposure)
    model = trained.model.eval()
    scores = judged(model, judge, config, say)
    card = make_card(model, frames, config, fitted.steps, fitted.seconds / 60, scores)
    saved = model.save(
        output,
        card=card,
        data_fingerprint=frames.fingerprint(),
        more=generator_tensors(joint_generator(trained.mixer.source) or generator),
        notes=config.to_dict() | {SEEN: digests(training_files(data))},
    )
    _tidy(output, card)
    say(f"{output}: model {saved.fingerprint}, {fitted.steps} steps")
    return model


def exposed(
    model: AnomalyModel,
    frames: Frames,
    source: Source | None,
    config: Config,
    teachers: Mapping[str, AnomalyModel | None],
) -> Exposure:
    """What is trained: the model, the negatives that it meets, and the loss."""
    mixer = make_mixer(config.negatives, source, len(frames.classes), frames.void)
    return Exposure(
        *(model, mixer, config.loss, config.augment),
        class_weights=class_weights(frames, config.loss.class_power),
        bfloat16=config.fit.precision == "bf16-mixed",
        start=teachers["keep"],
        held=teachers["hold"],
    )


def _tidy(output: Path, card: Mapping[str, Any]) -> None:
    """Card and log stay beside the model; the state of the run is not needed any more."""
    work = output / "training"
    write_card(output / "card.md", card)
    shutil.copy(work / "metrics.jsonl", output / "metrics.jsonl")
    shutil.rmtree(work)


def _size(model: AnomalyModel) -> int:
    return sum(p.numel() for p in model.parameters())


def _check(output: Path, overwrite: bool, judge: Path, data: Path) -> None:
    """Refuse to replace a model unasked, and validation frames that are trained on."""
    if (output / "model.json").exists() and not overwrite:
        raise AleatorError(f"{output} holds a model; choose another folder or --overwrite")
    if (judge / "images").is_dir():
        must_not_share(image_files(judge / "images"), training_files(data), "are trained on")


def training_frames(data: Path, config: Config, say: Say) -> Frames:
    """Labelled frames, without those of a class that is held out."""
    frames = read_frames(data, config.classes, config.void, height=config.rows)
    say(f"{len(frames)} frames of {frames.images.shape[2]}x{frames.images.shape[1]} pixels")
    if config.held_out:
        frames = frames.without(config.held_out)
        say(f"{len(frames)} frames are without {config.held_out}")
    return frames


def judged(model: AnomalyModel, folder: Path, config: Config, say: Say) -> dict[str, float]:
    """Closed mIoU on frames of a folder; nothing if there are none."""
    if not (folder / "images").is_dir():
        return {}
    unseen = read_frames(folder, config.classes, config.void, height=config.rows)
    found = frames_miou(model, unseen.without_ids(config.held_out))
    if found is None:
        return {}
    say(f"closed mIoU on {folder.name}: {found:.3f}")
    return {"closed_miou": found}


def _what(config: Config) -> dict[str, Any]:
    """What must not change when a run is resumed; `fit` looks after its own options."""
    return {name: value for name, value in config.to_dict().items() if name != "fit"}


def initial_model(
    frames: Frames, config: Config, start: Path | None, weights: Path | None
) -> AnomalyModel:
    """A fresh network, one with the user's weights, or a trained one to go on from.

    Raises:
        AleatorError: weights that do not fit, or a model of other classes.
    """
    if start is not None:
        model = load(start)
        if model.classes != frames.classes or model.void != frames.void:
            raise AleatorError(
                f"{start}: a model of the classes {', '.join(model.classes)}, but the data have "
                f"{', '.join(frames.classes)}"
            )
        return model.train()
    pixels = frames.images.reshape(-1, 3)[:: max(1, frames.images.size // 3_000_000)] / 255.0
    made = ModelConfig(
        classes=frames.classes,
        void=frames.void,
        segmenter=config.segmenter,
        mean=tuple(round(float(v), 3) for v in pixels.mean(0)),  # type: ignore[arg-type]
        std=tuple(round(float(v), 3) for v in pixels.std(0)),  # type: ignore[arg-type]
        longer_side=int(max(frames.images.shape[1:3])),
    )
    model = channels_last(AnomalyModel(made))
    if weights is not None:
        _put_in(model, weights)
    return model


def refuse_keeping_nothing(config: Config, start: Path | None) -> None:
    """One clear error where answers or densities are to be kept of no model."""
    for term in TEACHERS:
        if getattr(config.loss, term) and (start or getattr(config.loss, f"{term}_of")) is None:
            raise AleatorError(f"loss.{term} needs a model to go on from: --start MODEL")


def teacher(
    term: str, loss: LossConfig, start: Path | None, model: AnomalyModel
) -> AnomalyModel | None:
    """The model whose answers are kept, or whose density is held; None for a free hand.

    Args:
        term: "keep" or "hold".
        loss: its weight and folder.
        start: the model that is gone on from.
        model: what is trained.

    Raises:
        AleatorError: it is of other classes than the model that is trained.
    """
    folder = Path(of) if (of := getattr(loss, f"{term}_of")) else start
    if not getattr(loss, term) or folder is None:
        return None
    found = load(folder)
    if (found.classes, found.void) != (model.classes, model.void):
        raise AleatorError(
            f"{folder}: its answers cannot be kept, it is a model of the classes "
            f"{', '.join(found.classes)}, not {', '.join(model.classes)}"
        )
    return found


def _put_in(model: AnomalyModel, path: Path) -> None:
    tensors = read_weights(path)
    network = model.segmenter
    whole = any(name.startswith("encoder.") for name in tensors)
    target = network if whole else network.encoder
    assert isinstance(target, torch.nn.Module)
    own = target.state_dict()
    fitting = {n: v for n, v in tensors.items() if n in own and v.shape == own[n].shape}
    if len(fitting) < 0.8 * len(own):
        raise AleatorError(
            f"{path}: only {len(fitting)} of the {len(own)} tensors of the network are in it; "
            "give --arch and --encoder of the network that they are from"
        )
    target.load_state_dict(fitting, strict=False)


def make_batches(frames: Frames, augment: AugmentConfig, batch_size: int) -> Batches:
    """Random crops of random frames: a function of the step's generator alone."""

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = torch.randint(len(frames), (batch_size,), generator=generator)
        images, labels = crops(frames, chosen, augment, generator)
        return images, {"label": labels}

    return batches


def class_weights(frames: Frames, power: float) -> Tensor | None:
    """(K,) share^-power, with mean 1 over pixels; None for power 0."""
    if not power:
        return None
    shares = np.maximum(frames.shares, 1e-4)
    weights = shares**-power
    return torch.tensor(weights / (weights * frames.shares).sum(), dtype=torch.float32)


def make_card(
    model: AnomalyModel,
    frames: Frames,
    config: Config,
    steps: int,
    minutes: float,
    scores: dict[str, float],
) -> dict[str, Any]:
    """Facts for the model card."""
    kind = config.negatives.kind
    return {
        "title": "Unexpected objects in road images",
        "summary": f"{config.segmenter.arch} with {config.segmenter.encoder}, from scratch, "
        f"negatives: {kind}.",
        "data": f"{len(frames)} frames of {frames.images.shape[2]}x{frames.images.shape[1]}, "
        f"classes {', '.join(frames.classes)}",
        "split": "all frames of the training folder"
        + (f" without {config.held_out}" if config.held_out else ""),
        "seed": config.fit.seed,
        "hardware": hardware(),
        "minutes": round(minutes, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "negatives": kind,
        "scores": [{name: round(value, 4) for name, value in scores.items()}] if scores else [],
        "limits": "It knows the streets, the camera and the light that it was trained on: on "
        "other roads much of the known scores high, too. Thresholds need a calibration on "
        "pictures of the user's own.",
        "command": command_line(),
    }
