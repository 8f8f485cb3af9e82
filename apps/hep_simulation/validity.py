r"""Is this what the model was trained on? Of conditions, of single showers, and of whole files.

Conditions are outside where the energy is beyond the training range or the particle is new.
Showers are compared by a few summaries s(x) (response, depth, length, radius, number of hits)
with what the training showers of that energy had:

    d² = (s - m(E, p))ᵀ Σ⁻¹ (s - m(E, p)),   summaries scaled by their spread at E

A shower is flagged above the quantile of held-out showers that gives the stated false alarms. For
a file, the mean of N such deviations is far more telling: N d̄ᵀ Σ⁻¹ d̄ is χ² distributed if all
is well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from apps.hep_simulation.features import BLOCK
from apps.hep_simulation.geometry import Geometry
from core.errors import AleatorError

FALSE_ALARMS = 0.01
TOLERANCE = 5e-3
"""Relative slack of the energy range: the training energies are a sample of it."""
SUMMARIES = ("response", "depth", "length", "radius", "hits", "core")


def outside(
    energies: np.ndarray,
    particles: np.ndarray,
    energy_range: tuple[float, float],
    known: Sequence[int],
) -> np.ndarray:
    """(N,) whether a condition is beyond the training range, or of a particle not trained on."""
    low, high = energy_range
    beyond = (energies < low * (1 - TOLERANCE)) | (energies > high * (1 + TOLERANCE))
    return beyond | ~np.isin(particles, list(known))


def summaries(showers: np.ndarray, energies: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(N, 6) of showers (N, V): see `SUMMARIES`."""
    blocks = [
        _summaries(showers[i : i + BLOCK].astype(np.float64), energies[i : i + BLOCK], geometry)
        for i in range(0, len(showers), BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.zeros((0, len(SUMMARIES)))


def _summaries(showers: np.ndarray, energies: np.ndarray, geometry: Geometry) -> np.ndarray:
    layers = np.add.reduceat(showers, geometry.edges[:-1], axis=1)
    total = showers.sum(1)
    safe = np.maximum(total, 1e-6)
    place = np.arange(layers.shape[1])
    depth = layers @ place / safe
    length = np.sqrt(np.maximum(layers @ place**2 / safe - depth**2, 0))
    radius = showers @ geometry.radii / safe
    hits = np.log1p((showers > 0).sum(1))
    core = np.log(np.maximum(showers.max(1), 1e-6) / safe)
    response = np.log(safe / energies)
    return np.stack([response, depth, length, np.log(radius + 0.1), hits, core], 1)


@dataclass(frozen=True)
class Validity:
    """What training showers look like.

    Attributes:
        particles: PDG numbers.
        mean: (P, 3, 6) coefficients in ln E of the mean of each summary, for each particle.
        log_scale: (P, 2, 6) coefficients of the logarithm of its spread.
        precision: (6, 6) of the scaled deviations.
        bound: of d², exceeded by `FALSE_ALARMS` of held-out showers.
        middle: ln E that is 0 in the fits.
        bias: (6,) mean scaled deviation of held-out showers.
    """

    particles: tuple[int, ...]
    mean: np.ndarray
    log_scale: np.ndarray
    precision: np.ndarray
    bound: float
    middle: float
    bias: np.ndarray

    def deviations(
        self, showers: np.ndarray, energies: np.ndarray, particles: np.ndarray, geometry: Geometry
    ) -> np.ndarray:
        """(N, 6) scaled deviations."""
        found = summaries(showers, energies, geometry)
        return self._scaled(found, energies, particles) - self.bias

    def _scaled(
        self, found: np.ndarray, energies: np.ndarray, particles: np.ndarray
    ) -> np.ndarray:
        t = np.log(energies) - self.middle
        which = np.array([_index(self.particles, p) for p in particles], int)
        powers = np.stack([np.ones_like(t), t, t**2], 1)
        mean = np.einsum("nk,nkf->nf", powers, self.mean[which])
        scale = np.exp(np.einsum("nk,nkf->nf", powers[:, :2], self.log_scale[which]))
        return (found - mean) / scale

    def distances(self, deviations: np.ndarray) -> np.ndarray:
        """(N,) d²."""
        return np.einsum("nf,fg,ng->n", deviations, self.precision, deviations)

    def flags(self, deviations: np.ndarray) -> np.ndarray:
        """(N,) whether each shower is unlike the training showers."""
        return self.distances(deviations) > self.bound

    def p_value(self, deviations: np.ndarray) -> float:
        """Probability of a file's mean deviation if its showers were like the training showers."""
        from scipy.stats import chi2

        mean = deviations.mean(0)
        statistic = len(deviations) * mean @ self.precision @ mean
        return float(chi2.sf(statistic, len(mean)))


def fit_validity(
    train: tuple[np.ndarray, np.ndarray, np.ndarray],
    held: tuple[np.ndarray, np.ndarray, np.ndarray],
    geometry: Geometry,
) -> Validity:
    """Fit to showers, energies and particles of training; the bound comes from held-out ones.

    Raises:
        AleatorError: fewer than thirty training showers of a particle.
    """
    showers, energies, particles = train
    known = tuple(int(p) for p in np.unique(particles))
    found = summaries(showers, energies, geometry)
    t = np.log(energies)
    middle = float(t.mean())
    t = t - middle
    powers = np.stack([np.ones_like(t), t, t**2], 1)
    means, scales = [], []
    for p in known:
        mine = particles == p
        if mine.sum() < 30:
            raise AleatorError(f"{mine.sum()} showers of particle {p}; at least 30 are needed")
        mean = np.linalg.lstsq(powers[mine], found[mine], rcond=None)[0]
        away = np.abs(found[mine] - powers[mine] @ mean)
        # E ln|z| = -0.635 for a normal deviate z
        logs = np.log(np.maximum(away, 1e-6)) + 0.635
        means.append(mean)
        scales.append(np.linalg.lstsq(powers[mine, :2], logs, rcond=None)[0])
    blank = Validity(known, np.stack(means), np.stack(scales), np.eye(6), 0.0, middle, np.zeros(6))
    own = blank._scaled(found, energies, particles)
    precision = np.linalg.inv(np.cov(own.T) + 1e-6 * np.eye(6))
    kept = Validity(
        *(known, blank.mean, blank.log_scale, precision, 0.0, middle), bias=own.mean(0)
    )
    distances = np.sort(kept.distances(kept.deviations(*held, geometry)))
    rank = min(int(np.ceil((1 - FALSE_ALARMS) * (len(distances) + 1))) - 1, len(distances) - 1)
    return Validity(
        known, kept.mean, kept.log_scale, precision, float(distances[rank]), middle, kept.bias
    )


def _index(known: Sequence[int], particle: int) -> int:
    """Place of a particle; the first one's stands in for those that are not known."""
    return list(known).index(particle) if particle in known else 0
