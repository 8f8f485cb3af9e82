r"""Filling in what a mask leaves open, without gradients of the network.

    exact mask   x̂_0 ← y where it is known: cheap, and the sample agrees with y to the last bit
    RePaint      x_s ← noised y where it is known, a reverse step elsewhere; then back to x_t and
                 again, so that both parts grow together

Exact masking alone tells the open part of the known one only through x_t, whose known part it
drives; it is not the posterior, which `core.guidance.inverse` approaches. RePaint comes nearer
with the number of repeats. References: Lugmayr et al. (2022) arXiv:2201.09865; Wang et al. (2023)
arXiv:2212.00490.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.denoiser import Posterior
from core.errors import AleatorError
from core.model import Context
from core.paths import Path
from core.random import Generators, randn
from core.solvers.base import Denoise, GridSampler
from core.solvers.deterministic import posterior_variance
from core.solvers.stochastic import ancestral_coefficients, forward_variance


@dataclass(frozen=True, eq=False)
class ExactMask:
    """Guidance that puts what is known into x̂_0.

    Attributes:
        known: (N, *E), or (*E) for all: values where the mask is set, anything elsewhere.
        mask: bool (*E).
    """

    known: Tensor
    mask: Tensor

    def bind(self, model: Any, context: Context) -> Any:
        """`denoise(x_t, t)` with what is known in its place."""

        def denoise(x_t: Tensor, t: Any) -> Posterior:
            posterior = model.denoise(x_t, t, context)
            mean = torch.where(self.mask, self.known, posterior.mean)
            return dataclasses.replace(posterior, mean=mean)

        return denoise


@dataclass(frozen=True, eq=False)
class RePaint(GridSampler):
    """Ancestral sampling with what is known noised anew at every step.

    Attributes:
        known: (N, *E), or (*E) for all: values where the mask is set.
        mask: bool (*E).
        repeats: how often each step is made; 1 is plain replacement.
    """

    steps: int = 100
    known: Tensor | None = None
    mask: Tensor | None = None
    repeats: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.known is None or self.mask is None or self.mask.dtype != torch.bool:
            raise AleatorError("RePaint needs `known` values and a bool `mask`")
        if self.repeats < 1:
            raise AleatorError(f"RePaint: repeats={self.repeats}; at least one is needed")

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        assert self.known is not None
        assert self.mask is not None

        def noise() -> Tensor:
            return randn(x_t.shape, generator, device=x_t.device, dtype=x_t.dtype)

        times = self.times(path, self.steps)
        for t, s in itertools.pairwise(times):
            at, to = path.at(t), path.at(s)
            on_x, on_mean = ancestral_coefficients(path, t, s)
            width = math.sqrt(posterior_variance(path, t, s))
            for k in range(self.repeats):
                x_s = on_x * x_t + on_mean * denoise(x_t, t).mean + width * noise()
                seen = to.alpha * self.known + to.sigma * noise()
                x_s = torch.where(self.mask, seen, x_s)
                if k + 1 < self.repeats:
                    back = math.sqrt(forward_variance(path, t, s))
                    x_t = at.alpha / to.alpha * x_s + back * noise()
            x_t = x_s
        return torch.where(self.mask, self.known, denoise(x_t, times[-1]).mean)
