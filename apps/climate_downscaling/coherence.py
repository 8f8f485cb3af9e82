r"""Members that hang together in time: noise that neighbouring times have in common.

    ε_t = Σ_j w_j η_{t-j},    w_j ∝ ρ^j,  Σ w_j² = 1,    corr(ε_t, ε_{t+1}) = ρ

η_t is white and keyed by (seed, member, time), so that ε_t depends neither on chunks nor on where
a series begins; each ε_t alone is as normal as before, and scores time by time are those of
independent members. A deterministic sampler turns noise that is alike into residuals that are
alike. ρ, one for each variable, is how residuals correlate in the training data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from apps.climate_downscaling.field import Field
from apps.climate_downscaling.model import DownscalingModel
from core.errors import AleatorError
from core.random import Blend, Stream, keyed_generator, moving_average


def streams_of(
    model: DownscalingModel, field: Field, seed: int, coherent: bool
) -> Callable[[int, int], Stream]:
    """(member, time step of the field) -> where its noise comes from.

    Args:
        model: trained.
        field: the input.
        seed: of the noise.
        coherent: whether neighbouring times have noise in common.

    Raises:
        AleatorError: the model does not know how residuals persist, or knows it of another step.
    """
    keys = field.time_keys()
    if not coherent:
        return lambda member, t: keyed_generator(seed, member, int(keys[t]))
    step = _step(model, field, keys)
    weights = moving_average(model.persistence)[..., None, None]
    ages = range(len(weights))

    def stream(member: int, t: int) -> Stream:
        last = int(keys[t])
        older = tuple(keyed_generator(seed, member, last - age * step) for age in ages)
        return Blend(older, weights)

    return stream


def _step(model: DownscalingModel, field: Field, keys: np.ndarray) -> int:
    if not model.time_step or model.persistence.isnan().any():
        raise AleatorError(
            "coherent: this model does not know how residuals persist in time; train it again"
        )
    found = int(np.median(np.diff(keys))) if len(keys) > 1 else model.time_step
    if found != model.time_step:
        raise AleatorError(
            f"{field.source}: its time step is {found / 3600:g} h, the model was trained on "
            f"{model.time_step / 3600:g} h; coherent members need the same"
        )
    return model.time_step
