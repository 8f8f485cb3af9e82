r"""What a shower is simulated for: incident energy and particle, drawn or read, event by event.

Event i draws its energy and particle from a stream keyed by (seed, i), so that any part of a job
can be computed anywhere and in any order.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from apps.hep_simulation.data import check_energies, read_conditions
from apps.hep_simulation.particles import particle_number
from core.errors import AleatorError
from core.random import keyed_generator

GEV = 1000.0
"""MeV."""
DRAW = 0
"""Last part of the key of the streams that draw conditions; showers have 1."""


@dataclass(frozen=True)
class Spectrum:
    """Energies to draw.

    Attributes:
        low: MeV.
        high: MeV.
        logarithmic: uniform in ln E, else in E.
        particles: PDG numbers, equally likely.
        count: N.
    """

    low: float
    high: float
    logarithmic: bool
    particles: tuple[int, ...]
    count: int

    def read(self, seed: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Energies in MeV and PDG numbers of events start..stop."""
        rows = [
            torch.rand(2, generator=keyed_generator(seed, i, DRAW), dtype=torch.float64)
            for i in range(start, stop)
        ]
        u = torch.stack(rows).numpy() if rows else np.zeros((0, 2))
        if self.logarithmic:
            energies = np.exp(np.log(self.low) + u[:, 0] * np.log(self.high / self.low))
        else:
            energies = self.low + u[:, 0] * (self.high - self.low)
        which = (u[:, 1] * len(self.particles)).astype(int)
        return energies, np.asarray(self.particles)[which]

    def key(self) -> str:
        """Names the conditions."""
        return repr(self)


@dataclass(frozen=True, eq=False)
class Listed:
    """Conditions that are given.

    Attributes:
        energies: (N,) MeV.
        particles: (N,) PDG numbers.
    """

    energies: np.ndarray
    particles: np.ndarray

    def __post_init__(self) -> None:
        check_energies(np.asarray(self.energies, np.float64), "conditions: energies")
        if np.shape(self.energies) != np.shape(self.particles) or np.ndim(self.energies) != 1:
            raise AleatorError(
                f"conditions: {np.shape(self.energies)} energies and {np.shape(self.particles)} "
                "particles; one of each a shower is needed"
            )

    @property
    def count(self) -> int:
        """N."""
        return len(self.energies)

    def read(self, seed: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Energies and PDG numbers of events start..stop."""
        return (
            np.asarray(self.energies[start:stop], np.float64),
            np.asarray(self.particles[start:stop]),
        )

    def key(self) -> str:
        """Names the conditions."""
        digest = hashlib.sha256(np.ascontiguousarray(self.energies, np.float64).tobytes())
        digest.update(np.ascontiguousarray(self.particles, np.int64).tobytes())
        return digest.hexdigest()[:16]


Conditions = Spectrum | Listed


def parse_spectrum(text: str, particles: str | None, count: int) -> Spectrum:
    """Read what a user wrote.

    Args:
        text: "LOW:HIGH:log", "LOW:HIGH" or "ENERGY", in GeV.
        particles: PDG numbers or names, comma-separated; equally likely; None for all
            that the model knows.
        count: N ≥ 1.

    Raises:
        AleatorError: not of this form, energies not positive, or no shower asked for.
    """
    parts = text.split(":")
    expected = f"--energies {text}: expected LOW:HIGH:log, LOW:HIGH or one energy, in GeV"
    if len(parts) > 3 or (len(parts) == 3 and parts[2] not in ("log", "lin")):
        raise AleatorError(expected)
    try:
        edges = [float(part) for part in parts[:2]]
    except ValueError:
        raise AleatorError(expected) from None
    low, high = edges[0], edges[-1]
    if not (math.isfinite(low) and math.isfinite(high) and 0 < low <= high):
        raise AleatorError(f"--energies {text}: energies must be positive, the lower one first")
    if count < 1:
        raise AleatorError(f"-n {count}: at least one shower is needed")
    words = particles.split(",") if particles else []
    numbers = tuple(particle_number(word.strip()) for word in words)
    return Spectrum(low * GEV, high * GEV, parts[-1] == "log", numbers, count)


def listed(path: Path | str, particle: str | None) -> Listed:
    """Conditions from an HDF5 file."""
    number = None if particle is None else particle_number(particle)
    return Listed(*read_conditions(path, number))
