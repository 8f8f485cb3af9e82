"""Checkpoints: `model.safetensors` and `model.json` in a folder, never a pickle.

    model.safetensors   weights, normaliser, whatever is a tensor
    model.json          app, config, versions, fingerprints of data and model, and the card

The fingerprint in `model.json` is that of the weights: two files that do not belong together, or
a file that was cut short, are refused. Each file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import CheckpointError
from core.report import replacing, versions, write_text

FORMAT = 1
"""Raised when older programs can no longer read what is written."""

WEIGHTS, META = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    Attributes:
        app: the application that wrote it.
        config: what rebuilds the model; JSON.
        tensors: by name.
        card: what it was trained on, and how well it does; see `core.cards`.
        data_fingerprint: of the training data.
        fingerprint: of config and tensors, 16 hexadecimal digits: the model's name in outputs.
        versions: of Python and the packages that wrote it.
    """

    app: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    card: dict[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def save_checkpoint(
    folder: Path | str,
    *,
    app: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    card: Mapping[str, Any] | None = None,
    data_fingerprint: str = "",
) -> Checkpoint:
    """Write a checkpoint, each of its two files atomically.

    Args:
        folder: made if it is not there.
        app: the application, e.g. "climate_downscaling".
        config: what rebuilds the model; must be JSON.
        tensors: everything else.
        card: facts for the model card.
        data_fingerprint: of the training data.

    Returns:
        what was written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    written = Checkpoint(
        app=app,
        config=json.loads(json.dumps(config)),
        tensors=kept,
        card=dict(card or {}),
        data_fingerprint=data_fingerprint,
        fingerprint=fingerprint(config, kept),
        versions=versions(),
    )
    meta = {"format": FORMAT, **{k: v for k, v in vars(written).items() if k != "tensors"}}
    write_bytes(folder / WEIGHTS, save(kept))
    write_text(folder / META, json.dumps(meta, indent=1, ensure_ascii=False) + "\n")
    return written


def load_checkpoint(folder: Path | str, *, app: str | None = None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        folder: where `model.json` is.
        app: the application that it must be of; any if None.

    Raises:
        CheckpointError: not a model folder, of another application or a newer version of this
            program, cut short, or its two files do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    meta = _read_meta(folder, app)
    try:
        tensors = load((folder / WEIGHTS).read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing; copy the whole folder") from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS}: damaged or cut short ({error}); copy it again"
        ) from None
    fields = {key: meta[key] for key in Checkpoint.__dataclass_fields__ if key != "tensors"}
    found = Checkpoint(tensors=tensors, **fields)
    if fingerprint(found.config, tensors) != found.fingerprint:
        raise CheckpointError(
            f"{folder}: {WEIGHTS} and {META} do not belong together (saving was interrupted, or "
            "one of them was changed); copy or train the model again"
        )
    return found


def _read_meta(folder: Path, app: str | None) -> dict[str, Any]:
    path = folder / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{folder}: not a model folder (no {META} in it); `train` makes one"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise CheckpointError(f"{path}: damaged or cut short; copy it again") from None
    if not isinstance(meta, dict) or not {"format", "app", "config"} <= set(meta):
        raise CheckpointError(f"{path}: not a model of this program")
    if meta["format"] > FORMAT:
        raise CheckpointError(
            f"{folder}: written by a newer version (format {meta['format']}, this program reads "
            f"up to {FORMAT}); upgrade with pip install --upgrade aleator"
        )
    if app is not None and meta["app"] != app:
        raise CheckpointError(f"{folder}: a model of {meta['app']}, not of {app}")
    if missing := set(Checkpoint.__dataclass_fields__) - {"tensors"} - set(meta):
        raise CheckpointError(f"{path}: {min(missing)} is missing; the file is damaged")
    return meta


def fingerprint(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of a config and tensors."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even if the power fails."""
    with replacing(path) as draft, draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
