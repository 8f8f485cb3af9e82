"""Where the fields of a training live: in memory, or on disk where they are larger than that.

Arrays on disk are mapped: code that asks for some times reads those and no others, and what the
system keeps of them in its cache it gives back when memory is wanted. Work goes over times in
pieces, and batches come from a few chunks of neighbouring times at once (`core.data`), so that
the disk is read in runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.errors import AleatorError

PIECE_BYTES = 2**23
"""Of the fields that are worked on at once; a regression holds some twenty arrays of that size."""
CHUNK = 32
"""Neighbouring times that are read together in training from disk."""
BUFFER = 16
"""Chunks that are shuffled together."""


@dataclass
class Scratch:
    """Makes arrays.

    Attributes:
        folder: for files; None keeps all in memory.
        made: how many there are.
    """

    folder: Path | None = None
    made: int = 0

    @property
    def chunk(self) -> int | None:
        """Neighbouring times to read together; None where any order is as good."""
        return None if self.folder is None else CHUNK

    def empty(self, shape: Sequence[int]) -> Tensor:
        """A float32 array of that shape, with no particular values.

        Raises:
            AleatorError: the disk is too small for it.
        """
        if self.folder is None:
            return torch.empty(tuple(shape))
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.made:03d}.float32"
        self.made += 1
        size = 4 * math.prod(shape)
        status = _free(self.folder)
        if size > status:
            raise AleatorError(
                f"{self.folder}: {size / 2**30:.1f} GiB are needed for training from disk, "
                f"{status / 2**30:.1f} are free"
            )
        return torch.from_numpy(np.memmap(path, np.float32, "w+", shape=tuple(shape)))


def scratch_for(folder: Path, values: int, memory: float) -> Scratch:
    """In memory if that many float32 values fit into `memory` GiB, else in the folder."""
    return Scratch(None if 4 * values <= memory * 2**30 else folder)


def pieces(steps: int | Tensor, fields: Tensor) -> Iterator[Tensor]:
    """Times in runs whose fields (T, ...) are about `PIECE_BYTES` together.

    Args:
        steps: T, or the times themselves, in order.
        fields: what will be looked at.

    Yields:
        times (N,).
    """
    index = torch.arange(steps) if isinstance(steps, int) else steps
    a_time = 4 * math.prod(fields.shape[1:])
    yield from index.split(max(1, PIECE_BYTES // max(1, a_time)))


def run_of(index: Tensor) -> slice | Tensor:
    """The times as a slice where they are neighbours: a view instead of a copy."""
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == len(index) else index


def mean_over(fields: Tensor, times: Tensor) -> Tensor:
    """Mean of fields (T, ...) over some times (N,), summed in double precision, in pieces."""
    total = torch.zeros(fields.shape[1:], dtype=torch.float64)
    for rows in pieces(times, fields):
        total += fields[run_of(rows)].double().sum(0)
    return (total / len(times)).to(fields.dtype)


def mean_and_spread(fields: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation in time of fields (T, ...), in double precision, in pieces."""
    total = torch.zeros(fields.shape[1:], dtype=torch.float64)
    for rows in pieces(len(fields), fields):
        total += fields[run_of(rows)].double().sum(0)
    mean = total / len(fields)
    squares = torch.zeros_like(mean)
    for rows in pieces(len(fields), fields):
        squares += (fields[run_of(rows)].double() - mean).square().sum(0)
    return mean, (squares / max(1, len(fields) - 1)).sqrt()


def _free(folder: Path) -> int:
    import shutil

    return shutil.disk_usage(folder).free
