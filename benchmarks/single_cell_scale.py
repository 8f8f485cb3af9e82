"""A million cells from a sparse Zarr store: training and denoising within 4 GB.

    python benchmarks/single_cell_scale.py WORK [--cells 100000,1000000] [--genes 2000]
                                           [--steps 0] [--denoise 0] [--name single_cell_scale]
                                           [--model MODEL] [--out FOLDER]

WORK is a folder for the stores; what is there already is not made again. Synthetic cells: eight
types with profiles of their own, about 300 molecules each. Training takes --steps steps of 128
cells (0: one epoch, every cell once), with the default options and their verdict, as the command
`train` gives it. Denoising writes rates and intervals as float16 to Zarr, of all cells, or of a
store of --denoise such cells. Each is a command of ours; peak memory is its resident set, CPU
seconds are all of it, opening and checking of the counts included (of the last sitting only, where
a benchmark that was stopped is given again). With --model, one of an earlier run, nothing is
trained: all stores have the same eight types.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent
BLOCK, TYPES, DEPTH = 20_000, 8, 300.0
BATCH = 128


def write_store(path: Path, cells: int, genes: int) -> None:
    """Synthetic counts as AnnData-Zarr, written block by block."""
    import pandas as pd
    import scipy.sparse as sp
    import zarr
    from anndata.io import write_elem

    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    root = zarr.open_group(partial, mode="w", zarr_format=2)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    write_elem(root, "obs", pd.DataFrame(index=[f"c{i}" for i in range(cells)]))
    write_elem(root, "var", pd.DataFrame(index=[f"g{j}" for j in range(genes)]))
    for name in ("obsm", "varm", "obsp", "varp", "uns", "layers"):
        write_elem(root, name, {})
    group = root.create_group("X")
    kind = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [cells, genes]}
    group.attrs.update(kind)
    parts = {
        name: group.create_array(name, shape=(0,), chunks=(1 << 20,), dtype=dtype)
        for name, dtype in (("data", "float32"), ("indices", "int32"))
    }
    profiles = np.cumsum(np.random.default_rng(0).dirichlet(np.full(genes, 0.3), TYPES), 1)
    pointers = [np.zeros(1, np.int64)]
    for start in range(0, cells, BLOCK):
        stream, size = np.random.default_rng([1, start]), min(BLOCK, cells - start)
        depth = stream.lognormal(np.log(DEPTH), 0.4, size).astype(np.int64) + 1
        own = stream.integers(0, TYPES, size)
        row, u = np.repeat(np.arange(size), depth), stream.random(int(depth.sum()))
        column = np.empty(len(row), np.int64)
        for k in range(TYPES):
            mine = own[row] == k
            column[mine] = np.searchsorted(profiles[k], u[mine]).clip(max=genes - 1)
        ones = np.ones(len(row), np.float32)
        x = sp.coo_matrix((ones, (row, column)), shape=(size, genes)).tocsr()
        parts["data"].append(x.data)
        parts["indices"].append(x.indices.astype(np.int32))
        pointers.append(x.indptr[1:].astype(np.int64) + pointers[-1][-1])
    indptr = np.concatenate(pointers)
    group.create_array("indptr", data=indptr, chunks=(len(indptr),))
    partial.rename(path)


def measured(command: list[object]) -> dict[str, float]:
    """CPU seconds, wall-clock and peak MB of a command of ours, which goes on if stopped."""
    started = time.perf_counter()
    arguments = [sys.executable, "-m", "pipelines.single_cell", *map(str, command)]
    process = subprocess.Popen(arguments, cwd=HERE.parent)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments[1:])} failed")
    wall = time.perf_counter() - started
    return {"cpu": used.ru_utime + used.ru_stime, "wall": wall, "mb": used.ru_maxrss / 1024}


def main(arguments: list[str] | None = None) -> None:
    """Run and write single_cell_scale.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("work", type=Path, help="folder for the stores")
    parser.add_argument("--cells", default="100000,1000000")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=0, help="0: one epoch")
    parser.add_argument("--denoise", type=int, default=0, help="cells; 0: all")
    parser.add_argument("--model", type=Path, help="to denoise with; nothing is trained then")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="single_cell_scale", help="of the files in FOLDER")
    options = parser.parse_args(arguments)
    options.work, rows = options.work.resolve(), []
    options.model = options.model and options.model.resolve()
    for cells in map(int, options.cells.split(",")):
        store = options.work / f"cells{cells}x{options.genes}.zarr"
        if not store.exists():
            write_store(store, cells, options.genes)
        model = options.model or options.work / f"model{cells}"
        output = options.work / f"denoised{cells}.zarr"
        steps = options.steps or cells // BATCH
        done = min(options.denoise or cells, cells)
        part = store
        if done < cells:
            part = options.work / f"cells{done}x{options.genes}.zarr"
            if not part.exists():
                write_store(part, done, options.genes)
        tasks: dict[str, list[object]] = {
            f"train, {steps} steps": [
                *("train", store, "-o", model, "--no-search", "--steps", steps),
                *("--resume", "--overwrite"),
            ],
            f"denoise {done} cells": [
                *("denoise", part, "--model", model, "-o", output, "--dtype", "float16"),
                "--overwrite",
            ],
        }
        for name, task in tasks.items():
            if options.model and task[0] == "train":
                continue
            rows.append({"cells": cells, "what": name, **measured(task)})
            print(rows[-1], file=sys.stderr, flush=True)
            columns = {"cells": "cells", "what": "task", "cpu": "CPU s", "wall": "wall-clock s"}
            columns["mb"] = "peak MB"
            formats = {"cells": ",", "cpu": ".0f", "wall": ".0f", "mb": ".0f"}
            title = f"{options.genes} genes, sparse Zarr on disk"
            tables = [Table(rows, columns, formats, {}, title)]
            results = write_results(options.out / f"{options.name}.json", tables)
            write_text(options.out / f"{options.name}.md", report(results, "A million cells"))
        shutil.rmtree(output, ignore_errors=True)
    tables[0].print()


if __name__ == "__main__":
    main()
