"""What is pasted: cut-outs and textures of files, banks of generated patches, a flow in training.

A source hands out objects as (3, h, w) pictures, with an opacity of their own where they have an
outline (cut-outs) and None where they are texture that any outline may be cut from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from apps.anomaly_driving.files import read_image
from apps.anomaly_driving.frames import image_files
from apps.anomaly_driving.textures import dead_leaves, noise_texture
from core.errors import AleatorError
from core.flows.base import Flow
from core.model import GenerativeModel
from core.random import keyed_generator, rand, randn
from core.vae.base import LatentModel

TEXTURE = 64
"""Pixels a side of a noise texture before it is placed."""
LARGEST = 256
"""Pixels of the longer side of cut-outs and textures in memory."""


@dataclass(frozen=True)
class Piece:
    """One object before it is placed.

    Attributes:
        pixels: (3, h, w) in [0, 1].
        opacity: (h, w) of its own outline; None if it is texture.
    """

    pixels: Tensor
    opacity: Tensor | None = None


class Source(nn.Module, ABC):
    """Where negatives come from."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> list[Piece]:
        """So many objects."""

    def likelihood_loss(self, images: Tensor, generator: torch.Generator) -> Tensor | None:
        """What the source itself minimises on known pictures, a scalar; None if nothing."""
        return None


class Pictures(Source):
    """Cut-outs (PNG with transparency) and textures (anything else) of a folder."""

    def __init__(self, folder: Path) -> None:
        """Read them.

        Raises:
            AleatorError: an empty folder, something that is no image, a cut-out without pixels.
        """
        super().__init__()
        self.pieces = [read_piece(path) for path in image_files(folder)]

    def draw(self, count: int, generator: torch.Generator) -> list[Piece]:  # noqa: D102
        chosen = torch.randint(len(self.pieces), (count,), generator=generator)
        return [self.pieces[i] for i in chosen.tolist()]


def read_piece(path: Path) -> Piece:
    """A cut-out or texture of a file.

    Raises:
        AleatorError: not an image, or one with nothing but transparency.
    """
    import cv2

    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image = read_image(path).pixels
    alpha = None
    if raw is not None and raw.ndim == 3 and raw.shape[2] == 4:
        alpha = raw[..., 3]
        rows, columns = np.flatnonzero((alpha > 127).any(1)), np.flatnonzero((alpha > 127).any(0))
        if not len(rows):
            raise AleatorError(f"{path}: nothing in it is opaque; a cut-out has visible pixels")
        part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        image, alpha = image[part], alpha[part]
    shrink = LARGEST / max(image.shape[:2])
    if shrink < 1:
        size = tuple(max(1, round(n * shrink)) for n in image.shape[1::-1])
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
        if alpha is not None:
            alpha = np.asarray(cv2.resize(alpha, size, interpolation=cv2.INTER_AREA))
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    opacity = None
    if alpha is not None:
        opacity = torch.from_numpy(np.ascontiguousarray(alpha)).float() / 255
    return Piece(pixels, opacity)


class Bank(Source):
    """Patches that a generator has drawn, once, before the segmenter is trained."""

    patches: Tensor

    def __init__(self, patches: Tensor) -> None:
        """Patches (N, 3, p, p) in [0, 1]."""
        super().__init__()
        self.register_buffer("patches", patches.clamp(0, 1), persistent=False)

    def draw(self, count: int, generator: torch.Generator) -> list[Piece]:  # noqa: D102
        chosen = torch.randint(len(self.patches), (count,), generator=generator)
        return [Piece(self.patches[i]) for i in chosen.tolist()]


class Textures(Source):
    """Noise and dead leaves, colourful or nearly grey, never the same twice; see `textures`."""

    def draw(self, count: int, generator: torch.Generator) -> list[Piece]:  # noqa: D102
        return [Piece(self._texture(generator)) for _ in range(count)]

    def _texture(self, generator: torch.Generator) -> Tensor:
        leaves, colourful = rand((2,), generator).tolist()
        if leaves < 0.5:
            drawn = dead_leaves(TEXTURE, generator)
        else:
            drawn = noise_texture(TEXTURE, generator, steepest=2.5)
        grey = drawn.mean(0, keepdim=True)
        return grey + colourful * (drawn - grey)


