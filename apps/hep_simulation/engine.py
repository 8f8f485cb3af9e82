"""What turns conditions into showers: a trained model, or the real simulation. One interface."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from apps.hep_simulation.geometry import Geometry
from core.random import Generators


class Engine(Protocol):
    """Simulates showers.

    Attributes:
        geometry: of its showers.
        particles: PDG numbers it knows.
        threshold: least energy of a voxel, MeV.
        fingerprint: names it; another engine has another one.
    """

    geometry: Geometry
    particles: tuple[int, ...]
    threshold: float
    fingerprint: str

    def outside(self, energies: np.ndarray, particles: np.ndarray) -> np.ndarray:
        """(N,) whether conditions are outside of what it may be trusted with."""
        ...

    def reach(self) -> str:
        """What it may be trusted with, in words."""
        ...

    def sample(
        self,
        energies: np.ndarray,
        particles: np.ndarray,
        generator: Generators,
        steps: int | None = None,
    ) -> np.ndarray:
        """Showers (N, V) in MeV of energies (N,) in MeV and PDG numbers (N,), a stream each."""
        ...

    def certificate(self) -> dict[str, Any]:
        """What a file of its showers says about it: attributes of HDF5."""
        ...
