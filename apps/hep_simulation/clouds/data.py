r"""Files of jets as clouds of constituents, in JetNet's HDF5 layout, checked as they are read.

    particle_features (N, P, 4)   etarel, phirel, ptrel, mask (1 where there is a particle)
    jet_features (N, 4)           pt (GeV), eta, mass (GeV), num_particles
    jet_type (N,)                 optional: PDG number of the parton; else 0, unknown
    particle_type (N, P)          optional: 0 none, then `SPECIES`

etarel and phirel are relative to the jet, ptrel = pT / pT of the jet. Reference: Kansal et al.
(2021) arXiv:2106.11535. The only place of the clouds that reads files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.clouds.kinematics import axis
from apps.hep_simulation.data import open_hdf5
from core.errors import AleatorError

PARTICLES, JETS, JET_TYPE, SPECIES_SET = (
    "particle_features", "jet_features", "jet_type", "particle_type"
)  # fmt: skip
FLAGGED = "flagged"
SPECIES = ("charged hadron", "neutral hadron", "photon", "electron", "muon")
"""Kinds of constituents, numbered from 1."""
TYPES = (0, 1, 4, 5, 21)
"""Kinds of jets: unknown, light quark, c, b, gluon."""
JET_COLUMNS = ("pt", "eta", "mass", "num_particles")
PARTICLE_COLUMNS = ("etarel", "phirel", "ptrel", "mask")
WIDEST = 3.2
"""Largest |etarel| or |phirel| that a jet may have."""


@dataclass(frozen=True)
class Clouds:
    """Jets in memory; absent constituents are zeros.

    Attributes:
        pt: (N,) of the jet, GeV.
        eta: (N,) of the jet.
        kind: (N,) one of `TYPES`.
        points: (N, P, 3) etarel, phirel, ptrel.
        mask: (N, P) bool.
        species: (N, P) 0 for none, then `SPECIES`; all 0 where the file does not say.
    """

    pt: np.ndarray
    eta: np.ndarray
    kind: np.ndarray
    points: np.ndarray
    mask: np.ndarray
    species: np.ndarray

    def __len__(self) -> int:
        return len(self.pt)

    @property
    def counts(self) -> np.ndarray:
        """(N,) constituents."""
        return self.mask.sum(1)

    def rows(self, rows: Any) -> Clouds:
        """Some jets."""
        return Clouds(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def padded(self, most: int) -> Clouds:
        """The same with room for `most` constituents."""
        extra = most - self.mask.shape[1]
        if extra <= 0:
            return self
        wide = {
            name: np.pad(getattr(self, name), [(0, 0), (0, extra)] + [(0, 0)] * more)
            for name, more in (("points", 1), ("mask", 0), ("species", 0))
        }
        return replace(self, **wide)


def join(parts: Sequence[Clouds]) -> Clouds:
    """One after the other."""
    most = max(part.mask.shape[1] for part in parts)
    wide = [part.padded(most) for part in parts]
    return Clouds(
        **{f.name: np.concatenate([getattr(p, f.name) for p in wide]) for f in fields(Clouds)}
    )


def is_clouds(path: Path) -> bool:
    """Whether an HDF5 file holds clouds.

    Raises:
        AleatorError: it is no HDF5 file.
    """
    with open_hdf5(path) as file:
        return PARTICLES in file or JETS in file


def read_clouds(path: Path | str, stop: int | None = None) -> Clouds:
    """The jets of a file, or its first `stop`.

    Raises:
        AleatorError: a dataset is missing or of the wrong shape, the file is empty or cut short,
            or holds a value that no jet has, named by row.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        _check_layout(file, path)
        try:
            particles = np.asarray(file[PARTICLES][:stop], np.float64)
            jets = np.asarray(file[JETS][:stop], np.float64)
            kind = file[JET_TYPE][:stop].reshape(-1) if JET_TYPE in file else np.zeros(len(jets))
            species = (
                file[SPECIES_SET][:stop] if SPECIES_SET in file else np.zeros(particles.shape[:2])
            )
        except OSError:
            raise AleatorError(
                f"{path}: cannot be read to its end; it is truncated or damaged: copy it again"
            ) from None
    mask = particles[:, :, 3] > 0.5
    found = Clouds(
        jets[:, 0], jets[:, 1], _kinds(np.asarray(kind), path),
        particles[:, :, :3] * mask[:, :, None], mask, np.asarray(species, np.int64) * mask,
    )  # fmt: skip
    _check_values(found, particles, path)
    return found


