r"""Outlines of objects that nobody has seen: blobs, ellipses, polygons, never one kind.

    r(φ) = r_0 (1 + Σ_k a_k cos(k φ + φ_k)),    a_k ~ N(0, s² / k²)

A rectangle would teach the network straight edges; so would always the same roughness.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from apps.anomaly_driving.augment import blurred
from core.random import rand, randn

HARMONICS = 8


def outline(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A random shape that fills most of a box, bool (height, width).

    Args:
        height: rows of the box.
        width: columns of it.
        generator: of roughness, orientation and, one time in four, straight sides.
    """
    roughness, turn, kind = rand((3,), generator).tolist()
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None]
    angle = torch.atan2(y, x) + 2 * math.pi * turn
    radius = torch.hypot(x, y)
    if kind < 0.25:  # a convex polygon of 3 to 6 sides
        sides = 3 + int(rand((1,), generator).item() * 4)
        sector = 2 * math.pi / sides
        border = math.cos(sector / 2) / torch.cos(torch.remainder(angle, sector) - sector / 2)
    else:
        orders = torch.arange(1, HARMONICS + 1)
        size = 0.5 * roughness * randn((HARMONICS,), generator) / orders
        phase = 2 * math.pi * rand((HARMONICS,), generator)
        waves = size * torch.cos(orders * angle[..., None] + phase)
        border = (1 + waves.sum(-1)).clamp_min(0.15)
        border = border / border.max()
    inside = radius <= border
    inside[height // 2, width // 2] = True
    return inside


def feathered(inside: Tensor, width: float) -> Tensor:
    """Opacity of a shape, float (h + 2 m, w + 2 m) with a margin m of ceil(2 width) + 1 pixels.

    The border fades over about `width` pixels on both sides of the outline.

    Args:
        inside: bool (h, w).
        width: 0 for a hard edge.
    """
    margin = border_of(width)
    padded = torch.nn.functional.pad(inside.float(), (margin,) * 4)
    return blurred(padded[None, None], width / 2)[0, 0]


def border_of(width: float) -> int:
    """Pixels of margin that a border fading over `width` pixels needs."""
    return math.ceil(2 * width) + 1
