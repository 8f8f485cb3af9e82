r"""Rational-quadratic splines and their gradients, as arithmetic on whole batches.

With slope s = h / w of a bin, position ξ = (x - x_0) / w in it and slopes d_0, d_1 at its ends,

    y = y_0 + h (s ξ² + d_0 ξ(1-ξ)) / (s + (d_0 + d_1 - 2s) ξ(1-ξ)).

Every quantity is a tensor over elements, and bins are spelled out: there is no search, gather or
scan, so that `torch.compile` makes one loop of each function, and eager execution streams through
memory. Gradients are written down, because those recorded would keep every bin of every element.
Reference: Durkan et al. (2019) arXiv:1906.04032.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Shape(NamedTuple):
    """What is fixed about a spline.

    Attributes:
        bins: number of pieces K.
        bound: half the width of the square that it lives in; the identity outside.
        min_bin: smallest width and height of a piece, in units of the square's.
        min_slope: smallest slope at a knot.
    """

    bins: int
    bound: float
    min_bin: float
    min_slope: float

    @property
    def least(self) -> float:
        """Smallest width and height of a piece."""
        return 2 * self.bound * self.min_bin

    @property
    def rest(self) -> float:
        """What the softmax shares out."""
        return 2 * self.bound * (1 - self.bins * self.min_bin)

    @property
    def slope_offset(self) -> float:
        """Makes a parameter of 0 a slope of 1."""
        return math.log(math.expm1(1 - self.min_slope))


class Bin(NamedTuple):
    """The bin of every element: left lower corner, size, and parameters of the slopes."""

    x_0: Tensor
    w: Tensor
    y_0: Tensor
    h: Tensor
    raw_0: Tensor
    raw_1: Tensor


def forward(x: Tensor, theta: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Y and ln dy/dx, each (N,), of x (N,) with parameters (3K - 1, N)."""
    value, inside = _inside(x, shape)
    its = _bin(value, theta, shape, 0)[0]
    d_0, d_1 = _slope(its.raw_0, shape), _slope(its.raw_1, shape)
    s, xi = its.h / its.w, (value - its.x_0) / its.w
    mixed = xi * (1 - xi)
    below = s + (d_0 + d_1 - 2 * s) * mixed
    y = its.y_0 + its.h * (s * xi * xi + d_0 * mixed) / below
    log_slope = _log_slope(s, xi, mixed, below, d_0, d_1)
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0)


