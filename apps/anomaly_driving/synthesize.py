"""`synthesize`: pictures with objects that are not there, their masks, and a contact sheet.

    OUT/images/NAME.png    OUT/labels/NAME.png (0 known, 1 unexpected, 255 ignored)

which is a plain benchmark folder: `benchmark OUT` scores it.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.anomaly_driving.config import Config
from apps.anomaly_driving.files import read_image, write_image
from apps.anomaly_driving.frames import Bytes, Frames, image_files, read_frames
from apps.anomaly_driving.model import APP
from apps.anomaly_driving.negatives.config import NegativesConfig
from apps.anomaly_driving.negatives.generators import make_mixer, make_source, stored_source
from apps.anomaly_driving.negatives.mixer import Mixed, Mixer
from core.checkpoint import load_checkpoint
from core.errors import AleatorError
from core.random import keyed_generator
from core.settings import parse_settings

Say = Callable[[object], None]
IGNORED = 255
SHEET_ROWS, SHEET_WIDTH = 6, 320
"""Pairs of pictures in a contact sheet's column, and pixels across one."""


@dataclass(frozen=True)
class Scene:
    """A picture before anything is pasted.

    Attributes:
        name: of its files.
        image: (H, W, 3).
        labels: (H, W) class ids; zeros where the folder has none.
    """

    name: str
    image: Bytes
    labels: Bytes