class Blend(Source):
    """Objects of two sources, so that the hand of neither is what is learnt."""

    def __init__(self, first: Source, second: Source, share: float) -> None:
        """`share` is that of the second."""
        super().__init__()
        self.first, self.second, self.share = first, second, share

    def draw(self, count: int, generator: torch.Generator) -> list[Piece]:  # noqa: D102
        other = (rand((count,), generator) < self.share).tolist()
        pieces = iter(self.first.draw(count - sum(other), generator))
        others = iter(self.second.draw(sum(other), generator))
        return [next(others) if is_other else next(pieces) for is_other in other]

    def likelihood_loss(  # noqa: D102
        self, images: Tensor, generator: torch.Generator
    ) -> Tensor | None:
        return self.first.likelihood_loss(images, generator)


class JointFlow(Source):
    """A flow over patches that learns while the segmenter does.

    Its samples are drawn with gradients: what the segmenter's loss says of them reaches it.
    """

    def __init__(self, flow: Flow, weight: float, temperature: float = 1.0) -> None:
        """`weight` is that of its negative log-likelihood per dimension."""
        super().__init__()
        self.flow, self.weight, self.temperature = flow, weight, temperature

    def draw(self, count: int, generator: torch.Generator) -> list[Piece]:  # noqa: D102
        device = next(self.flow.parameters()).device
        z = self.temperature * randn((count, self.flow.dims), generator, device=device)
        drawn = self.flow.transform.invert(z).reshape(count, *self.flow.event_shape)
        return [Piece(unscaled(patch)) for patch in bounded(drawn)]

    def likelihood_loss(  # noqa: D102
        self, images: Tensor, generator: torch.Generator
    ) -> Tensor | None:
        size = self.flow.event_shape[-1]
        patches = cut_patches(images, 2 * len(images), size, generator)
        return self.flow.loss(scaled(patches), generator=generator).mean()


def bounded(x: Tensor) -> Tensor:
    """Samples kept near [-1, 1], smoothly: an early flow may send noise anywhere."""
    return 1.2 * torch.tanh(torch.nan_to_num(x, nan=0.0, posinf=4.0, neginf=-4.0) / 1.2)


def scaled(patches: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], where generators live."""
    return 2 * patches - 1


def unscaled(patches: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]."""
    return 0.5 * (patches + 1)


def cut_patches(images: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Random squares of images (B, 3, H, W), resized to (count, 3, size, size).

    Sides vary from `size` to three times that, within the image.
    """
    height, width = images.shape[2:]
    draw = rand((count, 4), generator).tolist()
    patches = []
    for which, wide, down, across in draw:
        side = min(round(size * 3**wide), height, width)
        top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
        part = images[int(which * len(images))][None, :, top : top + side, left : left + side]
        patches.append(
            nn.functional.interpolate(
                part, (size, size), mode="area" if side > size else "nearest"
            )
        )
    return torch.cat(patches)


def fill_bank(
    generator_model: GenerativeModel, count: int, seed: int, temperature: float = 1.0
) -> Bank:
    """Draw patches from a trained generator, in batches, from a seed of their own.

    Raises:
        AleatorError: a draw is not finite.
    """
    drawn = []
    with torch.no_grad():
        for first in range(0, count, 64):
            number = min(64, count - first)
            streams = [keyed_generator(seed, 7, first + i) for i in range(number)]
            drawn.append(_sample(generator_model, number, streams, temperature))
    patches = torch.cat(drawn)
    if not patches.isfinite().all():
        raise AleatorError(
            "the generator of negatives drew values that are not finite: lower "
            "negatives.fit.learning_rate"
        )
    return Bank(unscaled(patches))


def _sample(
    model: GenerativeModel, count: int, streams: list[torch.Generator], temperature: float
) -> Tensor:
    if temperature != 1.0 and isinstance(model, Flow):
        z = temperature * randn((count, model.dims), streams)
        return model.transform.invert(z).reshape(count, *model.event_shape)
    if isinstance(model, LatentModel):  # the mean: its observation noise is no texture
        return model.sample((count,), sampler="mean", generator=streams)
    return model.sample((count,), generator=streams)
