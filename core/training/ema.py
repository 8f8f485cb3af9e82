r"""Averaged weights: what is scored, kept and sampled from.

    θ̄ ← d θ̄ + (1 - d) θ,    d = min(decay, (1 + n) / (10 + n)) after n steps

The ramp forgets the initial weights quickly. Reference: Polyak and Juditsky (1992).
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """Exponential moving average of a model's weights."""

    def __init__(self, model: M, decay: float) -> None:
        """Start from the model's present weights."""
        self.model = copy.deepcopy(model).eval()
        self.model.requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model` after optimiser step `step` (counted from 0)."""
        rest = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), rest)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
