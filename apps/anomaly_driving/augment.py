"""What a training image goes through: another place and size, a mirror, another light.

Geometry is done on bytes, before anything is pasted; light and colour on tensors, after it, so
that a pasted object and its surroundings are photographed by the same camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from apps.anomaly_driving.frames import Frames
from apps.anomaly_driving.textures import noise_field
from core.errors import AleatorError
from core.random import rand, randn

GRAIN = 64
"""Pixels after which a texture over a picture repeats."""


@dataclass(frozen=True)
class AugmentConfig:
    """How much training images vary.

    Attributes:
        height: rows of a crop.
        width: columns of it.
        scale: least and most by which frames are enlarged before they are cropped.
        aspect: most by which width is stretched against height, as a logarithm.
        flip: probability of a mirror image.
        light: strength of the changes of brightness, contrast, saturation, gamma and white
            balance; 0 for none, 1 as web photographs differ from a dashboard camera.
        blur: probability that a batch is blurred.
        noise: largest standard deviation of added noise.
        hue: most by which colours turn about the grey axis, in radians.
        grain: largest contrast of a random texture that whole pictures are multiplied by: a
            network that distrusts every strange texture distrusts every other town.
        fade: probability that a picture loses its colours, in part or wholly: grass of another
            green is not unexpected.
        dress: strength at which every class of a picture gets a light and colours of its own:
            a road of pale concrete, a dry lawn.
    """

    height: int = 192
    width: int = 256
    scale: tuple[float, float] = (0.5, 1.4)
    aspect: float = 0.15
    flip: float = 0.5
    light: float = 0.7
    blur: float = 0.2
    noise: float = 0.03
    hue: float = 0.0
    grain: float = 0.0
    fade: float = 0.0
    dress: float = 0.0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 32:
            raise AleatorError(f"crops of {self.width}x{self.height}: at least 32x32 is needed")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise AleatorError(f"augment.scale={self.scale}: expected 0 < least <= most")
        for name in ("light", "noise", "hue", "grain", "dress"):
            if not getattr(self, name) >= 0:
                raise AleatorError(
                    f"augment.{name}={getattr(self, name)}: it must not be negative"
                )
        for name in ("flip", "blur", "fade"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise AleatorError(
                    f"augment.{name}={value}: a probability between 0 and 1 is needed"
                )


def crops(
    frames: Frames, indices: Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random parts of frames at random sizes.

    Args:
        frames: to cut from.
        indices: (B,) which.
        config: how much they vary.
        generator: of where and how large.

    Returns:
        images (B, 3, h, w) in [0, 1] and labels (B, h, w), void beyond the frame's border.
    """
    images, labels = [], []
    draws = rand((len(indices), 5), generator).tolist()
    for index, draw in zip(indices.tolist(), draws, strict=True):
        image, label = _crop(frames, index, config, draw)
        images.append(torch.from_numpy(np.ascontiguousarray(image)))
        labels.append(torch.from_numpy(np.ascontiguousarray(label)))
    pixels = torch.stack(images).permute(0, 3, 1, 2).float() / 255
    return pixels.contiguous(memory_format=torch.channels_last), torch.stack(labels).long()


