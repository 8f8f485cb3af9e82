"""How uncertain the mean of perfect prognosis is, here and now: see `loglinear`.

The features are the leverage of the predictors, and how unusual the mean itself is: days of heavy
rain, of great heat and cold are harder to predict than ordinary ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apps.climate_downscaling.loglinear import (
    fit_weights,
    in_words,
    log_factor,
    standardise,
    within,
)
from apps.climate_downscaling.mean import blocks_with_gap

FEATURES = ("leverage", "anomaly", "squared anomaly")


@dataclass(frozen=True)
class FieldDispersion:
    """The fitted model.

    Attributes:
        scale: (V, H, W) s_0.
        weights: (V, K) b, zero for features that were not chosen.
        centre: (V, K) training mean of the features.
        spread: (V, K) their training standard deviation.
        usual: (2, V, H, W) mean and standard deviation of the regressed mean over time.
    """

    scale: Tensor
    weights: Tensor
    centre: Tensor
    spread: Tensor
    usual: Tensor

    @classmethod
    def fit(
        cls, error: Tensor, mean: Tensor, leverage: Tensor, valid: Tensor, blocks: int, gap: int
    ) -> FieldDispersion:
        """Choose features and fit.

        Args:
            error: (T, V, H, W) cross-fitted errors of the mean, in order of time.
            mean: (T, V, H, W) cross-fitted means.
            leverage: (T,) cross-fitted leverage.
            valid: (H, W) cells that have data; the others get the typical scale.
            blocks: contiguous blocks of time for the choice.
            gap: steps left out on either side of a block.
        """
        usual = torch.stack([mean.mean(0), mean.std(0).clamp_min(1e-6)])
        features, centre, spread = standardise(
            _features(mean, leverage, usual)[..., valid, :][:, :, None]
        )
        e = error[..., valid][:, :, None]
        weights = fit_weights(e, features, list(blocks_with_gap(len(e), blocks, gap)))
        found = (e * torch.exp(-log_factor(features, weights))).square().mean(0).sqrt()[:, 0]
        typical = found.mean(-1, keepdim=True)
        scale = typical[..., None].expand(error.shape[1:]).clone()
        scale[:, valid] = torch.maximum(found, 1e-3 * typical)
        return cls(scale, weights, centre, spread, usual)

    def __call__(self, mean: Tensor, leverage: Tensor) -> Tensor:
        """Standard deviation s (B, V, H, W) of the mean's error; arguments as for `fit`."""
        features = _features(mean, leverage, self.usual.to(mean))
        factor = log_factor(within(features, self.centre, self.spread), self.weights)
        return self.scale.to(mean) * torch.exp(factor)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores."""
        return dict(vars(self))

    def describe(self, variable: int) -> str:
        """Which features are used, in words."""
        return in_words(FEATURES, self.weights[variable])


def _features(mean: Tensor, leverage: Tensor, usual: Tensor) -> Tensor:
    """(B, V, H, W, K), not yet standardised."""
    anomaly = (mean - usual[0]) / usual[1]
    reach = (leverage + 1e-6).log()[:, None, None, None].expand_as(anomaly)
    return torch.stack([reach, anomaly, anomaly.square()], -1)
