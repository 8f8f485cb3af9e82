r"""Simulation: conditions in, showers out, in memory or streamed to a file.

Shower i is drawn from a stream keyed by (seed, i) alone: it is the same in whatever batch, chunk
or sitting it is computed, and whichever other showers are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.hep_simulation.conditions import Conditions, Listed, Spectrum
from apps.hep_simulation.engine import Engine
from apps.hep_simulation.geometry import Geometry, read_geometry
from apps.hep_simulation.model import ShowerModel
from apps.hep_simulation.oracle.detector import read_detector
from apps.hep_simulation.output import Writer
from apps.hep_simulation.particles import particle_name
from core.errors import AleatorError
from core.progress import progress_bar
from core.random import keyed_generator

SHOWER = 1
"""Last part of the key of the streams that draw showers; conditions have 0."""
BATCH = 100
CHUNK = 2000
"""Showers a part file: what a stopped run loses at most."""
ORACLE_CHUNK = 50
"""Likewise of the full simulation, which takes a tenth of a second each."""
Say = Callable[[object], None]


@dataclass(frozen=True)
class Simulator:
    """Conditions in, showers out.

    Attributes:
        model: a trained model, or the real simulation.
    """

    model: Engine

    @classmethod
    def load(cls, folder: Path | str | None = None) -> Simulator:
        """Read a trained model; the bundled one if no folder is given."""
        return cls(ShowerModel.load(bundled("shower_model") if folder is None else folder))

    @classmethod
    def oracle(cls, detector: str = "par04", geometry: Geometry | None = None) -> Simulator:
        """Geant4 of a detector (a JSON file, or "par04"), read out as a binning says.

        Raises:
            AleatorError: as `read_detector`, or Geant4 cannot be set up.
        """
        from apps.hep_simulation.oracle.geant4 import Geant4

        known = read_geometry(bundled("binning.xml")) if geometry is None else geometry
        return cls(Geant4(read_detector(detector), known))

    def simulate(
        self,
        conditions: Conditions,
        *,
        seed: int = 0,
        batch: int = BATCH,
        steps: int | None = None,
        strict: bool = False,
    ) -> np.ndarray:
        """Showers (N, V) in MeV.

        Args:
            conditions: `Listed(energies in MeV, PDG numbers)`, or a `Spectrum`.
            seed: of everything random.
            batch: showers computed together; the showers do not depend on it.
            steps: evaluations, for families that sample by steps.
            strict: refuse conditions outside of training, instead of simulating them anyway.

        Raises:
            AleatorError: options out of range, or (strict) conditions outside of training.
        """
        parts = list(self.blocks(conditions, 0, conditions.count, seed, batch, steps, strict))
        return np.concatenate([showers for *_, showers in parts])

    def blocks(
        self,
        conditions: Conditions,
        start: int,
        stop: int,
        seed: int,
        batch: int = BATCH,
        steps: int | None = None,
        strict: bool = False,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Energies, particles, flags (B,) and showers (B, V) of events start..stop in batches."""
        if batch < 1:
            raise AleatorError(f"batch {batch}: at least 1 is needed")
        for first in range(start, stop, batch):
            last = min(first + batch, stop)
            energies, particles = conditions.read(seed, first, last)
            flags = self.model.outside(energies, particles)
            if strict and flags.any():
                raise AleatorError(self.refusal(energies, particles, flags, first))
            streams = [keyed_generator(seed, i, SHOWER) for i in range(first, last)]
            yield (
                energies,
                particles,
                flags,
                self.model.sample(energies, particles, streams, steps),
            )

    def refusal(
        self, energies: np.ndarray, particles: np.ndarray, flags: np.ndarray, first: int = 0
    ) -> str:
        """Says which condition is outside of training."""
        row = int(np.flatnonzero(flags)[0])
        return (
            f"shower {first + row}: {energies[row] / 1000:g} GeV, "
            f"{particle_name(int(particles[row]))}; the model knows {self.model.reach()}"
        )


def bundled(name: str) -> Path:
    """A file or folder that comes with the program."""
    return Path(str(files("apps.hep_simulation"))) / "samples" / name


@dataclass(frozen=True)
class Request:
    """A job of `simulate`.

    Attributes:
        conditions: of the showers.
        output: file to write.
        model: folder of a model; the bundled one if None.
        oracle: a detector: Geant4 instead of a model.
        geometry: how the oracle is read out; the bundled binning if None.
        seed: of everything random.
        steps: evaluations, for families that sample by steps.
        batch: showers computed together.
        strict: refuse conditions outside of training.
        overwrite: replace an output that is there.
    """

    conditions: Conditions
    output: Path
    model: Path | None = None
    oracle: str | None = None
    geometry: Geometry | None = None
    seed: int = 0
    steps: int | None = None
    batch: int = BATCH
    strict: bool = False
    overwrite: bool = False


def run(request: Request, *, say: Say = print) -> Path:
    """Simulate to a file; a run that was stopped goes on.

    Raises:
        AleatorError: bad options, the output exists, or (strict) conditions outside of training.
    """
    torch.set_num_threads(1)  # operations are small: threads cost more than they give
    simulator = _simulator(request)
    model, conditions = simulator.model, settled(request.conditions, simulator.model)
    request = replace(request, conditions=conditions)
    count, voxels = conditions.count, model.geometry.voxels
    if request.strict:  # before anything is written
        _refuse(simulator, conditions, request.seed)
    job = {
        "model": model.fingerprint,
        "seed": request.seed,
        "steps": request.steps,
        "conditions": conditions.key(),
        "showers": count,
    }
    writer = Writer(request.output, job, overwrite=request.overwrite)

    def make(start: int, stop: int) -> Any:
        options = (request.seed, request.batch, request.steps)
        blocks = list(simulator.blocks(conditions, start, stop, *options))
        return tuple(np.concatenate(column) for column in zip(*blocks, strict=True))

    made, begun = 0, time.process_time()
    with progress_bar(count, "showers") as advance:
        for done, new in writer.run(count, _chunk(request), make):
            advance(done)
            made += new
    spent = time.process_time() - begun
    flagged = writer.flagged()
    writer.finish(count, voxels, attributes(model, request, flagged))
    pace = f", {1000 * spent / made:.3g} ms of CPU each" if made else ""
    kind = "model" if request.oracle is None else "oracle"
    say(f"wrote {request.output}: {count} showers by {kind} {model.fingerprint}{pace}")
    if flagged:
        say(
            f"warning: {flagged} of {count} showers are outside of what the model was trained on "
            f"({model.reach()}); they are marked in the dataset 'flagged'"
        )
    return request.output


def _simulator(request: Request) -> Simulator:
    if request.oracle is None:
        if request.geometry is not None:
            raise AleatorError("--geometry: a model has its own; it is the oracle's option")
        return Simulator.load(request.model)
    if request.model is not None:
        raise AleatorError("give --model or --oracle, not both")
    return Simulator.oracle(request.oracle, request.geometry)


def _chunk(request: Request) -> int:
    """The full simulation is slow: a stopped run must not lose hours."""
    return CHUNK if request.oracle is None else ORACLE_CHUNK


def settled(conditions: Conditions, model: Engine) -> Conditions:
    """A spectrum without particles takes all those of the model."""
    if isinstance(conditions, Spectrum) and not conditions.particles:
        return replace(conditions, particles=model.particles)
    return conditions


def _refuse(simulator: Simulator, conditions: Conditions, seed: int) -> None:
    for first in range(0, conditions.count, 10_000):
        last = min(first + 10_000, conditions.count)
        energies, particles = conditions.read(seed, first, last)
        flags = simulator.model.outside(energies, particles)
        if flags.any():
            raise AleatorError(
                simulator.refusal(energies, particles, flags, first)
                + "; leave out --strict to simulate it anyway, flagged"
            )


def attributes(model: Engine, request: Request, flagged: int) -> dict[str, Any]:
    """What a file says about its making: what made it, what was flagged, how well it closes."""
    return {
        **model.certificate(),
        "seed": request.seed,
        "steps": -1 if request.steps is None else request.steps,
        "threshold_MeV": model.threshold,
        "geometry": model.geometry.to_xml(),
        "flagged": flagged,
    }


__all__ = ["Listed", "Request", "Simulator", "Spectrum", "run"]
