r"""Writing showers as a stream that survives being killed, in CaloChallenge's layout.

Every chunk is first a small file of its own in `OUT.hdf5.parts/`, there whole or not at all; the
last step joins them under a temporary name and renames. A run that is stopped continues after its
last whole chunk, and the file comes out the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.data import ENERGIES, PDG, SHOWERS
from core.errors import AleatorError
from core.report import replacing, write_text

FLAGGED = "flagged"
"""Dataset (N,): 1 where the condition is outside of what the model was trained on."""
JOB = "job.json"
ROWS = 256
"""Showers a chunk of the HDF5 dataset."""

Part = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Energies, PDG numbers, flags (N,) each, and showers (N, V)."""
Make = Callable[[int, int], Part]


class Writer:
    """One output file in the making."""

    def __init__(
        self, path: Path, job: Mapping[str, Any], *, overwrite: bool, resume: bool = True
    ) -> None:
        """Begin or go on.

        Args:
            path: the file.
            job: what must be the same to go on.
            overwrite: replace a file that is there, and drop what another job has left.
            resume: go on with what the same job has left.

        Raises:
            AleatorError: the output exists, or unfinished parts are of another job.
        """
        self.path, self.parts = path, path.with_name(path.name + ".parts")
        self.job = json.loads(json.dumps(dict(job)))
        if path.exists() and not overwrite:
            raise AleatorError(f"{path} exists; choose another name or give --overwrite")
        if path.parent != Path() and not path.parent.is_dir():
            raise AleatorError(f"{path}: the folder {path.parent} does not exist")
        if self.parts.exists() and not (resume and self._same_job(overwrite)):
            shutil.rmtree(self.parts)
        self.parts.mkdir(exist_ok=True)
        write_text(self.parts / JOB, json.dumps(self.job, indent=1) + "\n")

    def _same_job(self, overwrite: bool) -> bool:
        try:
            begun = json.loads((self.parts / JOB).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        for key in {**begun, **self.job}:
            if begun.get(key) != self.job.get(key) and not overwrite:
                raise AleatorError(
                    f"{self.parts}: unfinished, begun with {key}={begun.get(key)!r}, not "
                    f"{self.job.get(key)!r}; give the same options to go on, or --overwrite to "
                    "begin again"
                )
        return begun == self.job

    def run(self, count: int, chunk: int, make: Make) -> Iterator[tuple[int, int]]:
        """Make what is missing of N showers, `chunk` at a time; yields (done, of them new)."""
        for start in range(0, count, chunk):
            stop, part = min(start + chunk, count), self.parts / f"{start:012d}.npz"
            if part.exists():
                yield stop - start, 0
                continue
            energies, particles, flags, showers = make(start, stop)
            rows, voxels = np.nonzero(showers)
            with replacing(part) as draft, draft.open("wb") as file:
                np.savez(
                    file,
                    energies=energies,
                    particles=particles,
                    flags=flags,
                    counts=np.bincount(rows, minlength=stop - start).astype(np.uint32),
                    voxels=voxels.astype(np.uint32),
                    values=showers[rows, voxels].astype(np.float32),
                )
            yield stop - start, stop - start

    def finish(self, count: int, voxels: int, attributes: Mapping[str, Any]) -> None:
        """Join the parts."""
        import h5py

        with replacing(self.path) as draft, h5py.File(draft, "w") as file:
            rows = min(ROWS, count)
            options = {"compression": "gzip", "compression_opts": 4}
            showers = file.create_dataset(
                SHOWERS, (count, voxels), np.float32, chunks=(rows, voxels), **options
            )
            columns = {
                "energies": file.create_dataset(ENERGIES, (count, 1), np.float64, **options),
                "particles": file.create_dataset(PDG, (count, 1), np.int32, **options),
                "flags": file.create_dataset(FLAGGED, (count, 1), np.uint8, **options),
            }
            for part in sorted(self.parts.glob("*.npz")):
                start = int(part.stem)
                with np.load(part) as stored:
                    stop = start + len(stored["energies"])
                    for name, column in columns.items():
                        column[start:stop, 0] = stored[name]
                    for a in range(start, stop, rows):
                        b = min(a + rows, stop)
                        showers[a:b] = _dense(stored, a - start, b - start, voxels)
            for name, value in attributes.items():
                file.attrs[name] = value
        shutil.rmtree(self.parts)

    def flagged(self) -> int:
        """Showers flagged so far."""
        total = 0
        for part in self.parts.glob("*.npz"):
            with np.load(part) as stored:
                total += int(stored["flags"].sum())
        return total


def _dense(stored: Mapping[str, np.ndarray], start: int, stop: int, voxels: int) -> np.ndarray:
    """Rows start..stop of a part."""
    ends = np.concatenate([[0], np.cumsum(stored["counts"], dtype=np.int64)]).astype(np.int64)
    inside = slice(ends[start], ends[stop])
    rows = np.repeat(np.arange(stop - start), stored["counts"][start:stop])
    dense = np.zeros((stop - start, voxels), np.float32)
    dense[rows, stored["voxels"][inside]] = stored["values"][inside]
    return dense
