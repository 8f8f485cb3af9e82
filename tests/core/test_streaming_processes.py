"""Jobs in processes of their own: killed and resumed, and in flat memory."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import zarr

SCRIPT = """
import sys, time
import numpy as np
from pathlib import Path
import zarr
from core.streaming import PartialStore, stream

def template(path):
    group = zarr.open_group(path, mode="w")
    group.create_array("x", shape=(40, 500), chunks=(2, 500), dtype="f8")

def compute(start, stop):
    with open(sys.argv[2], "a") as log:
        log.write(f"{start}\\n")
    while start >= 16 and not Path(sys.argv[2] + ".go").exists():
        time.sleep(0.01)
    return {"x": np.sin(np.arange(start * 500, stop * 500)).reshape(-1, 500)}

if __name__ == "__main__":
    store = PartialStore.open(Path(sys.argv[1]), length=40, job={"seed": 1}, create=template)
    stream(compute, store, chunk=2, arrays={"x": 0}, workers=int(sys.argv[3]))
    store.finish()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_sigkill_then_resume_gives_the_same_store(tmp_path, workers):
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "out"
    folder.mkdir()
    out, log = folder / "x.zarr", tmp_path / "log"

    def command(out, log):
        return [sys.executable, str(script), str(out), str(log), str(workers)]

    job = subprocess.Popen(command(out, log), stderr=subprocess.DEVNULL)
    marks = folder / "x.zarr.partial" / "done"
    deadline = time.monotonic() + 60
    while not marks.exists() or len(list(marks.iterdir())) < 8:
        assert time.monotonic() < deadline
        assert job.poll() is None, "the job ended before it could be killed"
        time.sleep(0.01)
    orphans = psutil.Process(job.pid).children(recursive=True)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    assert os.listdir(folder) == ["x.zarr.partial"]
    _, alive = psutil.wait_procs(orphans, timeout=20)  # workers notice, and end
    assert not alive
    kept = {int(mark.name[:12]) for mark in marks.iterdir()}
    assert kept == set(range(0, 16, 2))
    log.unlink()
    (tmp_path / "log.go").touch()
    subprocess.run(command(out, log), check=True, timeout=60)
    assert {int(line) for line in log.read_text().split()} == set(range(0, 40, 2)) - kept
    assert os.listdir(folder) == ["x.zarr"]
    expected = np.sin(np.arange(20_000)).reshape(40, 500)
    np.testing.assert_array_equal(zarr.open_group(out)["x"][:], expected)
    assert not list(out.rglob("*.partial"))


MEMORY = """
import resource, sys
import numpy as np, zarr
from pathlib import Path
from core.streaming import PartialStore, stream

length = int(sys.argv[2])
rows = np.random.default_rng(0).random((4, 250_000))

def template(path):
    group = zarr.open_group(path, mode="w")
    group.create_array("x", shape=(length, 250_000), chunks=(4, 250_000), dtype="f8")

store = PartialStore.open(Path(sys.argv[1]), length=length, job={}, create=template)
stream(lambda a, b: {"x": rows + a}, store, chunk=4, arrays={"x": 0})
store.finish()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_length(tmp_path):
    peak = {}
    for length in (12, 120):  # 24 and 240 MB of rows
        command = [sys.executable, "-c", MEMORY, str(tmp_path / str(length)), str(length)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        peak[length] = int(ran.stdout) / 1024
    assert peak[120] - peak[12] < 40
