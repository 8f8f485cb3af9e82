r"""All scores of generated showers against reference showers, in one row.

Classifier AUC on high-level features and on voxels of a coarse grid, FPD and KPD, separation power
of every observable, linearity and resolution, correlations, memorisation. Classifiers do not see
a small error of the energy scale; the separation power of E_tot / E_inc and the linearity do: all
belong to the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from apps.hep_simulation.classifier import classifier_auc
from apps.hep_simulation.distances import fpd, kpd
from apps.hep_simulation.features import Features, coarse, features
from apps.hep_simulation.geometry import Geometry
from apps.hep_simulation.memorisation import Neighbours, fingerprints, neighbours
from apps.hep_simulation.observables import (
    ResponseBin,
    correlation_error,
    response_bins,
    separations,
    wasserstein,
)

COARSE = (15, 4, 3)
"""Layers x sectors x rings of the grid that the low-level classifier sees."""
FPD_LEAST = 1000


@dataclass(frozen=True)
class Sample:
    """Showers and what is derived from them.

    Attributes:
        showers: (N, V) MeV.
        energies: (N,) MeV.
        geometry: of them.
    """

    showers: np.ndarray
    energies: np.ndarray
    geometry: Geometry

    @cached_property
    def features(self) -> Features:
        """High-level features."""
        return features(self.showers, self.energies, self.geometry)

    @cached_property
    def high(self) -> np.ndarray:
        """(N, F) what the high-level classifier sees."""
        return self.features.columns()

    @cached_property
    def low(self) -> np.ndarray:
        """(N, 1 + 180) what the low-level classifier sees."""
        grid = coarse(self.showers, self.geometry, COARSE) / self.energies[:, None]
        return np.concatenate([np.log10(self.energies)[:, None], grid], 1)

    @cached_property
    def voxels(self) -> np.ndarray:
        """Energies of all voxels that have some, MeV."""
        return self.showers[self.showers > 0]

    def __len__(self) -> int:
        return len(self.energies)


def scores(
    generated: Sample,
    reference: Sample,
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    distances: bool = True,
) -> dict[str, Any]:
    """One row of scores.

    Args:
        generated: showers of the same spectrum as the reference's.
        reference: real showers.
        seeds: of the classifiers.
        distances: FPD and KPD, too; they need over a thousand showers.
    """
    high = classifier_auc(generated.high, reference.high, seeds)
    low = classifier_auc(generated.low, reference.low, seeds)
    row: dict[str, Any] = {
        "auc_high": high.mean,
        "auc_high_std": high.std,
        "auc_high_stderr": high.stderr,
        "auc_low": low.mean,
        "auc_low_std": low.std,
        "auc_low_stderr": low.stderr,
    }
    if distances and min(len(generated), len(reference)) > FPD_LEAST:
        found, kernel = fpd(reference.high, generated.high), kpd(reference.high, generated.high)
        row |= {"fpd": 1e3 * found.value, "fpd_error": 1e3 * found.error}
        row |= {"kpd": 1e3 * kernel.value, "kpd_error": 1e3 * kernel.error}
    voxels = (generated.voxels, reference.voxels)
    separated = separations(generated.features, reference.features, voxels)
    row |= {f"sep_{name}": value for name, value in separated.items()}
    row["w1_response"] = wasserstein(generated.features.response, reference.features.response)
    row["correlation"] = correlation_error(generated.features, reference.features)
    bins = response_bins(generated.features, reference.features)
    row |= worst(bins)
    return row


def worst(bins: list[ResponseBin]) -> dict[str, float]:
    """Worst linearity and resolution of all energy bins, and their errors, in per cent."""
    found = {}
    for name in ("linearity", "resolution"):
        if bins:
            chosen = max(bins, key=lambda b: abs(getattr(b, name)))
            found[name] = 100 * abs(getattr(chosen, name))
            found[f"{name}_error"] = 100 * getattr(chosen, f"{name}_error")
    return found


def memorised(generated: Sample, train: Sample, unseen: Sample) -> Neighbours:
    """Nearest neighbours of generated showers among training and among unseen showers."""
    marks = [
        fingerprints(part.showers, part.energies, part.geometry)
        for part in (generated, train, unseen)
    ]
    return neighbours(*marks)


COLUMNS = {
    "sample": "",
    "auc_high": "AUC high-level",
    "auc_high_std": "±",
    "auc_low": "AUC voxels 15×4×3",
    "auc_low_std": "±",
    "fpd": "FPD ×10³",
    "kpd": "KPD ×10³",
    "sep_response": "sep. E_tot/E_inc",
    "sep_layers": "sep. E_layer",
    "sep_voxels": "sep. voxels",
    "sep_sparsity": "sep. sparsity",
    "sep_width_r": "sep. width r",
    "linearity": "linearity %",
    "linearity_error": "±",
    "resolution": "resolution %",
    "resolution_error": "±",
    "correlation": "max Δcorr(E_l)",
    "nn_ratio": "NN ratio",
    "ms_100": "ms/shower, batch 100",
    "ms_1": "batch 1",
}
"""Heading of each score."""
FORMATS = {
    **dict.fromkeys(("auc_high", "auc_high_std", "auc_low", "auc_low_std"), ".3f"),
    **dict.fromkeys(("linearity", "linearity_error", "resolution", "resolution_error"), ".1f"),
    **{name: ".4f" for name in COLUMNS if name.startswith("sep_")},
    "fpd": ".0f",
    "kpd": ".2f",
    "correlation": ".3f",
    "nn_ratio": ".2f",
}
