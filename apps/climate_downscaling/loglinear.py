r"""A log-linear model of a standard deviation: a handful of weights, shared by all cells.

    ln s(x, t) = ln s_0(x) + sum_k b_k φ_k(x, t),    e ~ N(0, s²)

Fitted by maximum likelihood on cross-fitted errors e; which features φ are used is decided by
likelihood in held-out blocks of time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

SIDE = 40
"""Cells a side that the choice of features looks at, about; twice as many for their weights."""
LIMIT = 3.0
"""Features are held within ± LIMIT standard deviations: no extrapolation into the absurd."""

_RIDGE, _NEWTON, _HALVINGS = 1e-3, 20, 30


def standardise(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features (T, V, H, W, K) within ± LIMIT, and the (V, K) centre and spread that were used."""
    overall = (0, 2, 3)
    centre, spread = features.mean(overall), features.std(overall).clamp_min(1e-6)
    return within(features, centre, spread), centre, spread


def within(features: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    """Features (..., V, H, W, K) in units of their training spread (V, K), within ± LIMIT."""
    centre, spread = (v.to(features)[:, None, None] for v in (centre, spread))
    return ((features - centre) / spread).clamp(-LIMIT, LIMIT)


def fit_weights(
    error: Tensor,
    features: Tensor,
    folds: list[tuple[Tensor, Tensor]],
    chosen: Tensor | None = None,
) -> Tensor:
    """B (V, K) of errors (T, V, H, W) with features (T, V, H, W, K); zero where not chosen.

    Args:
        error: of the mean.
        features: standardised.
        folds: training and held-out times, by which the features are chosen.
        chosen: bool (V, K), the features, if they are known.
    """
    found = []
    for v in range(error.shape[1]):
        e, f = error[:, v], features[:, v]
        best = _chosen(e, f, folds) if chosen is None else chosen[v].nonzero()[:, 0].tolist()
        step = _step(e)
        e, f = (_thinned(values, step // 2) for values in (e, f))
        weights = torch.zeros(features.shape[-1])
        weights[best] = _maximum_likelihood(e, f[..., best])[0]
        found.append(weights)
    return torch.stack(found)


def log_factor(features: Tensor, weights: Tensor) -> Tensor:
    """Σ_k b_k φ_k of features (T, V, H, W, K) and weights (V, K): (T, V, H, W)."""
    return torch.einsum("tvhwk,vk->tvhw", features, weights.to(features))


def in_words(names: Sequence[str], weights: Tensor) -> str:
    """Which features (K,) are used, e.g. "roughness +0.19, increment +0.10"."""
    pairs = zip(names, weights.tolist(), strict=True)
    return ", ".join(f"{name} {b:+.2f}" for name, b in pairs if b) or "the same at all times"


def _chosen(error: Tensor, features: Tensor, folds: list[tuple[Tensor, Tensor]]) -> list[int]:
    """The features whose likelihood in held-out blocks is best."""
    count = features.shape[-1]
    subsets = [s for n in range(count + 1) for s in itertools.combinations(range(count), n)]
    e, f = (_thinned(v, _step(error)) for v in (error, features))
    held_out = torch.zeros(len(subsets), dtype=torch.float64)
    for train, rest in folds:
        for i, subset in enumerate(subsets):
            b, log_scale = _maximum_likelihood(e[train], f[train][..., subset])
            log = log_scale + f[rest][..., subset] @ b
            score = log + 0.5 * (e[rest] * torch.exp(-log)).square()
            held_out[i] += score.double().mean() * len(rest)
    return list(subsets[int(held_out.argmin())])


def _step(error: Tensor) -> int:
    return max(2, round(math.sqrt(error[0].numel()) / SIDE))


def _thinned(fields: Tensor, step: int) -> Tensor:
    """Every so many rows and columns of (T, H, W, ...): five numbers need no more."""
    return fields[:, ::step, ::step]


def _maximum_likelihood(error: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """B (K,) and ln s_0 (H, W), by damped Newton steps; the problem is convex in (b, ln s_0).

    Cells have their own s_0: features enter as departures from what they are, on average, there.
    """
    e2 = error.square().double()
    x = features.double()
    b = torch.zeros(x.shape[-1], dtype=torch.float64)
    ridge = _RIDGE * len(x) * x.shape[1] * x.shape[2] * torch.eye(len(b), dtype=torch.float64)

    def profile(b: Tensor) -> tuple[Tensor, Tensor]:
        """Level ln s_0, and minus the log-likelihood there, up to a constant."""
        along = x @ b
        log_scale = 0.5 * (e2 * torch.exp(-2 * along)).mean(0).clamp_min(1e-30).log()
        return log_scale, along.sum() + len(x) * log_scale.sum() + 0.5 * b @ ridge @ b

    log_scale, loss = profile(b)
    for _ in range(_NEWTON if len(b) else 0):
        w = e2 * torch.exp(-2 * (x @ b + log_scale))  # s_0 profiled out
        centred = x - (w[..., None] * x).mean(0, keepdim=True)
        gradient = (x * (1 - w)[..., None]).sum((0, 1, 2)) + ridge @ b
        hessian = 2 * torch.einsum("thwj,thw,thwk->jk", centred, w, centred) + ridge
        step = torch.linalg.solve(hessian, gradient)
        for _ in range(_HALVINGS):
            found, new = profile(b - step)
            if new <= loss:
                b, log_scale, loss = b - step, found, new
                break
            step = step / 2
    return b.to(features.dtype), log_scale.to(features.dtype)
