r"""Integrators of dy/dt = f(t, y): fixed steps, and Dormand–Prince 5(4) with step-size control.

The error of an adaptive step is measured *per example* and the worst one decides, so that the
tolerance holds for every example of a batch. Reference: Hairer, Nørsett and Wanner (1993),
Solving Ordinary Differential Equations I, sections II.4 and II.5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from core.errors import AleatorError

Field = Callable[[float, Tensor], Tensor]
"""(t, y (B, ...)) -> dy/dt."""

# Dormand–Prince: nodes, stages, and the difference between the 5th and 4th order weights.
_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_A: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def odeint(
    field: Field,
    y: Tensor,
    start: float,
    end: float,
    *,
    method: str = "dopri5",
    steps: int = 20,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 100_000,
) -> Tensor:
    """Integrate from `start` to `end` (either may be the larger).

    Args:
        field: the right-hand side.
        y: (B, ...) initial state.
        start: initial time.
        end: final time.
        method: "dopri5", or "euler", "midpoint", "rk4" with equal steps.
        steps: number of steps of the fixed methods.
        rtol: relative tolerance of dopri5, per step.
        atol: absolute tolerance of dopri5, per step.
        max_evaluations: when dopri5 gives up.

    Returns:
        (B, ...) state at `end`.

    Raises:
        AleatorError: unknown method, or a tolerance that cannot be reached.
    """
    if method == "dopri5":
        return _dopri5(field, y, start, end, rtol, atol, max_evaluations)
    if method not in _FIXED:
        known = ", ".join(["dopri5", *sorted(_FIXED)])
        raise AleatorError(f"unknown ODE method {method!r}; known: {known}")
    h = (end - start) / steps
    for i in range(steps):
        y = _FIXED[method](field, start + i * h, y, h)
    return y


def _euler(field: Field, t: float, y: Tensor, h: float) -> Tensor:
    return torch.add(y, field(t, y), alpha=h)


def _midpoint(field: Field, t: float, y: Tensor, h: float) -> Tensor:
    half = torch.add(y, field(t, y), alpha=0.5 * h)
    return torch.add(y, field(t + 0.5 * h, half), alpha=h)


def _rk4(field: Field, t: float, y: Tensor, h: float) -> Tensor:
    k1 = field(t, y)
    k2 = field(t + 0.5 * h, torch.add(y, k1, alpha=0.5 * h))
    k3 = field(t + 0.5 * h, torch.add(y, k2, alpha=0.5 * h))
    k4 = field(t + h, torch.add(y, k3, alpha=h))
    return y + (h / 6) * (k1 + 2 * (k2 + k3) + k4)


_FIXED = {"euler": _euler, "midpoint": _midpoint, "rk4": _rk4}


def _dopri5(
    field: Field, y: Tensor, start: float, end: float, rtol: float, atol: float, limit: int
) -> Tensor:
    if start == end:
        return y
    t, span = start, end - start
    k = [field(t, y)]
    h = _first_step(field, t, y, k[0], span, rtol, atol)
    evaluations = 2
    while (end - t) * span > 0:
        last = abs(h) >= abs(end - t)
        h = end - t if last else h
        stages, point = [k[0]], y
        for a, c in zip(_A[1:], _C[1:], strict=True):
            point = _combine(y, h, a, stages)
            stages.append(field(t + c * h, point))
        evaluations += 6
        with torch.no_grad():
            error = _combine(torch.zeros_like(y), h, _E, stages)
            ratio = _error_ratio(error, y, point, rtol, atol)
        if ratio <= 1:
            # `point` of the last stage is the 5th-order solution, and its slope starts the next.
            t, y, k = (end if last else t + h), point, [stages[-1]]
        hopeless = ratio > 1 and abs(h) < 1e-12 * abs(span)
        if hopeless or ratio != ratio or (evaluations > limit and t != end):
            raise AleatorError(
                f"the ODE solver cannot reach rtol={rtol:g}, atol={atol:g} at t={t:.6g} "
                f"({evaluations} evaluations); loosen the tolerance, use float64, or look for a "
                "non-finite network output"
            )
        h *= min(5.0, max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2))
    return y


def _first_step(
    field: Field, t: float, y: Tensor, slope: Tensor, span: float, rtol: float, atol: float
) -> float:
    """A step whose error should be about the tolerance (Hairer et al., II.4)."""
    y, slope = y.detach(), slope.detach()
    speed = _error_ratio(slope, y, y, rtol, atol)
    h = 0.01 * abs(span) if speed < 1e-5 else 0.01 * _error_ratio(y, y, y, rtol, atol) / speed
    h = math.copysign(min(max(h, 1e-6 * abs(span)), abs(span)), span)
    with torch.no_grad():
        bend = field(t + h, torch.add(y, slope, alpha=h)) - slope
    most = max(speed, _error_ratio(bend, y, y, rtol, atol) / abs(h))
    grown = max(1e-6 * abs(span), 1e-3 * abs(h)) if most <= 1e-15 else (0.01 / most) ** 0.2
    return math.copysign(min(100 * abs(h), grown, abs(span)), span)


def _combine(y: Tensor, h: float, weights: tuple[float, ...], stages: list[Tensor]) -> Tensor:
    """Y + h Σ weights · stages."""
    for weight, stage in zip(weights, stages, strict=True):
        if weight:
            y = torch.add(y, stage, alpha=h * weight)
    return y


def _error_ratio(error: Tensor, y: Tensor, new: Tensor, rtol: float, atol: float) -> float:
    scale = atol + rtol * torch.maximum(y.abs(), new.abs())
    scaled = (error / scale).detach().reshape(len(error), -1)
    return scaled.square().mean(1).sqrt().max().item()
