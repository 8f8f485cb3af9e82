"""Averages of scores: over cells that may be missing, and with a confidence interval over time.

Neighbouring times resemble each other, so that T scores are worth fewer than T independent ones:
the bootstrap redraws *blocks* of consecutive times, which keeps that dependence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import AleatorError
from core.random import rand


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


def nan_mean(
    scores: Tensor, weights: Tensor | None = None, dim: int | tuple[int, ...] | None = None
) -> Tensor:
    r"""Weighted mean over what is not missing, accumulated in float64.

        sum_i w_i s_i / sum_i w_i     over the i with s_i not NaN

    Args:
        scores: (...) values; NaN is missing.
        weights: mask (bool) or weights, e.g. cell areas, broadcastable to `scores`; 1 if None.
        dim: dimensions to average; all if None.

    Returns:
        the mean in the dtype of `scores`; NaN where there is nothing to average.
    """
    valid = ~scores.isnan()
    w = valid.double() if weights is None else torch.where(valid, weights.double(), 0.0)
    dims = tuple(range(scores.dim())) if dim is None else dim
    # where, not a product: 0 * inf would spoil a mean that the weights exclude
    total = torch.where(w != 0, w * scores, 0.0).sum(dims)
    return (total / w.sum(dims)).to(scores.dtype)


def block_bootstrap(
    scores: Tensor,
    *,
    block: int | None = None,
    level: float = 0.95,
    draws: int = 2000,
    generator: torch.Generator | None = None,
) -> Interval:
    r"""Percentile interval of a mean over time, by the circular block bootstrap.

    Each of the `draws` series is made of ceil(T / block) runs of `block` consecutive times with
    uniform starts, wrapped round the end so that every time is drawn equally often.

    Args:
        scores: (T,) one score per time, in order of time; NaN times are left out. The interval
            of a *difference* of two models needs the differences of their scores.
        block: times per block, at least as long as scores remember; round(T^(1/3)) if None.
        level: probability of the interval.
        draws: bootstrap series.
        generator: randomness.

    Returns:
        the mean, and the quantiles (1 - level)/2 and (1 + level)/2 of the redrawn means.

    Raises:
        AleatorError: too few times for the block, or a level outside (0, 1).

    Reference: Politis and Romano (1992), "A circular block-resampling procedure for stationary
    data".
    """
    if scores.dim() != 1:
        raise AleatorError(
            f"block_bootstrap: scores have shape {tuple(scores.shape)}; average them to (T,) first"
        )
    if not 0 < level < 1:
        raise AleatorError(f"block_bootstrap: level {level} is not between 0 and 1")
    series = scores.detach().double().cpu()
    times = len(series)
    length = max(1, round(times ** (1 / 3))) if block is None else block
    if not 1 <= length <= times // 2:
        raise AleatorError(
            f"block_bootstrap: blocks of {length} in {times} times; "
            "at least two blocks are needed: give more times or a smaller block"
        )
    blocks = math.ceil(times / length)
    means = torch.empty(draws, dtype=torch.float64)
    step = max(1, 4_000_000 // times)  # bounds memory, whatever T and draws are
    for first in range(0, draws, step):
        count = min(step, draws - first)
        starts = (rand((count, blocks, 1), generator, dtype=torch.float64) * times).long().cpu()
        index = (starts + torch.arange(length)) % times
        means[first : first + count] = series[index.flatten(1)[:, :times]].nanmean(1)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.nanquantile(tails).tolist()
    return Interval(series.nanmean().item(), low, high)
