"""Generated jets against simulated ones, given the same generator-level jets."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from apps.hep_simulation.jets import features
from apps.hep_simulation.jets.features import Columns

NAMES = (
    "ln pT response", "Δη", "Δφ", "ln mass response", "nConstituents", *features.COMPONENTS
)  # fmt: skip
_PT_EDGES = (20, 30, 50, 80, 150, 400, 10_000)


def joint(gen: Columns, reco: Columns) -> np.ndarray:
    """(N, 14): conditions and features side by side, what a classifier looks at."""
    return np.concatenate([features.conditions(gen), features.observed(gen, reco)], 1)


def scores(gen: Columns, made: Columns, truth: Columns) -> dict[str, Any]:
    """One-dimensional distances, correlations and response.

    Args:
        gen: generator-level jets (N,).
        made: generated reconstructed jets (N,).
        truth: simulated ones (N,).

    Returns:
        `w1`: mean over features of the Wasserstein distance in standard deviations;
        `correlation`: largest difference of correlations, conditions included;
        `bias`: worst difference of median pT responses over bins of pT;
        `resolution`: worst relative difference of their interquartile widths;
        `integers`, `zeros`, `sums`: how far multiplicities are from whole numbers, difference
        of the shares of exact zeros, and the largest excess of fraction sums over one.
    """
    a, b = features.observed(gen, made), features.observed(gen, truth)
    spread = b.std(0).clip(1e-12)
    w1 = np.abs(np.sort(a, 0) - np.sort(b, 0)).mean(0) / spread
    both = [np.corrcoef(joint(gen, reco).T) for reco in (made, truth)]
    bias, resolution = response(gen, made, truth)
    return {
        "w1": float(w1.mean()),
        "w1_each": {name: float(v) for name, v in zip(NAMES, w1, strict=True)},
        "correlation": float(np.nanmax(np.abs(both[0] - both[1]))),
        "bias": bias,
        "resolution": resolution,
        "integers": float(np.abs(a[:, 4] - a[:, 4].round()).max()),
        "zeros": float(np.abs((a[:, 5:] == 0).mean(0) - (b[:, 5:] == 0).mean(0)).max()),
        "sums": float((a[:, 5:].sum(1) - 1).max()),
    }


def response(gen: Columns, made: Columns, truth: Columns) -> tuple[float, float]:
    """Worst bias of the median pT response, and worst relative error of its width."""
    worst_bias = worst_width = 0.0
    for low, high in itertools.pairwise(_PT_EDGES):
        rows = (gen["pt"] >= low) & (gen["pt"] < high)
        if rows.sum() < 50:
            continue
        mine, real = (np.asarray(r["pt"])[rows] / gen["pt"][rows] for r in (made, truth))
        quantiles = [np.quantile(r, [0.25, 0.5, 0.75]) for r in (mine, real)]
        worst_bias = max(worst_bias, abs(float(quantiles[0][1] - quantiles[1][1])))
        widths = [q[2] - q[0] for q in quantiles]
        worst_width = max(worst_width, abs(float(widths[0] / max(widths[1], 1e-9) - 1)))
    return worst_bias, worst_width
