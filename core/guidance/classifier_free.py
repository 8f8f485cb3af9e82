r"""Classifier-free guidance with one convention for every model.

    x̂_0 = x̂_0(∅) + s (x̂_0(c) - x̂_0(∅))

All readings being affine in x̂_0, this is the same as guiding ε, score or velocity. s = 1 is the
conditional model and s = 0 the unconditional one; the "weight" w of Ho and Salimans (2022),
arXiv:2207.12598, is s - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.denoiser import Posterior
from core.errors import AleatorError
from core.model import Context, map_context
from core.path_model import null_like


@dataclass(frozen=True)
class ClassifierFree:
    """Guidance by the difference of conditional and unconditional denoisers.

    Attributes:
        scale: s; above 1 strengthens the condition.
        batched: evaluate both branches in one pass of twice the batch: fewer, larger operations,
            which pays for small batches.
        interval: (least, greatest) log-SNR between which the scale applies; elsewhere the model
            is plainly conditional. Guiding neither the noisiest nor the cleanest steps costs less
            and spoils less (Kynkäänniemi et al. 2024, arXiv:2404.07724). All steps if None.
    """

    scale: float = 1.0
    batched: bool = True
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise AleatorError(
                f"classifier-free guidance: interval={self.interval}; (least, greatest) log-SNR"
            )

    def bind(self, model: Any, context: Context) -> Any:
        """`denoise(x_t, t)` with guidance.

        Raises:
            AleatorError: there is no context to guide by.
        """
        if context is None:
            raise AleatorError("classifier-free guidance needs a context; give sample() one")
        if self.scale == 1:
            return lambda x_t, t: model.denoise(x_t, t, context)
        null = map_context(context, null_like)
        if self.scale == 0:
            return lambda x_t, t: model.denoise(x_t, t, null)
        both = _concatenate(context, null) if self.batched else None

        def denoise(x_t: Tensor, t: float) -> Posterior:
            if self.interval is not None:
                point = model.path.at(t)
                log_snr = 2 * math.log(point.alpha / point.sigma)
                if not self.interval[0] <= log_snr <= self.interval[1]:
                    return model.denoise(x_t, t, context)
            if both is not None:
                pair = model.denoise(torch.cat([x_t, x_t]), t, both)
                conditional, unconditional = pair.mean.chunk(2)
                fraction = pair.variance_fraction
                fraction = None if fraction is None else fraction[: len(x_t)]
            else:
                posterior = model.denoise(x_t, t, context)
                conditional, fraction = posterior.mean, posterior.variance_fraction
                unconditional = model.denoise(x_t, t, null).mean
            mean = torch.lerp(unconditional, conditional, self.scale)
            return Posterior(mean, x_t, model.path.at(t), fraction)

        return denoise


def from_weight(weight: float) -> ClassifierFree:
    """Guidance by the weight w of Ho and Salimans: (1 + w) conditional - w unconditional."""
    return ClassifierFree(scale=1.0 + weight)


def _concatenate(first: Context, second: Context) -> Context:
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return {name: torch.cat([first[name], second[name]]) for name in first}
    return torch.cat([first, second])  # type: ignore[list-item]
