r"""The mean: a ridge regression of every fine cell on the coarse cells around it.

    y(x) = base(x) + sum_k w_k(x) c_k,    w_k ~ N(0, exp(-d_k / L) / a)

with c the standardised coarse field in the cells nearest to the fine one, d_k the distance to
coarse cell k in cells, and base an interpolation of the field. The prior lets neighbours speak
and hushes far cells: on small samples that is worth more than any of the non-linear regressions
that were tried (docs/climate.md). L and a are chosen by cross-validation over contiguous blocks
of time with gaps. The same blocks give *cross-fitted* predictions: residuals of in-sample ones
are too small, and an ensemble made from them is overconfident.

With `anomalies` the regression sees c_k less the domain's mean of the day, its level. A field that
is warmer by the same everywhere then comes out warmer by that, whatever climate was trained on:
base carries the level through, and the correction does not look at it.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from apps.climate_downscaling.scratch import Scratch, mean_and_spread, pieces, run_of
from core.errors import AleatorError

REACH = 5.0
"""Cells beyond this many lengths are left out: their prior variance is under 1 %."""


@dataclass(frozen=True)
class MeanConfig:
    """How the mean is regressed.

    Attributes:
        base: interpolation that the regression corrects: "bicubic", "bilinear" or "nearest".
        lengths: candidates of L, in coarse cells.
        strengths: candidates of a.
        blocks: contiguous blocks of time for cross-validation and cross-fitting.
        gap: time steps left out on either side of a block.
        anomalies: regress on departures from the mean over the domain; not of amounts.
    """

    base: str = "bicubic"
    lengths: tuple[float, ...] = (0.5, 0.7, 1.0, 1.5, 2.5, 5.0)
    strengths: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    blocks: int = 6
    gap: int = 24
    anomalies: bool = False

    def __post_init__(self) -> None:
        if self.base not in ("bicubic", "bilinear", "nearest"):
            raise AleatorError(f"mean.base={self.base!r}; known: bicubic, bilinear, nearest")
        if self.blocks < 2 or self.gap < 0:
            raise AleatorError("mean: blocks must be at least 2 and gap at least 0")


def upsample(coarse: Tensor, factor: int, method: str = "bicubic") -> Tensor:
    """Interpolate (B, V, h, w) to (B, V, h * factor, w * factor)."""
    options = {} if method == "nearest" else {"align_corners": False}
    return interpolate(coarse, scale_factor=factor, mode=method, **options)


@dataclass(frozen=True)
class LocalRidge:
    """The fitted regression.

    Attributes:
        scale: (V, h, w) standard deviation of each coarse cell, likewise.
        intercept: (V, H, W) mean correction of each fine cell.
        weights: (G, P, V f²) for each of the G coarse cells, from its P predictors (V variables
            at its nearest cells) to its f² fine cells of every variable.
        centres: (V, h, w) mean of each coarse cell (of its anomaly, with a level).
        posterior: (G, P, P) covariance of the weights, in units of the error's variance.
        base: interpolation that is corrected.
        length: L.
        strength: a.
        level: (V, h, w) weights of the cells in the mean that a variable is seen relative to;
            all zero of one that is seen as it is; None: all are.
    """

    centres: Tensor
    scale: Tensor
    intercept: Tensor
    weights: Tensor
    posterior: Tensor
    base: str
    length: float
    strength: float
    level: Tensor | None = None

    @property
    def factor(self) -> int:
        """Fine cells per side of a coarse cell."""
        return self.intercept.shape[-1] // self.scale.shape[-1]

    @classmethod
    def fit(
        cls,
        coarse: Tensor,
        fine: Tensor,
        *,
        length: float,
        strength: float,
        base: str = "bicubic",
        level: Tensor | None = None,
    ) -> LocalRidge:
        """Fit on coarse (T, V, h, w) and fine (T, V, H, W) fields, in model units."""
        times = torch.arange(len(fine))
        return next(iter(_fit_path(coarse, fine, times, [length], [strength], base, level)))

    def of_level(self, coarse: Tensor) -> Tensor:
        """The level of fields (B, V, h, w), (B, V, 1, 1); zero where there is none."""
        return level_of(coarse, self.level)

    def standardised(self, coarse: Tensor) -> Tensor:
        """Fields (B, V, h, w) as the regression sees them: anomalies in units of their spread."""
        seen = coarse - self.of_level(coarse)
        return (seen - self.centres.to(coarse)) / self.scale.to(coarse)

    def predict(self, coarse: Tensor) -> Tensor:
        """Mean of the fine field given coarse (B, V, h, w): (B, V, H, W)."""
        factor, (h, w) = self.factor, coarse.shape[-2:]
        correction = torch.einsum("gtp,gpo->tgo", self._rows(coarse), self.weights.to(coarse))
        correction = _from_blocks(correction, len(self.scale), h, w, factor)
        return upsample(coarse, factor, self.base) + self.intercept.to(coarse) + correction

    def leverage(self, coarse: Tensor) -> Tensor:
        r"""How far the regression must reach: x_gᵀ Σ_g x_g, (B, h, w).

        With the error's variance as unit, this is what the uncertainty of the weights adds to
        the variance of a prediction: small amid the training data, large beyond them.
        """
        x = self._rows(coarse)
        reach = torch.einsum("gtp,gpq,gtq->tg", x, self.posterior.to(coarse), x)
        return reach.reshape(len(coarse), *coarse.shape[-2:])

    def _rows(self, coarse: Tensor) -> Tensor:
        """Standardised predictors (G, B, P) of every coarse cell."""
        h, w = coarse.shape[-2:]
        near, _ = nearest_cells(h, w, self.weights.shape[1] // len(self.scale))
        return _predictors(self.standardised(coarse), near.to(coarse.device))

    def describe(self) -> str:
        """In words."""
        seen = "" if self.level is None else " on anomalies"
        return f"local ridge{seen}, length {self.length:g} cells, strength {self.strength:g}"

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        level = {} if self.level is None else {"level": self.level}
        return level | {
            "posterior": self.posterior,
            "centres": self.centres,
            "scale": self.scale,
            "intercept": self.intercept,
            "weights": self.weights,
        }


def blocks_with_gap(steps: int, blocks: int, gap: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(training, held-out) indices of contiguous blocks, `gap` steps apart on either side.

    Raises:
        AleatorError: too few time steps to leave anything to train on.
    """
    index = torch.arange(steps)
    for block in index.tensor_split(blocks):
        keep = (index < block[0] - gap) | (index > block[-1] + gap)
        if len(block) < 2 or keep.sum() < 2:
            raise AleatorError(
                f"{steps} time steps are too few for {blocks} blocks with gaps of {gap}: "
                "give more data, or lower mean.blocks or mean.gap"
            )
        yield index[keep], block


