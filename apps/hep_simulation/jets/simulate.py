"""`simulate-objects`: events with generator-level jets in, the same with reconstructed ones out.

Work goes by chunks of a fixed number of events. Each finished chunk is kept beside the output;
the same command goes on where it was stopped and gives the same file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.jets.data import GEN_BRANCHES, TREE, EventFile, Events, Jagged
from apps.hep_simulation.jets.model import ObjectSimulator
from core.errors import AleatorError
from core.progress import progress_bar
from core.report import write_text
from core.streaming.store import Chunk, PartialStore

Say = Callable[[object], None]
CHUNK = 4096
"""Events a chunk; part of what defines the output, hence no option."""
SAMPLE = Path(__file__).parents[1] / "samples" / "jets"
"""Bundled weights, and a few events."""
_WHOLE = {"nConstituents", "genJetIdx", "hadronFlavour", "partonFlavour"}


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        output: OUT.root or OUT.parquet.
        source: events with GenJet_*; the bundled ones if None.
        model: folder; the bundled one if None.
        seed: event i is a function of (seed, i).
        events: only the first so many; all if None.
        strict: refuse jets outside the conditions of training, rather than count them.
        overwrite: replace an existing output.
    """

    output: Path
    source: Path | None = None
    model: Path | None = None
    seed: int = 0
    events: int | None = None
    strict: bool = False
    overwrite: bool = False


def run(request: Request, say: Say = print) -> dict[str, Any]:
    """Simulate, write, and say how many jets were outside training.

    Raises:
        AleatorError: input, model or output that cannot be used; with `strict`, jets outside.
    """
    if request.output.suffix not in (".root", ".parquet"):
        raise AleatorError(f"{request.output}: name it *.root or *.parquet")
    if request.output.exists() and not request.overwrite:
        raise AleatorError(f"{request.output} exists; choose another name or --overwrite")
    if request.source is None:
        say("the bundled events (events.root)")
    source = request.source or SAMPLE / "events.root"
    model = ObjectSimulator.load(request.model or SAMPLE)
    file = EventFile(source, reconstructed=False)
    length = file.num_events if request.events is None else request.events
    if not 1 <= length <= file.num_events:
        raise AleatorError(f"--events {length}: {source} has {file.num_events}")
    stat = source.stat()
    job = {
        "source": source.name, "bytes": stat.st_size, "seed": request.seed,
        "model": model.fingerprint, "format": request.output.suffix,
    }  # fmt: skip
    store = PartialStore.open(
        request.output, length=length, job=job, create=lambda path: path.mkdir(),
        overwrite=request.overwrite,
    )  # fmt: skip
    seconds = _stream(store, file, model, request, length)
    facts = _facts(store, length)
    if facts["outside"]:
        say(
            f"warning: {facts['outside']} of {facts['gen_jets']} generator-level jets are outside "
            "the conditions of training; what became of them is extrapolated"
        )
    rate = facts["gen_jets"] / seconds if seconds else float("nan")
    writer = _write_root if request.output.suffix == ".root" else _write_parquet
    store.finish(lambda parts, path: writer(parts, path, file, length))
    facts |= {**job, "events": length, "chunk": CHUNK}
    write_text(_beside(request.output), json.dumps(facts, indent=1) + "\n")
    say(f"{length} events written to {request.output}; {rate:,.0f} jets/s in the model")
    return facts


def _beside(output: Path) -> Path:
    return output.with_name(output.name + ".json")


def _stream(
    store: PartialStore, file: EventFile, model: ObjectSimulator, request: Request, length: int
) -> float:
    """Simulate what is missing; CPU seconds in the model."""
    missing, seconds = store.missing(CHUNK), 0.0
    done = length - sum(map(len, missing))
    with progress_bar(length, "events", done=done) as advance:
        for chunk in missing:
            events = file.read(chunk.start, chunk.stop)
            outside = int(model.outside(events.gen.columns).sum())
            if outside and request.strict:
                raise AleatorError(
                    f"{file.path}: {outside} generator-level jets in events {chunk.start}.."
                    f"{chunk.stop} are outside the conditions of training (--strict)"
                )
            since = time.process_time()
            reco = model.simulate(events, request.seed)
            seconds += time.process_time() - since
            _keep(store, chunk, reco, outside, len(events.gen.event))
            advance(len(chunk))
    return seconds


