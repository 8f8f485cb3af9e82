r"""Textures of no data at all: Gaussian noise with any slope of its spectrum, and dead leaves.

    noise    x = F⁻¹(|k|^{-a} ξ),   a ~ U(0.3, 1.6),   stretched along a random direction
    leaves   shapes of radius r ~ r^-3 that cover one another, each of one colour

Noise, as files to paste, is the simplest negative: what generated ones have to beat. Dead leaves
(Lee, Mumford, Huang 2001) have what noise has not and every object has: edges, corners, parts and
plain surfaces of all sizes. Networks learn from them nearly what photographs teach (Baradad et
al. 2021, arXiv:2106.05963).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from apps.anomaly_driving.files import write_image
from core.random import keyed_generator, rand, randn

LEAVES = 48
"""Shapes in a texture of dead leaves."""


def write_textures(folder: Path, count: int = 64, size: int = 64, seed: int = 0) -> Path:
    """Write PNG textures, if they are not there; the folder."""
    for number in range(count):
        path = folder / f"texture_{number:03d}.png"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (noise_texture(size, keyed_generator(seed, number)) * 255).round().byte()
            write_image(path, pixels.permute(1, 2, 0).numpy())
    return folder


def noise_texture(size: int, generator: torch.Generator, steepest: float = 1.6) -> Tensor:
    """A periodic texture (3, size, size) in [0, 1]; slopes of 0.3 to `steepest`."""
    slope, turn, stretch, contrast = rand((4,), generator).tolist()
    slope = 0.3 + (steepest - 0.3) * slope
    field = noise_field(3, size, slope, generator, turn=turn, stretch=stretch)
    mixing = randn((3, 3), generator)
    mixing = mixing / mixing.norm(dim=1, keepdim=True)
    mixed = (mixing[..., None, None] * field).sum(1)
    mean = 0.2 + 0.6 * rand((3, 1, 1), generator)
    return (mean + (0.05 + 0.2 * contrast) * mixed).clamp(0, 1)


def dead_leaves(size: int, generator: torch.Generator) -> Tensor:
    """Ellipses and rectangles over one another, (3, size, size) in [0, 1].

    Their colours keep near a common one, more or less, as the parts of an object do; a little
    noise lies over some.
    """
    spread, least, noise, grain = rand((4,), generator).tolist()
    common = rand((3,), generator)
    smallest = 0.04 + 0.1 * least
    axis = torch.linspace(0, 1, size)
    y, x = axis[:, None], axis[None]
    pixels = common[:, None, None].expand(3, size, size)
    draws = rand((LEAVES, 8), generator)
    for draw in draws:
        row, column, wide, aspect, turn, *tint = draw.tolist()
        # the inverse of the distribution function of r^-3 from smallest to 1/2
        radius = (smallest**-2 + wide * (0.5**-2 - smallest**-2)) ** -0.5
        cosine, sine = math.cos(math.pi * turn), math.sin(math.pi * turn)
        along = (cosine * (x - column) + sine * (y - row)).abs() / radius
        across = (cosine * (y - row) - sine * (x - column)).abs() / (radius * (0.3 + 0.7 * aspect))
        square = tint[0] < 0.4
        inside = torch.maximum(along, across) < 1 if square else along**2 + across**2 < 1
        colour = common + (0.1 + 0.9 * spread) * (torch.tensor(tint) - 0.5)
        pixels = torch.where(inside, colour[:, None, None], pixels)
    if noise < 0.5:
        pixels = pixels + 0.1 * grain * noise_field(1, size, 2 * noise, generator)
    return pixels.clamp(0, 1)


def noise_field(
    channels: int,
    size: int,
    slope: float,
    generator: torch.Generator,
    *,
    turn: float = 0.0,
    stretch: float = 0.0,
) -> Tensor:
    """Periodic Gaussian fields (channels, size, size) of mean 0 and deviation 1.

    Args:
        channels: so many, independent.
        size: rows and columns.
        slope: a of |k|^-a: 0 is white noise, 2 is clouds.
        generator: of the noise.
        turn: direction along which it is stretched, in half turns.
        stretch: 0 for none; 1 for four times.
    """
    k = torch.fft.fftfreq(size) * size
    ky, kx = k[:, None], k[None]
    angle = math.pi * turn
    along = kx * math.cos(angle) + ky * math.sin(angle)
    across = (ky * math.cos(angle) - kx * math.sin(angle)) * (1 + 3 * stretch)
    radius = torch.hypot(along, across).clamp_min(1.0)
    spectrum = torch.fft.fft2(randn((channels, size, size), generator)) * radius**-slope
    spectrum[:, 0, 0] = 0
    field = torch.fft.ifft2(spectrum).real
    return field / field.std((1, 2), keepdim=True)
