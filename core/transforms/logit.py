r"""Logit of bounded data: an interval onto the whole line, so that a flow need not.

    y = logit(p),    p = α + (1 - 2α)(x + 1/2),    ln dy/dx = ln(1 - 2α) - ln p - ln(1 - p)

Integers spread over cells of width 1/levels lie in [-1/2, 1/2); images have most of them in the
first or the last cell, whose width a flow of bounded stretch could not bring to that of a normal
distribution: its logit has width 1. A small α keeps the logarithm of 0 away.
Reference: Dinh et al. (2017) arXiv:1605.08803, section 4.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import AleatorError
from core.model import Context
from core.transforms.base import Transform


class Logit(Transform):
    """Elementwise, from about [-1/2, 1/2] to the line."""

    def __init__(self, alpha: float = 1e-6) -> None:
        """`alpha`: what is left at both ends of (0, 1).

        Raises:
            AleatorError: it is not in (0, 1/2).
        """
        super().__init__()
        if not 0 < alpha < 0.5:
            raise AleatorError(f"logit={alpha}: what is left at the ends must be in (0, 1/2)")
        self.alpha = alpha

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise.

        Raises:
            AleatorError: data outside the interval.
        """
        rest = 1 - 2 * self.alpha
        p, q = self.alpha + rest * (0.5 + x), self.alpha + rest * (0.5 - x)
        if not ((p > 0) & (q > 0)).all():
            raise AleatorError(
                f"the logit takes data in [-1/2, 1/2]; got {x.min():.3g}..{x.max():.3g}"
            )
        log_p, log_q = p.log(), q.log()
        log_det = (math.log(rest) - log_p - log_q).flatten(1).sum(1)
        return log_p - log_q, log_det

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        rest = 1 - 2 * self.alpha
        log_p, log_q = F.logsigmoid(y), F.logsigmoid(-y)
        log_det = (log_p + log_q - math.log(rest)).flatten(1).sum(1)
        return 0.5 * torch.tanh(0.5 * y) / rest, log_det