def _part(parts: Path, start: int) -> Path:
    return parts / f"{start:012d}.npz"


def _keep(store: PartialStore, chunk: Chunk, reco: Jagged, outside: int, jets: int) -> None:
    path = _part(store.data, chunk.start)
    draft = path.with_suffix(".partial.npz")
    arrays: dict[str, Any] = {f"Jet_{name}": value for name, value in reco.columns.items()}
    arrays |= {"counts": reco.counts, "outside": outside, "jets": jets}
    np.savez(draft, **arrays)
    draft.replace(path)
    store.mark(chunk)


def _facts(store: PartialStore, length: int) -> dict[str, Any]:
    totals = np.zeros(3, dtype=np.int64)
    for start in range(0, length, CHUNK):
        with np.load(_part(store.data, start)) as part:
            totals += [int(part["jets"]), int(part["outside"]), int(part["counts"].sum())]
    return {
        "gen_jets": int(totals[0]), "outside": int(totals[1]), "reco_jets": int(totals[2]),
    }  # fmt: skip


def _arrays(parts: Path, file: EventFile, start: int, stop: int) -> dict[str, Any]:
    """What is written of one chunk: event branches, GenJet and Jet records."""
    import awkward as ak

    events: Events = file.read(start, stop)
    with np.load(_part(parts, start)) as part:
        reco = {name[4:]: part[name] for name in part.files if name.startswith("Jet_")}
        counts = part["counts"]
    gen = {name.partition("_")[2]: events.gen.columns[name[7:]] for name in GEN_BRANCHES}
    extra = {
        name[7:]: value for name, value in events.kept.items()
        if name.startswith("GenJet_") and len(value) == len(events.gen.event)
    }  # fmt: skip
    flat = {name: value for name, value in events.kept.items() if not name.startswith("GenJet_")}
    return {
        **flat,
        "GenJet": ak.zip(_lists(gen | extra, events.gen.counts)),
        "Jet": ak.zip(_lists(reco, counts)),
    }


def _lists(columns: dict[str, np.ndarray], counts: np.ndarray) -> dict[str, Any]:
    import awkward as ak

    found = {}
    for name, value in columns.items():
        whole = name in _WHOLE or value.dtype.kind in "iub"
        found[name] = ak.unflatten(value.astype(np.int32 if whole else np.float32), counts)
    return found


def _write_root(parts: Path, path: Path, file: EventFile, length: int) -> None:
    import awkward as ak
    import uproot

    with uproot.recreate(path) as out:
        for start in range(0, length, CHUNK):
            arrays = _arrays(parts, file, start, min(start + CHUNK, length))
            if start == 0:
                kinds = {
                    name: ak.type(value).content if isinstance(value, ak.Array) else value.dtype
                    for name, value in arrays.items()
                }
                out.mktree(TREE, kinds)
            out[TREE].extend(arrays)


def _write_parquet(parts: Path, path: Path, file: EventFile, length: int) -> None:
    import awkward as ak
    import pyarrow.parquet as pq

    writer = None
    try:
        for start in range(0, length, CHUNK):
            arrays = _arrays(parts, file, start, min(start + CHUNK, length))
            flat = {
                f"{name}_{key}": value[key]
                for name, value in arrays.items() if isinstance(value, ak.Array)
                for key in value.fields
            }  # fmt: skip
            flat |= {k: v for k, v in arrays.items() if not isinstance(v, ak.Array)}
            table = ak.to_arrow_table(
                ak.zip(flat, depth_limit=1), list_to32=True, extensionarray=False
            )
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
