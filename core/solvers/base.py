"""What every sampler is: a frozen set of options that turns noise into data.

A sampler is called with a `denoise` function whose context and guidance are already bound. Most
methods are linear in x_t and in the denoised x̂_0 of the last few evaluations: they only write down
a table of coefficients, once, in Python numbers, and one loop serves all. A step is then a few
tensor operations, with no look-ups on the device and no synchronisation.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from core.denoiser import Posterior
from core.errors import AleatorError
from core.paths import Path
from core.random import Generators, randn

Denoise = Callable[[Tensor, float], Posterior]
"""(x_t (B, *E), t) -> posterior of x_0."""


@dataclass(frozen=True)
class Sampler(ABC):
    """Base class.

    Attributes:
        steps: network evaluations, unless the sampler says otherwise.
    """

    steps: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise AleatorError(f"steps={self.steps}: a sampler needs at least one")

    @abstractmethod
    def __call__(
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        """Draw x_0.

        Args:
            denoise: the model, context and guidance bound.
            x_t: (B, *E) noise at `path.t_max`, of standard deviation σ(t_max).
            path: the forward process.
            generator: randomness of stochastic samplers; one stream, or one per sample.

        Returns:
            (B, *E) samples.
        """


def log_snr_grid(path: Path, points: int, t_min: float) -> list[float]:
    """Times from `path.t_max` down to `t_min`, uniform in log-SNR: where the work is."""
    ends = torch.tensor([path.t_max, t_min], dtype=torch.float64)
    low, high = path.log_snr(ends).tolist()
    if points == 1:
        return [path.t_max]
    times = path.t_from_log_snr(torch.linspace(low, high, points, dtype=torch.float64)).tolist()
    times[0], times[-1] = path.t_max, t_min
    return times


def uniform_grid(path: Path, points: int, t_min: float) -> list[float]:
    """Times from `path.t_max` down to `t_min`, uniform in t."""
    if points == 1:
        return [path.t_max]
    return torch.linspace(path.t_max, t_min, points, dtype=torch.float64).tolist()


def karras_grid(path: Path, points: int, t_min: float, rho: float = 7.0) -> list[float]:
    """Times uniform in (σ/α)^{1/ρ}: the grid of Karras et al. (2022), on any path."""
    if points == 1:
        return [path.t_max]
    ends = torch.tensor([path.t_max, t_min], dtype=torch.float64)
    high, low = (torch.exp(-0.5 * path.log_snr(ends)) ** (1 / rho)).tolist()
    ratio = torch.linspace(high, low, points, dtype=torch.float64) ** rho
    times = path.t_from_log_snr(-2 * ratio.log()).tolist()
    times[0], times[-1] = path.t_max, t_min
    return times


def asinh_grid(
    path: Path, points: int, t_min: float, centre: float = 1.0, width: float = 3.0
) -> list[float]:
    r"""Times uniform in asinh((λ - c) / w): closest near λ = c, where x̂_0 changes fastest.

    The density of points in λ falls as 1 / sqrt(1 + ((λ - c) / w)²). For data of unit variance,
    where structure appears at λ from 0 to 4; for data of standard deviation d, c grows by -2 ln d.
    """
    if points == 1:
        return [path.t_max]
    ends = torch.tensor([path.t_max, t_min], dtype=torch.float64)
    low, high = torch.asinh((path.log_snr(ends) - centre) / width).tolist()
    even = torch.linspace(low, high, points, dtype=torch.float64)
    times = path.t_from_log_snr(centre + width * torch.sinh(even)).tolist()
    times[0], times[-1] = path.t_max, t_min
    return times


GRIDS: dict[str, Callable[[Path, int, float], list[float]]] = {
    "asinh": asinh_grid,
    "karras": karras_grid,
    "log_snr": log_snr_grid,
    "uniform": uniform_grid,
}


@dataclass(frozen=True)
class GridSampler(Sampler):
    """A sampler that walks down a grid of times.

    Attributes:
        grid: "log_snr", "asinh" (closer where unit-variance data take shape), "karras" or
            "uniform" (in t).
        log_snr_max: log-SNR at which the walk ends and the last denoising is taken as x_0;
            7 is a noise of 3 % of the signal.
    """

    grid: str = "log_snr"
    log_snr_max: float = 7.0

    def times(self, path: Path, points: int) -> list[float]:
        """The grid.

        Raises:
            AleatorError: unknown grid.
        """
        if self.grid not in GRIDS:
            raise AleatorError(f"unknown grid {self.grid!r}; known: {', '.join(sorted(GRIDS))}")
        end = path.t_from_log_snr(torch.tensor(self.log_snr_max, dtype=torch.float64)).item()
        return GRIDS[self.grid](path, points, max(end, path.t_min))


class Step(NamedTuple):
    """One row of a sampler's table: x_s = on_x x_t + Σ_k on_means[k] x̂_0^{(k)} + noise z.

    Attributes:
        t: time of the evaluation that the step begins with.
        on_x: coefficient of x_t.
        on_means: coefficients of the x̂_0 of this evaluation, the one before, and so on.
        noise: standard deviation of the fresh noise.
    """

    t: float
    on_x: float
    on_means: tuple[float, ...]
    noise: float = 0.0


@dataclass(frozen=True)
class LinearSampler(GridSampler):
    """A sampler that is a table of coefficients, and ends with one denoising."""

    @property
    def points(self) -> int:
        """Points of the grid."""
        return self.steps

    @abstractmethod
    def table(self, path: Path, times: list[float]) -> Iterator[Step]:
        """The steps along a grid of times, which falls from `path.t_max`."""

    def __call__(  # noqa: D102
        self, denoise: Denoise, x_t: Tensor, *, path: Path, generator: Generators | None = None
    ) -> Tensor:
        steps, end = _remembered(self, path)
        means: deque[Tensor] = deque(maxlen=3)
        zero = x_t.new_zeros(())
        for t, on_x, on_means, noise in steps:
            means.appendleft(denoise(x_t, t).mean)
            x_t = torch.add(zero, x_t, alpha=on_x)  # on_x * x_t would make a tensor of on_x first
            for weight, mean in zip(on_means, means, strict=False):
                x_t.add_(mean, alpha=weight)
            if noise:
                z = randn(x_t.shape, generator, device=x_t.device, dtype=x_t.dtype)
                x_t.add_(z, alpha=noise)
        return denoise(x_t, end).mean


@functools.lru_cache(maxsize=64)
def _remembered(sampler: LinearSampler, path: Path) -> tuple[tuple[Step, ...], float]:
    """The table and the last time; kept, because many batches are drawn in the same way."""
    times = sampler.times(path, sampler.points)
    return tuple(sampler.table(path, times)), times[-1]
