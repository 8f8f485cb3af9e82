"""Pythia 8 itself: collisions that are a function of (seed, number), and jets of what comes out.

    run = Pythia(PROCESSES["qcd"])
    run.collide(keyed_generator(seed, i))          # event i, whatever was made before it
    run.jets(radius=0.4, least_pt=20.0)            # anti-kT, hardest first

Pythia's own random numbers are started anew for every event, so that nothing is left over from
the one before. Jets are found by the FastJet core that comes with Pythia. Extra `simulate`.
Bierlich et al. (2022) arXiv:2203.11601; Cacciari, Salam and Soyez (2008) arXiv:0802.1189.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from core.errors import AleatorError

PROCESSES: dict[str, tuple[str, ...]] = {
    "qcd": (
        "HardQCD:all=on", "PhaseSpace:pTHatMin=30.", "PhaseSpace:bias2Selection=on",
        "PhaseSpace:bias2SelectionPow=4.5", "PhaseSpace:bias2SelectionRef=50.",
    ),
    "ttbar": ("Top:gg2ttbar=on", "Top:qqbar2ttbar=on"),
    "zjets": (
        "WeakBosonAndParton:qqbar2gmZg=on", "WeakBosonAndParton:qg2gmZq=on", "23:onMode=off",
        "23:onIfAny=11 13", "PhaseSpace:pTHatMin=40.", "PhaseSpace:mHatMin=50.",
    ),
}  # fmt: skip
"""Proton collisions at 13 TeV by name; that of jets draws hard ones more often, with weights."""
LHC = ("Beams:eCM=13000.",)
MISSING = "this oracle needs pythia8mc: pip install --prefer-binary 'aleator[simulate]'"
_SEEDS = 900_000_000
_ATTEMPTS = 100
_ANTI_KT, _VISIBLE = -1, 2
INVISIBLE = (12, 14, 16)


@dataclass(frozen=True)
class Jet:
    """One jet of stable particles.

    Attributes:
        pt: GeV.
        eta: pseudorapidity.
        phi: azimuth.
        mass: GeV.
        members: places of its particles in the event record.
    """

    pt: float
    eta: float
    phi: float
    mass: float
    members: tuple[int, ...]


class Pythia:
    """One process, ready to collide."""

    def __init__(self, settings: Sequence[str]) -> None:
        """Set Pythia up.

        Raises:
            AleatorError: pythia8mc is missing, or Pythia refuses the settings.
        """
        library = _pythia()
        self.library = library
        self._jets: dict[tuple[float, float, bool, float], Any] = {}
        self.run = library.Pythia("", False)
        for line in ("Print:quiet=on", "Random:setSeed=on", "Random:seed=1", *settings):
            if not self.run.readString(line):
                raise AleatorError(f"Pythia does not know the setting {line!r}")
        if not self.run.init():
            raise AleatorError(
                "Pythia cannot be set up; if it does not find its data, set PYTHIA8DATA to the "
                "folder share/Pythia8/xmldoc of its installation"
            )
        self.version = f"{self.run.parm('Pythia:versionNumber'):.3f}"

    def collide(self, stream: torch.Generator) -> Any:
        """The event record of the next collision that the stream gives.

        Raises:
            AleatorError: Pythia fails a hundred times in a row.
        """
        self.run.rndm.init(int(torch.randint(1, _SEEDS, (), generator=stream)))
        for _ in range(_ATTEMPTS):
            if self.run.next():
                return self.run.event
        raise AleatorError(f"Pythia failed {_ATTEMPTS} times in a row; its settings cannot be met")

    def weight(self) -> float:
        """Of the event: where hard ones are drawn more often than nature does."""
        return float(self.run.infoPython().weight())

    def scale(self) -> float:
        """Transverse momentum of the hard process, GeV."""
        return float(self.run.infoPython().pTHat())

    def partons(self) -> np.ndarray:
        """(K, 3) η, φ and PDG number of what the hard process put out."""
        hard = self.run.process
        kept = [hard[i] for i in range(3, hard.size()) if hard[i].isFinal() or i in (5, 6)]
        rows = [(p.eta(), p.phi(), p.id()) for p in kept if abs(p.id()) <= 5 or p.id() == 21]
        return np.array(rows, np.float64).reshape(-1, 3)

    def jets(
        self,
        radius: float,
        least_pt: float,
        *,
        massless: bool = False,
        reach: float = 25.0,
        event: Any = None,
    ) -> list[Jet]:
        """Anti-kT jets of the visible final particles, hardest first.

        Args:
            radius: R.
            least_pt: GeV.
            massless: give particles no mass before they are joined.
            reach: largest |η| of a particle.
            event: a record other than that of the last collision.
        """
        key = (radius, least_pt, massless, reach)
        if key not in self._jets:
            self._jets[key] = self.library.SlowJet(
                _ANTI_KT, radius, least_pt, reach, _VISIBLE, 0 if massless else 2
            )
        finder = self._jets[key]
        found: list[Jet] = []
        with _banner_to_stderr():
            if not finder.analyze(self.run.event if event is None else event):
                return found
        for k in range(finder.sizeJet()):
            p = finder.p(k)
            members = tuple(int(i) for i in finder.constituents(k))
            found.append(Jet(finder.pT(k), p.eta(), finder.phi(k), max(0.0, p.mCalc()), members))
        return found

    def record(self, rows: np.ndarray) -> Any:
        """An event of (N, 5) px, py, pz, E and PDG number, for `jets`: place i + 1 is row i."""
        event = self.library.Event()
        event.init("reconstructed", self.run.particleData)
        event.append(90, -11, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)  # place 0 is the system's
        for px, py, pz, energy, pid in rows.tolist():
            event.append(int(pid), 1, 0, 0, px, py, pz, energy, 0.0)
        return event


def stable(event: Any) -> np.ndarray:
    """(N, 6) px, py, pz, E, PDG number and three times the charge of stable particles, GeV."""
    rows = [
        (p.px(), p.py(), p.pz(), p.e(), p.id(), p.chargeType())
        for p in event if p.isFinal()
    ]  # fmt: skip
    return np.array(rows, np.float64).reshape(-1, 6)


@contextlib.contextmanager
def _banner_to_stderr() -> Iterator[None]:
    """FastJet names itself on stdout at its first jet; stdout is for results."""
    global _greeted
    if _greeted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    _greeted = True


_greeted = False


def _pythia() -> Any:
    try:
        import pythia8mc
    except ImportError:
        raise AleatorError(MISSING) from None
    return pythia8mc