def read_conditions(path: Path | str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Momenta pT (N,) in GeV, η (N,) and kinds (N,) of jets; constituents need not be there.

    Raises:
        AleatorError: as `read_clouds`.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        if JETS not in file:
            raise AleatorError(f"{path}: no dataset {JETS!r}; the file has {_there(file)}")
        jets = np.asarray(file[JETS][:], np.float64)
        if jets.ndim != 2 or jets.shape[1] < 2 or not len(jets):
            raise AleatorError(f"{path}: {JETS} has shape {jets.shape}, expected (N, 4), N ≥ 1")
        kind = (
            np.asarray(file[JET_TYPE][:]).reshape(-1) if JET_TYPE in file else np.zeros(len(jets))
        )
        if len(kind) != len(jets):
            raise AleatorError(f"{path}: {len(kind)} {JET_TYPE} but {len(jets)} {JETS}")
    check_jets(jets[:, 0], jets[:, 1], str(path))
    return jets[:, 0], jets[:, 1], _kinds(kind, path)


def check_jets(pt: np.ndarray, eta: np.ndarray, where: str) -> None:
    """Refuse momenta that are not positive, and η beyond ±10.

    Raises:
        AleatorError: the first bad row.
    """
    for name, values, bad, wanted in (
        ("pt", pt, ~np.isfinite(pt) | (pt <= 0), "positive, in GeV"),
        ("eta", eta, ~(np.abs(eta) <= 10), "within ±10"),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            raise AleatorError(
                f"{where}: {JETS}, row {row}: {name}={values[row]:g}; it must be {wanted} "
                f"({int(bad.sum())} bad rows)"
            )


def masses(clouds: Clouds) -> np.ndarray:
    """(N,) mass over pT of massless constituents."""
    return axis(clouds.points, clouds.mask).mass


def columns(clouds: Clouds) -> dict[str, np.ndarray]:
    """Datasets as they are written."""
    jets = np.stack([clouds.pt, clouds.eta, masses(clouds) * clouds.pt, clouds.counts], 1)
    particles = np.concatenate([clouds.points, clouds.mask[:, :, None]], 2)
    return {
        PARTICLES: particles.astype(np.float32),
        JETS: jets.astype(np.float32),
        JET_TYPE: clouds.kind.astype(np.int32),
        SPECIES_SET: clouds.species.astype(np.int8),
    }


def fingerprint(clouds: Clouds) -> str:
    """16 hexadecimal digits."""
    digest = hashlib.sha256(np.ascontiguousarray(clouds.points, np.float32).tobytes())
    digest.update(np.ascontiguousarray(clouds.pt, np.float64).tobytes())
    return digest.hexdigest()[:16]


def _there(file: Any) -> str:
    return ", ".join(sorted(file)) or "nothing"


def _check_layout(file: Any, path: Path) -> None:
    for name in (PARTICLES, JETS):
        if name not in file:
            raise AleatorError(f"{path}: no dataset {name!r}; the file has {_there(file)}")
        if not hasattr(file[name], "dtype") or file[name].dtype.kind not in "fiu":
            raise AleatorError(f"{path}: {name} is no dataset of numbers")
    particles, jets = file[PARTICLES], file[JETS]
    if particles.ndim != 3 or particles.shape[2] != 4:
        raise AleatorError(
            f"{path}: {PARTICLES} has shape {particles.shape}, expected (N, P, 4): "
            f"{', '.join(PARTICLE_COLUMNS)}"
        )
    if jets.ndim != 2 or jets.shape[1] != 4:
        raise AleatorError(
            f"{path}: {JETS} has shape {jets.shape}, expected (N, 4): {', '.join(JET_COLUMNS)}"
        )
    count = particles.shape[0]
    if not count:
        raise AleatorError(f"{path}: no jet in it")
    for name, shape in (
        (JETS, jets.shape[:1]),
        *((n, file[n].shape) for n in (JET_TYPE, SPECIES_SET) if n in file),
    ):
        wanted = particles.shape[:2] if name == SPECIES_SET else (count,)
        if tuple(shape) not in (wanted, (*wanted, 1)):
            raise AleatorError(f"{path}: {name} has shape {tuple(shape)} for {count} jets")


def _kinds(kind: np.ndarray, path: Path) -> np.ndarray:
    """PDG numbers without sign; u, d and s are light quarks."""
    found = np.abs(kind.astype(np.int64))
    found = np.where(np.isin(found, (2, 3)), 1, found)
    if not np.isin(found, TYPES).all():
        row = int(np.argmax(~np.isin(found, TYPES)))
        raise AleatorError(
            f"{path}: {JET_TYPE}, row {row}: {kind[row]}; known are quarks 1 to 5, gluons 21 and 0"
        )
    return found


def _check_values(clouds: Clouds, particles: np.ndarray, path: Path) -> None:
    check_jets(clouds.pt, clouds.eta, str(path))
    eta, phi, pt = np.moveaxis(clouds.points, 2, 0)
    checks = {
        "a value that is not finite": ~np.isfinite(particles).all(2),
        "etarel or phirel beyond ±π": ~((np.abs(eta) <= WIDEST) & (np.abs(phi) <= WIDEST)),
        "ptrel that is not in (0, 1.5); it is relative to the jet": clouds.mask
        & ~((pt > 0) & (pt < 1.5)),
        "a particle_type that is unknown": (clouds.species < 0) | (clouds.species > len(SPECIES)),
    }
    for what, bad in checks.items():
        if bad.any():
            row, place = np.argwhere(bad)[0]
            raise AleatorError(f"{path}: {PARTICLES}, jet {row}, particle {place}: {what}")
    if (clouds.counts == 0).any():
        row = int(np.argmin(clouds.counts))
        raise AleatorError(f"{path}: {PARTICLES}, jet {row}: no particle in it")
