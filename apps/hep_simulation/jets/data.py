"""Events with jets in ROOT (through uproot) or Parquet: NanoAOD's jagged branches, in chunks.

    GenJet_pt, GenJet_eta, ...       jets of stable particles, one list an event
    Jet_pt, ..., Jet_genJetIdx       reconstructed jets; the matched GenJet's index, or -1

The only place of the jets that reads files. Needs `pip install "aleator[hep]"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.jets.features import GEN, RECO
from core.errors import AleatorError

TREE = "Events"
GEN_BRANCHES = tuple(f"GenJet_{name}" for name in GEN)
RECO_BRANCHES = (*(f"Jet_{name}" for name in RECO), "Jet_genJetIdx")
KEPT = ("run", "luminosityBlock", "event", "genWeight")
"""Branches of the whole event that are copied to the output, where they are there."""
_FLAT = ("GenMET_", "Generator_", "Pileup_")


@dataclass(frozen=True)
class Jagged:
    """One list of objects an event: flat columns and how many there are in each event.

    Attributes:
        columns: name -> (sum of counts,).
        counts: (events,).
    """

    columns: dict[str, np.ndarray]
    counts: np.ndarray

    @property
    def event(self) -> np.ndarray:
        """Event of every object."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def starts(self) -> np.ndarray:
        """First object of every event."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)

    def rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Some objects."""
        return {name: column[rows] for name, column in self.columns.items()}


@dataclass(frozen=True)
class Events:
    """A chunk of events.

    Attributes:
        gen: generator-level jets.
        reco: reconstructed ones with `genJetIdx`, or None.
        kept: name -> branch of the whole event, or jagged extra ones of GenJet.
        start: number of the first event in its file.
    """

    gen: Jagged
    reco: Jagged | None
    kept: dict[str, np.ndarray]
    start: int

    def __len__(self) -> int:
        return len(self.gen.counts)


