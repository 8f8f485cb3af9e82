"""Time and memory to denoise pbmc3k as well as scvi-tools does, each in a process of its own.

    python benchmarks/single_cell_speed.py DATA --scvi PYTHON [--steps 110,440] [--folder RUNS]
                                           [--name single_cell_speed] [--out FOLDER]

DATA is the folder with `pbmc3k` (where it comes from: docs/single_cell.md). Training molecules of
the split of seed 0, all genes; training and rates, not their scoring. CPU seconds are of the whole
process, imports included: they can be compared on a machine that does other things too. 440 steps
are what ours takes for so many cells by default. RUNS keeps what scvi-tools gave.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from single_cell_scvi import run_scvi

from apps.single_cell.mcv import Split, cross_validate, split
from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent


def worker(given: Path, found: Path, steps: int) -> None:
    """Ours: train on the counts of a file, write rates and what they took."""
    import torch

    from apps.single_cell.config import Config
    from apps.single_cell.counts import Counts
    from apps.single_cell.covariates import Design
    from apps.single_cell.fitting import fit_model
    from apps.single_cell.layers import point
    from apps.single_cell.posterior import rates
    from apps.single_cell.selection import BASE

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    counts = sp.load_npz(given)
    started = time.perf_counter()
    cells = counts.shape[0]
    design = Design(np.zeros((cells, 0), np.int64), np.zeros((cells, 0), np.float32), ())
    library = np.asarray(counts.sum(1, dtype=np.float64)).ravel()
    config = Config(**{**BASE, "steps": steps})
    model = fit_model(Counts(counts), library, design, config, progress=None).model
    out = np.lib.format.open_memmap(found, mode="w+", dtype=np.float32, shape=counts.shape)
    for part in rates(model, Counts(counts), design):
        out[part.start : part.stop] = point(part)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.perf_counter() - started, time.process_time(), peak)


def ours(molecules: Split, steps: int) -> dict:
    """One row of ours."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.npz", Path(folder) / "out.npy"
        sp.save_npz(given, molecules.train, compressed=False)
        command = [sys.executable, __file__, "--worker", str(given), str(found), str(steps)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        wall, cpu, peak = map(float, ran.stdout.split())
        loss = _loss(np.load(found, mmap_mode="r"), molecules)
    return {"method": f"ours, {steps} steps", "loss": loss, "cpu": cpu, "wall": wall, "mb": peak}


def scvi(molecules: Split, python: Path, keep: Path | None) -> dict:
    """The row of scvi-tools."""
    ran = run_scvi(python, molecules.train, 0, keep=keep)
    row = {"method": f"{ran.version.split(',')[0]}, NB, 100 epochs", "cpu": ran.cpu}
    return row | {"loss": _loss(ran.out, molecules), "wall": ran.seconds, "mb": ran.peak}


def _loss(rates: np.ndarray, molecules: Split) -> float:
    """Corrected Poisson loss; blocks are asked for in order."""
    starts = iter(range(0, len(rates), 256))

    def predict(counts: sp.csr_matrix) -> np.ndarray:
        start = next(starts)
        return np.asarray(rates[start : start + counts.shape[0]])

    return cross_validate(predict, molecules, 256).scores()["poisson"]


def main(arguments: list[str] | None = None) -> None:
    """Run and write single_cell_speed.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--scvi", type=Path, help="python that has scvi-tools; left out if none")
    parser.add_argument("--steps", default="110,440")
    parser.add_argument("--folder", type=Path, help="keeps what scvi-tools gave")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="single_cell_speed", help="of the files in FOLDER")
    options = parser.parse_args(arguments)
    adata = ad.read_h5ad(options.data / "pbmc3k" / "pbmc3k.h5ad")
    molecules = split(sp.csr_matrix(adata.X), 0.9, 0, as_published=True)
    rows = [ours(molecules, int(steps)) for steps in options.steps.split(",")]
    if options.scvi:
        keep = options.folder / "pbmc3k" / "scvi0.npz" if options.folder else None
        rows.append(scvi(molecules, options.scvi, keep))
    columns = {
        "method": "method",
        "loss": "corrected Poisson",
        "cpu": "CPU s",
        "wall": "wall-clock s",
        "mb": "peak MB",
    }
    formats = {"loss": ".5f", "cpu": ".0f", "wall": ".0f", "mb": ".0f"}
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    title = f"pbmc3k, all genes: training and rates, {threads} thread(s) each"
    tables = [Table(rows, columns, formats, {}, title)]
    results = write_results(options.out / f"{options.name}.json", tables)
    write_text(options.out / f"{options.name}.md", report(results, "Time to denoise"))
    tables[0].print()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
