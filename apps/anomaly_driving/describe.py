"""`info`: what a model folder or a folder of frames holds, in words."""

from __future__ import annotations

from pathlib import Path

from apps.anomaly_driving.config import Config
from apps.anomaly_driving.frames import read_frames
from apps.anomaly_driving.model import APP, ModelConfig, from_checkpoint
from apps.anomaly_driving.synthesize import stored_negatives
from core.checkpoint import META, load_checkpoint
from core.errors import AleatorError


def describe(thing: Path, config: Config) -> str:
    """A few lines on a model folder, or on labelled frames.

    Raises:
        AleatorError: it is neither.
    """
    if (thing / META).exists():
        return describe_model(thing)
    if any((thing / part).is_dir() for part in ("labels", "train/labels")):
        return describe_frames(thing, config)
    raise AleatorError(f"{thing}: neither a model folder nor a folder with images/ and labels/")


def describe_model(folder: Path) -> str:
    """Network, classes, negatives, size and scores of a model."""
    found = load_checkpoint(folder, app=APP)
    model = from_checkpoint(found, str(folder))
    config = model.config
    count = sum(p.numel() for p in model.parameters())
    head = "with" if config.segmenter.outlier_head else "without"
    lines = [
        f"{folder}: model {found.fingerprint}",
        f"{config.segmenter.arch} with {config.segmenter.encoder}, {count:,} parameters, {head} "
        "outlier head",
        f"{len(config.classes)} classes: {', '.join(config.classes)}; void is {config.void}",
        f"negatives: {stored_negatives(found.config).kind}",
        f"trained on: {found.card.get('data', 'unknown')}",
        f"pictures are scored at {config.longer_side} pixels on the longer side{_looks(config)}",
    ]
    if score := found.card.get("score"):
        lines.append(f"default score: {score}")
    for row in found.card.get("scores", []):
        lines.append("scores: " + ", ".join(f"{k} {v}" for k, v in row.items()))
    return "\n".join(lines)


def _looks(config: ModelConfig) -> str:
    """How else a model looks at them, if it does."""
    told = ""
    if config.scales != (1.0,):
        told += f", at {', '.join(f'{scale:g}' for scale in config.scales)} of it"
    return told if config.colours == 1 else f"{told}, with {config.colours:g} of their colours"


def describe_frames(folder: Path, config: Config) -> str:
    """Number, size and class shares of labelled frames."""
    frames = read_frames(folder, config.classes, config.void)
    height, width = frames.images.shape[1:3]
    shares = ", ".join(
        f"{name} {share:.1%}" for name, share in zip(frames.classes, frames.shares, strict=True)
    )
    empty = (frames.labels == frames.void).mean()
    return "\n".join(
        [
            f"{folder}: {len(frames)} labelled frames of {width}x{height} pixels",
            f"classes: {shares}",
            f"void: {empty:.1%} of all pixels",
        ]
    )
