r"""Noise textures, as files to paste: Gaussian fields with power spectrum |k|^-2a, in any colours.

    x = F⁻¹(|k|^{-a} ξ),   a ~ U(0.3, 1.6),   stretched along a random direction

The simplest negatives that need no data at all: what generated ones have to beat.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from apps.anomaly_driving.files import write_image
from core.random import keyed_generator, rand, randn


def write_textures(folder: Path, count: int = 64, size: int = 64, seed: int = 0) -> Path:
    """Write PNG textures, if they are not there; the folder."""
    for number in range(count):
        path = folder / f"texture_{number:03d}.png"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (noise_texture(size, keyed_generator(seed, number)) * 255).round().byte()
            write_image(path, pixels.permute(1, 2, 0).numpy())
    return folder


def noise_texture(size: int, generator: torch.Generator) -> Tensor:
    """A periodic texture (3, size, size) in [0, 1]."""
    slope, turn, stretch, contrast = rand((4,), generator).tolist()
    k = torch.fft.fftfreq(size) * size
    ky, kx = k[:, None], k[None]
    angle = math.pi * turn
    along = kx * math.cos(angle) + ky * math.sin(angle)
    across = (ky * math.cos(angle) - kx * math.sin(angle)) * (1 + 3 * stretch)
    radius = torch.hypot(along, across).clamp_min(1.0)
    spectrum = torch.fft.fft2(randn((3, size, size), generator)) * radius ** -(0.3 + 1.3 * slope)
    spectrum[:, 0, 0] = 0
    field = torch.fft.ifft2(spectrum).real
    field = field / field.std((1, 2), keepdim=True)
    mixing = randn((3, 3), generator)
    mixed = torch.einsum("ij,jhw->ihw", mixing / mixing.norm(dim=1, keepdim=True), field)
    mean = 0.2 + 0.6 * rand((3, 1, 1), generator)
    return (mean + (0.05 + 0.2 * contrast) * mixed).clamp(0, 1)
