r"""Monotone rational-quadratic splines, the identity outside [-bound, bound].

The arithmetic is in `core.transforms.spline_kernels`; here it is given gradients of any order,
and, if asked for, fused: `torch.compile` turns each kernel into one loop, several times faster
than the dozens of operations that it replaces, after some tens of seconds of compilation (which
torch keeps on disk). Reference: Durkan et al. (2019) arXiv:1906.04032.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import AleatorError
from core.transforms import spline_kernels
from core.transforms.affine import Univariate
from core.transforms.spline_kernels import Shape


class RationalQuadratic(Univariate):
    """A spline of `bins` pieces; parameters of zero give the identity."""

    def __init__(
        self,
        bins: int = 8,
        bound: float = 5.0,
        min_bin: float = 1e-3,
        min_slope: float = 1e-3,
        *,
        compiled: bool = False,
    ) -> None:
        """Assemble.

        Args:
            bins: number of pieces, K; there are 3K - 1 parameters.
            bound: half the width of the square that the spline lives in.
            min_bin: smallest width and height of a piece, in units of the square's.
            min_slope: smallest slope at a knot.
            compiled: fuse the kernels; may be set at any time, see also `compile_splines`.

        Raises:
            AleatorError: the smallest bins do not fit.
        """
        super().__init__()
        if bins < 1 or bound <= 0 or not 0 < min_bin * bins < 1 or not 0 < min_slope < 1:
            raise AleatorError(
                f"bins={bins}, bound={bound}, min_bin={min_bin}, min_slope={min_slope}: expected "
                "bins >= 1, bound > 0, bins * min_bin in (0, 1), min_slope in (0, 1)"
            )
        self.shape = Shape(bins, bound, min_bin, min_slope)
        self.size = 3 * bins - 1
        self.compiled = compiled

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        return self._apply_kernel(x, theta, False)

    def inverse(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Noise to data, in closed form."""
        return self._apply_kernel(y, theta, True)

    def _apply_kernel(self, value: Tensor, theta: Tensor, inverted: bool) -> tuple[Tensor, Tensor]:
        # Elements in one row, batch last: that is how networks of features leave them in memory.
        value = value.movedim(0, -1)
        flat = theta.movedim(1, -1).reshape(self.size, -1)
        out, log_slope = _Spline.apply(
            value.reshape(-1), flat, self.shape, inverted, self.compiled
        )
        shape = value.shape
        return out.reshape(shape).movedim(-1, 0), log_slope.reshape(shape).movedim(-1, 0)


class _Spline(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, theta: Tensor, shape: Shape, inverted: bool, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        kernel = spline_kernels.inverse if inverted else spline_kernels.forward
        out, log_slope = _run(kernel, compiled, value, theta, shape)
        ctx.save_for_backward(value, theta, out if inverted else value)
        ctx.options = shape, inverted, compiled
        return out, log_slope

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        value, theta, x = ctx.saved_tensors
        shape, inverted, compiled = ctx.options
        if torch.is_grad_enabled():  # a gradient of the gradient is asked for: let torch record
            kernel = spline_kernels.inverse if inverted else spline_kernels.forward
            outputs = kernel(value, theta, shape)
            wanted = [t for t in (value, theta) if t.requires_grad]
            given = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True))
            found = tuple(next(given) if t.requires_grad else None for t in (value, theta))
        else:
            found = _run(spline_kernels.gradients, compiled, x, theta, *grads, shape, inverted)
        return *found, None, None, None


def compile_splines(module: nn.Module, compiled: bool = True) -> None:
    """Fuse the kernels of all splines in a module, or no longer.

    Raises:
        AleatorError: there is no C++ compiler that works (with the first use of a spline).
    """
    for part in module.modules():
        if isinstance(part, RationalQuadratic):
            part.compiled = compiled


def _run(kernel: Callable[..., Any], compiled: bool, *args: Any) -> Any:
    if not compiled:
        return kernel(*args)
    try:
        return _fused(kernel)(*args)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        cause = str(error).strip().splitlines()
        raise AleatorError(
            f"splines cannot be compiled here ({cause[0] if cause else 'no reason given'}); "
            "install a C++ compiler or set compiled=False"
        ) from error


@functools.cache
def _fused(kernel: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(kernel, dynamic=True)
