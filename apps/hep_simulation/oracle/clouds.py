"""Pythia's jets as clouds of stable particles: what a cloud model learns from, and its oracle.

Jets 2 i and 2 i + 1 are the two hardest of event i, anti-kT with R = 0.4 of visible particles,
|η| < 2.5, within the range of pT. Particles count as massless; a jet is their sum. Its kind is
that of the nearest parton of the hard process.
"""

from __future__ import annotations

import numpy as np

from apps.hep_simulation.clouds.data import Clouds, join
from apps.hep_simulation.clouds.kinematics import axis, centred
from apps.hep_simulation.oracle.pythia import LHC, PROCESSES, Jet, Pythia
from core.errors import AleatorError
from core.random import keyed_generator

RADIUS, WIDEST = 0.4, 2.5
CLOUD = 5
"""Last part of the key of the streams."""
_ATTEMPTS = 300


class CloudOracle:
    """Simulates jets of one process in a range of transverse momentum."""

    def __init__(self, process: str = "qcd", low: float = 100.0, high: float = 1500.0) -> None:
        """Set up Pythia.

        Args:
            process: one of `PROCESSES`.
            low: least pT of a jet, GeV.
            high: greatest.

        Raises:
            AleatorError: an unknown process or range, or as `Pythia`.
        """
        if not 20 <= low < high <= 5000:
            raise AleatorError(
                f"jets of {low:g} to {high:g} GeV: 20 ≤ low < high ≤ 5000 is needed"
            )
        hard = [] if process == "ttbar" else [f"PhaseSpace:pTHatMin={0.8 * low:g}"]
        self.low, self.high, self.process = low, high, process
        self.run = Pythia([*LHC, *settings(process), *hard])
        self.generator = f"Pythia {self.run.version}, {process}, 13 TeV, anti-kT {RADIUS}"

    def sample(self, seed: int, start: int, stop: int) -> Clouds:
        """Jets start..stop, functions of (seed, number)."""
        parts = []
        for event in range(start // 2, (stop + 1) // 2):
            pair = self._pair(seed, event)
            parts += [pair[k] for k in (0, 1) if start <= 2 * event + k < stop]
        return join(parts)

    def _pair(self, seed: int, event: int) -> list[Clouds]:
        """Collide until the two hardest jets are as they should be."""
        stream = keyed_generator(seed, event, CLOUD)
        for _ in range(_ATTEMPTS):
            record = self.run.collide(stream)
            jets = self.run.jets(RADIUS, self.low, massless=True)[:2]
            good = [j for j in jets if j.pt <= self.high and abs(j.eta) <= WIDEST]
            if len(good) == 2:
                partons = self.run.partons()
                return [_cloud(record, jet, partons) for jet in good]
        raise AleatorError(
            f"no pair of jets of {self.low:g} to {self.high:g} GeV in {_ATTEMPTS} events of "
            f"{self.process}; widen the range"
        )


def settings(process: str) -> tuple[str, ...]:
    """Pythia's settings of a process.

    Raises:
        AleatorError: unknown.
    """
    if process not in PROCESSES:
        raise AleatorError(f"process {process!r}; known: {', '.join(PROCESSES)}")
    return PROCESSES[process]


def species(pdg: int, charged: bool) -> int:
    """Number in `SPECIES`, from 1."""
    known = {22: 3, 11: 4, 13: 5}
    return known.get(abs(pdg), 1 if charged else 2)


def _cloud(record: object, jet: Jet, partons: np.ndarray) -> Clouds:
    members = [record[i] for i in jet.members]  # type: ignore[index]
    rows = np.array([(p.eta(), p.phi(), p.pT()) for p in members])
    kinds = np.array([species(p.id(), p.isCharged()) for p in members])
    order = np.argsort(-rows[:, 2], kind="stable")
    rows, kinds = rows[order], kinds[order]
    points = np.stack(
        [rows[:, 0] - jet.eta, _wrapped(rows[:, 1] - jet.phi), rows[:, 2] / jet.pt], 1
    )
    mask = np.ones((1, len(rows)), bool)
    total = axis(points[None], mask)
    return Clouds(
        jet.pt * total.pt, jet.eta + total.rapidity, np.array([_kind(jet, partons)]),
        centred(points[None], mask), mask, kinds[None],
    )  # fmt: skip


def _kind(jet: Jet, partons: np.ndarray) -> int:
    """Of the nearest parton of the hard process within the jet; 0 if there is none."""
    if not len(partons):
        return 0
    distance = np.hypot(partons[:, 0] - jet.eta, _wrapped(partons[:, 1] - jet.phi))
    if distance.min() > RADIUS:
        return 0
    number = abs(int(partons[distance.argmin(), 2]))
    return 1 if number < 4 else number


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi
