r"""What a detector makes of stable particles: tracks, calorimeter towers, particle flow.

    track    found with an efficiency, σ(pT)/pT = √(a² + b² pT²)
    tower    0.087 x 5°; energies log-normal about the truth, σ² = (c E)² + s² E + n²
    neutral  what a tower has beyond the tracks that point at it, where it is significant

A parametrisation, with resolutions and efficiencies as in the public card of Delphes for CMS
(de Favereau et al. 2014, arXiv:1307.6346). No magnetic field but that soft charged particles do
not reach the calorimeter, no pile-up: for software and closure, not a measure of realism.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TRACKER, CALORIMETER, ENDCAP = 2.5, 5.0, 3.0
CELL_ETA, CELLS_PHI = 0.087, 72
CURLING = 0.7
"""GeV: less, and a charged particle in the barrel never reaches the calorimeter."""
_V0 = (310, 3122)
"""Of long-lived neutral hadrons a part of the energy is electromagnetic."""
_V0_SHARE = 0.3


@dataclass(frozen=True)
class Flow:
    """Particle-flow objects.

    Attributes:
        pt: GeV.
        eta: pseudorapidity.
        phi: azimuth.
        pdg: 211, 11, 13 with sign for tracks, 22 and 130 for what towers have left.
    """

    pt: np.ndarray
    eta: np.ndarray
    phi: np.ndarray
    pdg: np.ndarray

    def rows(self) -> np.ndarray:
        """(N, 5) px, py, pz, E and PDG number."""
        return np.stack(
            [
                self.pt * np.cos(self.phi), self.pt * np.sin(self.phi),
                self.pt * np.sinh(self.eta), self.pt * np.cosh(self.eta), self.pdg,
            ],
            1,
        )  # fmt: skip


def reconstruct(particles: np.ndarray, random: np.random.Generator) -> Flow:
    """Particle flow of (N, 6) px, py, pz, E, PDG number, three times the charge."""
    px, py, pz, energy, pdg, charge = particles.T
    pt = np.hypot(px, py)
    eta, phi = np.arcsinh(pz / np.maximum(pt, 1e-12)).clip(-20, 20), np.arctan2(py, px)
    code, charged = np.abs(pdg).astype(int), charge != 0
    visible = ~np.isin(code, (12, 14, 16)) & (np.abs(eta) < CALORIMETER)
    track = visible & charged & (np.abs(eta) < TRACKER)
    track &= random.random(len(pt)) < efficiency(pt, eta)
    spread = track_resolution(pt, eta)
    seen_pt = pt * np.exp(spread * random.standard_normal(len(pt)) - spread**2 / 2)
    curls = charged & (pt < CURLING) & (np.abs(eta) < 1.5)
    reaches = visible & (code != 13) & ~curls
    share = np.where(np.isin(code, (11, 22)), 1.0, np.where(np.isin(code, _V0), _V0_SHARE, 0.0))
    cell = _cell(eta, phi)
    cells, place = np.unique(cell[reaches], return_inverse=True)
    here = np.zeros(len(pt), np.int64)
    here[reaches] = place
    both = track & reaches
    neutral = []
    for part, hadronic in ((share, False), (1 - share, True)):
        truth = np.bincount(here[reaches], (energy * part)[reaches], len(cells))
        measured, error = _measured(truth, _centre(cells), random, hadronic)
        known = np.bincount(here[both], (seen_pt * np.cosh(eta) * part)[both], len(cells))
        left = measured - known
        neutral.append(np.where((left < (1.0 if hadronic else 0.5)) | (left < error), 0.0, left))
    tower_eta = (cells // 100 - 100 + random.random(len(cells))) * CELL_ETA
    tower_phi = -np.pi + (cells % 100 + random.random(len(cells))) * 2 * np.pi / CELLS_PHI
    name = np.where(np.isin(code, (11, 13)), code, 211) * np.sign(charge)
    columns = [(seen_pt[track], eta[track], phi[track], name[track])]
    for left, number in zip(neutral, (22, 130), strict=True):
        keep = left > 0
        transverse = left[keep] / np.cosh(tower_eta[keep])
        columns.append((transverse, tower_eta[keep], tower_phi[keep], np.full(keep.sum(), number)))
    return Flow(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def efficiency(pt: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """Probability that a charged particle leaves a track."""
    barrel = np.abs(eta) < 1.5
    hard = np.where(barrel, 0.95, 0.85)
    soft = np.where(barrel, 0.70, 0.60)
    found = np.where(pt < 0.1, 0.0, np.where(pt < 1, soft, hard))
    return np.where(np.abs(eta) < TRACKER, found, 0.0)


def track_resolution(pt: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """Relative resolution of a track's pT."""
    a = np.abs(eta)
    constant = np.where(a < 0.5, 0.01, np.where(a < 1.5, 0.015, 0.025))
    slope = np.where(a < 0.5, 1e-4, np.where(a < 1.5, 1.5e-4, 3.5e-4))
    return np.hypot(constant, slope * pt)


def tower_resolution(energy: np.ndarray, eta: np.ndarray, hadronic: bool) -> np.ndarray:
    """Of a tower's energy, GeV."""
    if hadronic:
        central = np.sqrt((0.05 * energy) ** 2 + 1.5**2 * energy)
        forward = np.sqrt((0.13 * energy) ** 2 + 2.7**2 * energy)
    else:
        central = np.sqrt((0.008 * energy) ** 2 + 0.11**2 * energy + 0.4**2)
        forward = np.sqrt((0.107 * energy) ** 2 + 2.08**2 * energy)
    return np.where(np.abs(eta) < ENDCAP, central, forward)


def _measured(
    truth: np.ndarray, eta: np.ndarray, random: np.random.Generator, hadronic: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Energies of towers, 0 where not significant, and their errors."""
    error = tower_resolution(truth, eta, hadronic)
    safe = np.maximum(truth, 1e-9)
    width = np.sqrt(np.log1p((error / safe) ** 2))
    drawn = safe * np.exp(width * random.standard_normal(len(truth)) - width**2 / 2)
    least, sigmas = (1.0, 1.0) if hadronic else (0.5, 2.0)
    seen = (truth > 0) & (drawn >= least) & (drawn >= sigmas * error)
    return np.where(seen, drawn, 0.0), error


def _cell(eta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Number of the tower."""
    ring = np.floor(eta / CELL_ETA).astype(np.int64) + 100
    sector = np.floor((phi + np.pi) / (2 * np.pi / CELLS_PHI)).astype(np.int64) % CELLS_PHI
    return ring * 100 + sector


def _centre(cells: np.ndarray) -> np.ndarray:
    """η of towers."""
    return (cells // 100 - 100 + 0.5) * CELL_ETA
