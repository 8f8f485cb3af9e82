r"""Guidance by a classifier of noisy examples.

    x̂_0(x_t, y) = x̂_0 + s σ²/α ∇ ln p(y | x_t)

s = 1 with the exact classifier draws from p(x | y); more sharpens it. The classifier must know
noisy examples: one trained on clean ones is wrong for all but the last steps. Reference: Dhariwal
and Nichol (2021) arXiv:2105.05233.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.denoiser import Posterior
from core.errors import AleatorError
from core.model import Context


@dataclass(frozen=True, eq=False)
class Classifier:
    """Classifier guidance.

    Attributes:
        log_prob: (x_t (N, *E), t) -> (N,) ln p(y | x_t) of the wanted y.
        scale: s; 1 is Bayes' rule, 0 no guidance.
    """

    log_prob: Callable[[Tensor, Any], Tensor]
    scale: float = 1.0

    def bind(self, model: Any, context: Context) -> Any:
        """`denoise(x_t, t)` with guidance."""

        def denoise(x_t: Tensor, t: Any) -> Posterior:
            posterior = model.denoise(x_t, t, context)
            with torch.enable_grad():
                x = x_t.detach().requires_grad_()
                value = self.log_prob(x, t)
                if value.shape != x.shape[:1]:
                    raise AleatorError(
                        f"classifier guidance: log_prob of shape {tuple(value.shape)} for "
                        f"{len(x)} examples; one number each is needed"
                    )
                (gradient,) = torch.autograd.grad(value.sum(), x)
            point = posterior.point
            shift = self.scale * point.sigma**2 / point.alpha
            mean = posterior.mean + shift * gradient
            return Posterior(mean, x_t, point, posterior.variance_fraction)

        return denoise