@dataclass(frozen=True)
class CrossFit:
    """What cross-validation chose, and what it predicts of times that it has not seen.

    Attributes:
        ridge: fitted on everything.
        mean: (T, V, H, W) predictions of every block by a fit on the others.
        leverage: (T, h, w) of the same fits.
        errors: cross-validated root mean square error of each candidate in standard deviations,
            by name "L=...,a=...".
    """

    ridge: LocalRidge
    mean: Tensor
    leverage: Tensor
    errors: dict[str, float]


def level_of(coarse: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted mean of fields (B, V, h, w) over cells, (B, V, 1, 1); zero without weights."""
    if weights is None:
        return coarse.new_zeros(())
    return (coarse * weights.to(coarse)).sum((-2, -1), keepdim=True)


def cross_fit(
    coarse: Tensor,
    fine: Tensor,
    config: MeanConfig,
    level: Tensor | None = None,
    scratch: Scratch | None = None,
) -> CrossFit:
    """Choose L and a, fit on everything, and predict every block by a fit on the others.

    Args:
        coarse: (T, V, h, w) in time order.
        fine: (T, V, H, W).
        config: candidates and blocks.
        level: see `LocalRidge`.
        scratch: where the predictions go; fields are looked at in pieces.
    """
    candidates = list(itertools.product(config.lengths, config.strengths))
    errors = torch.zeros(len(candidates), dtype=torch.float64)
    spread = mean_and_spread(fine)[1].mean(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    folds = list(blocks_with_gap(len(fine), config.blocks, config.gap))
    for train, held_out in folds:
        candidate = (config.lengths, config.strengths, config.base, level)
        fits = _fit_path(coarse, fine, train, *candidate)
        for i, fitted in enumerate(fits):
            for rows in map(run_of, pieces(held_out, fine)):
                error = (fitted.predict(coarse[rows]) - fine[rows]) / spread
                errors[i] += error.square().sum() / fine.numel()
    length, strength = candidates[int(errors.argmin())]
    mean = (scratch or Scratch()).empty(fine.shape)
    leverage = torch.empty_like(coarse[:, 0])
    for train, held_out in folds:
        (fitted,) = _fit_path(coarse, fine, train, [length], [strength], config.base, level)
        for rows in map(run_of, pieces(held_out, fine)):
            mean[rows] = fitted.predict(coarse[rows])
            leverage[rows] = fitted.leverage(coarse[rows])
    table = {
        f"L={length:g},a={strength:g}": float(error) ** 0.5
        for (length, strength), error in zip(candidates, errors, strict=True)
    }
    numbers: dict[str, Any] = {"length": length, "strength": strength, "base": config.base}
    return CrossFit(LocalRidge.fit(coarse, fine, **numbers, level=level), mean, leverage, table)


def _fit_path(
    coarse: Tensor,
    fine: Tensor,
    times: Tensor,
    lengths: Sequence[float],
    strengths: Sequence[float],
    base: str,
    level: Tensor | None = None,
) -> Iterator[LocalRidge]:
    """Fits at some times for every (length, strength); the Gram matrices are shared."""
    variables, h, w = coarse.shape[1:]
    factor = fine.shape[-1] // w
    seen = coarse[times] - level_of(coarse[times], level)
    centres = seen.mean(0)
    scale = _spread(seen)
    total = torch.zeros(fine.shape[1:], dtype=torch.float64)
    for rows in map(run_of, pieces(times, fine)):
        total += (fine[rows] - upsample(coarse[rows], factor, base)).double().sum(0)
    intercept = (total / len(times)).to(fine.dtype)
    for length in lengths:
        near, distance = nearest_cells(h, w, math.ceil(math.pi * (REACH * length) ** 2))
        root = torch.exp(-0.5 * distance / length).repeat(1, variables)[:, None]
        gram, against = torch.zeros(()), torch.zeros(())
        for rows in map(run_of, pieces(times, fine)):
            own = coarse[rows]
            target = fine[rows] - upsample(own, factor, base) - intercept
            standard = ((own - level_of(own, level) - centres) / scale).double()
            predictors = _predictors(standard, near) * root
            gram = gram + predictors.transpose(1, 2) @ predictors
            target = _to_blocks(target.double(), h, w, factor)
            against = against + predictors.transpose(1, 2) @ target
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
        for strength in strengths:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + strength * eye))
            weights = (root.transpose(1, 2) * (inverse @ against)).to(fine.dtype)
            posterior = (root.transpose(1, 2) * inverse * root).to(fine.dtype)
            numbers = (intercept, weights, posterior)
            yield LocalRidge(centres, scale, *numbers, base, length, strength, level)


@functools.lru_cache(maxsize=32)
def nearest_cells(h: int, w: int, count: int) -> tuple[Tensor, Tensor]:
    """The cells nearest to each cell of an h × w grid, itself first, ties by rows.

    Returns:
        indices (h w, P) and distances (h w, P) in cells, P = min(count, h w).
    """
    count = max(1, min(count, h * w))
    # P cells of a quarter plane, as at a corner, lie within 1.13 √P; those of a narrow strip
    # within P over its width
    side = math.ceil(math.sqrt(count))
    reach = [max(side, math.ceil(count / min(side, other))) for other in (w, h)]
    windows = [_window(length, 2 * r + 3) for length, r in zip((h, w), reach, strict=True)]
    index, distance = [], []
    for y in range(h):  # a row at a time: all pairs of a large domain would not fit in memory
        rows, columns = windows[0][y], windows[1]
        flat = (rows[:, None] * w + columns[:, None, :]).flatten(1)
        across = (columns - torch.arange(w)[:, None]).double()
        apart = torch.hypot((rows - y).double()[:, None], across[:, None, :]).flatten(1)
        near, order = apart.sort(dim=1, stable=True)
        index.append(flat.gather(1, order[:, :count]))
        distance.append(near[:, :count])
    return torch.cat(index), torch.cat(distance)


def _spread(seen: Tensor) -> Tensor:
    """Standard deviation (V, h, w) in time; 1 of cells that never vary, whatever the rounding."""
    scale = seen.std(0)
    return torch.where(scale > 1e-6 * seen.abs().amax(0), scale, torch.ones_like(scale))


def _window(length: int, side: int) -> Tensor:
    """(length, min(side, length)) positions about each one, moved inside at the ends."""
    side = min(side, length)
    start = (torch.arange(length) - side // 2).clamp(0, length - side)
    return start[:, None] + torch.arange(side)


def _predictors(fields: Tensor, near: Tensor) -> Tensor:
    """(T, V, h, w) -> (h w, T, V P): every variable at the P cells nearest to each cell."""
    gathered = fields.flatten(2)[:, :, near]
    return gathered.permute(2, 0, 1, 3).flatten(2)


def _to_blocks(fields: Tensor, h: int, w: int, factor: int) -> Tensor:
    """(T, V, H, W) -> (h w, T, V f²): the fine cells of every coarse one."""
    steps, variables = fields.shape[:2]
    split = fields.reshape(steps, variables, h, factor, w, factor)
    return split.permute(2, 4, 0, 1, 3, 5).reshape(h * w, steps, variables * factor**2)


def _from_blocks(blocks: Tensor, variables: int, h: int, w: int, factor: int) -> Tensor:
    """(T, h w, V f²) -> (T, V, H, W)."""
    split = blocks.reshape(len(blocks), h, w, variables, factor, factor)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(len(blocks), variables, h * factor, w * factor)
