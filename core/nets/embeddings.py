"""Embeddings of what conditions a network: noise level, vectors, class labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.model import Context


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise level at geometric frequencies, (B,) -> (B, width)."""

    frequencies: Tensor

    def __init__(self, width: int, highest: float = 16.0) -> None:
        """`highest`: largest angular frequency; c_noise = ln(σ/α) / 4 spans about [-2, 2]."""
        super().__init__()
        powers = torch.linspace(0, 1, width // 2)
        self.register_buffer(
            "frequencies", 0.25 * torch.exp(powers * math.log(highest / 0.25)), persistent=False
        )

    def forward(self, noise_level: Tensor) -> Tensor:
        """Embed."""
        angles = noise_level[:, None] * self.frequencies * math.pi
        return torch.cat([angles.sin(), angles.cos()], 1)


class ConditionEmbedding(nn.Module):
    """Noise level, vector and label of a context to one vector, (B, width).

    A label of -1 is the null class, and an absent vector or label counts as null: the
    unconditional branch of classifier-free guidance.
    """

    def __init__(self, width: int, vector_dim: int = 0, classes: int = 0) -> None:
        """`vector_dim` and `classes` are 0 where there is no such context."""
        super().__init__()
        self.noise = NoiseEmbedding(width)
        self.first = nn.Linear(width, width)
        self.vector = nn.Linear(vector_dim, width, bias=False) if vector_dim else None
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.second = nn.Linear(width, width)

    def forward(self, noise_level: Tensor, context: Context) -> Tensor:
        """Embed."""
        hidden = self.first(self.noise(noise_level))
        vector, label = context_part(context, "vector"), context_part(context, "label")
        if self.vector is not None and vector is not None:
            hidden = hidden + self.vector(vector)
        if self.label is not None:
            null = noise_level.new_zeros(len(noise_level), dtype=torch.long)
            hidden = hidden + self.label(null if label is None else label + 1)
        return self.second(nn.functional.silu(hidden))


def context_part(context: Context, name: str) -> Tensor | None:
    """The part of a context named `field`, `vector` or `label`; a bare tensor tells by its rank.

    A bare tensor (B, C, H, W) is a field, (B, D) a vector, and integers (B,) labels.
    """
    if context is None:
        return None
    if not isinstance(context, Tensor):
        return context.get(name)
    kind = {4: "field", 2: "vector", 1: "label"}.get(context.dim())
    return context if kind == name else None


def with_field(x: Tensor, context: Context, channels: int) -> Tensor:
    """Images (B, C, H, W) with the context's `field` as further channels.

    A field of another resolution is interpolated; an absent one counts as null.
    """
    if not channels:
        return x
    field = context_part(context, "field")
    if field is None:
        field = x.new_zeros(len(x), channels, *x.shape[-2:])
    elif field.shape[-2:] != x.shape[-2:]:
        field = F.interpolate(field, x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([x, field], 1)
