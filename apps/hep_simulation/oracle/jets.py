"""Pythia's events with generator-level and reconstructed jets, in NanoAOD's jagged branches.

What `train-objects` learns from and `simulate-objects` replaces: event i is a function of
(seed, i), detector included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.jets.features import wrapped
from apps.hep_simulation.oracle.clouds import settings
from apps.hep_simulation.oracle.pythia import LHC, Jet, Pythia, stable
from apps.hep_simulation.oracle.reconstruction import reconstruct
from apps.hep_simulation.parts import Arrays, Streamed, arrays_of, stream
from core.errors import AleatorError
from core.random import keyed_generator

RADIUS, GEN_PT, RECO_PT, WIDEST = 0.4, 10.0, 8.0, 4.7
MATCH = 0.2
"""Largest distance of a reconstructed jet to its generator-level one."""
CHUNK = 200
_EVENT, _DETECTOR = 6, 7
_INTEGERS = ("nConstituents", "hadronFlavour", "partonFlavour", "genJetIdx")


class JetOracle:
    """Events of one process through the parametrised detector."""

    def __init__(self, process: str = "qcd") -> None:
        """Set up Pythia; errors as `Pythia` and `settings`."""
        self.run = Pythia([*LHC, *settings(process)])
        self.generator = f"Pythia {self.run.version}, {process}, 13 TeV, parametrised detector"

    def sample(self, seed: int, start: int, stop: int) -> Arrays:
        """Flat columns `GenJet_*`, `Jet_*` with `GenJet_count`, `Jet_count`, and of events."""
        events = [self._event(seed, i) for i in range(start, stop)]
        return {name: np.concatenate([event[name] for event in events]) for name in events[0]}

    def _event(self, seed: int, number: int) -> Arrays:
        record = self.run.collide(keyed_generator(seed, number, _EVENT))
        key = [part & 0xFFFFFFFF for part in (seed, number)]
        random = np.random.default_rng([*key, _DETECTOR])
        flow = reconstruct(stable(record), random)
        rows = flow.rows()
        gen = _within(self.run.jets(RADIUS, GEN_PT, reach=5.0))
        reco = _within(self.run.jets(RADIUS, RECO_PT, massless=True, event=self.run.record(rows)))
        hadrons, partons = _heavy(record), self.run.partons()
        found = {f"GenJet_{k}": v for k, v in _kinematics(gen).items()}
        found |= {
            "GenJet_hadronFlavour": np.array([_flavour(j, hadrons) for j in gen], np.int32),
            "GenJet_partonFlavour": np.array([_parton(j, partons) for j in gen], np.int32),
            **{f"Jet_{k}": v for k, v in _kinematics(reco).items()},
            **{f"Jet_{k}": v for k, v in _fractions(reco, rows).items()},
            "Jet_genJetIdx": matched(reco, gen),
            "GenJet_count": np.array([len(gen)]),
            "Jet_count": np.array([len(reco)]),
            "event": np.array([number], np.int64),
            "genWeight": np.array([self.run.weight()], np.float32),
            "Generator_binvar": np.array([self.run.scale()], np.float32),
        }
        return found


def run(
    process: str, output: Path, count: int, seed: int, *, overwrite: bool = False
) -> tuple[Streamed, str]:
    """Write OUT.root with so many events; what was done, and by what.

    Raises:
        AleatorError: the output is no *.root, exists, or Pythia cannot be set up.
    """
    if output.suffix != ".root":
        raise AleatorError(f"{output}: name it *.root")
    if count < 1:
        raise AleatorError(f"-n {count}: at least one event is needed")
    oracle = JetOracle(process)
    done = stream(
        output, count, CHUNK, lambda a, b: oracle.sample(seed, a, b), _write,
        job={"generator": oracle.generator, "seed": seed}, overwrite=overwrite,
    )  # fmt: skip
    return done, oracle.generator


def matched(reco: list[Jet], gen: list[Jet]) -> np.ndarray:
    """(R,) the nearest generator-level jet that no harder jet has taken, or -1."""
    found, taken = np.full(len(reco), -1, np.int32), set()
    for row, jet in enumerate(reco):
        gaps = [np.hypot(jet.eta - g.eta, wrapped(np.array(jet.phi - g.phi))) for g in gen]
        for place in np.argsort(gaps):
            if gaps[place] > MATCH:
                break
            if place not in taken:
                found[row] = place
                taken.add(place)
                break
    return found


def _within(jets: list[Jet]) -> list[Jet]:
    return [jet for jet in jets if abs(jet.eta) < WIDEST]


def _kinematics(jets: list[Jet]) -> Arrays:
    columns = {name: [getattr(j, name) for j in jets] for name in ("pt", "eta", "phi", "mass")}
    found = {name: np.array(values, np.float32) for name, values in columns.items()}
    return found | {"nConstituents": np.array([len(j.members) for j in jets], np.int32)}


def _fractions(jets: list[Jet], rows: np.ndarray) -> Arrays:
    """Energy fractions of charged hadrons, photons and neutral hadrons."""
    kinds = {"chHEF": 211, "neEmEF": 22, "neHEF": 130}
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for jet in jets:
        own = rows[np.array(jet.members) - 1]
        for name, number in kinds.items():
            found[name].append(own[np.abs(own[:, 4]) == number, 3].sum() / own[:, 3].sum())
    return {name: np.array(values, np.float32) for name, values in found.items()}


def _heavy(record: Any) -> np.ndarray:
    """(K, 3) η, φ and 5 or 4 of hadrons with a b or c quark and more than 5 GeV."""
    rows = [
        (p.eta(), p.phi(), heaviest(p.id()))
        for p in record
        if 80 < abs(p.status()) < 100 and heaviest(p.id()) and p.pT() > 5
    ]
    return np.array(rows, np.float64).reshape(-1, 3)


def heaviest(pdg: int) -> int:
    """5 or 4 if a hadron's PDG number has a b or c quark, else 0."""
    code = abs(pdg)
    if not 100 < code < 10_000:
        return 0
    quark = max(code // 100 % 10, code // 1000 % 10)
    return quark if quark in (4, 5) else 0


def _flavour(jet: Jet, hadrons: np.ndarray) -> int:
    near = _near(jet, hadrons)
    return int(hadrons[near, 2].max()) if near.any() else 0


def _parton(jet: Jet, partons: np.ndarray) -> int:
    near = _near(jet, partons)
    return int(partons[np.flatnonzero(near)[0], 2]) if near.any() else 0


def _near(jet: Jet, rows: np.ndarray) -> np.ndarray:
    return np.hypot(rows[:, 0] - jet.eta, wrapped(rows[:, 1] - jet.phi)) < RADIUS


def _write(parts: list[Path], path: Path) -> None:
    import awkward as ak
    import uproot

    with uproot.recreate(path) as out:
        for arrays in arrays_of(parts):
            tree: dict[str, Any] = {
                k: v for k, v in arrays.items() if not k.startswith(("GenJet_", "Jet_"))
            }
            for group in ("GenJet", "Jet"):
                counts = arrays[f"{group}_count"]
                own = {
                    k.partition("_")[2]: ak.unflatten(v, counts)
                    for k, v in arrays.items()
                    if k.startswith(f"{group}_") and k != f"{group}_count"
                }
                tree[group] = ak.zip(own)
            if "Events" not in out:
                kinds = {
                    k: ak.type(v).content if isinstance(v, ak.Array) else v.dtype
                    for k, v in tree.items()
                }
                out.mktree("Events", kinds)
            out["Events"].extend(tree)