def inverse(y: Tensor, theta: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """X and ln dx/dy, by the root of a quadratic in the form that does not cancel."""
    value, inside = _inside(y, shape)
    its = _bin(value, theta, shape, 1)[0]
    d_0, d_1 = _slope(its.raw_0, shape), _slope(its.raw_1, shape)
    s, rise = its.h / its.w, value - its.y_0
    bend = rise * (d_0 + d_1 - 2 * s)
    a, b = its.h * (s - d_0) + bend, its.h * d_0 - bend
    root = (b * b + 4 * a * s * rise).clamp_min(0).sqrt()
    xi = 2 * s * rise / (b + root)
    mixed = xi * (1 - xi)
    below = s + (d_0 + d_1 - 2 * s) * mixed
    log_slope = _log_slope(s, xi, mixed, below, d_0, d_1)
    return torch.where(inside, its.x_0 + xi * its.w, y), torch.where(inside, -log_slope, 0)


def gradients(
    x: Tensor, theta: Tensor, grad: Tensor, grad_log: Tensor, shape: Shape, inverted: bool
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the argument (N,) and the parameters (3K - 1, N).

    Args:
        x: (N,) abscissae; of `inverse`, what it returned.
        theta: (3K - 1, N) parameters.
        grad: (N,) gradient of the first value returned.
        grad_log: (N,) gradient of the second.
        shape: of the spline.
        inverted: the values are those of `inverse`, whose gradient follows from y(x(y)) = y.
    """
    value, inside = _inside(x, shape)
    its, past, shares = _bin(value, theta, shape, 0)
    d_0, d_1 = _slope(its.raw_0, shape), _slope(its.raw_1, shape)
    s, xi = its.h / its.w, (value - its.x_0) / its.w
    rest = 1 - xi
    mixed = xi * rest
    twist = d_0 + d_1 - 2 * s
    over_below = 1 / (s + twist * mixed)
    above = s * xi * xi + d_0 * mixed
    inner = d_1 * xi * xi + 2 * s * mixed + d_0 * rest * rest
    over_inner = 1 / inner
    tilt = 1 - 2 * xi
    # derivatives with respect to ξ
    y_xi = its.h * s * inner * over_below * over_below
    log_xi = 2 * (d_1 * xi + s * tilt - d_0 * rest) * over_inner - 2 * twist * tilt * over_below
    outside = grad
    if inverted:
        along = (grad - grad_log * log_xi / its.w) * its.w / y_xi
        grad, grad_log = -along, -grad_log
    quotient = above * over_below
    scale = grad * its.h * over_below
    g_xi = (grad * y_xi + grad_log * log_xi) / its.w
    g_s = scale * (xi * xi - quotient * (1 - 2 * mixed)) + 2 * grad_log * (
        mixed * over_inner + 1 / s - (1 - 2 * mixed) * over_below
    )
    g_d0 = scale * mixed * (1 - quotient) + grad_log * (
        rest * rest * over_inner - 2 * mixed * over_below
    )
    g_d1 = grad_log * (xi * xi * over_inner - 2 * mixed * over_below) - scale * mixed * quotient
    g_w = -(g_xi * xi + g_s * s / its.w)
    g_h = grad * quotient + g_s / its.w
    zero = torch.zeros_like(x)
    g_x0, g_y0 = torch.where(inside, -g_xi, zero), torch.where(inside, grad, zero)
    g_w, g_h = torch.where(inside, g_w, zero), torch.where(inside, g_h, zero)
    g_0 = torch.where(inside, g_d0 * torch.sigmoid(its.raw_0 + shape.slope_offset), zero)
    g_1 = torch.where(inside, g_d1 * torch.sigmoid(its.raw_1 + shape.slope_offset), zero)
    columns = _through_softmax(g_x0, g_w, shares[0], past, shape)
    columns += _through_softmax(g_y0, g_h, shares[1], past, shape)
    for j in range(shape.bins - 1):  # the knot between bins j and j + 1
        left = torch.where(past[j], g_1, zero) if j else g_1
        right = torch.where(past[j + 2], zero, g_0) if j + 2 < shape.bins else g_0
        columns.append(torch.where(past[j + 1], right, left))
    g_input = torch.where(inside, along if inverted else g_xi, outside)
    return g_input, torch.stack(columns)


def _inside(value: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    return value.clamp(-shape.bound, shape.bound), value.abs() < shape.bound


def _bin(
    value: Tensor, theta: Tensor, shape: Shape, axis: int
) -> tuple[Bin, list[Tensor], tuple[list[Tensor], list[Tensor]]]:
    """The bin in which `value` lies along x (axis 0) or y (1).

    Also which knots it is past (0..K-1; the first is not used), and the shares of the softmax.
    """
    k, parts = shape.bins, theta.unbind(0)
    slopes = parts[2 * k :]
    shares = _softmax(parts[:k]), _softmax(parts[k : 2 * k])
    widths, heights = ([shape.least + shape.rest * p for p in share] for share in shares)
    x_k = y_k = torch.full_like(value, -shape.bound)
    zero = torch.zeros_like(value)  # the slope outside is 1, that of a parameter of 0
    its = Bin(x_k, widths[0], y_k, heights[0], zero, slopes[0] if k > 1 else zero)
    past = [value]
    for i in range(1, k):
        x_k, y_k = x_k + widths[i - 1], y_k + heights[i - 1]
        is_past = value >= (y_k if axis else x_k)
        past.append(is_past)
        there = (x_k, widths[i], y_k, heights[i], slopes[i - 1], slopes[i] if i < k - 1 else zero)
        its = Bin(*(torch.where(is_past, new, old) for new, old in zip(there, its, strict=True)))
    return its, past, shares


def _softmax(logits: tuple[Tensor, ...]) -> list[Tensor]:
    top = logits[0]
    for logit in logits[1:]:
        top = torch.maximum(top, logit)
    powers = [torch.exp(logit - top) for logit in logits]
    total = powers[0]
    for power in powers[1:]:
        total = total + power
    over_total = 1 / total
    return [power * over_total for power in powers]


def _through_softmax(
    corner: Tensor, size: Tensor, shares: list[Tensor], past: list[Tensor], shape: Shape
) -> list[Tensor]:
    """Gradients of K logits, given those of the bin's corner and of its size."""
    zero, found = torch.zeros_like(corner), []
    for i in range(shape.bins):  # bins before that of the element move its corner
        own = torch.where(past[i], size, zero) if i else size
        found.append(torch.where(past[i + 1], corner, own) if i + 1 < shape.bins else own)
    mean = shares[0] * found[0]
    for share, g in zip(shares[1:], found[1:], strict=True):
        mean = mean + share * g
    return [shape.rest * share * (g - mean) for share, g in zip(shares, found, strict=True)]


def _slope(raw: Tensor, shape: Shape) -> Tensor:
    return F.softplus(raw + shape.slope_offset) + shape.min_slope


def _log_slope(
    s: Tensor, xi: Tensor, mixed: Tensor, below: Tensor, d_0: Tensor, d_1: Tensor
) -> Tensor:
    """Ln dy/dx = ln s² (d_1 ξ² + 2 s ξ(1-ξ) + d_0 (1-ξ)²) / below²."""
    inner = d_1 * xi * xi + 2 * s * mixed + d_0 * (1 - xi) * (1 - xi)
    ratio = s / below
    return (inner * ratio * ratio).log()
