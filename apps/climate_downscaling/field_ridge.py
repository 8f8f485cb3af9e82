r"""The mean of perfect prognosis: every fine cell on all predictors of all cells.

    z(x) = z̄ + W (c − c̄)/σ + o,    W ~ N(0, 1/a),    o: the offset of recent years (`drift`)

A few hundred collinear predictors and as many fine cells share one singular value decomposition,
and the strength a of each variable is chosen by cross-validation over blocks of time. Predictors
are held in memory; predictands are looked at in pieces (`scratch`).
Reference: Hoerl and Kennard (1970), doi:10.1080/00401706.1970.10488634.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apps.climate_downscaling.mean import blocks_with_gap
from apps.climate_downscaling.scratch import Scratch, mean_over, pieces, run_of


@dataclass(frozen=True)
class FieldRidge:
    """The fitted regression.

    Attributes:
        centres: (P, h, w) mean of every predictor.
        scale: (P, h, w) standard deviation of every predictor.
        intercept: (V, H, W) z̄.
        offset: (V, H, W) o.
        weights: (P h w, V, H, W) W.
        posterior: (P h w, P h w) covariance of a cell's weights, in units of the error's variance.
        strength: (V,) a.
    """

    centres: Tensor
    scale: Tensor
    intercept: Tensor
    offset: Tensor
    weights: Tensor
    posterior: Tensor
    strength: Tensor

    @classmethod
    def fit(
        cls, x: Tensor, z: Tensor, strength: Sequence[float], times: Tensor | None = None
    ) -> FieldRidge:
        """Fit on predictors (T, P, h, w) and predictands (T, V, H, W), in model units.

        Args:
            x: predictors.
            z: predictands.
            strength: of each variable.
            times: (N,) those that are fitted to, in order; all if None.
        """
        basis = _Basis.of(x, torch.arange(len(x)) if times is None else times)
        centre, against = basis.against(z)
        each = [basis.solve(against[:, v], a) for v, a in enumerate(strength)]
        typical = torch.tensor(strength, dtype=torch.float64).log().mean().exp().item()
        weights = torch.stack(each, 1).to(z.dtype)
        return cls(
            *(basis.centres, basis.scale, centre, torch.zeros_like(z[0]), weights),
            basis.posterior(typical).to(z.dtype),
            torch.tensor(strength, dtype=z.dtype),
        )

    def predict(self, x: Tensor) -> Tensor:
        """Mean of the fine field given predictors (B, P, h, w): (B, V, H, W)."""
        correction = torch.tensordot(self._rows(x), self.weights.to(x), 1)
        return (self.intercept + self.offset).to(x) + correction

    def leverage(self, x: Tensor) -> Tensor:
        """xᵀ Σ x, (B,): what uncertain weights add to the variance, in units of the error's."""
        rows = self._rows(x)
        return torch.einsum("bp,pq,bq->b", rows, self.posterior.to(x), rows)

    def at(self, offset: Tensor) -> FieldRidge:
        """With another offset (V, H, W)."""
        return dataclasses.replace(self, offset=offset)

    def describe(self) -> str:
        """In words."""
        listed = ", ".join(f"{a:g}" for a in self.strength.tolist())
        return f"ridge on all {len(self.weights)} predictors, strength {listed}"

    def _rows(self, x: Tensor) -> Tensor:
        return ((x - self.centres.to(x)) / self.scale.to(x)).flatten(1)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        return dict(vars(self))


@dataclass(frozen=True)
class FieldFit:
    """What cross-validation chose, and what it predicts of times that it has not seen.

    Attributes:
        ridge: fitted on everything.
        mean: (T, V, H, W) predictions of every block by a fit on the others.
        leverage: (T,) of the same fits.
    """

    ridge: FieldRidge
    mean: Tensor
    leverage: Tensor


def cross_fit_fields(
    x: Tensor,
    z: Tensor,
    valid: Tensor,
    strengths: Sequence[float],
    blocks: int,
    gap: int,
    scratch: Scratch | None = None,
) -> FieldFit:
    """Choose the strengths, fit on everything, predict every block by a fit on the others.

    Args:
        x: (T, P, h, w) predictors in time order.
        z: (T, V, H, W) predictands.
        valid: (H, W) cells that count.
        strengths: candidates.
        blocks: contiguous blocks of time.
        gap: steps left out on either side.
        scratch: where the predictions go; in memory if None.

    Raises:
        AleatorError: too few times.
    """
    folds = list(blocks_with_gap(len(z), blocks, gap))
    error = torch.zeros(len(strengths), z.shape[1], dtype=torch.float64)
    for train, held_out in folds:
        basis = _Basis.of(x, train)
        centre, against = basis.against(z)
        for i, a in enumerate(strengths):
            weights = basis.solve(against, a)
            for rows in map(run_of, pieces(held_out, z)):
                found = torch.tensordot(basis.rows(x[rows]), weights, 1) + centre
                wrong = (found - z[rows])[..., valid].square()
                error[i] += wrong.sum((0, 2)) / (len(z) * int(valid.sum()))
    chosen = [strengths[int(i)] for i in error.argmin(0)]
    mean, leverage = (scratch or Scratch()).empty(z.shape), torch.empty(len(z))
    for train, held_out in folds:
        fitted = FieldRidge.fit(x, z, chosen, train)
        for rows in map(run_of, pieces(held_out, z)):
            mean[rows] = fitted.predict(x[rows])
            leverage[rows] = fitted.leverage(x[rows])
    return FieldFit(FieldRidge.fit(x, z, chosen), mean, leverage)


@dataclass(frozen=True)
class _Basis:
    """Singular value decomposition of standardised predictors at some times, float64."""

    times: Tensor
    centres: Tensor
    scale: Tensor
    left: Tensor
    singular: Tensor
    right: Tensor

    @classmethod
    def of(cls, x: Tensor, times: Tensor) -> _Basis:
        seen = x[run_of(times)]
        centres, scale = seen.mean(0), seen.std(0).clamp_min(1e-12)
        rows = ((seen - centres) / scale).flatten(1).double()
        left, singular, right = torch.linalg.svd(rows, full_matrices=False)
        return cls(times, centres, scale, left, singular, right.T)

    def rows(self, x: Tensor) -> Tensor:
        return ((x - self.centres) / self.scale).flatten(1).double()

    def against(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (V, H, W) of predictands, and (K, V, H, W) them along the left singular vectors."""
        centre, done = mean_over(z, self.times), 0
        found = torch.zeros(len(self.singular), *z.shape[1:], dtype=torch.float64)
        for rows in pieces(self.times, z):
            left = self.left[done : done + len(rows)]
            found += torch.tensordot(left.T, (z[run_of(rows)] - centre).double(), 1)
            done += len(rows)
        return centre, found

    def solve(self, against: Tensor, a: float) -> Tensor:
        """(P h w, ...) weights of strength a."""
        shrunk = self.singular / (self.singular.square() + a)
        return torch.tensordot(self.right * shrunk, against, 1)

    def posterior(self, a: float) -> Tensor:
        """(ZᵀZ + a)⁻¹, also along directions that never varied."""
        gain = 1 / (self.singular.square() + a) - 1 / a
        return (self.right * gain) @ self.right.T + torch.eye(len(self.right)).double() / a
