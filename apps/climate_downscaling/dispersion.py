r"""How uncertain the mean is, here and now: a log-linear model with a handful of parameters.

    ln s(x, t) = ln s_0(x) + sum_k b_k φ_k(x, t),    e ~ N(0, s²)

The features φ see the coarse field: how far the regression must reach for it (its leverage), how
rough and how curved it is around a cell, how much the mean differs from the interpolation, and
the anomaly itself. The b_k are shared by all cells of a
variable and fitted by maximum likelihood on cross-fitted errors e; which of them are used is
decided by likelihood in held-out blocks of time. On a few hundred correlated fields a network
learns such weather dependence by heart; this cannot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from apps.climate_downscaling.loglinear import (
    fit_weights,
    in_words,
    log_factor,
    standardise,
    within,
)
from apps.climate_downscaling.mean import blocks_with_gap, upsample

FEATURES = ("leverage", "roughness", "curvature", "increment", "anomaly")
_FLOOR, _LEAST = 0.1, 1e-6


@dataclass(frozen=True)
class Dispersion:
    """The fitted model.

    Attributes:
        scale: (V, H, W) s_0.
        weights: (V, K) b, zero for features that were not chosen.
        centre: (V, K) training mean of the features.
        spread: (V, K) their training standard deviation.
        coarse_unit: (2, V, h, w) training means of roughness and curvature.
        increment: (2, V, H, W) training mean of the increment and of its size.
    """

    scale: Tensor
    weights: Tensor
    centre: Tensor
    spread: Tensor
    coarse_unit: Tensor
    increment: Tensor

    @classmethod
    def fit(
        cls,
        error: Tensor,
        coarse: Tensor,
        standard: Tensor,
        mean: Tensor,
        leverage: Tensor,
        blocks: int,
        gap: int,
        like: Dispersion | None = None,
    ) -> Dispersion:
        """Choose features and fit.

        Args:
            error: (T, V, H, W) cross-fitted errors of the mean, in order of time.
            coarse: (T, V, h, w) predictors.
            standard: (T, V, h, w) the same, standardised cell by cell.
            mean: (T, V, H, W) cross-fitted means.
            leverage: (T, h, w) cross-fitted leverage.
            blocks: contiguous blocks of time for the choice.
            gap: steps left out on either side of a block.
            like: another one, whose features are taken; chosen by likelihood if None.

        Returns:
            the model.
        """
        shape, factor = error.shape[1:], error.shape[-1] // coarse.shape[-1]
        increment = mean - upsample(coarse, factor)
        centre = increment.mean(0)
        raw = cls(
            scale=torch.ones(shape),
            weights=torch.zeros(shape[0], len(FEATURES)),
            centre=torch.zeros(shape[0], len(FEATURES)),
            spread=torch.ones(shape[0], len(FEATURES)),
            coarse_unit=torch.stack([f.mean(0).clamp_min(1e-6) for f in _texture(coarse)]),
            increment=torch.stack([centre, (increment - centre).abs().mean(0).clamp_min(1e-6)]),
        )
        features = raw._features(coarse, standard, mean, leverage)
        features, centre, spread = standardise(features)
        folds = list(blocks_with_gap(len(error), blocks, gap))
        weights = fit_weights(error, features, folds, None if like is None else like.weights != 0)
        scale = (error * torch.exp(-log_factor(features, weights))).square().mean(0).sqrt()
        return cls(scale, weights, centre, spread, raw.coarse_unit, raw.increment)

    def __call__(self, coarse: Tensor, standard: Tensor, mean: Tensor, leverage: Tensor) -> Tensor:
        """Standard deviation s (B, V, H, W) of the mean's error; arguments as for `fit`."""
        scale = self.scale.to(mean)
        if not self.weights.any():
            return scale.expand_as(mean)
        features = self._features(coarse, standard, mean, leverage)
        return scale * torch.exp(
            log_factor(within(features, self.centre, self.spread), self.weights)
        )

    def _features(
        self, coarse: Tensor, standard: Tensor, mean: Tensor, leverage: Tensor
    ) -> Tensor:
        """(B, V, H, W, K), not yet standardised."""
        factor = mean.shape[-1] // coarse.shape[-1]
        texture = [
            upsample((_FLOOR + values / unit.to(mean)).log(), factor, "bilinear")
            for values, unit in zip(_texture(coarse), self.coarse_unit, strict=True)
        ]
        centre, size = self.increment.to(mean)
        increment = mean - upsample(coarse, factor) - centre
        detail = (_FLOOR + increment.abs() / size).log()
        reach = upsample((leverage[:, None] + _LEAST).log(), factor, "bilinear")
        anomaly = upsample(standard, factor, "bilinear")
        return torch.stack([reach.expand_as(anomaly), *texture, detail, anomaly], -1)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        return dict(vars(self))

    def describe(self, variable: int) -> str:
        """Which features are used, e.g. "roughness +0.19, increment +0.10"."""
        return in_words(FEATURES, self.weights[variable])


def _texture(coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation over 3 × 3 cells, and distance of a cell from their mean."""
    around = pad(coarse, (1, 1, 1, 1), mode="replicate")
    mean = avg_pool2d(around, 3, stride=1)
    # deviations from the cell itself: squares of values near 280 K would lose all digits
    first = avg_pool2d((around - coarse.mean((-2, -1), keepdim=True)).square(), 3, stride=1)
    shifted = mean - coarse.mean((-2, -1), keepdim=True)
    return (first - shifted.square()).clamp_min(0).sqrt(), (mean - coarse).abs()
