"""Work in parts that survive being killed: files of arrays, joined and renamed at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.progress import progress_bar
from core.streaming.store import Chunk, PartialStore

Arrays = dict[str, np.ndarray]
Make = Callable[[int, int], Arrays]
"""make(start, stop) -> arrays of these rows, a function of these alone."""


@dataclass(frozen=True)
class Streamed:
    """What was done in this sitting.

    Attributes:
        made: rows.
        seconds: of CPU in them.
    """

    made: int
    seconds: float

    @property
    def pace(self) -> str:
        """Milliseconds each, in words; nothing if none was made."""
        return f", {1000 * self.seconds / self.made:.3g} ms of CPU each" if self.made else ""


def stream(
    output: Path,
    length: int,
    chunk: int,
    make: Make,
    write: Callable[[list[Path], Path], None],
    *,
    job: Mapping[str, Any],
    overwrite: bool = False,
    unit: str = "events",
) -> Streamed:
    """Make what is missing, then let `write(parts, path)` join the parts.

    Args:
        output: the file.
        length: rows.
        chunk: rows a part; it is kept in the job, as parts do not fit together otherwise.
        make: computes a part.
        write: joins them in order.
        job: what must be the same to go on.
        overwrite: replace a file that is there.
        unit: of the progress bar.

    Raises:
        AleatorError: the output exists, or unfinished parts are of another job.
    """
    store = PartialStore.open(
        output, length=length, job={**job, "chunk": chunk}, create=lambda path: path.mkdir(),
        overwrite=overwrite,
    )  # fmt: skip
    missing, seconds = store.missing(chunk), 0.0
    made = sum(map(len, missing))
    with progress_bar(length, unit, done=length - made) as advance:
        for part in missing:
            since = time.process_time()
            arrays = make(part.start, part.stop)
            seconds += time.process_time() - since
            _keep(store, part, arrays)
            advance(len(part))
    paths = [_path(store, start) for start in range(0, length, chunk)]
    store.finish(lambda _, path: write(paths, path))
    return Streamed(made, seconds)


def arrays_of(paths: list[Path]) -> Iterator[Arrays]:
    """The parts, one after the other."""
    for path in paths:
        with np.load(path) as part:
            yield {name: part[name] for name in part.files}


def _path(store: PartialStore, start: int) -> Path:
    return store.data / f"{start:012d}.npz"


def _keep(store: PartialStore, chunk: Chunk, arrays: Arrays) -> None:
    path = _path(store, chunk.start)
    draft = path.with_suffix(".partial.npz")
    np.savez(draft, **arrays)  # type: ignore[arg-type]
    draft.replace(path)
    store.mark(chunk)
