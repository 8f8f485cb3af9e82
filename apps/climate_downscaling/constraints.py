r"""Members that agree with observations which the model was never trained with.

    r ~ p(r | context, y),    y = A(μ + s r) + ε,    ε ~ N(0, σ²)

by the posterior sampling of `core.inference`, for whatever family the residual is of; A takes the
observed cells. In the space of the model a wet amount is its power, with the error that follows
from the derivative; of a dry one it is only known that z is at most the threshold's,

    A(z) = max(z, z_dry),    y = z_dry
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apps.climate_downscaling.preprocessing import CensoredPower, Transforms
from apps.climate_downscaling.stations import Seen
from core.inference import posterior
from core.model import GenerativeModel
from core.operators import Operator
from core.random import Generators

_WET = 1.0
"""mm day-1: amounts are no less uncertain than this one, in units of the power."""


@dataclass(frozen=True, eq=False)
class Points(Operator):
    """Observed cells of residuals, in units of the observation's error.

    Attributes:
        place: (K,) positions in a flattened field.
        centre: (K,) μ there.
        spread: (K,) s there.
        errors: (K,) standard deviations.
        least: (K,) what is below is not told apart.
    """

    place: Tensor
    centre: Tensor
    spread: Tensor
    errors: Tensor
    least: Tensor

    @classmethod
    def of(
        cls, seen: Seen, transforms: Transforms, mean: Tensor, scale: Tensor
    ) -> tuple[Points, Tensor]:
        """Operator and (K,) values, in units of their errors, of what was seen at one time.

        Args:
            seen: K observations.
            transforms: of the variables.
            mean: (V, H, W) μ.
            scale: (V, H, W) what a residual is multiplied by.
        """
        cells = mean.shape[-1] * mean.shape[-2]
        values, errors, least = (v.to(mean) for v in transformed(seen, transforms, cells))
        place = torch.from_numpy(seen.cells).to(mean.device)
        centre, spread = (v.reshape(-1)[place] for v in (mean, scale))
        return cls(place, centre, spread, errors, least), values / errors

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Nothing is ever below the least."""
        return bool(self.least.isinf().all())

    def _at(self, residual: Tensor) -> Tensor:
        return self.centre + self.spread * residual.flatten(1)[:, self.place]

    def __call__(self, x: Tensor) -> Tensor:
        """(N, K) observations of residuals (N, V, H, W)."""
        return torch.maximum(self._at(x), self.least) / self.errors

    def tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """Derivative at x along u, (N, K)."""
        along = self.spread * u.flatten(1)[:, self.place]
        return torch.where(self._at(x) > self.least, along, 0.0) / self.errors


def transformed(seen: Seen, transforms: Transforms, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Observations in the space of the model.

    Args:
        seen: K of them.
        transforms: of the variables.
        cells: H · W.

    Returns:
        values (K,), standard deviations (K,), and the least value that is told apart (K,), -inf
        where all are.
    """
    values, errors = (torch.from_numpy(v).double() for v in (seen.values, seen.errors))
    least = torch.full_like(values, -torch.inf)
    variable = torch.from_numpy(seen.cells) // cells
    for v, transform in enumerate(transforms.each):
        here = variable == v
        if not isinstance(transform, CensoredPower) or not here.any():
            continue
        amount, p = values[here].clamp_min(0), transform.power
        dry = transform.threshold**p
        least[here] = dry
        slope = p * amount.clamp_min(_WET) ** (p - 1)
        errors[here] = errors[here] * slope
        values[here] = torch.where(amount < transform.threshold, dry, amount**p)
    return values, errors, least


def draw_given(
    model: GenerativeModel,
    seen: Seen,
    transforms: Transforms,
    context: Any,
    mean: Tensor,
    scale: Tensor,
    *,
    members: int,
    sampler: Mapping[str, Any] | None,
    generator: Generators | None,
) -> Tensor:
    """Residuals of one time given its observations.

    Args:
        model: of the residual.
        seen: what was observed.
        transforms: of the variables.
        context: of the model, batch 1.
        mean: (1, V, H, W) μ.
        scale: (1, V, H, W) what a residual is multiplied by.
        members: M.
        sampler: of the model; None of families that have none.
        generator: M streams, or one.

    Returns:
        (M, 1, V, H, W).
    """
    operator, known = Points.of(seen, transforms, mean[0], scale[0])
    options: dict[str, Any] = {} if sampler is None else {"sampler": dict(sampler)}
    given = posterior(model, known[None], operator, noise=1.0, context=context, **options)
    return given.sample((members,), generator=generator)
