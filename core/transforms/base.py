r"""Bijections with their log-determinants.

    forward(x)  -> y, ln|det dy/dx|        data to noise
    inverse(y)  -> x, ln|det dx/dy|        noise to data

by which ln p(x) = ln p(y) + ln|det dy/dx|. Events keep their batch axis first; determinants are
(B,), summed over the event. `forward` is exact, always; where that is expensive, `estimate`
gives independent unbiased estimates of the log-determinant.
Reference: Papamakarios et al. (2021) arXiv:1912.02762.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from core.errors import AleatorError
from core.model import Context
from core.random import Generators


class Transform(nn.Module, ABC):
    """A bijection of events, given a context.

    Attributes:
        exact: the exact log-determinant is what training should use, not its estimate.
    """

    exact: bool = True

    @abstractmethod
    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Y (B, ...) and ln|det dy/dx| (B,) of x (B, *E)."""

    @abstractmethod
    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """X (B, *E) and ln|det dx/dy| (B,) of y."""

    def invert(self, y: Tensor, context: Context = None) -> Tensor:
        """X alone, for sampling; cheaper where the determinant costs."""
        return self.inverse(y, context)[0]

    def encode(self, x: Tensor, context: Context = None) -> Tensor:
        """Y alone; cheaper where the determinant costs."""
        return self(x, context)[0]

    def estimate(
        self,
        x: Tensor,
        context: Context = None,
        *,
        probes: int = 1,
        generator: Generators | None = None,
    ) -> tuple[Tensor, Tensor]:
        """y, and unbiased estimates (K, B) of the log-determinant.

        Args:
            x: (B, *E).
            context: condition.
            probes: how many estimates, each independent of the others given x.
            generator: one stream, or one per example.

        Returns:
            y, and (probes, B), or (1, B) where the exact value costs no more.
        """
        y, log_det = self(x, context)
        return y, log_det[None]


class Composition(Transform):
    """One transform after the other; data enter the first."""

    def __init__(self, transforms: Iterable[Transform]) -> None:
        """`transforms`: from data to noise."""
        super().__init__()
        self.transforms = nn.ModuleList(transforms)
        self.exact = all(transform.exact for transform in self.parts())

    def parts(self) -> list[Transform]:
        """The transforms, from data to noise."""
        return list(self.transforms)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        total = x.new_zeros(len(x))
        for transform in self.parts():
            x, log_det = transform(x, context)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        total = y.new_zeros(len(y))
        for transform in reversed(self.parts()):
            y, log_det = transform.inverse(y, context)
            total = total + log_det
        return y, total

    def invert(self, y: Tensor, context: Context = None) -> Tensor:
        """Noise to data."""
        for transform in reversed(self.parts()):
            y = transform.invert(y, context)
        return y

    def encode(self, x: Tensor, context: Context = None) -> Tensor:
        """Data to noise."""
        for transform in self.parts():
            x = transform.encode(x, context)
        return x

    def estimate(
        self,
        x: Tensor,
        context: Context = None,
        *,
        probes: int = 1,
        generator: Generators | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The estimates of the parts, which are independent, added up."""
        total = x.new_zeros(1, len(x))
        for transform in self.parts():
            x, log_det = transform.estimate(x, context, probes=probes, generator=generator)
            total = total + log_det
        return x, total


class Inverse(Transform):
    """A transform the other way round."""

    def __init__(self, transform: Transform) -> None:
        """`transform`: one whose determinant is exact in both directions."""
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """The inverse of what was given."""
        return self.transform.inverse(x, context)

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """What was given."""
        return self.transform(y, context)


class Flatten(Transform):
    """(B, *E) to (B, D)."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        """`event_shape`: E."""
        super().__init__()
        self.event_shape = tuple(event_shape)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Flatten."""
        return x.flatten(1), x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Unflatten."""
        return y.reshape(len(y), *self.event_shape), y.new_zeros(len(y))


def check_channels(x: Tensor, channels: int, what: str) -> None:
    """Refuse events whose first axis is not of this length.

    Raises:
        AleatorError: it is not.
    """
    if x.dim() < 2 or x.shape[1] != channels:
        raise AleatorError(
            f"{what} is built for {channels} features, got a batch of shape {tuple(x.shape)}"
        )


def pixels(x: Tensor) -> int:
    """Number of positions of an event (C, *positions); 1 for a vector."""
    return math.prod(x.shape[2:])
