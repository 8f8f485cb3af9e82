"""`denoise` to a Zarr store: a run of cells at a time, resumable, in one process or on Dask.

OUT.zarr.partial/data is a copy of the cells with room for what is new, and OUT.zarr.partial/work
has the model and the covariates, so that a worker needs nothing but this folder. The numbers do
not depend on how the work is split (`rows`); a run that is stopped is continued by the same call.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.single_cell.cells import Cells
from apps.single_cell.counts import Counts, Stored
from apps.single_cell.covariates import Design
from apps.single_cell.expressed import Levels
from apps.single_cell.layers import Output
from apps.single_cell.output import check_output, copy_cells, make_room
from apps.single_cell.posterior import CELLS
from apps.single_cell.rows import READ, Rows, targets_of
from core.errors import AleatorError
from core.streaming import PartialStore, stream

if TYPE_CHECKING:
    from apps.single_cell.denoise import Denoiser

TASK_BYTES = 2**26
LATENT, ELBO, OOD = "obsm/X_aleator", "obs/aleator_elbo", "obs/aleator_ood"


@dataclass(frozen=True)
class Workers:
    """Who computes.

    Attributes:
        number: processes on this machine; 1 is this one.
        scheduler: address of a Dask scheduler, whose workers share the filesystem.
        progress: whether to show it.
    """

    number: int = 1
    scheduler: str | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.number < 1:
            raise AleatorError(f"workers={self.number}: at least one is needed")

    @property
    def elsewhere(self) -> bool:
        """Whether other processes compute."""
        return self.number > 1 or self.scheduler is not None


def by_runs(path: Path | str, output: Output, workers: Workers) -> bool:
    """Whether an output is made of runs of cells that can be written in any order.

    Raises:
        AleatorError: workers are wanted, but the output is not.
    """
    fits = Path(path).suffix == ".zarr" and output.sparse is None and output.rates
    if workers.elsewhere and not fits:
        raise AleatorError(
            f"{path}: workers write dense layers to a Zarr store; name the output .zarr, without "
            "sparse layers, or use one process"
        )
    return fits


def write_store(
    denoiser: Denoiser,
    cells: Cells,
    path: Path | str,
    output: Output,
    workers: Workers,
    *,
    overwrite: bool = False,
) -> Path:
    """Denoise to a Zarr store; the same call continues a run that was stopped.

    Args:
        denoiser: trained.
        cells: N cells.
        path: `.zarr`.
        output: what to write.
        workers: who computes.
        overwrite: whether an existing output may be replaced.

    Raises:
        AleatorError: cells that do not fit the model, an output that cannot be written or was
            begun by another run, a full disk, workers or a scheduler that fail.
    """
    path = check_output(path, cells.path, overwrite=overwrite)
    rows, facts = denoiser.rows(cells, output), denoiser.facts(cells, output)
    if workers.elsewhere and _by_genes(cells):
        raise AleatorError(
            f"{cells.source}: stored by genes (CSC), of which workers would read all for each "
            "cell; convert it to CSR, or use one process"
        )
    kept = PartialStore.open(
        path,
        length=len(cells),
        job={"cells": _fingerprint(cells), "model": denoiser.name(), "output": vars(output)},
        create=lambda data: copy_cells(cells, data),
        overwrite=overwrite,
    )
    chunk = _chunk(cells.shape[1], output)
    with kept.lock():
        if not (kept.work / "ready").exists():
            _prepare(kept, denoiser, rows, chunk, facts)
    threads = max(1, (os.cpu_count() or 1) // workers.number) if workers.number > 1 else None
    job = Job(kept.folder, cells.slot, output, threads)
    if not workers.elsewhere:
        job.use(rows)
    stream(
        job,
        kept,
        chunk=chunk,
        arrays=dict.fromkeys([*_layers(output), LATENT, ELBO, OOD], 0),
        workers=workers.number,
        scheduler=workers.scheduler,
        progress="cells" if workers.progress else None,
    )
    return kept.finish()


class Job:
    """Rows of a store, for `core.streaming`: pickles small, loads on first use."""

    def __init__(self, folder: Path, slot: str, output: Output, threads: int | None) -> None:
        """Note what to do.

        Args:
            folder: of the partial store.
            slot: where the counts are in it.
            output: what to write.
            threads: of a worker; as many as it finds if None.
        """
        self.folder, self.slot, self.output, self.threads = folder, slot, output, threads
        self._rows: Rows | None = None

    def use(self, rows: Rows) -> Rows:
        """Work with what is open already."""
        self._rows = rows
        return rows

    def _load(self) -> Rows:
        import torch

        from apps.single_cell.denoise import Denoiser

        if self.threads:
            torch.set_num_threads(self.threads)
        denoiser = Denoiser.load(self.folder / "work" / "model")
        with np.load(self.folder / "work" / "cells.npz") as kept:
            design = Design(kept["codes"], kept["values"], tuple(map(int, kept["sizes"])))
            genes, index = kept["genes"], kept["index"]
            levels = Levels(kept["dispersion"], kept["threshold"]) if "threshold" in kept else None
        counts = Counts(Stored(self.folder / "data", self.slot))
        targets = targets_of(denoiser.covariates, design, self.output.batch)
        rest = (design, index, self.output, targets, levels)
        return self.use(Rows(denoiser.model, denoiser.surprise, counts, genes, *rest))

    def __call__(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """Name -> rows start:stop of that array of the store."""
        rows = self._rows or self._load()
        size, names = stop - start, _layers(self.output)
        genes, dtype = rows.counts.shape[1], self.output.dtype
        shapes: dict[str, tuple[tuple[int, ...], str]]
        shapes = dict.fromkeys(names, ((size, genes), dtype))
        shapes |= {LATENT: ((size, rows.model.latent_dim), "float32")}
        shapes |= dict.fromkeys((ELBO, OOD), ((size,), "float32"))
        found = {name: np.empty(shape, kind) for name, (shape, kind) in shapes.items()}
        for part in rows(start, stop):
            here = slice(part.start - start, part.stop - start)
            values = [*part.layers, part.latent, part.elbo, part.ood]
            for array, new in zip(found.values(), values, strict=True):
                array[here] = new
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None}


def _prepare(
    kept: PartialStore, denoiser: Denoiser, rows: Rows, chunk: int, facts: Mapping[str, Any]
) -> None:
    """Room in the store, and all that a worker needs to fill it."""
    denoiser.save(kept.work / "model")
    design, levels = rows.design, {} if rows.levels is None else vars(rows.levels)
    np.savez(
        kept.work / "cells.npz",
        genes=rows.genes,
        index=rows.index,
        codes=design.codes,
        values=design.values,
        sizes=np.array(design.sizes, np.int64),
        **levels,
    )
    n, g = rows.counts.shape
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], str]]
    shapes = dict.fromkeys(_layers(rows.output), ((n, g), (CELLS, g), rows.output.dtype))
    shapes[LATENT] = ((n, rows.model.latent_dim), (chunk, rows.model.latent_dim), "float32")
    shapes |= dict.fromkeys((ELBO, OOD), ((n,), (chunk,), "float32"))
    make_room(kept.data, shapes, facts)
    (kept.work / "ready").touch()


def _layers(output: Output) -> list[str]:
    return [f"layers/{name}" for name in output.layers]


def _chunk(genes: int, output: Output) -> int:
    """Cells of a task: whole blocks, about 64 MiB of output, no more than are read at once."""
    block = CELLS * genes * len(output.layers) * np.dtype(output.dtype).itemsize
    return CELLS * int(np.clip(TASK_BYTES // block, 1, READ // CELLS))


def _by_genes(cells: Cells) -> bool:
    """Whether the source keeps the counts as CSC, as its copy then does."""
    if cells.adata is not None:
        layer = cells.slot.removeprefix("layers/")
        matrix: Any = cells.adata.X if cells.slot == "X" else cells.adata.layers[layer]
    else:
        assert cells.path is not None
        matrix = Stored(cells.path, cells.slot).handle
    return getattr(matrix, "format", None) == "csc"


def _fingerprint(cells: Cells) -> str:
    """16 hexadecimal digits of who the cells are, and of the sums of their counts."""
    digest = hashlib.sha256(cells.slot.encode())
    found = cells.summary
    for values in (found.totals, found.detected, found.gene_totals, found.gene_cells, cells.index):
        digest.update(np.ascontiguousarray(values).tobytes())
    for names in (cells.obs.index, cells.var.index):
        digest.update("\n".join(map(str, names)).encode())
    return digest.hexdigest()[:16]
