r"""tasmin ≤ tas ≤ tasmax, in every cell and member: differences are modelled in their place.

    tas,    d⁺ = tasmax − tas ≥ 0,    d⁻ = tas − tasmin ≥ 0

with the lowest of the variables instead of tas where tas is not modelled. A difference is kept
positive by the softplus, d = w ln(1 + exp(z / w)): nearly the difference itself where it is
large, its logarithm where it is small. Coarse means survive: the anchor is shifted and the
differences are scaled, so that all means are the input's and no order is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from core.errors import AleatorError
from core.random import Generators

LADDER = ("tasmin", "tas", "tasmax")
"""From the lowest to the highest."""
CROSSED = 0.1
"""K by which a value may be on the wrong side before it is called crossed."""
MOST_CROSSED = 0.05
"""Share of crossed values from which data are refused: two variables were mistaken."""


@dataclass(frozen=True)
class Positive:
    """The transform of a difference that is never negative.

    Attributes:
        width: w, in the unit of the difference: below it the transform is a logarithm.
        least: smaller differences are taken for this one; a logarithm has no zero.
    """

    width: float = 1.0
    least: float = 0.01
    nonnegative: bool = True

    def __post_init__(self) -> None:
        if not (self.width > 0 and self.least > 0):
            raise AleatorError(
                f"difference transform: width={self.width} and least={self.least} must be positive"
            )

    def coarse(self, x: Tensor) -> Tensor:
        """The predictor, of a coarse difference."""
        d = x.clamp_min(self.least) / self.width
        return self.width * (d + torch.log(-torch.expm1(-d)))

    def forward(self, y: Tensor, generator: Generators | None = None) -> Tensor:
        """The predictand, of a fine difference."""
        return self.coarse(y)

    def inverse(self, z: Tensor) -> Tensor:
        """The difference; positive."""
        return self.width * softplus(z / self.width, threshold=50)

    def dry(self, x: Tensor) -> Tensor | None:
        """None: a difference is never dry."""
        return None


@dataclass(frozen=True)
class Order:
    """Which channels are ordered, and how.

    Attributes:
        anchor: channel that is modelled as it is.
        above: channel that lies above it, modelled as the difference to it; None if none does.
        below: channel that lies below it, the same.
    """

    anchor: int
    above: int | None = None
    below: int | None = None

    @classmethod
    def of(cls, names: Sequence[str]) -> Order | None:
        """That of the variables; None unless two of `LADDER` are among them."""
        at = [names.index(name) if name in names else None for name in LADDER]
        low, middle, high = at
        if middle is not None and (low is not None or high is not None):
            return cls(middle, high, low)
        return cls(low, high) if low is not None and high is not None else None

    @property
    def differences(self) -> tuple[int, ...]:
        """Channels that are modelled as differences."""
        return tuple(i for i in (self.above, self.below) if i is not None)

    def split(self, y: Tensor) -> Tensor:
        """Variables (..., V, H, W) to anchor and differences."""
        return self._moved(y, -1)

    def join(self, parts: Tensor) -> Tensor:
        """The inverse of `split`; in order if the differences are not negative."""
        return self._moved(parts, 1)

    def _moved(self, fields: Tensor, way: int) -> Tensor:
        channels = list(fields.unbind(-3))
        anchor = channels[self.anchor]
        if self.above is not None:
            channels[self.above] = channels[self.above] + way * anchor
        if self.below is not None:
            channels[self.below] = anchor - channels[self.below]
        return torch.stack(channels, -3)

    def refuse_crossed(self, fields: Tensor, names: Sequence[str], source: str) -> None:
        """Refuse data in which the order is not kept.

        Args:
            fields: (..., V, H, W) variables; NaN where there are no data.
            names: of the variables.
            source: for the message.

        Raises:
            AleatorError: more than 5 % of the values of a pair are crossed.
        """
        parts = self.split(fields)
        for channel in self.differences:
            d = parts[..., channel, :, :]
            share = (d < -CROSSED).sum() / d.isfinite().sum().clamp_min(1)
            if share > MOST_CROSSED:
                pair = (names[self.anchor], names[channel])
                low, high = pair if channel == self.above else pair[::-1]
                raise AleatorError(
                    f"{source}: {high} is below {low} in {100 * share:.0f} % of the values; are "
                    "the two exchanged, of different days or levels? (--set ordered=false trains "
                    "without the order)"
                )
