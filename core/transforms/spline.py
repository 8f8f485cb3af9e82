r"""Monotone rational-quadratic splines, the identity outside [-bound, bound].

With slope s = h / w of a bin, position ξ = (x - x_0) / w in it and slopes d_0, d_1 at its ends,

    y = y_0 + h (s ξ² + d_0 ξ(1-ξ)) / (s + (d_0 + d_1 - 2s) ξ(1-ξ)),

whose inverse is the root of a quadratic, taken in the form that does not cancel. The bin of all
elements is found by one search, and its corners are fetched by one gather.
Reference: Durkan et al. (2019) arXiv:1906.04032.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import AleatorError
from core.transforms.affine import Univariate


class RationalQuadratic(Univariate):
    """A spline of `bins` pieces; parameters of zero give the identity."""

    steps: Tensor

    def __init__(
        self, bins: int = 8, bound: float = 5.0, min_bin: float = 1e-3, min_slope: float = 1e-3
    ) -> None:
        """Assemble.

        Args:
            bins: number of pieces, K; there are 3K - 1 parameters.
            bound: half the width of the square that the spline lives in.
            min_bin: smallest width and height of a piece, in units of the square's.
            min_slope: smallest slope at a knot.

        Raises:
            AleatorError: the smallest bins do not fit.
        """
        super().__init__()
        if bins < 1 or bound <= 0 or not 0 < min_bin * bins < 1 or not 0 < min_slope < 1:
            raise AleatorError(
                f"bins={bins}, bound={bound}, min_bin={min_bin}, min_slope={min_slope}: expected "
                "bins >= 1, bound > 0, bins * min_bin in (0, 1), min_slope in (0, 1)"
            )
        self.bins, self.bound, self.min_slope = bins, bound, min_slope
        self.size = 3 * bins - 1
        self.rest = 2 * bound * (1 - bins * min_bin)  # what the softmax shares out
        self.slope_offset = math.log(math.expm1(1 - min_slope))  # a parameter of 0 is slope 1
        self.min_bin = min_bin
        steps = self._steps().to(torch.get_default_dtype())
        self.register_buffer("steps", steps, persistent=False)

    def _steps(self) -> Tensor:
        """Where the right ends of bins of the smallest width would be, in double precision."""
        count = torch.arange(1, self.bins + 1, dtype=torch.float64)
        return 2 * self.bound * self.min_bin * count - self.bound

    def _apply(self, fn: object, recurse: bool = True) -> RationalQuadratic:
        """Take the steps anew when the precision changes: rounded ones would stay rounded."""
        super()._apply(fn, recurse)
        self.steps = self._steps().to(self.steps)
        return self

    def _corners(self, value: Tensor, theta: Tensor, axis: int) -> tuple[Tensor, ...]:
        """x_0, w, y_0, h, d_0, d_1 of the bin in which `value` is, along axis 0 (x) or 1 (y)."""
        k = self.bins
        shares = theta[..., : 2 * k].unflatten(-1, (2, k)).softmax(-1)
        knots = torch.add(self.steps, shares.cumsum(-1), alpha=self.rest)
        bin_of = torch.searchsorted(
            knots[..., axis, :-1].detach().contiguous(), value.detach()[..., None], right=True
        )
        slopes = F.pad(theta[..., None, 2 * k :], (1, 1))
        table = torch.cat([F.pad(knots, (1, 0), value=-self.bound), slopes], -2)
        ends = torch.stack([bin_of, bin_of + 1], -1).expand(*bin_of.shape[:-1], 3, 2)
        corners = table.gather(-1, ends)
        left, right = corners[..., :2, 0], corners[..., :2, 1]
        slope = F.softplus(corners[..., 2, :] + self.slope_offset) + self.min_slope
        (x_0, y_0), (w, h) = left.unbind(-1), (right - left).unbind(-1)
        return x_0, w, y_0, h, *slope.unbind(-1)

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        inside = x.abs() < self.bound
        value = x.clamp(-self.bound, self.bound)
        x_0, w, y_0, h, d_0, d_1 = self._corners(value, theta, 0)
        s, xi = h / w, (value - x_0) / w
        mixed = xi * (1 - xi)
        below = s + (d_0 + d_1 - 2 * s) * mixed
        y = y_0 + h * (s * xi * xi + d_0 * mixed) / below
        log_slope = _log_slope(s, xi, mixed, below, d_0, d_1)
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0)

    def inverse(self, y: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Noise to data, in closed form."""
        inside = y.abs() < self.bound
        value = y.clamp(-self.bound, self.bound)
        x_0, w, y_0, h, d_0, d_1 = self._corners(value, theta, 1)
        s, rise = h / w, value - y_0
        bend = rise * (d_0 + d_1 - 2 * s)
        a, b = h * (s - d_0) + bend, h * d_0 - bend
        root = (b * b + 4 * a * s * rise).clamp_min(0).sqrt()
        xi = 2 * s * rise / (b + root)
        mixed = xi * (1 - xi)
        below = s + (d_0 + d_1 - 2 * s) * mixed
        log_slope = _log_slope(s, xi, mixed, below, d_0, d_1)
        x = torch.addcmul(x_0, xi, w)
        return torch.where(inside, x, y), torch.where(inside, -log_slope, 0)


def _log_slope(
    s: Tensor, xi: Tensor, mixed: Tensor, below: Tensor, d_0: Tensor, d_1: Tensor
) -> Tensor:
    """Ln dy/dx = ln s² (d_1 ξ² + 2 s ξ(1-ξ) + d_0 (1-ξ)²) / below²."""
    above = d_1 * xi * xi + 2 * s * mixed + d_0 * (1 - xi) * (1 - xi)
    ratio = s / below
    return (above * ratio * ratio).log()
