"""What there is to learn from events: matched pairs, which jets were found, and fakes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.hep_simulation.jets.data import Events, Jagged
from apps.hep_simulation.jets.features import wrapped
from core.errors import AleatorError

FAKE_KINEMATICS = ("ln pT", "ln(m + μ)", "η", "Δφ to the leading GenJet")


@dataclass(frozen=True)
class Pairs:
    """Everything flat.

    Attributes:
        gen: columns of matched generator-level jets, (N,).
        reco: of their reconstructed ones, (N,).
        event: of each pair, (N,).
        all_gen: columns of every generator-level jet, (G,).
        found: which of them were reconstructed, (G,).
        all_event: of each, (G,).
        fakes: columns of unmatched reconstructed jets, (F,).
        fake_event: of each, (F,).
        fake_count: (E,) an event.
        activity: (E, 3): see `activity`.
        leading_phi: (E,) azimuth of the leading GenJet, 0 without one.
    """

    gen: dict[str, np.ndarray]
    reco: dict[str, np.ndarray]
    event: np.ndarray
    all_gen: dict[str, np.ndarray]
    found: np.ndarray
    all_event: np.ndarray
    fakes: dict[str, np.ndarray]
    fake_event: np.ndarray
    fake_count: np.ndarray
    activity: np.ndarray
    leading_phi: np.ndarray


def activity(gen: Jagged) -> tuple[np.ndarray, np.ndarray]:
    """What an event's fakes depend on.

    Returns:
        (E, 3): ln(1 + ΣpT / GeV), number of GenJets, ln(1 + leading pT / GeV); and the leading
        jet's azimuth (E,).
    """
    events, event = len(gen.counts), gen.event
    pt = gen.columns["pt"]
    total = np.bincount(event, pt, events)
    leading = np.zeros(events)
    np.maximum.at(leading, event, pt)
    phi = np.zeros(events)
    is_leading = pt == leading[event]
    phi[event[is_leading]] = gen.columns["phi"][is_leading]
    return np.stack([np.log1p(total), gen.counts, np.log1p(leading)], 1), phi


def pairs_of(chunks: Iterable[Events]) -> Pairs:
    """Match by Jet_genJetIdx; of two jets with one GenJet the first (harder) is its match.

    Raises:
        AleatorError: no matched jet in all events.
    """
    parts = [_of(chunk) for chunk in chunks]
    merged: dict[str, Any] = {}
    for name in Pairs.__dataclass_fields__:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], dict):
            merged[name] = {key: np.concatenate([v[key] for v in values]) for key in values[0]}
        else:
            merged[name] = np.concatenate(values)
    found = Pairs(**merged)
    if not len(found.event):
        raise AleatorError("no Jet is matched to a GenJet: Jet_genJetIdx is -1 everywhere")
    return found


def _of(chunk: Events) -> Pairs:
    gen, reco = chunk.gen, chunk.reco
    assert reco is not None
    index, event = reco.columns["genJetIdx"], reco.event
    target = gen.starts[event] + index
    matched = index >= 0
    _, first = np.unique(target[matched], return_index=True)
    rows = np.flatnonzero(matched)[first]
    columns = {name: value for name, value in reco.columns.items() if name != "genJetIdx"}
    found = np.zeros(len(gen.event), dtype=bool)
    found[target[rows]] = True
    loose = np.setdiff1d(np.arange(len(index)), rows)
    features, phi = activity(gen)
    return Pairs(
        gen.rows(target[rows]),
        {name: value[rows] for name, value in columns.items()},
        chunk.start + event[rows],
        gen.columns,
        found,
        chunk.start + gen.event,
        {name: value[loose] for name, value in columns.items()},
        chunk.start + event[loose],
        np.bincount(event[loose], minlength=len(chunk)),
        features,
        phi,
    )


def fake_kinematics(fakes: dict[str, np.ndarray], leading_phi: np.ndarray) -> np.ndarray:
    """(F, 4) of `FAKE_KINEMATICS`."""
    return np.stack(
        [
            np.log(fakes["pt"]), np.log(fakes["mass"].clip(0) + 0.1), fakes["eta"],
            wrapped(fakes["phi"] - leading_phi),
        ],
        1,
    )  # fmt: skip


def hard(pairs: Pairs, least_pt: float = 20.0, largest_eta: float = 4.5) -> np.ndarray:
    """Matched pairs in the region that is judged, bool (N,)."""
    return (pairs.gen["pt"] > least_pt) & (np.abs(pairs.gen["eta"]) < largest_eta)
