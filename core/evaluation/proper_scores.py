r"""Proper scores of ensembles: least, in expectation, for the true distribution alone.

The *fair* forms estimate the score of the distribution that the members were drawn from, whatever
their number; the plain forms score the ensemble itself and favour large ones. Small ensembles of
different sizes can therefore be compared by fair scores only.
Reference: Ferro (2014), doi:10.1002/qj.2270; Gneiting and Raftery (2007).
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.errors import AleatorError

_BLOCK = 1 << 22
"""Elements of the largest temporary that `energy_score` makes."""


def crps_ensemble(members: Tensor, truth: Tensor, *, fair: bool = True) -> Tensor:
    r"""Continuous ranked probability score, by sorting: O(M log M).

        CRPS = 1/M sum_m |x_m - y| - 1/(M K) sum_{m<m'} |x_m - x_m'|,  K = M - 1 (fair) or M
        sum_{m<m'} |x_m - x_m'| = sum_m (2m - M - 1) x_(m)             (order statistics)

    Args:
        members: (M, ...) ensemble.
        truth: (...) what happened.
        fair: unbiased in M; otherwise the score of the empirical distribution.

    Returns:
        (...) in the unit of the data, differentiable; NaN where truth or a member is NaN. One
        member is a deterministic forecast, whose CRPS is the absolute error.

    Raises:
        AleatorError: shapes do not match.

    Reference: Zamo and Naveau (2018), doi:10.1007/s11004-017-9709-7; Ferro (2014).
    """
    members, truth = ensemble_and_truth(members, truth)
    count = len(members)
    # differences from the truth, not values near 280 K: float32 loses no digits in the sums
    error = members - truth
    skill = error.abs().mean(0)
    if count == 1:
        return skill
    ranked = error.sort(dim=0).values
    m = torch.arange(1, count + 1, dtype=ranked.dtype, device=ranked.device)
    pairs = torch.tensordot(2 * m - count - 1, ranked, dims=1)
    return skill - pairs / (count * (count - 1 if fair else count))


def energy_score(
    members: Tensor, truth: Tensor, *, fair: bool = True, mask: Tensor | None = None
) -> Tensor:
    r"""Energy score, the CRPS of vectors: it also judges dependence between components.

        ES = 1/M sum_m |x_m - y| - 1/(M K) sum_{m<m'} |x_m - x_m'|,  K = M - 1 (fair) or M

    with Euclidean norms over the event. Memory is bounded: distances are computed for as many
    examples at a time as fit a fixed block.

    Args:
        members: (M, B, *E) ensemble.
        truth: (B, *E) what happened.
        fair: unbiased in M.
        mask: bool, broadcastable to `truth`: components to use, e.g. land cells.

    Returns:
        (B,) in the unit of the data; NaN where a component in use is NaN.

    Raises:
        AleatorError: shapes do not match.

    Reference: Gneiting and Raftery (2007), doi:10.1198/016214506000001437.
    """
    members, truth = ensemble_and_truth(members, truth)
    if truth.dim() < 1:
        raise AleatorError("energy_score: truth is a scalar; expected (B, *E)")
    if mask is not None:
        members, truth = members.where(mask, 0.0), truth.where(mask, 0.0)
    count, batch = members.shape[:2]
    x = members.reshape(count, batch, -1)
    y = truth.reshape(batch, -1)
    rows = max(1, _BLOCK // max(1, count * max(count, y.shape[1])))
    parts = [
        _energy(x[:, i : i + rows].transpose(0, 1), y[i : i + rows], fair)
        for i in range(0, batch, rows)
    ]
    return torch.cat(parts) if parts else y.new_zeros(0)


def _energy(x: Tensor, y: Tensor, fair: bool) -> Tensor:
    """Energy score of x (B, M, D) against y (B, D)."""
    count = x.shape[1]
    skill = torch.linalg.vector_norm(x - y[:, None], dim=-1).mean(1)
    if count == 1:
        return skill
    # the matrix-product form of cdist is faster but loses half the digits of close members
    pairs = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2)) / 2
    return skill - pairs / (count * (count - 1 if fair else count))


def ensemble_and_truth(members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Check an ensemble (M, ...) against its truth (...); floating point, one dtype.

    Raises:
        AleatorError: there is no member, or shapes do not match.
    """
    if members.dim() == 0 or not len(members):
        raise AleatorError("the ensemble has no members; expected members first, (M, ...)")
    if members.shape[1:] != truth.shape:
        raise AleatorError(
            f"members {tuple(members.shape)} do not match truth {tuple(truth.shape)}; "
            "expected (M, ...) and (...): put the member axis first"
        )
    dtype = torch.promote_types(members.dtype, truth.dtype)
    if not dtype.is_floating_point or dtype.itemsize < 4:
        dtype = torch.float32
    return members.to(dtype), truth.to(dtype)
