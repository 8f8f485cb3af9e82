r"""Gaussian probability paths x_t = α(t) x_0 + σ(t) ε, from data (t = 0) to noise (t = 1).

A path is all that distinguishes the forward processes of diffusion and flow matching. Its
internal clock is the log signal-to-noise ratio λ(t) = ln α²/σ², strictly decreasing in t:
solvers work on λ grids, whatever the path. References: Kingma et al. (2021) arXiv:2107.00630;
Karras et al. (2022) arXiv:2206.00364; Lipman et al. (2023) arXiv:2210.02747.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from core.errors import AleatorError

PATHS: dict[str, type[Path]] = {}


class Point(NamedTuple):
    """A path's coefficients at one time: numbers, or tensors that broadcast against x_t."""

    alpha: Any
    sigma: Any
    d_alpha: Any
    d_sigma: Any


@functools.lru_cache(maxsize=4096)
def _point(path: Path, t: float) -> Point:
    at = torch.tensor(t, dtype=torch.float64)
    return Point(*(float(f(at)) for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma)))


@dataclass(frozen=True)
class Path(ABC):
    """Base class; `alpha`, `sigma`, their time derivatives, and λ with its inverse.

    Every method maps a tensor of times (any shape, floating) to a tensor of that shape.
    """

    name: ClassVar[str]
    t_min: ClassVar[float] = 0.0
    """Earliest time at which λ is finite enough to compute with; samplers stop there."""
    t_max: ClassVar[float] = 1.0
    """Latest such time; samplers start there from pure noise."""

    def __init_subclass__(cls) -> None:
        PATHS[cls.name] = cls

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the signal."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise."""

    @abstractmethod
    def d_alpha(self, t: Tensor) -> Tensor:
        """Time derivative of alpha."""

    @abstractmethod
    def d_sigma(self, t: Tensor) -> Tensor:
        """Time derivative of sigma."""

    @abstractmethod
    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr`."""

    def log_snr(self, t: Tensor) -> Tensor:
        """λ(t) = ln α²/σ²."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def at(self, t: float | Tensor, like: Tensor | None = None) -> Point:
        """Coefficients at a time.

        Args:
            t: a Python number (the coefficients are then numbers, remembered between calls: no
                tensor operations in a sampler's inner loop), or a tensor (B,).
            like: (B, ...) tensor that the coefficients of a tensor t must broadcast against.
        """
        if not isinstance(t, Tensor):
            return _point(self, float(t))
        if like is not None:
            t = t.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))
        return Point(self.alpha(t), self.sigma(t), self.d_alpha(t), self.d_sigma(t))

    def to_config(self) -> dict[str, Any]:
        """A plain mapping from which `path_from_config` makes the same path."""
        return {"name": self.name, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class VariancePreserving(Path):
    r"""Linear β: ln α = -t² (β₁ - β₀)/4 - t β₀/2, σ² = 1 - α² (Song et al. 2021)."""

    name: ClassVar[str] = "vp"
    t_min: ClassVar[float] = 1e-5
    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def beta(self, t: Tensor) -> Tensor:
        """β(t) of dx = -½ β x dt + √β dw."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return self._log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def d_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return -0.5 * self.beta(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return 0.5 * self.beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        # ln α = -softplus(-λ)/2, then the root of a quadratic in its stable form.
        square = torch.nn.functional.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * square).sqrt()
        return 2 * square / (self.beta_min + root)


@dataclass(frozen=True)
class Cosine(Path):
    r"""α = cos(π t / 2), σ = sin(π t / 2), kept away from t = 1 by `clip`.

    The trigonometric form of Nichol and Dhariwal (2021), arXiv:2102.09672; time is rescaled so
    that λ(1) is finite: the angle runs to (1 - clip) π/2.
    """

    name: ClassVar[str] = "cosine"
    t_min: ClassVar[float] = 1e-5
    clip: float = 1e-3

    @property
    def _rate(self) -> float:
        return (1 - self.clip) * math.pi / 2

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.cos(self._rate * t)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.sin(self._rate * t)

    def d_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return -self._rate * torch.sin(self._rate * t)

    def d_sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self._rate * torch.cos(self._rate * t)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return torch.atan(torch.exp(-0.5 * log_snr)) / self._rate


@dataclass(frozen=True)
class VarianceExploding(Path):
    r"""α = 1, σ = σ_min (σ_max / σ_min)^t (Song et al. 2021, arXiv:2011.13456)."""

    name: ClassVar[str] = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.sigma_min * torch.exp(self._log_ratio * t)

    def d_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self._log_ratio * self.sigma(t)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class EDM(Path):
    r"""α = 1, σ = (σ_min^{1/ρ} + t (σ_max^{1/ρ} - σ_min^{1/ρ}))^ρ (Karras et al. 2022).

    In uniform t this is their sampling grid; σ_min and σ_max are in units of the data.
    """

    name: ClassVar[str] = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def _root(self, t: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low + t * (high - low)

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self._root(t) ** self.rho

    def d_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        width = self.sigma_max ** (1 / self.rho) - self.sigma_min ** (1 / self.rho)
        return self.rho * width * self._root(t) ** (self.rho - 1)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (torch.exp(-0.5 * log_snr / self.rho) - low) / (high - low)


@dataclass(frozen=True)
class Rectified(Path):
    r"""α = 1 - t, σ = σ_min + (1 - σ_min) t: straight conditional paths.

    σ_min > 0 is the optimal-transport path of Lipman et al. (2023); σ_min = 0 is the rectified
    flow of Liu et al. (2023), arXiv:2209.03003. Time is reversed with respect to both papers.
    """

    name: ClassVar[str] = "rectified"
    t_min: ClassVar[float] = 1e-5
    t_max: ClassVar[float] = 1 - 1e-4
    sigma_min: float = 0.0

    def alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return self.sigma_min + (1 - self.sigma_min) * t

    def d_alpha(self, t: Tensor) -> Tensor:  # noqa: D102
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:  # noqa: D102
        return (1 - self.sigma_min) * torch.ones_like(t)

    def t_from_log_snr(self, log_snr: Tensor) -> Tensor:  # noqa: D102
        ratio = torch.exp(-0.5 * log_snr)  # σ/α
        return (ratio - self.sigma_min) / (ratio + 1 - self.sigma_min)


def path_from_config(config: str | Mapping[str, Any] | Path) -> Path:
    """Make a path from its name, or from {"name": ..., **parameters}.

    Raises:
        AleatorError: the name or a parameter is unknown.
    """
    if isinstance(config, Path):
        return config
    options = {"name": config} if isinstance(config, str) else dict(config)
    name = options.pop("name", None)
    if name not in PATHS:
        raise AleatorError(f"unknown path {name!r}; known: {', '.join(sorted(PATHS))}")
    known = {f.name for f in dataclasses.fields(PATHS[name])}
    if unknown := set(options) - known:
        raise AleatorError(
            f"path {name!r} has no parameter {sorted(unknown)[0]!r}; it has {sorted(known)}"
        )
    return PATHS[name](**options)