def _crop(
    frames: Frames, index: int, config: AugmentConfig, draw: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    import cv2

    image, label = frames.images[index], frames.labels[index]
    low, high = np.log(config.scale)
    scale = float(np.exp(low + (high - low) * draw[0]))
    stretch = float(np.exp(config.aspect * (2 * draw[1] - 1)))
    height, width = round(config.height / scale), round(config.width / scale / stretch)
    rows, columns = min(height, image.shape[0]), min(width, image.shape[1])
    top = round(draw[2] * (image.shape[0] - rows))
    left = round(draw[3] * (image.shape[1] - columns))
    part = np.s_[top : top + rows, left : left + columns]
    size = (
        max(1, round(config.width * columns / width)),
        max(1, round(config.height * rows / height)),
    )
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(image[part], size, interpolation=kind)
    small_label = cv2.resize(label[part], size, interpolation=cv2.INTER_NEAREST)
    below, beside = config.height - size[1], config.width - size[0]
    if below or beside:
        small = cv2.copyMakeBorder(small, 0, below, 0, beside, cv2.BORDER_REFLECT_101)
        small_label = cv2.copyMakeBorder(
            small_label, 0, below, 0, beside, cv2.BORDER_CONSTANT, value=frames.void
        )
    if draw[4] < config.flip:
        small, small_label = small[:, ::-1], small_label[:, ::-1]
    return small, small_label


def relight(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Another camera and another hour: images (B, 3, H, W) in [0, 1] likewise, differentiably."""
    batch, strength = len(images), config.light
    if strength:
        draw = (2 * rand((batch, 8, 1, 1), generator) - 1).to(images) * strength
        gamma = (0.4 * draw[:, :1]).exp()
        images = images.clamp_min(1e-4) ** gamma
        images = images * (0.15 * draw[:, 5:8]).exp()  # white balance
        images = faded(images, 1 + 0.6 * draw[:, 1:2])
        level = images.mean((1, 2, 3), keepdim=True)
        images = level + (images - level) * (0.45 * draw[:, 2:3]).exp()
        images = images + 0.15 * draw[:, 3:4]
    if config.hue:
        turn = config.hue * (2 * rand((batch,), generator) - 1)
        images = turned(images, turn.to(images))
    if config.fade:
        chance, left = rand((2, batch, 1, 1, 1), generator).to(images)
        images = faded(images, torch.where(chance < config.fade, left, 1.0))
    if config.grain:
        contrast = config.grain * rand((batch, 1, 1, 1), generator)
        images = images * (1 + contrast.to(images) * grains(images, generator))
    chance, width = rand((2,), generator).tolist()
    if chance < config.blur:
        images = blurred(images, 0.4 + width)
    if config.noise:
        sigma = config.noise * rand((batch, 1, 1, 1), generator).square()
        images = images + (sigma * randn(images.shape, generator)).to(images)
    return images.clamp(0, 1)


def dressed(
    images: Tensor, labels: Tensor, classes: int, strength: float, generator: torch.Generator
) -> Tensor:
    """Pictures in which every class has another brightness, contrast and colour.

    Args:
        images: (B, 3, H, W) in [0, 1].
        labels: (B, H, W); ids from `classes` on (void) are left as they are.
        classes: K.
        strength: standard deviation of the logarithm of gains; half of it that of colours.
        generator: of one dress for each class of each picture; half of the pictures have none.

    Returns:
        images of that shape, clamped; where classes meet, over some pixels from one to the other.
    """
    if not strength:
        return images
    batch, rows = len(images), torch.arange(len(images))[:, None, None]
    plain = (rand((batch, 1, 1), generator) < 0.5).float()
    drawn = strength * randn((batch, classes + 1, 5), generator) * (1 - plain)
    drawn[:, classes] = 0
    ids = labels.clamp(max=classes)
    worn = drawn.to(images)[rows, ids].movedim(-1, 1)
    worn = blurred(worn, 1.5)
    light, contrast, colour = worn[:, :1], worn[:, 1:2], 0.5 * worn[:, 2:]
    level = images.mean((2, 3), keepdim=True)
    images = level + (images - level) * (0.5 * contrast).exp()
    return (images * (light + colour).exp()).clamp(0, 1)


def faded(images: Tensor, left: Tensor | float) -> Tensor:
    """Colours (B, 3, H, W) of which a share is left, (B, 1, 1, 1): 1 as they are, 0 grey."""
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * left


def turned(images: Tensor, angles: Tensor) -> Tensor:
    """Colours (B, 3, H, W) turned about the grey axis by angles (B,) in radians (Rodrigues)."""
    grey = torch.full((3, 3), 1 / 3).to(images)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]).to(images) / math.sqrt(3)
    cosine, sine = (part[:, None, None] for part in (angles.cos(), angles.sin()))
    turns = cosine * torch.eye(3).to(images) + sine * cross + (1 - cosine) * grey
    return (turns[..., None, None] * images[:, None]).sum(2)


def grains(images: Tensor, generator: torch.Generator) -> Tensor:
    """A grey random texture of unit deviation for each of (B, 3, H, W): (B, 1, H, W)."""
    drawn = [
        noise_field(1, GRAIN, 0.3 + 1.3 * rand((1,), generator).item(), generator)
        for _ in range(len(images))
    ]
    field = torch.stack(drawn).to(images)
    rows, columns = (1 + (n - 1) // GRAIN for n in images.shape[2:])
    return field.repeat(1, 1, rows, columns)[..., : images.shape[2], : images.shape[3]]


def blurred(images: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of (B, C, H, W) by `sigma` pixels, borders mirrored."""
    if sigma <= 0:
        return images
    reach = min(max(1, round(2.5 * sigma)), min(images.shape[2:]) - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    images = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    images = F.conv2d(images, kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(images, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)
