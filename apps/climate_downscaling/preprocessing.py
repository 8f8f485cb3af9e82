r"""Variables to and from the space in which they are modelled.

Temperature, wind and pressure are modelled as they are. Precipitation is skewed and mostly zero:

    z = y^p                   where y ≥ dry
    z = dry^p - s |ε|         where it is dry, ε ~ N(0, 1)

so that dry cells are the tail of one continuous variable (a censored model), drawn anew each time
a field is used; z < dry^p becomes exactly zero on the way back. Nothing is clipped after the fact.
tasmin, tas and tasmax are modelled as one of them and differences (`ordering`).
Reference: Bárdossy and Plate (1992), doi:10.1029/91WR02589.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apps.climate_downscaling.cf import QUANTITIES
from apps.climate_downscaling.ordering import Order, Positive
from core.errors import AleatorError
from core.random import Generators, randn


@dataclass(frozen=True)
class Identity:
    """The variable itself.

    Attributes:
        nonnegative: members are kept at or above zero.
    """

    nonnegative: bool = False

    def coarse(self, x: Tensor) -> Tensor:
        """Of a coarse field, the predictor."""
        return x

    def forward(self, y: Tensor, generator: Generators | None = None) -> Tensor:
        """Of a fine field, the predictand."""
        return y

    def inverse(self, z: Tensor) -> Tensor:
        """Back to the variable."""
        return z.clamp_min(0) if self.nonnegative else z

    def dry(self, x: Tensor) -> Tensor | None:
        """Where a coarse field is dry; None for variables that are never."""
        return None


@dataclass(frozen=True)
class CensoredPower:
    """The transform of precipitation, in mm day-1.

    Attributes:
        power: p.
        threshold: dry below this, mm day-1.
        spread: s, of the latent values of dry cells.
    """

    power: float = 0.5
    threshold: float = 0.1
    spread: float = 0.15
    nonnegative: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.power <= 1 and self.threshold > 0 and self.spread > 0):
            raise AleatorError(
                f"precipitation transform: power={self.power} must be in (0, 1], "
                f"threshold={self.threshold} and spread={self.spread} positive"
            )

    def coarse(self, x: Tensor) -> Tensor:
        """x^p: no latent values, the coarse input is what it is."""
        return x.clamp_min(0) ** self.power

    def forward(self, y: Tensor, generator: Generators | None = None) -> Tensor:
        """z, with fresh latent values from the generator."""
        latent = randn(y.shape, generator, device=y.device, dtype=y.dtype).abs()
        dry = self.threshold**self.power - self.spread * latent
        return torch.where(y < self.threshold, dry, y.clamp_min(0) ** self.power)

    def inverse(self, z: Tensor) -> Tensor:
        """Amounts, exactly zero where dry."""
        wet = z >= self.threshold**self.power
        return torch.where(wet, z.clamp_min(0) ** (1 / self.power), torch.zeros_like(z))

    def dry(self, x: Tensor) -> Tensor | None:
        """1 where a coarse cell is dry, else 0."""
        return (x < self.threshold).to(x.dtype)


Transform = Identity | CensoredPower | Positive


@dataclass(frozen=True)
class Transforms:
    """One transform a variable, on fields (..., V, H, W).

    Attributes:
        each: the transforms; of a variable that is modelled as a difference, that of the latter.
        order: which variables are; None of none.
    """

    each: tuple[Transform, ...]
    order: Order | None = None

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        options: Mapping[str, Mapping[str, float]] | None = None,
        *,
        ordered: bool = False,
    ) -> Transforms:
        """Those of CMIP variables.

        Args:
            names: of the variables.
            options: of their transforms.
            ordered: keep tasmin ≤ tas ≤ tasmax, see `ordering`.

        Raises:
            AleatorError: options for a variable that is not there or has no such option.
        """
        order = Order.of(names) if ordered else None
        differences = order.differences if order else ()
        options = dict(options or {})
        if strange := set(options) - set(names):
            raise AleatorError(f"transforms: {min(strange)} is not among the variables")
        chosen: list[Transform] = []
        for channel, name in enumerate(names):
            try:
                if channel in differences:
                    chosen.append(Positive(**dict[str, Any](options.get(name, {}))))
                elif name == "pr":
                    chosen.append(CensoredPower(**dict[str, Any](options.get(name, {}))))
                else:
                    below = QUANTITIES[name].nonnegative if name in QUANTITIES else False
                    chosen.append(Identity(below, **options.get(name, {})))
            except TypeError as error:
                raise AleatorError(f"transforms.{name}: {error}") from None
        return cls(tuple(chosen), order)

    @property
    def nonnegative(self) -> tuple[bool, ...]:
        """Which variables cannot be below zero."""
        below = self.order.differences if self.order else ()
        return tuple(t.nonnegative and v not in below for v, t in enumerate(self.each))

    def split(self, y: Tensor) -> Tensor:
        """Variables (..., V, H, W) as what is modelled: themselves, or differences."""
        return y if self.order is None else self.order.split(y)

    def join(self, parts: Tensor) -> Tensor:
        """The inverse of `split`."""
        return parts if self.order is None else self.order.join(parts)

    def parts(self, z: Tensor) -> Tensor:
        """What is modelled (..., V, H, W), from predictands: `inverse`, before `join`."""
        return self._apply([t.inverse for t in self.each], z)

    @property
    def dry_channels(self) -> int:
        """How many channels `dry` gives."""
        return sum(isinstance(transform, CensoredPower) for transform in self.each)

    def coarse(self, x: Tensor) -> Tensor:
        """Predictors from coarse fields (..., V, h, w)."""
        return self._apply([t.coarse for t in self.each], self.split(x))

    def forward(self, y: Tensor, generator: Generators | None = None) -> Tensor:
        """Predictands from fine fields (..., V, H, W)."""
        forward = [lambda c, t=t: t.forward(c, generator) for t in self.each]
        return self._apply(forward, self.split(y))

    def inverse(self, z: Tensor) -> Tensor:
        """Fine fields from predictands (..., V, H, W)."""
        return self.join(self.parts(z))

    def dry(self, x: Tensor) -> Tensor:
        """Where coarse fields (..., V, h, w) are dry: (..., D, h, w), D amounts among them."""
        flags = [t.dry(x[..., i, :, :]) for i, t in enumerate(self.each)]
        kept = [flag for flag in flags if flag is not None]
        return torch.stack(kept, -3) if kept else x[..., :0, :, :]

    @staticmethod
    def _apply(functions: list, x: Tensor) -> Tensor:
        return torch.stack([f(c) for f, c in zip(functions, x.unbind(-3), strict=True)], -3)
