"""Generated clouds against simulated ones, as JetNet judges and with a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from apps.hep_simulation.classifier import classifier_auc
from apps.hep_simulation.clouds import observables
from apps.hep_simulation.clouds.data import Clouds
from apps.hep_simulation.distances import fpd, kpd
from apps.hep_simulation.memorisation import Neighbours, neighbours

COLUMNS = {
    "sample": "sample", "auc": "AUC", "auc_error": "±", "w1_mass": "W1 mass", "w1_count": "W1 n",
    "w1_eta": "W1 η", "w1_phi": "W1 φ", "w1_pt": "W1 pT", "w1_efp": "W1 EFP", "fpd": "FPD",
    "kpd": "KPD", "coverage": "coverage", "mmd": "MMD", "species": "species AUC",
    "nn_ratio": "NN ratio", "replayed": "replayed",
}  # fmt: skip
"""Of the table; W1 of mass, η, φ, pT, EFP and FPD, KPD in units of 10⁻³."""
_PLAIN = ("w1_mass", "w1_count", "w1_eta", "w1_phi", "w1_pt", "fpd", "kpd")
FORMATS = dict.fromkeys(COLUMNS, ".3f") | dict.fromkeys(_PLAIN, ".2f")
LEADING = 30
"""Hardest constituents that tell jets apart as individuals."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Clouds and what is computed from them."""

    clouds: Clouds

    @cached_property
    def features(self) -> np.ndarray:
        """High-level ones, (N, 12)."""
        return observables.features(self.clouds)

    @cached_property
    def four(self) -> np.ndarray:
        """Energy-flow polynomials of four points, (N, 5)."""
        return observables.four_points(self.clouds)

    @cached_property
    def conditioned(self) -> np.ndarray:
        """Features beside pT, |η| and kind: a classifier must not lose the condition."""
        c = self.clouds
        given = np.stack([np.log(c.pt), np.abs(c.eta), c.kind], 1)
        return np.concatenate([self.features, given], 1)


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """W1 of two samples of numbers, of any two sizes."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(a, b))


def scores(sample: Sample, truth: Sample, *, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """All scores of `COLUMNS` but those of replay; distances × 10³ but that of multiplicity."""
    ours, real = sample.clouds, truth.clouds
    auc = classifier_auc(sample.conditioned, truth.conditioned, seeds)
    found: dict[str, Any] = {"auc": auc.mean, "auc_error": max(auc.std, auc.stderr)}
    found["w1_mass"] = 1e3 * wasserstein(sample.features[:, 1], truth.features[:, 1])
    found["w1_count"] = wasserstein(ours.counts, real.counts)
    for column, name in enumerate(("w1_eta", "w1_phi", "w1_pt")):
        parts = [c.points[:, :, column][c.mask] for c in (ours, real)]
        found[name] = 1e3 * wasserstein(*parts)
    found["w1_efp"] = 1e3 * float(
        np.mean([wasserstein(a, b) for a, b in zip(sample.four.T, truth.four.T, strict=True)])
    )
    found["fpd"] = 1e3 * fpd(truth.features, sample.features).value
    found["kpd"] = 1e3 * kpd(truth.features, sample.features).value
    found["coverage"], found["mmd"] = coverage(sample.features, truth.features)
    if ours.species.any() and real.species.any():
        both = [
            np.concatenate([observables.labelled(s.clouds), s.conditioned[:, :1]], 1)
            for s in (sample, truth)
        ]
        found["species"] = classifier_auc(both[0], both[1], seeds).mean
    return found


def coverage(made: np.ndarray, real: np.ndarray, most: int = 2000) -> tuple[float, float]:
    """Coverage and minimum matching distance.

    The share of real jets that are the nearest one of some generated jet, and the mean distance
    of a real jet to the nearest generated one, in standardised features.
    Achlioptas et al. (2018) arXiv:1707.02392; with as many generated as real jets.
    """
    from scipy.spatial import cKDTree

    count = min(len(made), len(real), most)
    made, real = made[:count], real[:count]
    scale = np.maximum(real.std(0), 1e-12)
    a, b = made / scale, real / scale
    chosen = np.unique(cKDTree(b).query(a)[1])
    return len(chosen) / count, float(cKDTree(a).query(b)[0].mean())


def individuals(clouds: Clouds) -> np.ndarray:
    """(N, 2 × 30) what no turn changes: √ptrel and √ptrel asinh(r pT/m) of the hardest."""
    from apps.hep_simulation.clouds.features import spreads

    spread = spreads(clouds.points, clouds.mask)[:, None]
    z = np.where(clouds.mask, clouds.points[:, :, 2], 0.0)
    radius = np.hypot(clouds.points[:, :, 0], clouds.points[:, :, 1]) / spread
    order = np.argsort(-z, 1, kind="stable")[:, :LEADING]
    z, radius = (np.take_along_axis(v, order, 1) for v in (z, radius))
    both = np.concatenate([np.sqrt(z), np.sqrt(z) * np.arcsinh(radius)], 1)
    wide = np.zeros((len(both), 2 * LEADING), np.float32)
    wide[:, : z.shape[1]] = both[:, : z.shape[1]]
    wide[:, LEADING : LEADING + z.shape[1]] = both[:, z.shape[1] :]
    return wide


def memorised(sample: Clouds, train: Clouds, truth: Clouds) -> Neighbours:
    """Are generated jets nearer to training jets than to as many unseen ones?"""
    return neighbours(*(individuals(c) for c in (sample, train, truth)))
