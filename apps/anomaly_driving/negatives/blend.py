r"""How an object comes into a picture: tone matching, then opacity or gradients.

tone      p ← (p - μ_p) · c + μ_p + s (μ_bg - μ_p),   c = (σ_bg / σ_p)^{s/2}, a channel each
feather   x̃ = (1 - α) x + α p,   differentiable in p
poisson   Δx̃ = Δp inside α > 1/2, x̃ = x outside (Pérez, Gangnet, Blake 2003)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from apps.anomaly_driving.augment import blurred
from core.random import rand


def tone_matched(patch: Tensor, alpha: Tensor, background: Tensor, strength: Tensor) -> Tensor:
    """Move an object's mean and contrast towards those of its surroundings.

    Args:
        patch: (3, h, w) in [0, 1].
        alpha: (h, w) opacity; what is weighed in the object's statistics.
        background: (3, h, w) what it covers; all of it counts.
        strength: scalar in [0, 1], of the way.

    Returns:
        (3, h, w), differentiable in `patch`.
    """
    weight = alpha / alpha.sum().clamp_min(1e-6)
    mean = (patch * weight).sum((1, 2), keepdim=True)
    spread = ((patch - mean).square() * weight).sum((1, 2), keepdim=True).add(1e-4).sqrt()
    beyond = background.mean((1, 2), keepdim=True)
    beyond_spread = background.std((1, 2), correction=0, keepdim=True).add(0.03)
    contrast = (beyond_spread / spread).clamp(0.4, 2.5) ** (strength / 2)
    return (patch - mean) * contrast + mean + strength * (beyond - mean)


def shaded(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """A ramp of light across (3, h, w), in a random direction, up to 1 ± strength."""
    if not strength:
        return pixels
    contrast, turn = (2 * rand((2,), generator) - 1).tolist()
    height, width = pixels.shape[1:]
    down = torch.linspace(-1, 1, height)[:, None] * math.sin(math.pi * turn)
    across = torch.linspace(-1, 1, width)[None] * math.cos(math.pi * turn)
    return pixels * (1 + strength * contrast * (down + across)).to(pixels).clamp_min(0)


def softened(pixels: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Half of the time (3, h, w) as it is, else blurred by up to `most` pixels."""
    if not most:
        return pixels
    width, sharp = rand((2,), generator).tolist()
    if sharp < 0.5 or min(pixels.shape[1:]) < 4:
        return pixels
    return blurred(pixels[None], most * width)[0]


def feather(background: Tensor, patch: Tensor, alpha: Tensor) -> Tensor:
    """(1 - α) background + α patch, of (3, h, w) and opacity (h, w)."""
    return background + alpha * (patch - background)


def poisson(background: Tensor, patch: Tensor, inside: Tensor) -> Tensor:
    """The patch's gradients in the background's light; no gradient flows back.

    Args:
        background: (3, h, w) in [0, 1].
        patch: (3, h, w).
        inside: bool (h, w); its outermost ring of pixels is taken as outside.

    Returns:
        (3, h, w); the background where it is outside.
    """
    import cv2

    mask = inside.clone()
    mask[:2], mask[-2:], mask[:, :2], mask[:, -2:] = False, False, False, False
    if mask.sum() < 16:
        return feather(background, patch, inside.float())
    rows, columns = (torch.nonzero(mask.any(axis)).flatten() for axis in (1, 0))
    centre = (
        int(columns[0] + columns[-1] + 1) // 2,
        int(rows[0] + rows[-1] + 1) // 2,
    )
    blended = cv2.seamlessClone(
        _bytes(patch), _bytes(background), mask.numpy().astype(np.uint8) * 255, centre, 1
    )
    merged = torch.from_numpy(np.asarray(blended)).permute(2, 0, 1).to(background) / 255
    return torch.where(inside, merged, background)


def _bytes(image: Tensor) -> np.ndarray:
    pixels = (image.detach().clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
