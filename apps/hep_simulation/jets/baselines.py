"""What users would pick instead, on the same interface: binned smearing and kNN resampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apps.hep_simulation.jets import features
from apps.hep_simulation.jets.features import COMPONENTS, MASS, Columns, wrapped
from core.errors import AleatorError


def reconstruct(gen: Columns, seen: np.ndarray) -> dict[str, np.ndarray]:
    """Jets from generator-level ones and `features.observed` (N, 8)."""
    reco = {
        "pt": gen["pt"] * np.exp(seen[:, 0]),
        "eta": gen["eta"] + seen[:, 1],
        "phi": wrapped(gen["phi"] + seen[:, 2]),
        "mass": (gen["mass"].clip(0) + MASS) * np.exp(seen[:, 3]) - MASS,
        "nConstituents": seen[:, 4],
    }
    return reco | {name: seen[:, 5 + i] for i, name in enumerate(COMPONENTS)}


@dataclass(frozen=True)
class Smearing:
    """Independent Gaussians of each feature in bins of generator-level (pT, |η|).

    Attributes:
        pt_edges: of ln pT.
        eta_edges: of |η|.
        mean: (bins, 8).
        std: (bins, 8).
    """

    pt_edges: np.ndarray
    eta_edges: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, gen: Columns, reco: Columns, pt_bins: int = 12) -> Smearing:
        """From training pairs.

        Raises:
            AleatorError: fewer than 20 pairs a bin of pT.
        """
        seen, pt = features.observed(gen, reco), np.log(gen["pt"])
        if len(pt) < 20 * pt_bins:
            raise AleatorError(f"{len(pt)} pairs for {pt_bins} bins of pT; give more")
        edges = np.quantile(pt, np.linspace(0, 1, pt_bins + 1)[1:-1])
        eta_edges = np.array([1.5, 2.5, 3.2])
        first = cls(edges, eta_edges, seen.mean(0)[None], seen.std(0)[None])
        place, bins = first._bins(gen), (len(edges) + 1) * (len(eta_edges) + 1)
        mean, std = np.tile(seen.mean(0), (bins, 1)), np.tile(seen.std(0), (bins, 1))
        for b in range(bins):
            rows = place == b
            if rows.sum() > 10:
                mean[b], std[b] = seen[rows].mean(0), seen[rows].std(0)
        return cls(edges, eta_edges, mean, std)

    def _bins(self, gen: Columns) -> np.ndarray:
        column = np.searchsorted(self.eta_edges, np.abs(gen["eta"]))
        row = np.searchsorted(self.pt_edges, np.log(gen["pt"]))
        return row * (len(self.eta_edges) + 1) + column

    def sample(self, gen: Columns, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One reconstructed jet each."""
        place = self._bins(gen)
        draw = rng.standard_normal((len(place), 8))
        return reconstruct(gen, self.mean[place] + self.std[place] * draw)


@dataclass(frozen=True)
class NearestNeighbours:
    """The features of one of the k nearest training jets: replays, and has no density.

    Attributes:
        conditions: (N, 6) of training jets.
        seen: (N, 8) their features.
        k: neighbours.
    """

    conditions: np.ndarray
    seen: np.ndarray
    k: int = 10

    @classmethod
    def fit(cls, gen: Columns, reco: Columns, k: int = 10) -> NearestNeighbours:
        """Remember training pairs."""
        return cls(features.conditions(gen), features.observed(gen, reco), k)

    def sample(self, gen: Columns, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One reconstructed jet each."""
        from scipy.spatial import cKDTree

        scale = self.conditions.std(0).clip(1e-9)
        tree = cKDTree(self.conditions / scale)
        _, near = tree.query(features.conditions(gen) / scale, k=self.k)
        near = np.asarray(near).reshape(len(gen["pt"]), -1)
        chosen = near[np.arange(len(near)), rng.integers(near.shape[1], size=len(near))]
        return reconstruct(gen, self.seen[chosen])
