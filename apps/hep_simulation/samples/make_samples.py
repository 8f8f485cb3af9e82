"""Make the bundled files: the binning, and a part of a shower file.

python apps/hep_simulation/samples/make_samples.py SHOWERS.hdf5
"""

from __future__ import annotations

import sys
from pathlib import Path

import h5py

from apps.hep_simulation.geometry import Geometry, Layer

HERE = Path(__file__).parent
COUNT = 300


def par04() -> Geometry:
    """45 layers of 16 sectors and 9 rings of 4.65 mm: CaloChallenge's data set 2."""
    edges = tuple(round(4.65 * ring, 2) for ring in range(10))
    return Geometry("electron", 11, tuple(Layer(index, edges, 16) for index in range(45)))


def main(source: str) -> None:
    """Write both."""
    (HERE / "binning.xml").write_text(par04().to_xml(), encoding="utf-8")
    with h5py.File(source) as full, h5py.File(HERE / "showers.hdf5", "w") as part:
        for name in ("incident_energies", "incident_pdg", "showers"):
            part.create_dataset(
                name, data=full[name][:COUNT], compression="gzip", compression_opts=9
            )
        for name, value in full.attrs.items():
            part.attrs[name] = value


if __name__ == "__main__":
    main(sys.argv[1])
