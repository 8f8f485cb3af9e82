"""Preparing: every value of shower files checked, and the files joined, a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apps.hep_simulation.data import CHUNK, ENERGIES, PDG, SHOWERS, open_showers
from apps.hep_simulation.geometry import Geometry
from core.errors import AleatorError
from core.report import replacing


def prepare(
    sources: Sequence[Path], geometry: Geometry, output: Path, *, overwrite: bool = False
) -> str:
    """Join files; returns what was done, in words.

    Raises:
        AleatorError: the output exists, a file is damaged, or the same shower is there twice.
    """
    import h5py

    if output.exists() and not overwrite:
        raise AleatorError(f"{output} exists; choose another name or give --overwrite")
    found = [open_showers(path, geometry) for path in sources]
    prints = [file.fingerprint() for file in found]
    for index, mark in enumerate(prints):
        if mark in prints[:index]:
            raise AleatorError(
                f"{found[index].path} and {found[prints.index(mark)].path} hold the same showers"
            )
    count = sum(file.count for file in found)
    start, energy, response = 0, [np.inf, 0.0], []
    with replacing(output) as draft, h5py.File(draft, "w") as out:
        rows = min(256, count)
        showers = out.create_dataset(
            SHOWERS,
            (count, geometry.voxels),
            np.float32,
            chunks=(rows, geometry.voxels),
            compression="gzip",
            compression_opts=4,
        )
        energies = out.create_dataset(ENERGIES, (count, 1), np.float64, compression="gzip")
        particles = out.create_dataset(PDG, (count, 1), np.int32, compression="gzip")
        for file in found:
            for chunk in file.chunks(CHUNK):
                stop = start + len(chunk)
                showers[start:stop] = chunk.showers
                energies[start:stop, 0] = chunk.energies
                particles[start:stop, 0] = chunk.particles
                energy = [
                    min(energy[0], chunk.energies.min()),
                    max(energy[1], chunk.energies.max()),
                ]
                response.append((chunk.showers.sum(1, dtype=np.float64) / chunk.energies).mean())
                start = stop
    return (
        f"wrote {output}: {count} showers of {len(found)} files, "
        f"{energy[0] / 1000:.3g} to {energy[1] / 1000:.3g} GeV, mean response "
        f"{np.mean(response):.3f}"
    )
