"""How this folder was made: `python make_sample.py pythia_lep_theta`, from the repository.

Keeps the first eight sets of the test file, and trains the posterior on the training file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from apps.hep_simulation.inference.data import read_sets, write_sets

HERE = Path(__file__).parent
SETS = 8


def main(data: Path) -> None:
    """Make events.hdf5, model.json, model.safetensors and card.md."""
    test = read_sets(data / "test.hdf5", simulated=True).rows(np.arange(SETS))
    assert test.theta is not None
    assert test.prior is not None
    write_sets(HERE / "events.hdf5", test.x, test.x_names, test.theta, test.prior)
    command = [sys.executable, "-m", "pipelines.hep_infer", "train-inference"]
    output = os.path.relpath(HERE)  # the card says how, not where
    train = [*command, str(data / "train.hdf5"), "-o", output, "--overwrite"]
    subprocess.run(train, check=True)
    shutil.rmtree(HERE / "training")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
