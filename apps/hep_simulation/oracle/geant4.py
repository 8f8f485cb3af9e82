r"""Geant4 itself, behind the interface of the learned simulators.

    Simulator(Geant4(PAR04, geometry)).simulate(Listed(energies, pdg), seed=1)     # (N, V), MeV

Electromagnetic physics (`G4EmStandardPhysics_option1`) by geant4-pybind (extra `simulate`). Event
i takes its seed from its own stream, so that it is the same whatever was simulated before it.
Geant4 can be set up once in a process: a second detector needs a second process.
Agostinelli et al. (2003), doi:10.1016/S0168-9002(03)01368-8.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from apps.hep_simulation.geometry import Geometry
from apps.hep_simulation.oracle.detector import Detector, voxelise
from core.errors import AleatorError
from core.random import Generators, Stream

PARTICLES: tuple[int, ...] = (11, 22)
"""PDG numbers that the physics list was checked with."""
DATA = ("GEANT4_DATA_DIR", "G4LEDATA")
WORLD_MM = 1000.0
SIDE_MM = 500.0


class Geant4:
    """The full simulation of one detector.

    Attributes:
        geometry: of its showers.
        particles: PDG numbers it knows.
        threshold: least energy of a voxel, MeV.
        fingerprint: names detector and read-out.
        detector: what stands in the beam.
    """

    _running: ClassVar[tuple[str, _Run] | None] = None

    def __init__(self, detector: Detector, geometry: Geometry) -> None:
        """Set up Geant4, or take what this process has set up.

        Raises:
            AleatorError: geant4-pybind is missing, its data are not there, an unknown material,
                layers longer than the world, or another detector was set up before.
        """
        self.detector, self.geometry = detector, geometry
        self.particles, self.threshold = PARTICLES, detector.threshold_mev
        self.fingerprint = detector.fingerprint(geometry)
        if Geant4._running is None:
            Geant4._running = (self.fingerprint, _Run(detector, len(geometry.layers)))
        elif Geant4._running[0] != self.fingerprint:
            raise AleatorError(
                "Geant4 can be set up for one detector only in a process; start another one"
            )
        self._run = Geant4._running[1]

    def outside(self, energies: np.ndarray, particles: np.ndarray) -> np.ndarray:
        """(N,) whether particles are others than electrons and photons."""
        return ~np.isin(particles, self.particles)

    def reach(self) -> str:
        """In words."""
        return "any energy and electron, photon (electromagnetic physics only)"

    def sample(
        self,
        energies: np.ndarray,
        particles: np.ndarray,
        generator: Generators,
        steps: int | None = None,
    ) -> np.ndarray:
        """Simulate showers (N, V), MeV.

        Args:
            energies: (N,) MeV.
            particles: (N,) PDG numbers.
            generator: one stream, or one a shower.
            steps: must be None: Geant4 decides on its steps.

        Raises:
            AleatorError: steps were asked for, or a particle that the physics does not cover.
        """
        if steps is not None:
            raise AleatorError("--steps: the oracle has none of that kind; leave it out")
        if (strange := self.outside(energies, particles)).any():
            number = int(np.asarray(particles)[strange][0])
            raise AleatorError(f"particle {number}: the oracle knows {self.reach()}")
        showers = np.zeros((len(energies), self.geometry.voxels), np.float32)
        streams = _streams(generator, len(energies))
        for row, (energy, particle) in enumerate(zip(energies, particles, strict=True)):
            hits = self._run.event(float(energy), int(particle), _seed(streams[row]))
            showers[row] = voxelise(hits, self.detector, self.geometry)
        return showers

    def certificate(self) -> dict[str, Any]:
        """Attributes of its files."""
        return {
            "generator": f"Geant4 {self._run.version}, G4EmStandardPhysics_option1",
            "model": self.fingerprint,
            "absorber": f"{self.detector.absorber_mm:g} mm {self.detector.absorber}",
            "sensor": f"{self.detector.sensor_mm:g} mm {self.detector.sensor}",
            "calibration": self.detector.calibration,
        }


def _streams(generator: Generators, count: int) -> Sequence[Stream]:
    return [generator] * count if isinstance(generator, torch.Generator) else generator


def _seed(stream: Stream) -> int:
    if not isinstance(stream, torch.Generator):
        raise AleatorError("the oracle takes plain streams, not blends of them")
    return int(torch.randint(1, 2**31 - 2, (), generator=stream))


def _geant4() -> Any:
    """The library; it must not fetch its data by itself."""
    if not any(os.environ.get(name) for name in DATA):
        raise AleatorError(
            "Geant4's data sets: set GEANT4_DATA_DIR to the folder that holds them "
            "(G4EMLOW is needed; geant4.web.cern.ch/download)"
        )
    try:
        import geant4_pybind
    except ImportError:
        raise AleatorError(
            "the oracle needs geant4-pybind: pip install 'aleator[simulate]'"
        ) from None
    return geant4_pybind


class _Run:
    """A run manager that is set up, one event at a time."""

    def __init__(self, detector: Detector, layers: int) -> None:
        g4 = _geant4()
        pairs = detector.repeats * layers
        if pairs * detector.pitch > WORLD_MM / 2:
            raise AleatorError(
                f"detector: {pairs} pairs of {detector.pitch:g} mm are longer than the "
                f"{WORLD_MM / 2:g} mm of the world"
            )
        self.g4, self.version = g4, _version(g4)
        self.sensitive: Any = None
        self.gun: Any = None
        self.kept: list[Any] = []  # Geant4 does not own what Python made
        materials = g4.G4NistManager.Instance()
        for name in (detector.absorber, detector.sensor):
            if materials.FindOrBuildMaterial(name) is None:
                raise AleatorError(f"detector: Geant4's NIST table has no material {name!r}")
        self.manager = g4.G4RunManagerFactory.CreateRunManager(g4.G4RunManagerType.Serial)
        self._initialise(detector, pairs)
        self.table = g4.G4ParticleTable.GetParticleTable()

    def _initialise(self, detector: Detector, pairs: int) -> None:
        parts = (self._construction(detector, pairs), self._physics(detector), self._actions())
        self.kept += parts
        for part in parts:
            self.manager.SetUserInitialization(part)
        commands = self.g4.G4UImanager.GetUIpointer()
        for quiet in ("run", "process", "process/em", "control"):
            commands.ApplyCommand(f"/{quiet}/verbose 0")
        commands.ApplyCommand("/process/em/LivermoreData epics_2017")
        self.manager.Initialize()

    def event(self, energy: float, particle: int, seed: int) -> np.ndarray:
        """Steps (S, 4) of one event: energy in MeV, then x, y, z in mm of its middle."""
        self.g4.G4Random.setTheSeed(seed)
        self.gun.SetParticleDefinition(self.table.FindParticle(particle))
        self.gun.SetParticleEnergy(energy)
        self.manager.BeamOn(1)
        return np.asarray(self.sensitive.steps, np.float64).reshape(-1, 4)

    def _construction(self, detector: Detector, pairs: int) -> Any:
        g4, run = self.g4, self

        class Sensitive(g4.G4VSensitiveDetector):  # type: ignore[name-defined]
            """Collects the steps of one event."""

            def __init__(self) -> None:
                super().__init__("sensor")
                self.steps: list[tuple[float, float, float, float]] = []

            def Initialize(self, _: Any) -> None:
                self.steps = []

            def ProcessHits(self, step: Any, _: Any) -> bool:
                energy = step.GetTotalEnergyDeposit()
                if energy > 0:
                    a = step.GetPreStepPoint().GetPosition()
                    b = step.GetPostStepPoint().GetPosition()
                    middle = ((a.x + b.x) / 2, (a.y + b.y) / 2, (a.z + b.z) / 2)
                    self.steps.append((energy, *middle))
                return True

        class Construction(g4.G4VUserDetectorConstruction):  # type: ignore[name-defined]
            """Plates along z, in nothing."""

            def Construct(self) -> Any:
                materials = g4.G4NistManager.Instance()
                thin = 1e-22 * g4.g / g4.cm3
                nothing = g4.G4Material("nothing", 14.0, 28.085 * g4.g / g4.mole, thin)
                box = g4.G4Box("world", WORLD_MM / 2, WORLD_MM / 2, WORLD_MM / 2)
                world = g4.G4LogicalVolume(box, nothing, "world")
                placed = _place(g4, 0.0, world, "world", None, 0)
                run.kept += [nothing, box, world, placed]
                self.sensors = []
                for pair in range(pairs):
                    edge = pair * detector.pitch
                    for name, kind, thick, start in (
                        ("absorber", detector.absorber, detector.absorber_mm, edge),
                        (
                            "sensor",
                            detector.sensor,
                            detector.sensor_mm,
                            edge + detector.absorber_mm,
                        ),
                    ):
                        box = g4.G4Box(name, SIDE_MM / 2, SIDE_MM / 2, thick / 2)
                        material = materials.FindOrBuildMaterial(kind)
                        volume = g4.G4LogicalVolume(box, material, name)
                        run.kept += [box, volume]
                        run.kept += [_place(g4, start + thick / 2, volume, name, world, pair)]
                        if name == "sensor":
                            self.sensors.append(volume)
                return placed

            def ConstructSDandField(self) -> None:
                run.sensitive = Sensitive()
                g4.G4SDManager.GetSDMpointer().AddNewDetector(run.sensitive)
                for volume in self.sensors:
                    volume.SetSensitiveDetector(run.sensitive)

        return Construction()

    def _physics(self, detector: Detector) -> Any:
        g4 = self.g4

        class Physics(g4.G4VModularPhysicsList):  # type: ignore[name-defined]
            """Electromagnetic."""

            def __init__(self) -> None:
                super().__init__()
                self.SetVerboseLevel(0)
                self.SetDefaultCutValue(detector.cut_mm * g4.mm)
                self.RegisterPhysics(g4.G4EmStandardPhysics_option1())

        return Physics()

    def _actions(self) -> Any:
        g4, run = self.g4, self

        class Gun(g4.G4VUserPrimaryGeneratorAction):  # type: ignore[name-defined]
            """One particle along z, from just before the first plate."""

            def __init__(self) -> None:
                super().__init__()
                run.gun = g4.G4ParticleGun(1)
                run.gun.SetParticlePosition(g4.G4ThreeVector(0, 0, -1))
                run.gun.SetParticleMomentumDirection(g4.G4ThreeVector(0, 0, 1))

            def GeneratePrimaries(self, event: Any) -> None:
                run.gun.GeneratePrimaryVertex(event)

        class Actions(g4.G4VUserActionInitialization):  # type: ignore[name-defined]
            """The gun alone."""

            def Build(self) -> None:
                self.SetUserAction(Gun())

        return Actions()


def _place(g4: Any, z: float, volume: Any, name: str, mother: Any, copy: int) -> Any:
    where = g4.G4ThreeVector(0, 0, z)
    return g4.G4PVPlacement(None, where, volume, name, mother, False, copy, False)


def _version(g4: Any) -> str:
    number = int(g4.G4VERSION_NUMBER) if hasattr(g4, "G4VERSION_NUMBER") else 0
    return f"{number // 100}.{number // 10 % 10}.{number % 10}" if number else "11"
