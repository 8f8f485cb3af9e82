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

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from apps.climate_downscaling.mean import blocks_with_gap, upsample

FEATURES = ("leverage", "roughness", "curvature", "increment", "anomaly")
LIMIT = 3.0
"""Features are held within ± LIMIT standard deviations: no extrapolation into the absurd."""

_FLOOR, _LEAST, _RIDGE, _NEWTON = 0.1, 1e-6, 1e-3, 8


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
        overall = (0, 2, 3)
        centre, spread = features.mean(overall), features.std(overall).clamp_min(1e-6)
        features = ((features - centre[:, None, None]) / spread[:, None, None]).clamp(
            -LIMIT, LIMIT
        )
        folds = list(blocks_with_gap(len(error), blocks, gap))
        weights = torch.stack(
            [_chosen(error[:, v], features[:, v], folds) for v in range(shape[0])]
        )
        log = torch.einsum("tvhwk,vk->tvhw", features, weights)
        scale = (error * torch.exp(-log)).square().mean(0).sqrt()
        return cls(scale, weights, centre, spread, raw.coarse_unit, raw.increment)

    def __call__(self, coarse: Tensor, standard: Tensor, mean: Tensor, leverage: Tensor) -> Tensor:
        """Standard deviation s (B, V, H, W) of the mean's error; arguments as for `fit`."""
        scale = self.scale.to(mean)
        if not self.weights.any():
            return scale.expand_as(mean)
        features = self._features(coarse, standard, mean, leverage)
        centre, spread = (v.to(mean)[:, None, None] for v in (self.centre, self.spread))
        features = ((features - centre) / spread).clamp(-LIMIT, LIMIT)
        return scale * torch.exp(torch.einsum("bvhwk,vk->bvhw", features, self.weights.to(mean)))

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
        pairs = zip(FEATURES, self.weights[variable].tolist(), strict=True)
        return ", ".join(f"{name} {b:+.2f}" for name, b in pairs if b) or "the same at all times"


def _texture(coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviation over 3 × 3 cells, and distance of a cell from their mean."""
    around = pad(coarse, (1, 1, 1, 1), mode="replicate")
    mean = avg_pool2d(around, 3, stride=1)
    # deviations from the cell itself: squares of values near 280 K would lose all digits
    first = avg_pool2d((around - coarse.mean((-2, -1), keepdim=True)).square(), 3, stride=1)
    shifted = mean - coarse.mean((-2, -1), keepdim=True)
    return (first - shifted.square()).clamp_min(0).sqrt(), (mean - coarse).abs()


def _chosen(error: Tensor, features: Tensor, folds: list[tuple[Tensor, Tensor]]) -> Tensor:
    """B (K,) of the features whose likelihood in held-out blocks is best; zero elsewhere."""
    count = features.shape[-1]
    subsets = [s for n in range(count + 1) for s in itertools.combinations(range(count), n)]
    thin = (slice(None), slice(None, None, 2), slice(None, None, 2))
    e, f = error[thin], features[thin]
    held_out = torch.zeros(len(subsets), dtype=torch.float64)
    for train, rest in folds:
        for i, subset in enumerate(subsets):
            b, log_scale = _maximum_likelihood(e[train], f[train][..., subset])
            log = log_scale + f[rest][..., subset] @ b
            score = log + 0.5 * (e[rest] * torch.exp(-log)).square()
            held_out[i] += score.double().mean() * len(rest)
    best = subsets[int(held_out.argmin())]
    weights = torch.zeros(count)
    weights[list(best)] = _maximum_likelihood(error, features[..., best])[0]
    return weights


def _maximum_likelihood(error: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """B (K,) and ln s_0 (H, W), by Newton's method; the problem is convex in (b, ln s_0).

    Cells have their own s_0: features enter as departures from what they are, on average, there.
    """
    e2 = error.square().double()
    x = features.double()
    b = torch.zeros(x.shape[-1], dtype=torch.float64)
    ridge = _RIDGE * len(x) * x.shape[1] * x.shape[2] * torch.eye(len(b), dtype=torch.float64)
    for _ in range(_NEWTON if len(b) else 0):
        w = e2 * torch.exp(-2 * (x @ b))
        w = w / w.mean(0, keepdim=True).clamp_min(1e-30)  # s_0 profiled out
        centred = x - (w[..., None] * x).mean(0, keepdim=True)
        gradient = (x * (1 - w)[..., None]).sum((0, 1, 2)) + ridge @ b
        hessian = 2 * torch.einsum("thwj,thw,thwk->jk", centred, w, centred) + ridge
        b = b - torch.linalg.solve(hessian, gradient)
    log_scale = 0.5 * (e2 * torch.exp(-2 * (x @ b))).mean(0).clamp_min(1e-30).log()
    return b.to(features.dtype), log_scale.to(features.dtype)
