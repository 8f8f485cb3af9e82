r"""A Gaussian on the unit box, truncated coordinate by coordinate: exact support, exact density.

With u = m + L e, e standard normal, coordinate i given those before it is normal with mean
c_i = m_i + Σ_{j<i} L_ij e_j and deviation s_i = L_ii; it is truncated to (0, 1):

    y_i = Φ⁻¹( [Φ(x_i) - Φ(a_i)] / [Φ(b_i) - Φ(a_i)] ),
    x_i = (u_i - c_i) / s_i,   a_i = -c_i / s_i,   b_i = (1 - c_i) / s_i

No mass is outside the prior, hence nothing is rejected and nothing renormalised; as s → ∞ it is
the uniform prior itself. In one dimension it is the exact posterior of a Gaussian likelihood
under a uniform prior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from core.errors import AleatorError
from core.model import Context
from core.transforms import Transform

_FAR = 6.0
"""Centres stay within so many deviations of the box: farther out, Φ is a difference of zeros."""
_TINY = 1e-290
_EDGE = 1e-9
"""Draws stay this far inside the box, so that they have a density."""


class TruncatedGaussian(Transform):
    """u in (0, 1)^D, given `mean` (B, D) and `scale_tril` (B, D, D), to standard normal noise."""

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Box to noise."""
        mean, tril = _law(context)
        scale = tril.diagonal(dim1=-2, dim2=-1)
        e = torch.linalg.solve_triangular(tril, (x - mean)[..., None], upper=False)[..., 0]
        centre = _near(x - scale * e, scale)
        inner, low, high = (x - centre) / scale, -centre / scale, (1 - centre) / scale
        log_mass = _log_between(low, high)
        below, above = _log_between(low, inner), _log_between(inner, high)
        y = _quantile(below - log_mass, above - log_mass, inner)
        log_slope = 0.5 * (y.square() - inner.square()) - log_mass - scale.log()
        return y, log_slope.sum(1)

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to box, coordinate by coordinate."""
        mean, tril = _law(context)
        columns: list[Tensor] = []
        for i in range(y.shape[1]):
            scale, shift = tril[:, i, i], torch.zeros_like(y[:, 0])
            if i:
                known = torch.stack(columns, 1) - mean[:, :i]
                e = torch.linalg.solve_triangular(tril[:, :i, :i], known[..., None], upper=False)
                shift = (tril[:, i, :i] * e[..., 0]).sum(1)
            centre = _near(mean[:, i] + shift, scale)
            low, high = -centre / scale, (1 - centre) / scale
            inner = _between(y[:, i], low, high)
            columns.append((centre + scale * inner).clamp(_EDGE, 1 - _EDGE))
        x = torch.stack(columns, 1)
        return x, -self(x, context)[1]

    def invert(self, y: Tensor, context: Context = None) -> Tensor:
        """Noise to box."""
        return self.inverse(y, context)[0]


def _law(context: Context) -> tuple[Tensor, Tensor]:
    if not isinstance(context, Mapping) or not {"mean", "scale_tril"} <= set(context):
        raise AleatorError("a truncated Gaussian needs a context with `mean` and `scale_tril`")
    return context["mean"], context["scale_tril"]


def _near(centre: Tensor, scale: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(centre, 1 + _FAR * scale), -_FAR * scale)


def _log_between(low: Tensor, high: Tensor) -> Tensor:
    """ln[Φ(high) - Φ(low)], low < high; in the tail where it is a difference of small numbers."""
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    upper, lower = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    gap = (lower - upper).clamp(max=-1e-300)
    return upper + torch.log(-torch.expm1(gap))


def _quantile(log_below: Tensor, log_above: Tensor, inner: Tensor) -> Tensor:
    """Φ⁻¹ of a probability given by the logarithms of itself and of its complement.

    Beyond what Φ⁻¹ resolves, truncation changes nothing and x itself is the answer.
    """
    left = log_below < math.log(0.5)
    tail = torch.where(left, log_below, log_above)
    found = torch.special.ndtri(tail.exp().clamp(min=_TINY))
    found = torch.where(left, found, -found)
    return torch.where(tail > math.log(_TINY), found, inner)


def _between(y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The x with [Φ(x) - Φ(low)] / [Φ(high) - Φ(low)] = Φ(y), by the smaller of the two tails."""
    below, above = torch.special.ndtr(y), torch.special.ndtr(-y)
    p = torch.special.ndtr(low) + below * _mass(low, high)
    q = torch.special.ndtr(-high) + above * _mass(low, high)
    left = p < 0.5
    tail = torch.special.ndtri(torch.where(left, p, q).clamp(min=_TINY))
    x = torch.where(left, tail, -tail)
    return torch.maximum(torch.minimum(x, high), low)


def _mass(low: Tensor, high: Tensor) -> Tensor:
    return _log_between(low, high).exp()
