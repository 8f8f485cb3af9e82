"""Showers by the million: memory as the number grows, and a run that is killed.

    python benchmarks/hep_scale.py [--counts 2000,8000,32000] [--out FOLDER]

Each row is `python -m pipelines.hep simulate` with the bundled weights in a process of its own:
its peak memory, processor time and file. One run is killed (SIGKILL) as soon as a part is on disk,
started again with the same command, and its file compared with that of a run that nobody
disturbed, byte by byte. The first showers of a longer run are those of a shorter one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent
RUN = "import sys; from pipelines.hep import app; app(sys.argv[1:])"
MILLION = 1_000_000
COLUMNS = {
    "showers": "showers",
    "memory": "peak memory (MB)",
    "seconds": "CPU seconds",
    "ms": "ms a shower",
    "file": "file (MB)",
}
FORMATS = {"memory": ".0f", "seconds": ".0f", "ms": ".2f", "file": ".1f"}


def command(count, path):
    options = ["-n", str(count), "-o", str(path), "--energies", "1:64:log", "--seed", "1"]
    return [sys.executable, "-c", RUN, "simulate", *options]


def simulate(count, path):
    """Peak memory (MB) and processor time (s) of one run."""
    process = subprocess.Popen(command(count, path), stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"simulate failed with status {status}")
    return usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def killed(count, path):
    """Start, kill after the first part, start again; the parts that the kill left behind."""
    process = subprocess.Popen(command(count, path), stderr=subprocess.DEVNULL)
    parts = path.with_name(path.name + ".parts")
    while not list(parts.glob("*.npz")) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    left = len(list(parts.glob("*.npz")))
    assert left, "the run was over before it could be killed; ask for more showers"
    assert not path.exists()
    simulate(count, path)
    return left


def million(rows):
    """What the last two rows say of a million; the first run may be shorter than a chunk."""
    (few, more), step = rows[-2:], rows[-1]["showers"] - rows[-2]["showers"]
    growth, pace = (MILLION * (more[k] - few[k]) / step for k in ("memory", "seconds"))
    return (
        f"Not measured, but extrapolated from the last two rows: a million showers take "
        f"{pace / 60:.0f} min of one core, and {growth:.0f} MB more than the last row."
    )


def first_rows(path, count):
    with h5py.File(path) as file:
        return file["showers"][:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--counts", default="2000,8000,32000")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    counts = sorted(int(word) for word in options.counts.split(","))
    rows, files = [], []
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            path = Path(folder) / f"{count}.hdf5"
            memory, seconds = simulate(count, path)
            files.append(path)
            row = {"showers": count, "memory": memory, "seconds": seconds}
            rows.append(row | {"ms": 1000 * seconds / count, "file": path.stat().st_size / 2**20})
        same = np.array_equal(first_rows(files[-1], counts[0]), first_rows(files[0], counts[0]))
        again = Path(folder) / "killed.hdf5"
        left = killed(counts[1], again)
        identical = again.read_bytes() == files[1].read_bytes()
    notes = [
        f"A run of {counts[1]} showers, killed with {left} part(s) on disk and started again, "
        f"{'gave the same file, byte by byte' if identical else 'GAVE ANOTHER FILE'}.",
        f"The first {counts[0]} showers of {counts[-1]} are "
        f"{'those of the shortest run' if same else 'OTHERS than those of the shortest run'}.",
        million(rows),
    ]
    table = Table(rows, COLUMNS, FORMATS, title="Showers simulated to a file")
    results = write_results(options.out / "hep_scale.json", [table], notes=notes)
    text = report(results, "Showers by the million") + "".join(f"\nNote: {n}\n" for n in notes)
    write_text(options.out / "hep_scale.md", text)
    print(text)


if __name__ == "__main__":
    main()
