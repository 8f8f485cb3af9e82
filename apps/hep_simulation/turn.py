r"""A sampler for coordinates that are N(0, 1) one by one: from noise to data as one quarter turn.

    y = x_t / √(α² + σ²) = cos φ x_0 + sin φ ε,   dy/dφ = v = (cos φ y - x̂_0) / sin φ

`core.solvers.Angle` walks most of this way and ends with one denoising, which of a single
evaluation leaves the mean of all showers. This one goes on to φ = 0: a coordinate that depends on
nothing has v = 0 and keeps its spread whatever the number of steps, so that one evaluation gives
at least the right marginals, and more give what goes together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.paths import Path
from core.random import Generators
from core.solvers.base import Denoise, Sampler


@dataclass(frozen=True)
class Turn(Sampler):
    """Equal steps in φ: the midpoint method where `steps`, evaluations, are even, else Euler's."""

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        def slope(y: Tensor, angle: float) -> Tensor:
            t = time(path, angle)
            point = path.at(t)
            mean = denoise(y * math.hypot(point.alpha, point.sigma), t).mean
            return (math.cos(angle) * y - mean) / math.sin(angle)

        start = path.at(path.t_max)
        angle = math.atan2(start.sigma, start.alpha)
        y = x_t / math.hypot(start.alpha, start.sigma)
        halves = 2 if self.steps % 2 == 0 else 1
        count = self.steps // halves
        step = angle / count
        for k in range(count):
            here = angle - k * step
            if halves == 2:
                middle = y - 0.5 * step * slope(y, here)
                y = y - step * slope(middle, here - 0.5 * step)
            else:
                y = y - step * slope(y, here)
        return y


def time(path: Path, angle: float) -> float:
    """When φ = arctan(σ / α) is `angle`, in (0, π/2]."""
    if angle >= 0.5 * math.pi:
        return path.t_max
    log_snr = torch.tensor(-2 * math.log(math.tan(angle)), dtype=torch.float64)
    return min(max(float(path.t_from_log_snr(log_snr)), path.t_min), path.t_max)
