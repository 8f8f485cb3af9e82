r"""High-level features of showers, as CaloChallenge defines them.

    E_l = Σ_v E_v,   ⟨η⟩ = Σ η E / Σ E,   width_η = sqrt(⟨η²⟩ - ⟨η⟩²),   likewise φ and r
    η = r cos α, φ = r sin α (mm, at the middle of a voxel);   sparsity = share of empty voxels

Reference: Krause et al. (2024), arXiv:2410.21611; the sums carry its 1e-16 in the denominators.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apps.hep_simulation.geometry import Geometry

TINY = 1e-16
BLOCK = 2048
"""Showers whose features are computed at once."""


@dataclass(frozen=True)
class Features:
    """Features of N showers in L layers; centres and widths in mm, energies in MeV.

    Attributes:
        incident: (N,) E_inc.
        total: (N,) E_tot.
        layers: (N, L) E_l.
        centre_eta: (N, L'), layers with several sectors only, as `centre_phi` and their widths.
        centre_phi: (N, L').
        width_eta: (N, L').
        width_phi: (N, L').
        centre_r: (N, L).
        width_r: (N, L).
        sparsity: (N, L).
    """

    incident: np.ndarray
    total: np.ndarray
    layers: np.ndarray
    centre_eta: np.ndarray
    centre_phi: np.ndarray
    width_eta: np.ndarray
    width_phi: np.ndarray
    centre_r: np.ndarray
    width_r: np.ndarray
    sparsity: np.ndarray

    @property
    def response(self) -> np.ndarray:
        """(N,) E_tot / E_inc."""
        return self.total / self.incident

    def columns(self) -> np.ndarray:
        """(N, F) what CaloChallenge's high-level classifier sees, in its scales."""
        return np.concatenate(
            [
                np.log10(self.incident)[:, None],
                np.log10(self.layers + 1e-8),
                *(part / 1e2 for part in (self.centre_eta, self.centre_phi)),
                *(part / 1e2 for part in (self.width_eta, self.width_phi)),
                np.log10(self.total + 1e-8)[:, None],
                self.sparsity,
                self.centre_r / 1e2,
                self.width_r / 1e2,
            ],
            1,
        )


def features(showers: np.ndarray, incident: np.ndarray, geometry: Geometry) -> Features:
    """Compute the features of showers (N, V) of incident energies (N,), both in MeV."""
    blocks = [
        _block(showers[i : i + BLOCK].astype(np.float64), geometry)
        for i in range(0, max(len(showers), 1), BLOCK)
    ]
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return Features(incident=np.asarray(incident, np.float64), **joined)


def _block(showers: np.ndarray, geometry: Geometry) -> dict[str, np.ndarray]:
    starts = geometry.edges[:-1]
    angular = np.array([layer.sectors > 1 for layer in geometry.active])

    def per_layer(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts, axis=1)

    energy = per_layer(showers)
    below = energy + TINY
    eta, phi = (geometry.radii * turn(geometry.angles) for turn in (np.cos, np.sin))
    found = {"total": showers.sum(1), "layers": energy}
    for name, place in (("eta", eta), ("phi", phi), ("r", geometry.radii)):
        centre = per_layer(showers * place) / below
        square = per_layer(showers * place**2) / below
        width = np.sqrt((square - centre**2).clip(min=0))
        kept = slice(None) if name == "r" else angular
        found[f"centre_{name}"], found[f"width_{name}"] = centre[:, kept], width[:, kept]
    voxels = np.diff(geometry.edges)
    found["sparsity"] = 1 - per_layer((showers > 0).astype(np.float64)) / voxels
    return found


def coarse(showers: np.ndarray, geometry: Geometry, shape: tuple[int, int, int]) -> np.ndarray:
    """Voxels summed into a coarser grid (N, prod(shape)) of layers x sectors x rings."""
    full = padded(showers, geometry)
    for axis, parts in enumerate(shape, start=1):
        size = full.shape[axis]
        starts = np.unique(np.arange(min(parts, size)) * size // min(parts, size))
        full = np.add.reduceat(full, starts, axis=axis)
    return full.reshape(len(full), -1)


def padded(showers: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Showers (N, V) as (N, L, A, R), zeros where a layer has no such voxel."""
    shape = (len(geometry.active), geometry.sectors, geometry.rings)
    full = np.zeros((len(showers), int(np.prod(shape))), showers.dtype)
    full[:, geometry.columns] = showers
    return full.reshape(len(showers), *shape)


def unpadded(full: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Undo `padded`."""
    return full.reshape(len(full), -1)[:, geometry.columns]
