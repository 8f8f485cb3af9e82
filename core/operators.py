r"""What is observed of x: y = A(x) + noise, A linear or any differentiable function.

An operator maps events (N, *E) to observations (N, *M), example by example, and is differentiable
by autograd. `tangent(x, u)` is its derivative at x along u: A u where it is linear.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import AleatorError


class Operator(ABC):
    """Base class.

    Attributes:
        linear: A(x) is linear in x.
    """

    linear: bool = True

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Observe x (N, *E) without noise: (N, *M)."""

    def tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """Derivative at x (N, *E) along u (N, *E), (N, *M)."""
        if self.linear:
            return self(u)
        return torch.func.jvp(self, (x,), (u,))[1]

    def adjoint(self, x: Tensor, v: Tensor) -> Tensor:
        """Transpose of the derivative at x (N, *E), of v (N, *M), (N, *E)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self(x), x, v)[0]


@dataclass(frozen=True, eq=False)
class Mask(Operator):
    """The elements of an event where `mask` (*E) is set, as a vector (N, K)."""

    mask: Tensor

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or not self.mask.any():
            raise AleatorError("mask: bool, with at least one element set, is needed")

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        _same_event("mask", x, self.mask.shape)
        return x[:, self.mask.to(x.device)]


@dataclass(frozen=True)
class AveragePool(Operator):
    """Means of blocks of pixels of (N, C, H, W): what a coarser instrument sees."""

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise AleatorError(f"average pool: factor={self.factor}; it must be positive")

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        if x.dim() != 4 or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise AleatorError(
                f"average pool: images (N, C, H, W) with sides divisible by {self.factor}, not "
                f"{tuple(x.shape)}"
            )
        return F.avg_pool2d(x, self.factor)


@dataclass(frozen=True, eq=False)
class Blur(Operator):
    """Convolution of every channel of (N, C, H, W) with one kernel (K, L), edges repeated."""

    kernel: Tensor

    def __post_init__(self) -> None:
        if self.kernel.dim() != 2 or not (self.kernel.shape[0] % 2 and self.kernel.shape[1] % 2):
            raise AleatorError(
                f"blur: a kernel with two odd sides is needed, not {tuple(self.kernel.shape)}"
            )

    @classmethod
    def gaussian(cls, scale: float) -> Blur:
        """A normalised Gaussian of standard deviation `scale` pixels, cut at three of them."""
        if scale <= 0:
            raise AleatorError(f"blur: scale={scale}; it must be positive")
        reach = max(1, round(3 * scale))
        row = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / scale) ** 2)
        return cls(torch.outer(row, row) / row.sum() ** 2)

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        if x.dim() != 4:
            raise AleatorError(f"blur: images (N, C, H, W), not {tuple(x.shape)}")
        rows, columns = self.kernel.shape
        padded = F.pad(x, (columns // 2, columns // 2, rows // 2, rows // 2), mode="replicate")
        kernel = self.kernel.to(x).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(padded, kernel, groups=x.shape[1])


@dataclass(frozen=True, eq=False)
class Linear(Operator):
    """A matrix (M, D) on flattened events."""

    matrix: Tensor

    def __post_init__(self) -> None:
        if self.matrix.dim() != 2:
            raise AleatorError(f"linear operator: a matrix, not {tuple(self.matrix.shape)}")

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        if x[0].numel() != self.matrix.shape[1]:
            raise AleatorError(
                f"linear operator: {self.matrix.shape[1]} columns for events of {x[0].numel()} "
                "elements"
            )
        return x.flatten(1) @ self.matrix.to(x).T


@dataclass(frozen=True, eq=False)
class Function(Operator):
    """Any differentiable function of events, example by example."""

    function: Callable[[Tensor], Tensor]
    linear: bool = False

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.function(x)


def as_operator(operator: Operator | Tensor | Callable[[Tensor], Tensor]) -> Operator:
    """An operator from itself, a bool mask (*E), a matrix (M, D), or a function.

    Raises:
        AleatorError: it is none of these.
    """
    if isinstance(operator, Operator):
        return operator
    if isinstance(operator, Tensor):
        return Mask(operator) if operator.dtype == torch.bool else Linear(operator)
    if callable(operator):
        return Function(operator)
    raise AleatorError(
        f"{type(operator).__name__} is no operator: give a mask, matrix or function"
    )


def _same_event(name: str, x: Tensor, event: Sequence[int]) -> None:
    if x.shape[1:] != torch.Size(event):
        raise AleatorError(f"{name} of shape {tuple(event)} for events of {tuple(x.shape[1:])}")
