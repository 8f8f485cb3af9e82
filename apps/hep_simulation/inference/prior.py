r"""The prior of the parameters: uniform on a box, which is also the unit that densities are in.

    u = (θ - low) / (high - low) in (0, 1)^D,    ln p(u) = 0

so that ln q(u | x) is the information gained over the prior, in nats ("prior units").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import AleatorError


@dataclass(frozen=True)
class BoxPrior:
    """A uniform prior.

    Attributes:
        names: D names of parameters.
        low: lower bounds.
        high: upper bounds.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.names or not len(self.names) == len(self.low) == len(self.high):
            raise AleatorError(
                f"prior: {len(self.names)} names for {len(self.low)} lower and {len(self.high)} "
                "upper bounds; one of each a parameter is needed"
            )
        if len(set(self.names)) < len(self.names):
            raise AleatorError(f"prior: names repeat: {', '.join(self.names)}")
        for name, low, high in zip(self.names, self.low, self.high, strict=True):
            if not (np.isfinite(low) and np.isfinite(high) and low < high):
                raise AleatorError(f"prior of {name}: [{low}, {high}] is no interval")

    @property
    def dims(self) -> int:
        """D."""
        return len(self.names)

    @property
    def log_volume(self) -> float:
        """Ln of the box's volume: ln q(θ) = ln q(u) - log_volume."""
        return float(np.log(np.subtract(self.high, self.low)).sum())

    def to_unit(self, theta: np.ndarray) -> np.ndarray:
        """θ (..., D) to u (..., D), float64.

        Raises:
            AleatorError: a parameter on or outside the bounds, or not finite.
        """
        theta = np.asarray(theta, dtype=np.float64)
        if theta.shape[-1:] != (self.dims,):
            raise AleatorError(
                f"theta of shape {theta.shape}; (..., {self.dims}) is needed: "
                f"{', '.join(self.names)}"
            )
        flat = theta.reshape(-1, self.dims)
        inside = (flat > self.low) & (flat < self.high)
        if not inside.all():
            row, column = np.argwhere(~inside)[0]
            raise AleatorError(
                f"theta[{row}]: {self.names[column]}={flat[row, column]:g} is not inside the "
                f"prior ({self.low[column]:g}, {self.high[column]:g}); a posterior has no mass "
                "there"
            )
        return (theta - np.asarray(self.low)) / np.subtract(self.high, self.low)

    def from_unit(self, u: np.ndarray) -> np.ndarray:
        """U (..., D) to θ (..., D)."""
        return np.asarray(self.low) + np.subtract(self.high, self.low) * u

    def config(self) -> dict[str, Any]:
        """JSON."""
        return {"names": list(self.names), "low": list(self.low), "high": list(self.high)}

    @classmethod
    def from_config(cls, config: Mapping[str, Sequence[Any]]) -> BoxPrior:
        """What `config` made."""
        return cls(tuple(config["names"]), tuple(config["low"]), tuple(config["high"]))
