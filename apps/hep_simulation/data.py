r"""Shower files in CaloChallenge's HDF5 layout, read in chunks and checked before anything runs.

    incident_energies (N, 1) MeV    showers (N, V) MeV, r fastest, then alpha, then layer
    incident_pdg (N, 1)             optional: PDG number; else the particle of the geometry

Reference: Krause et al. (2024), arXiv:2410.21611.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.geometry import Geometry, check_voxels
from core.errors import AleatorError

ENERGIES, SHOWERS, PDG = "incident_energies", "showers", "incident_pdg"
CHUNK = 4096
"""Showers read at once."""
GREATEST_RESPONSE = 3.0
"""Mean E_tot / E_inc above which, or below whose inverse tenth, units do not agree."""


@dataclass(frozen=True)
class Chunk:
    """Some showers.

    Attributes:
        start: number of the first one in its file.
        energies: (N,) incident energies, MeV.
        particles: (N,) PDG numbers.
        showers: (N, V) MeV, float32.
    """

    start: int
    energies: np.ndarray
    particles: np.ndarray
    showers: np.ndarray

    def __len__(self) -> int:
        return len(self.energies)


@dataclass(frozen=True)
class ShowerFile:
    """A file that was found to be readable; its values are checked as they are read.

    Attributes:
        path: where.
        count: N.
        geometry: of its showers.
        has_pdg: whether it says which particle each shower is of.
        attributes: of the file.
    """

    path: Path
    count: int
    geometry: Geometry
    has_pdg: bool
    attributes: dict[str, Any]

    def chunks(self, size: int = CHUNK, stop: int | None = None) -> Iterator[Chunk]:
        """Showers in order, `size` at a time, up to number `stop`.

        Raises:
            AleatorError: a value that no shower has, named by dataset and row.
        """
        with open_hdf5(self.path) as file:
            for start in range(0, self.count if stop is None else min(stop, self.count), size):
                yield self._read(file, start, min(start + size, stop or self.count, self.count))

    def read(self, stop: int | None = None) -> Chunk:
        """All showers, or the first `stop`, at once."""
        parts = list(self.chunks(stop=stop))
        fields = ("energies", "particles", "showers")
        return Chunk(0, *(np.concatenate([getattr(p, f) for p in parts]) for f in fields))

    def _read(self, file: Any, start: int, stop: int) -> Chunk:
        try:
            energies = np.asarray(file[ENERGIES][start:stop], np.float64).reshape(stop - start)
            showers = np.asarray(file[SHOWERS][start:stop], np.float32)
            if self.has_pdg:
                particles = np.asarray(file[PDG][start:stop], np.int64).reshape(stop - start)
            else:
                particles = np.full(stop - start, self.geometry.pid)
        except OSError as error:
            raise AleatorError(
                f"{self.path}: rows {start} to {stop} cannot be read ({_reason(error)}); the file "
                "is truncated or damaged: copy it again"
            ) from None
        check_energies(energies, f"{self.path}: {ENERGIES}", start)
        _check_showers(showers, f"{self.path}: {SHOWERS}", start)
        _check_units(energies, showers, str(self.path))
        return Chunk(start, energies, particles, showers)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of its size and of its first, middle and last showers."""
        digest = hashlib.sha256(f"{self.count} {self.geometry.voxels}".encode())
        with open_hdf5(self.path) as file:
            for start in sorted({0, self.count // 2, max(0, self.count - 64)}):
                digest.update(np.asarray(file[SHOWERS][start : start + 64]).tobytes())
                digest.update(np.asarray(file[ENERGIES][start : start + 64]).tobytes())
        return digest.hexdigest()[:16]


def open_hdf5(path: Path) -> Any:
    """Open an HDF5 file for reading.

    Raises:
        AleatorError: it is not there, not HDF5, or cut short.
    """
    import h5py

    if path.is_dir():
        raise AleatorError(f"{path}: a folder, not an HDF5 file")
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise AleatorError(f"{path}: no such file") from None
    except OSError as error:
        if not path.stat().st_size:
            raise AleatorError(f"{path}: the file is empty (0 bytes)") from None
        raise AleatorError(
            f"{path}: cannot be opened as HDF5 ({_reason(error)}); it is another format, truncated"
            " or still being written"
        ) from None


def open_showers(path: Path | str, geometry: Geometry) -> ShowerFile:
    """Check the layout of a file.

    Raises:
        AleatorError: not HDF5, a dataset missing, empty, or of another shape than the geometry's.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        _need(file, path, ENERGIES, SHOWERS)
        showers = file[SHOWERS]
        _check_numbers(path, file, ENERGIES, SHOWERS)
        if showers.ndim != 2:
            raise AleatorError(f"{path}: {SHOWERS} has shape {showers.shape}, expected (N, V)")
        count = showers.shape[0]
        if not count:
            raise AleatorError(f"{path}: no shower in it")
        for name in (ENERGIES, PDG):
            if name in file and file[name].size != count:
                raise AleatorError(
                    f"{path}: {file[name].size} {name} but {count} {SHOWERS}; rows are missing"
                )
        check_voxels(showers.shape[1], geometry, str(path))
        attributes = dict(file.attrs)
        return ShowerFile(path, count, geometry, PDG in file, attributes)


def read_conditions(path: Path | str, particle: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Incident energies (N,) in MeV and PDG numbers (N,) of a file, showers or not.

    Args:
        path: HDF5 with `incident_energies`.
        particle: of all showers, where the file does not say.

    Raises:
        AleatorError: unreadable, no energies, or the particle is not known.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        _need(file, path, ENERGIES)
        _check_numbers(path, file, ENERGIES)
        energies = np.asarray(file[ENERGIES][:], np.float64).reshape(-1)
        if not len(energies):
            raise AleatorError(f"{path}: {ENERGIES} is empty")
        if PDG in file:
            if file[PDG].size != len(energies):
                raise AleatorError(f"{path}: {file[PDG].size} {PDG}, {len(energies)} {ENERGIES}")
            particles = np.asarray(file[PDG][:], np.int64).reshape(-1)
        elif particle is None:
            raise AleatorError(f"{path}: no {PDG} in it; give --particle")
        else:
            particles = np.full(len(energies), particle)
    check_energies(energies, f"{path}: {ENERGIES}")
    return energies, particles


def check_energies(energies: np.ndarray, where: str, start: int = 0) -> None:
    """Refuse incident energies that are not finite and positive.

    Raises:
        AleatorError: the first bad row.
    """
    bad = np.flatnonzero(~np.isfinite(energies) | (energies <= 0))
    if len(bad):
        raise AleatorError(
            f"{where}, row {start + bad[0]}: {energies[bad[0]]:g}; incident energies are finite "
            f"and positive, in MeV ({len(bad)} bad rows here)"
        )


def _need(file: Any, path: Path, *names: str) -> None:
    for name in names:
        if name not in file:
            there = ", ".join(sorted(file)) or "nothing"
            raise AleatorError(f"{path}: no dataset {name!r}; the file has {there}")


def _check_numbers(path: Path, file: Any, *names: str) -> None:
    for name in names:
        if not hasattr(file[name], "dtype") or file[name].dtype.kind not in "fiu":
            kind = getattr(file[name], "dtype", "a group")
            raise AleatorError(f"{path}: {name} is of type {kind}, expected numbers")


def _check_showers(showers: np.ndarray, where: str, start: int) -> None:
    least = showers.min(1)  # NaN if there is one
    greatest = showers.max(1)
    bad = np.flatnonzero(~np.isfinite(least) | ~np.isfinite(greatest))
    if len(bad):
        row = bad[0]
        voxel = int(np.flatnonzero(~np.isfinite(showers[row]))[0])
        raise AleatorError(
            f"{where}, row {start + row}, voxel {voxel}: {showers[row, voxel]}; energies must be "
            f"finite ({len(bad)} bad showers here)"
        )
    bad = np.flatnonzero(least < 0)
    if len(bad):
        row, voxel = bad[0], int(showers[bad[0]].argmin())
        raise AleatorError(
            f"{where}, row {start + row}, voxel {voxel}: {showers[row, voxel]:g} MeV; energies "
            f"must not be negative ({len(bad)} bad showers here)"
        )


def _check_units(energies: np.ndarray, showers: np.ndarray, where: str) -> None:
    """Refuse MeV mixed with GeV: the response is then a thousand times what it should be."""
    response = float(np.median(showers.sum(1, dtype=np.float64) / energies))
    if response > 30 * GREATEST_RESPONSE:
        what = "showers in MeV but incident energies in GeV?"
    elif 0 < response < 1 / (30 * GREATEST_RESPONSE):
        what = "showers in GeV but incident energies in MeV, or not scaled by 1/sampling fraction?"
    elif response > GREATEST_RESPONSE:
        what = "more energy comes out than went in"
    else:
        return
    raise AleatorError(
        f"{where}: the median of E_tot / E_inc is {response:.3g}; {what} Both must be in MeV"
    )


def _reason(error: OSError) -> str:
    """The useful part of what HDF5 says."""
    text = str(error)
    return text[text.find("(") + 1 : text.rfind(")")] if "(" in text else text


def read_all(paths: Sequence[Path | str], geometry: Geometry) -> Chunk:
    """All showers of several files."""
    parts = [open_showers(path, geometry).read() for path in paths]
    fields = ("energies", "particles", "showers")
    return Chunk(0, *(np.concatenate([getattr(p, f) for p in parts]) for f in fields))
