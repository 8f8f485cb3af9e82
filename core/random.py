"""Randomness that belongs to a sample, not to a batch.

Every draw comes from an explicit `torch.Generator`. Where results must not depend on batching,
chunking or worker count, a *list* of generators is given instead, one per sample: sample i then
draws from its own stream whatever batch it happens to be computed in. Draws are made on the
generator's device (CPU for keyed streams) and moved, so that a GPU sees the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Blend:
    """A stream of normal draws, each the weighted sum of those of several streams.

    Two blends that have streams of equal keys in common are correlated: with streams keyed by
    time and weights that fall with age, so are draws of neighbouring times (`moving_average`).

    Attributes:
        streams: K of them.
        weights: (K,) or (K, ...) broadcasting against an event; squares sum to 1 over K.
    """

    streams: tuple[torch.Generator, ...]
    weights: Tensor


Stream = torch.Generator | Blend
Generators = torch.Generator | Sequence[Stream]
"""One stream for a whole batch, or one per sample."""


def keyed_generator(*key: int) -> torch.Generator:
    r"""A CPU generator that is a function of `key` alone, e.g. (seed, member, time stamp).

    Args:
        key: integers of any sign and up to 64 bits; their order matters.

    Returns:
        a generator; streams of different keys are independent (NumPy's `SeedSequence` hash).
    """
    words = [len(key)]  # the hash ignores trailing zeros: (1,) and (1, 0) must differ
    words += [word for k in key for word in (k & 0xFFFFFFFF, (k >> 32) & 0xFFFFFFFF)]
    seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)


def moving_average(correlation: Tensor, least: float = 0.03, most: int = 200) -> Tensor:
    """Weights w_j ∝ ρ^j of sums of white noise whose neighbours correlate by ρ.

    Args:
        correlation: (V,) ρ of each channel, 0 ≤ ρ < 1.
        least: weights below this share of the first are left out.
        most: at most so many.

    Returns:
        (K, V); squares sum to 1 over K. K = 1 if nothing correlates.

    Raises:
        ValueError: ρ out of range.
    """
    if not ((correlation >= 0) & (correlation < 1)).all():
        raise ValueError(f"correlation {correlation.tolist()}: each must lie in [0, 1)")
    largest = correlation.max().item()
    reach = math.ceil(math.log(least) / math.log(largest)) if largest > least else 0
    ages = torch.arange(min(reach, most - 1) + 1, dtype=torch.float64)
    weights = correlation.double()[None] ** ages[:, None]
    return weights / weights.square().sum(0).sqrt()


def randn(
    shape: Sequence[int],
    generator: Generators | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal draws.

    Args:
        shape: the shape; with one generator per sample, `len(generator) == shape[0]`.
        generator: one generator, a sequence of them (one per sample; some may be blends), or
            None (global stream).
        device: where the result lives.
        dtype: floating type of the result.

    Returns:
        a tensor of the given shape.

    Raises:
        ValueError: the number of generators is not the number of samples.
    """
    return _draw(torch.randn, shape, generator, device, dtype)


def rand(
    shape: Sequence[int],
    generator: Generators | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Uniform draws on [0, 1); arguments as for `randn`, a blend draws from its first stream."""
    return _draw(torch.rand, shape, generator, device, dtype)


def gamma(concentration: Tensor, generator: Generators | None = None) -> Tensor:
    """Draws of Gamma(concentration, 1), of its shape; generators as for `randn`."""
    return _draw_law(torch._standard_gamma, concentration, generator)


def poisson(rate: Tensor, generator: Generators | None = None) -> Tensor:
    """Draws of Poisson(rate), of the rate's shape and type; generators as for `randn`."""
    return _draw_law(torch.poisson, rate, generator)


def binomial(count: Tensor, share: Tensor, generator: Generators | None = None) -> Tensor:
    """Draws of Binomial(count, share), of the counts' shape; generators as for `randn`.

    Args:
        count: whole numbers, floating; zeros cost no draw.
        share: probabilities, of a shape that expands to it.
        generator: one, one for each row, or None.
    """

    def draw(both: Tensor, generator: torch.Generator | None = None) -> Tensor:
        n, p = both.unbind(-1)
        some, drawn = n > 0, torch.zeros_like(n)
        drawn[some] = torch.binomial(n[some], p[some], generator=generator)
        return drawn

    return _draw_law(draw, torch.stack([count, share.expand_as(count)], -1), generator)


def _draw_law(function: object, parameter: Tensor, generator: Generators | None) -> Tensor:
    if generator is None:
        return function(parameter)  # type: ignore[operator]
    if isinstance(generator, torch.Generator):
        drawn = function(parameter.to(generator.device), generator=generator)  # type: ignore[operator]
        return drawn.to(parameter.device)
    if len(generator) != len(parameter):
        raise ValueError(
            f"{len(generator)} generators for {len(parameter)} samples: one each is needed"
        )
    rows = [
        _draw_law(function, p, first_stream(g)) for p, g in zip(parameter, generator, strict=True)
    ]
    return torch.stack(rows) if rows else torch.empty_like(parameter)


def _draw(
    function: object,
    shape: Sequence[int],
    generator: Generators | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    shape = tuple(shape)
    if generator is None:
        return function(shape, device=device, dtype=dtype)  # type: ignore[operator]
    if isinstance(generator, torch.Generator):
        drawn = function(shape, generator=generator, device=generator.device, dtype=dtype)  # type: ignore[operator]
        return drawn.to(device) if device is not None else drawn
    if len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} samples: one each is needed")
    if not shape[0]:
        return torch.empty(shape, device=device, dtype=dtype)
    rows = [_row(function, shape[1:], g, dtype) for g in generator]
    drawn = torch.stack(rows)
    return drawn.to(device) if device is not None else drawn


def first_stream(stream: Stream) -> torch.Generator:
    """The generator itself, or the first of a blend: for draws that are not sums."""
    return stream.streams[0] if isinstance(stream, Blend) else stream


def _row(
    function: object, shape: tuple[int, ...], stream: Stream, dtype: torch.dtype | None
) -> Tensor:
    """One sample's draw."""
    if isinstance(stream, Blend) and function is torch.randn:
        draws = torch.stack(
            [torch.randn(shape, generator=g, device=g.device, dtype=dtype) for g in stream.streams]
        )
        weights = stream.weights.to(draws)
        return (weights.reshape(*weights.shape, *[1] * (draws.dim() - weights.dim())) * draws).sum(
            0
        )
    single = first_stream(stream)
    return function(shape, generator=single, device=single.device, dtype=dtype)  # type: ignore[operator]
