r"""A sampling calorimeter as Geant4 builds it, and how its steps become voxels.

    (absorber, sensor) x repeats x layers along z;   voxel energy = calibration * Σ sensor energy

The particle enters at the origin along z. The layout is that of the Par04 example of Geant4, which
CaloChallenge's data sets 2 and 3 were made with (arXiv:2410.21611).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.geometry import Geometry
from core.errors import AleatorError
from core.settings import read_settings


@dataclass(frozen=True)
class Detector:
    """What stands in the beam.

    Attributes:
        absorber: material of Geant4's NIST table, e.g. "G4_W".
        absorber_mm: thickness of one absorber.
        sensor: likewise, e.g. "G4_Si"; energy is collected here.
        sensor_mm: thickness of one sensor.
        repeats: pairs of absorber and sensor that are read out as one layer.
        calibration: from energy in the sensors to measured energy, 1 / sampling fraction.
        threshold_mev: voxels below it, after calibration, are empty.
        cut_mm: range cut of secondaries.
    """

    absorber: str = "G4_W"
    absorber_mm: float = 1.4
    sensor: str = "G4_Si"
    sensor_mm: float = 0.3
    repeats: int = 2
    calibration: float = 43.2
    threshold_mev: float = 0.01515
    cut_mm: float = 0.7

    def __post_init__(self) -> None:
        for name in ("absorber", "sensor"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise AleatorError(f"detector: {name} is not the name of a material")
        for name in ("absorber_mm", "sensor_mm", "calibration", "cut_mm", "threshold_mev"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise AleatorError(f"detector: {name}={value!r} is not a positive number")
            if value == 0 and name != "threshold_mev":
                raise AleatorError(f"detector: {name}=0; it must be positive")
        if not isinstance(self.repeats, int) or self.repeats < 1:
            raise AleatorError(f"detector: repeats={self.repeats!r}; at least 1 is needed")

    @property
    def pitch(self) -> float:
        """Length of one pair, mm."""
        return self.absorber_mm + self.sensor_mm

    def fingerprint(self, geometry: Geometry) -> str:
        """Names detector and read-out."""
        both = {"detector": asdict(self), "geometry": geometry.to_dict()}
        return hashlib.sha256(json.dumps(both, sort_keys=True).encode()).hexdigest()[:16]


PAR04 = Detector()
"""Of the bundled showers: 90 x (1.4 mm W + 0.3 mm Si)."""


def read_detector(source: str) -> Detector:
    """The detector named "par04", or of a JSON file.

    Raises:
        AleatorError: no such file, not JSON, an unknown or impossible value.
    """
    if source == "par04":
        return PAR04
    if not Path(source).exists():
        raise AleatorError(f"--oracle {source}: neither `par04` nor a JSON file of a detector")
    return parse_detector(read_settings(Path(source), {}), source)


def parse_detector(values: Mapping[str, Any], where: str) -> Detector:
    """A detector from a mapping; what is not given is as in `PAR04`."""
    known = [field.name for field in dataclasses.fields(Detector)]
    if unknown := set(values) - set(known):
        raise AleatorError(f"{where}: no value {min(unknown)!r}; known: {', '.join(known)}")
    return Detector(**values)


def voxelise(steps: np.ndarray, detector: Detector, geometry: Geometry) -> np.ndarray:
    """Deposited energy in each voxel, (V,) MeV, calibrated and above threshold.

    Args:
        steps: (S, 4) energy in MeV, then x, y, z in mm, of the middle of each step.
        detector: says which z belongs to which layer.
        geometry: rings and sectors of each layer; energy outside of all rings is lost.
    """
    energy, x, y, z = np.asarray(steps, np.float64).reshape(-1, 4).T
    depth = np.floor(z / (detector.repeats * detector.pitch)).astype(int)
    depth = depth.clip(0, len(geometry.layers) - 1)
    radius, turn = np.hypot(x, y), (np.arctan2(y, x) + math.pi) / (2 * math.pi)
    found = np.zeros(geometry.voxels)
    place = {id(layer): index for index, layer in enumerate(geometry.active)}
    for number, layer in enumerate(geometry.layers):
        if id(layer) not in place:
            continue
        ring = np.searchsorted(layer.r_edges, radius, side="right") - 1
        here = (depth == number) & (ring >= 0) & (ring < layer.rings)
        sector = np.floor(turn[here] * layer.sectors).astype(int) % layer.sectors
        start, stop = geometry.edges[place[id(layer)] :][:2]
        voxel = sector * layer.rings + ring[here]
        found[start:stop] = np.bincount(voxel, energy[here], minlength=layer.voxels)
    found *= detector.calibration
    return np.where(found >= detector.threshold_mev, found, 0.0)
