r"""Series with gaps: what is missing is drawn from what is known of it.

    z = W x + e,    e ~ N(0, Σ),    z_missing | z_known, x  as of that normal distribution

W by ridge regression on the predictors and Σ from its errors, both iterated with the means of the
missing values in their place; the last values are drawn rather than means, so that series do not
get calmer where they have gaps. Reference: Dempster, Laird and Rubin (1977),
doi:10.1111/j.2517-6161.1977.tb01600.x; Schneider (2001), J. Climate 14, 853.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apps.climate_downscaling.field_ridge import cross_fit_fields
from core.random import randn

SHARE = 0.5
"""Of the times that a station must have, to be modelled."""
_SHRINK = 0.02
_TURNS = 3


def enough(fine: Tensor) -> Tensor:
    """(H, W) cells that have every variable at half of the times (T, V, H, W) or more."""
    return (fine.isfinite().double().mean(0) >= SHARE).all(0)


def filled(
    x: Tensor,
    z: Tensor,
    valid: Tensor,
    strengths: tuple[float, ...],
    generator: torch.Generator,
    blocks: int,
    gap: int,
) -> Tensor:
    """Draw what is missing.

    Args:
        x: (T, P, h, w) predictors.
        z: (T, V, H, W) series in the space of the model; NaN where missing.
        valid: (H, W) cells to fill.
        strengths: candidates of the ridge regression.
        generator: of the draws.
        blocks: of cross-validation.
        gap: steps left out on either side of a block.

    Returns:
        z without gaps in valid cells; what is known is as it was.
    """
    missing = z.isnan() & valid
    if not missing.any():
        return z
    lost = missing[..., valid].flatten(1)
    usual = z.nanmean(0).nan_to_num()
    found = torch.where(missing, usual, z)
    rows, draws = lost.any(1).nonzero()[:, 0], randn(lost.shape, generator, dtype=torch.float64)
    for turn in range(_TURNS):
        safe = torch.where(valid, found, 0.0)
        fitted = cross_fit_fields(x, safe, valid, strengths, blocks, gap)
        mean, strengths = fitted.mean, tuple(sorted(set(fitted.ridge.strength.tolist())))
        error = (found - mean)[..., valid].flatten(1).double()
        known = error.where(~lost, torch.nan)
        spread = known.square().nanmean(0).sqrt()
        standard = torch.nan_to_num(known / spread)
        pairs = (~lost).double().T @ (~lost).double()
        correlation = _correlation(standard.T @ standard / pairs.clamp_min(1))
        last = turn == _TURNS - 1
        for t in rows.tolist():
            noise = draws[t] if last else torch.zeros_like(draws[t])
            error[t] = spread * _given(standard[t], lost[t], correlation, noise)
        values = mean[..., valid].flatten(1) + error.to(mean)
        filling = found.clone()
        filling[..., valid] = values.reshape(len(z), z.shape[1], -1)
        found = torch.where(missing, filling, z)
    return found


def _correlation(raw: Tensor) -> Tensor:
    """Shrunk to what may be inverted: pairs are known at different times."""
    scale = raw.diagonal().clamp_min(1e-12).sqrt()
    eye = torch.eye(len(raw), dtype=raw.dtype)
    values, vectors = torch.linalg.eigh(raw / scale / scale[:, None])
    proper = (vectors * values.clamp_min(0)) @ vectors.T
    return (1 - _SHRINK) * proper + _SHRINK * eye


def _given(known: Tensor, lost: Tensor, correlation: Tensor, noise: Tensor) -> Tensor:
    """Standardised errors (D,) with the missing ones drawn given the others."""
    here = ~lost
    inner = correlation[here][:, here]
    across = torch.linalg.solve(inner, correlation[here][:, lost]).T
    rest = correlation[lost][:, lost] - across @ correlation[here][:, lost]
    root = torch.linalg.cholesky(rest + 1e-9 * torch.eye(len(rest), dtype=rest.dtype))
    out = known.clone()
    out[lost] = across @ known[here] + root @ noise[lost]
    return out