class EventFile:
    """A ROOT or Parquet file of events."""

    def __init__(
        self, path: Path | str, *, reconstructed: bool, cut_genjets: bool = False
    ) -> None:
        """Open and look at the branches.

        Args:
            path: the file.
            reconstructed: Jet_* must be there too.
            cut_genjets: soft GenJets were dropped after matching, as NanoAOD may do: an index
                beyond those that are left is no match, rather than a mistake.

        Raises:
            AleatorError: uproot or awkward is missing; no such file, not of these formats, cut
                short, without the tree, without events, or a branch is missing.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise AleatorError(f"{path} does not exist, or is no file")
        self._open()
        wanted = (*GEN_BRANCHES, *(RECO_BRANCHES if reconstructed else ()))
        if missing := [name for name in wanted if name not in self.branches]:
            group = missing[0].split("_")[0] + "_"
            there = [name for name in self.branches if name.startswith(group)]
            raise AleatorError(
                f"{path}: no branch {missing[0]}; of {group}* it has "
                f"{', '.join(there) or 'none; its branches are ' + ', '.join(self.branches[:20])}"
            )
        if not self.num_events:
            raise AleatorError(f"{path}: no events")
        self.reconstructed, self.cut_genjets = reconstructed, cut_genjets
        self.kept = [
            name for name in self.branches
            if name in KEPT or name.startswith(_FLAT)
        ]  # fmt: skip
        self.extra = [
            name for name in self.branches
            if name.startswith("GenJet_") and name not in GEN_BRANCHES
        ]  # fmt: skip

    def _open(self) -> None:
        try:
            import awkward  # noqa: F401
            import uproot
        except ImportError:
            raise AleatorError(
                'jets need uproot and awkward: pip install "aleator[hep]"'
            ) from None
        if self.path.suffix == ".parquet":
            self._tree = None
            self._open_parquet()
            return
        try:
            file = uproot.open(self.path)
            if TREE not in file:
                there = ", ".join(key.split(";")[0] for key in file.keys()[:20])
                raise AleatorError(f"{self.path}: no tree {TREE!r}; it has {there or 'nothing'}")
            self._tree = file[TREE]
            self.branches = list(self._tree.keys())
            self.num_events = int(self._tree.num_entries)
        except AleatorError:
            raise
        except Exception as error:  # uproot raises what its parsers stumble on
            raise AleatorError(
                f"{self.path}: not ROOT, or cut short ({_first_line(error)})"
            ) from None

    def _open_parquet(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self._parquet = pq.ParquetFile(self.path)
        except (pa.ArrowInvalid, OSError) as error:
            raise AleatorError(
                f"{self.path}: not Parquet, or cut short ({_first_line(error)})"
            ) from None
        self.branches = list(self._parquet.schema_arrow.names)
        self.num_events = int(self._parquet.metadata.num_rows)

    def chunks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Events]:
        """Events from `start` to `stop`, so many at a time."""
        stop = self.num_events if stop is None else min(stop, self.num_events)
        for first in range(start, stop, size):
            yield self.read(first, min(first + size, stop))

    def read(self, start: int, stop: int) -> Events:
        """Events start <= i < stop, checked.

        Raises:
            AleatorError: lists of unequal length, values that are not finite or out of range, or
                an index of a GenJet that is not there.
        """
        names = [*GEN_BRANCHES, *self.kept, *self.extra]
        if self.reconstructed:
            names += RECO_BRANCHES
        arrays = self._arrays(names, start, stop)
        gen = self._jagged(arrays, GEN_BRANCHES, start)
        reco = self._jagged(arrays, RECO_BRANCHES, start) if self.reconstructed else None
        _check_jets(gen, "GenJet", f"{self.path}", start)
        if reco is not None:
            _check_jets(reco, "Jet", f"{self.path}", start)
            if self.cut_genjets:
                index = reco.columns["genJetIdx"]
                reco.columns["genJetIdx"] = np.where(index < gen.counts[reco.event], index, -1)
            _check_index(gen, reco, f"{self.path}", start)
        kept = {}
        for name in (*self.kept, *self.extra):
            flat = _numbers(arrays[name])
            if flat is not None:
                kept[name] = flat
        return Events(gen, reco, kept, start)

    def _arrays(self, names: Sequence[str], start: int, stop: int) -> Any:
        import awkward as ak

        try:
            if self._tree is not None:
                return self._tree.arrays(list(names), entry_start=start, entry_stop=stop)
            groups = _row_groups(self._parquet, start, stop)
            if not groups:
                raise AleatorError(f"{self.path}: no rows {start}..{stop}")
            first = sum(self._parquet.metadata.row_group(g).num_rows for g in range(groups[0]))
            table = self._parquet.read_row_groups(groups, columns=list(names))
            return ak.from_arrow(table)[start - first : stop - first]
        except AleatorError:
            raise
        except Exception as error:  # decompression, deserialisation, codecs that are missing
            raise AleatorError(
                f"{self.path}: events {start}..{stop} cannot be read ({_first_line(error)}); the "
                "file is cut short, or needs a codec (pip install lz4 zstandard)"
            ) from None

    def _jagged(self, arrays: Any, names: Sequence[str], start: int) -> Jagged:
        import awkward as ak

        columns, counts = {}, None
        for name in names:
            try:
                number = ak.to_numpy(ak.num(arrays[name], axis=1)).astype(np.int64)
            except Exception:
                raise AleatorError(f"{self.path}: {name} is no list of numbers an event") from None
            if counts is None:
                counts = number
            elif not np.array_equal(counts, number):
                event = int(np.argmax(counts != number))
                raise AleatorError(
                    f"{self.path}: event {start + event} has {counts[event]} {names[0]} and "
                    f"{number[event]} {name}; jagged branches must be equally long"
                )
            columns[name.partition("_")[2]] = ak.to_numpy(ak.flatten(arrays[name])).astype(
                np.int64 if "Idx" in name or "Flavour" in name else np.float64
            )
        assert counts is not None
        return Jagged(columns, counts)


def _row_groups(file: Any, start: int, stop: int) -> list[int]:
    found, first = [], 0
    for group in range(file.metadata.num_row_groups):
        last = first + file.metadata.row_group(group).num_rows
        if first < stop and last > start:
            found.append(group)
        first = last
    return found


def _numbers(array: Any) -> np.ndarray | None:
    """One number an event, or the flat numbers of a list; None for anything else."""
    import awkward as ak

    try:
        flat = array if array.ndim == 1 else ak.flatten(array)
        values = ak.to_numpy(flat)
    except Exception:
        return None
    return values if values.dtype.kind in "fiub" else None


def _check_jets(jets: Jagged, name: str, source: str, start: int) -> None:
    for column, values in jets.columns.items():
        bad = ~np.isfinite(values)
        if column == "pt":
            bad |= values <= 0
        if column == "eta":
            bad |= np.abs(values) > 10
        if bad.any():
            i = int(np.argmax(bad))
            wanted = {"pt": "positive", "eta": "within ±10"}.get(column, "finite")
            raise AleatorError(
                f"{source}: {name}_{column}={values[i]} in event {start + jets.event[i]}; it must "
                f"be {wanted}"
            )


def _check_index(gen: Jagged, reco: Jagged, source: str, start: int) -> None:
    index, event = reco.columns["genJetIdx"], reco.event
    bad = (index < -1) | (index >= gen.counts[event])
    if bad.any():
        i = int(np.argmax(bad))
        raise AleatorError(
            f"{source}: Jet_genJetIdx={index[i]} in event {start + event[i]}, which has "
            f"{gen.counts[event[i]]} GenJets; if soft GenJets were dropped after matching, "
            "--cut-genjets takes such jets as unmatched"
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
