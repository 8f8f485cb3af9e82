r"""What users would pick instead, on the same interface: frozen showers, and parametrised ones.

`FrozenLibrary` is what experiments run: the training shower of the nearest energy, rescaled, and
turned at random. `Parametrised` is in the manner of GFlash (Grindhammer and Peters 1993,
arXiv:hep-ex/0001020): a gamma profile in depth with fluctuating parameters, a mean radial profile,
and Poisson-distributed spots of equal energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.cascade import rotated
from apps.hep_simulation.features import padded, unpadded
from apps.hep_simulation.geometry import Geometry
from core.random import rand

SPOT = 15.0
"""MeV of a spot: about what a particle that crosses a layer leaves."""


@dataclass(frozen=True)
class FrozenLibrary:
    """Training showers, played back.

    Attributes:
        showers: (N, V) MeV.
        energies: (N,) MeV.
        particles: (N,) PDG numbers.
        geometry: of them.
        turns: rotate and reflect at random.
    """

    showers: np.ndarray
    energies: np.ndarray
    particles: np.ndarray
    geometry: Geometry
    turns: bool = True

    def sample(
        self, energies: np.ndarray, particles: np.ndarray, streams: Sequence[torch.Generator]
    ) -> np.ndarray:
        """Showers (N, V) for conditions (N,)."""
        rows = [self._nearest(e, p) for e, p in zip(energies, particles, strict=True)]
        drawn = self.showers[rows] * (energies / self.energies[rows])[:, None].astype(np.float32)
        if not self.turns:
            return drawn
        full = torch.from_numpy(padded(drawn, self.geometry))
        u = rand((len(full), 2), list(streams))
        return unpadded(
            rotated(full, (u[:, 0] * full.shape[2]).long(), u[:, 1] < 0.5).numpy(), self.geometry
        )

    def _nearest(self, energy: float, particle: int) -> int:
        mine = np.flatnonzero(self.particles == particle)
        return int(mine[np.abs(np.log(self.energies[mine] / energy)).argmin()])


@dataclass(frozen=True)
class Parametrised:
    """A GFlash-like simulation, fitted to training showers.

    Attributes:
        geometry: uniform.
        particles: (P,) PDG numbers.
        moments: (P, 3, 2) coefficients in ln E of the means of (response, ln shape, ln rate).
        spread: (P, 3, 3) Cholesky factor of their covariance, of showers of the mean energy.
        radial: (L, R) mean share of each ring.
        middle: ln E that is 0 in the fits.
    """

    geometry: Geometry
    particles: tuple[int, ...]
    moments: np.ndarray
    spread: np.ndarray
    radial: np.ndarray
    middle: float

    @classmethod
    def fit(
        cls, showers: np.ndarray, energies: np.ndarray, particles: np.ndarray, geometry: Geometry
    ) -> Parametrised:
        """By moments."""
        full = padded(showers, geometry).sum(2, dtype=np.float64)  # (N, L, R)
        layers = full.sum(2)
        place = np.arange(layers.shape[1]) + 0.5
        safe = np.maximum(layers.sum(1), 1e-6)
        depth = layers @ place / safe
        variance = np.maximum(layers @ place**2 / safe - depth**2, 0.25)
        facts = np.stack([layers.sum(1) / energies, np.log(depth**2 / variance),
                          np.log(depth / variance)], 1)  # fmt: skip
        middle = float(np.log(energies).mean())
        t = np.log(energies) - middle
        powers = np.stack([np.ones_like(t), t], 1)
        known = tuple(int(p) for p in np.unique(particles))
        moments, spread = [], []
        for p in known:
            mine = particles == p
            fitted = np.linalg.lstsq(powers[mine], facts[mine], rcond=None)[0]
            # fluctuations fall as 1/√E
            away = (facts[mine] - powers[mine] @ fitted) * np.exp(0.5 * t[mine])[:, None]
            moments.append(fitted)
            spread.append(np.linalg.cholesky(np.cov(away.T) + 1e-9 * np.eye(3)))
        rings = full.sum(0) + 1e-6
        return cls(geometry, known, np.stack(moments), np.stack(spread),
                   rings / rings.sum(1, keepdims=True), middle)  # fmt: skip

    def sample(
        self, energies: np.ndarray, particles: np.ndarray, streams: Sequence[torch.Generator]
    ) -> np.ndarray:
        """Showers (N, V) for conditions (N,)."""
        rows = [
            self._one(e, self.particles.index(int(p)), g)
            for e, p, g in zip(energies, particles, streams, strict=True)
        ]
        return unpadded(torch.stack(rows).numpy(), self.geometry)

    def _one(self, energy: float, which: int, stream: torch.Generator) -> Tensor:
        from scipy.stats import gamma

        t = np.log(energy) - self.middle
        noise = torch.randn(3, generator=stream).double().numpy() * np.exp(-0.5 * t)
        response, shape, rate = (
            np.array([1.0, t]) @ self.moments[which] + self.spread[which] @ noise
        )
        edges = np.arange(len(self.radial) + 1)
        law = gamma(np.exp(shape), scale=np.exp(-rate))
        profile = np.diff(law.cdf(edges)) / max(law.cdf(edges[-1]), 1e-9)
        layers = max(response, 0.05) * energy * profile
        sectors = self.geometry.sectors
        mean = torch.from_numpy(layers[:, None] * self.radial / sectors / SPOT)
        spots = torch.poisson(mean[:, None].expand(-1, sectors, -1).contiguous(), generator=stream)
        found = spots.sum((1, 2), keepdim=True)
        wanted = torch.from_numpy(layers)[:, None, None]
        return torch.where(found > 0, spots * wanted / found.clamp(min=1), 0.0).float()