def synthesize(
    source: Path,
    output: Path,
    config: Config,
    *,
    model: Path | None = None,
    count: int = 24,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Write pictures with pasted negatives, their masks and a contact sheet.

    Args:
        source: labelled frames (see `frames`), or a plain folder of images.
        output: folder to write.
        config: what is pasted and how.
        model: take the generator out of this trained model.
        count: pictures to make; sources are used again if they are fewer.
        seed: of everything random.
        device: where a generator is trained.
        overwrite: replace what is there.
        say: for the log.

    Returns:
        the contact sheet.

    Raises:
        AleatorError: bad input, nothing to paste, or something is there already.
    """
    if count < 1:
        raise AleatorError(f"--count {count}: at least one picture is needed")
    if (output / "images").exists() and not overwrite:
        raise AleatorError(f"{output} holds pictures; choose another folder or --overwrite")
    scenes, frames = read_scenes(source, config)
    mixer = _mixer(config, model, frames, output, seed, device, say)
    if not mixer.pastes:
        raise AleatorError(
            "negatives of kind none paste nothing; choose --negatives paste, vae, flow, "
            "diffusion or flow_matching, or give a --model that was trained with them"
        )
    for name in ("images", "labels"):
        shutil.rmtree(output / name, ignore_errors=True)
    shown: list[tuple[Bytes, Bytes]] = []
    spaced = [scenes[i * len(scenes) // count] for i in range(count)]
    chosen = spaced if count < len(scenes) else scenes
    for number in range(count):
        name, image, labels = _one(chosen, number, mixer, seed)
        write_image(output / "images" / f"{name}.png", image)
        write_image(output / "labels" / f"{name}.png", labels)
        if len(shown) < 2 * SHEET_ROWS:
            shown.append((image, labels))
    sheet = output / "contact_sheet.png"
    write_image(sheet, contact_sheet(shown))
    say(f"{output}: {count} pictures, their masks, {sheet.name}")
    return sheet


def read_scenes(source: Path, config: Config) -> tuple[list[Scene], Frames | None]:
    """Pictures of a folder, and the labelled frames that they are, if they are.

    Raises:
        AleatorError: an empty folder, or bad files.
    """
    labelled = any((source / part).is_dir() for part in ("labels", "train/labels"))
    if labelled:
        frames = read_frames(source, config.classes, config.void, height=config.rows)
        zipped = zip(frames.names, frames.images, frames.labels, strict=True)
        return [Scene(*parts) for parts in zipped], frames
    folder = source / "images" if (source / "images").is_dir() else source
    images = [(path.stem, read_image(path).pixels) for path in image_files(folder)]
    return [Scene(n, image, np.zeros(image.shape[:2], np.uint8)) for n, image in images], None


def _mixer(
    config: Config,
    model: Path | None,
    frames: Frames | None,
    output: Path,
    seed: int,
    device: str,
    say: Say,
) -> Mixer:
    negatives = config.negatives
    if model is not None:
        found = load_checkpoint(model, app=APP)
        trained = stored_negatives(found.config)
        placed = dataclasses.replace(trained, placement=negatives.placement)
        stored = stored_source(found, trained, seed)
        return make_mixer(placed, stored, len(config.classes), config.void)
    if frames is None and negatives.kind not in ("none", "paste", "textures"):
        raise AleatorError(
            f"a generator ({negatives.kind}) learns from labelled frames, and these have no "
            "labels/; give a trained one with --model"
        )
    work = output / "generator"
    source, _ = make_source(
        negatives, frames or _nothing(config), work, seed=seed, device=device, say=say
    )
    return make_mixer(negatives, source, len(config.classes), config.void)


def _nothing(config: Config) -> Frames:
    empty = np.zeros((0, 1, 1), np.uint8)
    return Frames(np.zeros((0, 1, 1, 3), np.uint8), empty, (), config.classes, config.void)


def stored_negatives(config: dict[str, Any]) -> NegativesConfig:
    """What a model was trained with, from its checkpoint's config."""
    notes = config.get("notes", {})
    return parse_settings(NegativesConfig, notes.get("negatives", {}))


def _one(
    scenes: Sequence[Scene], number: int, mixer: Mixer, seed: int
) -> tuple[str, Bytes, Bytes]:
    """Picture `number`: a function of it and the seed alone."""
    index = number % len(scenes)
    scene = scenes[index]
    generator = keyed_generator(seed, 11, number)
    same = [s for s in scenes if s.image.shape == scene.image.shape]
    other = same[int(torch.randint(len(same), (1,), generator=generator))]
    images, labels = _tensors((scene, other))
    with torch.no_grad():
        mixed = _until_pasted(mixer, images, labels, generator)
    pixels = (mixed.images[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    written = np.zeros(scene.labels.shape, np.uint8)
    written[(mixed.labels[0] == mixer.void).numpy()] = IGNORED
    written[mixed.negative[0].numpy()] = 1
    again = f"_{number // len(scenes)}" if number >= len(scenes) else ""
    return f"{scene.name}{again}", np.ascontiguousarray(pixels), written


def _until_pasted(
    mixer: Mixer, images: Tensor, labels: Tensor, generator: torch.Generator
) -> Mixed:
    """Draw again until the first picture has something unknown in it; ten times at most."""
    for _ in range(10):
        mixed: Mixed = mixer(images, labels, generator)
        if mixed.negative[0].any():
            break
    return mixed


def _tensors(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.stack([scene.image for scene in scenes]))
    labels = torch.from_numpy(np.stack([scene.labels for scene in scenes])).long()
    return images.permute(0, 3, 1, 2).float() / 255, labels


def contact_sheet(shown: Sequence[tuple[Bytes, Bytes]]) -> Bytes:
    """Two columns of pairs: the picture, and the same with what was pasted in red."""
    import cv2

    cells: list[Bytes] = []
    for image, labels in shown:
        marked = image.copy()
        inside = labels == 1
        marked[inside] = (0.5 * marked[inside] + [127, 0, 0]).astype(np.uint8)
        height = round(image.shape[0] * SHEET_WIDTH / image.shape[1])
        pair = np.concatenate([image, marked], axis=1)
        size = (2 * SHEET_WIDTH, height)
        cells.append(np.asarray(cv2.resize(pair, size, interpolation=cv2.INTER_AREA), np.uint8))
    tallest = max(cell.shape[0] for cell in cells)
    padded = [np.pad(c, ((0, tallest - c.shape[0]), (0, 0), (0, 0))) for c in cells]
    if len(padded) % 2 and len(padded) > 1:
        padded.append(np.zeros_like(padded[0]))
    columns = 2 if len(padded) > 1 else 1
    rows = [np.concatenate(part, axis=1) for part in _chunks(padded, columns)]
    return np.concatenate(rows).astype(np.uint8, copy=False)


def _chunks(items: list[Bytes], size: int) -> Iterator[list[Bytes]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
