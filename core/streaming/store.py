"""A Zarr group that is not finished yet: its job, what of it is done, and how it becomes final.

    OUT.partial/job.json                        what determines the numbers; written last
    OUT.partial/data/                           the Zarr group, renamed to OUT when complete
    OUT.partial/done/000000000000-000000000024  rows that are written; created after the data
    OUT.partial/work/                           whatever else the caller needs until the end

A marker is an empty file, hence atomic; a chunk without one is computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import AleatorError

_OURS = {"data", "done", "work", "job.json", "job.json.new", "lock", "replaced", "result"}
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.partial$")


@dataclass(frozen=True, order=True)
class Chunk:
    """Rows start <= i < stop of the streamed axis."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class PartialStore:
    """The folder OUT.partial; use `PartialStore.open`.

    Attributes:
        output: OUT, the name of the finished result.
        length: rows of the streamed axis.
        overwrite: whether `finish` may replace an existing OUT.
    """

    output: Path
    length: int
    overwrite: bool = False

    @classmethod
    def open(
        cls,
        output: Path | str,
        *,
        length: int,
        job: Mapping[str, Any],
        create: Callable[[Path], object],
        resume: bool = True,
        overwrite: bool = False,
    ) -> PartialStore:
        """Begin OUT, or find what an earlier run of the same job left of it.

        Args:
            output: OUT; local or on a filesystem that all workers share.
            length: rows of the streamed axis.
            job: everything that determines the numbers, as JSON: the fingerprint of the input
                and of the model, seed, members, ... but not how the work is split.
            create: writes a Zarr group with its arrays, empty, at the path it is given.
            resume: continue what is there; otherwise start afresh.
            overwrite: replace an existing OUT in the end.

        Raises:
            AleatorError: OUT exists, another run is writing it, its partial folder belongs to
                another job, or the folder is not one of ours.
        """
        store = cls(Path(output).absolute(), length, overwrite)
        if store.output.exists() and not overwrite:
            raise AleatorError(f"{output} exists; choose another name, or say to overwrite it")
        wanted = json.loads(json.dumps({**job, "length": length}))
        store.folder.mkdir(parents=True, exist_ok=True)
        with store.lock():
            foreign = {entry.name for entry in store.folder.iterdir()} - _OURS
            if foreign:
                raise AleatorError(
                    f"{store.folder} holds files of someone else ({min(foreign)}); move it away"
                )
            found = store._job()
            if resume and found is not None and store.data.exists():
                store._same_job(found, wanted)
            else:
                store._begin(wanted, create)
        return store

    @property
    def folder(self) -> Path:
        """OUT.partial."""
        return self.output.with_name(self.output.name + ".partial")

    @property
    def data(self) -> Path:
        """The Zarr group in it."""
        return self.folder / "data"

    @property
    def work(self) -> Path:
        """A folder for what the caller keeps with the run, e.g. a model that workers read."""
        return self.folder / "work"

    def mark(self, chunk: Chunk) -> None:
        """Remember that the rows of `chunk` are written; call it after writing them."""
        (self.folder / "done" / f"{chunk.start:012d}-{chunk.stop:012d}").touch()

    def done(self) -> list[Chunk]:
        """What is written, in order, merged where runs touch or overlap."""
        names = sorted(path.name for path in (self.folder / "done").iterdir())
        merged: list[Chunk] = []
        for start, stop in (map(int, name.split("-")) for name in names):
            if merged and start <= merged[-1].stop:
                merged[-1] = Chunk(merged[-1].start, max(stop, merged[-1].stop))
            else:
                merged.append(Chunk(start, stop))
        return merged

    def missing(self, chunk: int) -> list[Chunk]:
        """What remains, cut at multiples of `chunk`."""
        edges = [0, *(edge for run in self.done() for edge in (run.start, run.stop)), self.length]
        pieces = []
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            while start < stop:
                cut = min(stop, (start // chunk + 1) * chunk)
                pieces.append(Chunk(start, cut))
                start = cut
        return pieces

    def finish(self, export: Callable[[Path, Path], object] | None = None) -> Path:
        """Rename the complete result to OUT and remove the partial folder.

        Args:
            export: for an OUT of another format: export(group, path) reads the Zarr group and
                writes a file or folder at `path`, which then becomes OUT.

        Returns:
            OUT.

        Raises:
            AleatorError: rows are missing, or OUT has appeared in the meantime.
        """
        with self.lock():
            left = sum(map(len, self.missing(self.length)))
            if left:
                raise AleatorError(
                    f"{self.output} is not complete: {left} of {self.length} rows are missing; "
                    "run the same job again to compute them"
                )
            if self.output.exists() and not self.overwrite:
                raise AleatorError(f"{self.output} exists; choose another name")
            result = self.data
            _sweep(result)
            if export is not None:
                result = self.folder / "result"
                _remove(result)
                export(self.data, result)
            if self.output.exists():
                _remove(self.folder / "replaced")
                os.replace(self.output, self.folder / "replaced")
            os.replace(result, self.output)
        shutil.rmtree(self.folder)
        return self.output

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the folder; the system releases it if this process dies.

        Raises:
            AleatorError: another run holds it.
        """
        with open(self.folder / "lock", "w") as handle:
            try:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AleatorError(
                    f"another run is writing {self.output}; wait for it, or stop it first"
                ) from None
            except (ImportError, OSError):
                pass  # a system or a filesystem without locks: runs are trusted not to meet
            yield

    def _job(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / "job.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def _same_job(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for key in [*found, *wanted]:
            before, now = found.get(key), wanted.get(key)
            if before != now:
                raise AleatorError(
                    f"{self.folder} was begun with {key}={before!r}, this run has {now!r}; "
                    "repeat the first command to resume it, or remove that folder to start afresh"
                )

    def _begin(self, job: dict[str, Any], create: Callable[[Path], object]) -> None:
        for name in _OURS - {"lock"}:
            _remove(self.folder / name)
        (self.folder / "done").mkdir()
        self.work.mkdir()
        create(self.data)
        draft = self.folder / "job.json.new"
        draft.write_text(json.dumps(job, indent=1, sort_keys=True))
        os.replace(draft, self.folder / "job.json")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sweep(group: Path) -> None:
    """Remove the temporary files that Zarr leaves where it is killed while writing a chunk."""
    for folder, _, names in os.walk(group):
        for name in names:
            if _TEMPORARY.search(name):
                os.unlink(os.path.join(folder, name))
