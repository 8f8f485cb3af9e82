"""How this folder was made: `python make_sample.py pythia_jets`, from the repository.

Keeps the first 300 events of the test file, and trains the model on the training file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
EVENTS = 300


def main(data: Path) -> None:
    """Make events.root, model.json, model.safetensors and card.md."""
    keep(data / "qcd_test.root", HERE / "events.root")
    output = os.path.relpath(HERE)  # the card says how, not where
    command = [sys.executable, "-m", "pipelines.hep_infer", "train-objects"]
    train = [*command, str(data / "qcd_train.root"), "-o", output, "--overwrite"]
    subprocess.run(train, check=True)
    shutil.rmtree(HERE / "training")


def keep(source: Path, target: Path) -> None:
    """Copy the first events of a file."""
    import awkward as ak
    import uproot

    tree = uproot.open(source)["Events"]
    arrays = tree.arrays(entry_stop=EVENTS)
    records = {name: arrays[name] for name in arrays.fields if "_" not in name and name[0] != "n"}
    records |= {name: arrays[name] for name in arrays.fields if "_" in name and "Jet_" not in name}
    for group in ("GenJet", "Jet"):
        names = [name for name in arrays.fields if name.startswith(f"{group}_")]
        records[group] = ak.zip({name.partition("_")[2]: arrays[name] for name in names})
    with uproot.recreate(target, compression=uproot.LZMA(5)) as file:
        file.mktree("Events", {name: ak.type(value).content for name, value in records.items()})
        file["Events"].extend(records)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
