r"""Calibration: do things happen as often as the ensemble says?

If truth and members are exchangeable, the truth's rank among them is uniform on {0, ..., M}. All
of rank histogram, PIT and coverage read that one fact; none of them is biased by a small M, and
ties (dry days, zero counts) are shared out evenly instead of piling up on one side.
A cell with a NaN in truth or any member is left out.
References: Hamill (2001); Gneiting, Balabdaoui and Raftery (2007); Fortin et al. (2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import AleatorError
from core.evaluation.averages import nan_mean
from core.evaluation.proper_scores import ensemble_and_truth
from core.random import Generators, rand


@dataclass(frozen=True)
class SpreadSkill:
    """Dispersion against error, in the unit of the data.

    Attributes:
        spread: root of the mean variance over members, inflated by 1 + 1/M.
        skill: root-mean-square error of the ensemble mean.
        ratio: spread / skill; 1 is calibrated, less is over-confident.
    """

    spread: float
    skill: float
    ratio: float


def spread_skill(members: Tensor, truth: Tensor, weights: Tensor | None = None) -> SpreadSkill:
    r"""Spread-skill ratio of an ensemble.

        spread^2 = (1 + 1/M) mean[ 1/(M-1) sum_m (x_m - x̄)^2 ],   skill^2 = mean[ (x̄ - y)^2 ]

    The factor 1 + 1/M is the error of the mean of M members: with it, the expectations of both
    sides agree for exchangeable members and truth.

    Args:
        members: (M, ...) ensemble, M >= 2.
        truth: (...) what happened.
        weights: mask or weights broadcastable to `truth`.

    Raises:
        AleatorError: fewer than two members, shapes that do not match, or nothing to score.

    Reference: Fortin et al. (2014), doi:10.1175/JHM-D-14-0008.1.
    """
    members, truth = ensemble_and_truth(members, truth)
    count = len(members)
    if count < 2:
        raise AleatorError("spread_skill: one member has no spread; draw at least two")
    error = members - truth  # centred first: the variance of 280 K in float32 is noise
    missing = error.isnan().any(0)
    variance, mean = torch.var_mean(error, dim=0)
    variance, squared = (v.masked_fill(missing, torch.nan) for v in (variance, mean.square()))
    spread = ((1 + 1 / count) * nan_mean(variance.double(), weights)).sqrt().item()
    skill = nan_mean(squared.double(), weights).sqrt().item()
    if skill != skill:
        raise AleatorError("spread_skill: nothing to score; every cell is missing or masked")
    return SpreadSkill(spread, skill, spread / skill if skill else float("inf"))


def rank_histogram(
    members: Tensor,
    truth: Tensor,
    generator: Generators | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    r"""How often the truth has rank 0, ..., M among the members; ties are broken at random.

        rank = #{x_m < y} + U{0, ..., #{x_m = y}}

    Args:
        members: (M, ...) ensemble.
        truth: (...) what happened.
        generator: randomness of the ties.
        weights: mask or weights broadcastable to `truth`.

    Returns:
        (M + 1,) float64 counts (sums of weights): flat is calibrated, U-shaped over-confident,
        a dome under-confident, a slope biased.

    Reference: Hamill (2001), doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.
    """
    members, truth = ensemble_and_truth(members, truth)
    below, ties, valid = ranks_of(members, truth)
    u = rand(truth.shape, generator, device=truth.device, dtype=torch.float64)
    rank = below + (u * (ties + 1)).long().minimum(ties)
    w = valid.double() if weights is None else torch.where(valid, weights.double(), 0.0)
    return torch.bincount(rank.flatten(), w.flatten(), minlength=len(members) + 1)


def pit(members: Tensor, truth: Tensor, generator: Generators | None = None) -> Tensor:
    r"""Randomised probability integral transform: uniform on [0, 1] if calibrated, for any M.

        PIT = (rank + U[0, 1)) / (M + 1)

    Args:
        members: (M, ...) ensemble.
        truth: (...) what happened.
        generator: randomness within ranks and ties.

    Returns:
        (...) values in [0, 1] in the dtype of the data; NaN where truth or a member is NaN.

    Reference: Czado, Gneiting and Held (2009), doi:10.1111/j.1541-0420.2009.01191.x.
    """
    members, truth = ensemble_and_truth(members, truth)
    below, ties, valid = ranks_of(members, truth)
    u = rand(truth.shape, generator, device=truth.device, dtype=truth.dtype)
    # rank + U with a uniform rank among ties is one uniform over the whole run of ties
    value = (below + u * (ties + 1)) / (len(members) + 1)
    return value.masked_fill(~valid, torch.nan)


def coverage(
    members: Tensor, truth: Tensor, levels: Sequence[float], weights: Tensor | None = None
) -> Tensor:
    r"""How often the truth falls in the ensemble's central intervals of the given levels.

        C(l) = mean P[ (1-l)/2 <= PIT <= (1+l)/2 ]

    The probability over the randomised PIT is exact, so that nothing is random here, and a
    calibrated ensemble of any size has C(l) = l. At the levels 1 - 2k/(M+1), without ties, C is
    the frequency of x_(k) < y < x_(M+1-k).

    Args:
        members: (M, ...) ensemble.
        truth: (...) what happened.
        levels: L probabilities in (0, 1), e.g. (0.5, 0.8, 0.9).
        weights: mask or weights broadcastable to `truth`.

    Returns:
        (L,) frequencies, float64; less than the level is over-confident.

    Raises:
        AleatorError: a level outside (0, 1), or shapes that do not match.
    """
    members, truth = ensemble_and_truth(members, truth)
    if not all(0 < level < 1 for level in levels):
        raise AleatorError(f"coverage: levels {list(levels)} are not all between 0 and 1")
    below, ties, valid = ranks_of(members, truth)
    first = below.double() / (len(members) + 1)
    last = (below + ties + 1).double() / (len(members) + 1)
    found = []
    for level in levels:
        low, high = (1 - level) / 2, (1 + level) / 2
        overlap = last.clamp(max=high) - first.clamp(min=low)
        inside = overlap.clamp(min=0) / (last - first)
        found.append(nan_mean(inside.masked_fill(~valid, torch.nan), weights))
    return torch.stack(found)


def ranks_of(members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Members below the truth, members equal to it, and where nothing is missing; all (...)."""
    below = torch.zeros(truth.shape, dtype=torch.long, device=truth.device)
    ties = torch.zeros_like(below)
    valid = ~truth.isnan()
    for member in members:  # a loop over M: no (M, ...) temporaries
        below += member < truth
        ties += member == truth
        valid &= ~member.isnan()
    return below, ties, valid
