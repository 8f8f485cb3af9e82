"""`simulate` for clouds: conditions in, constituents out, streamed in JetNet's layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.hep_simulation.clouds.data import (
    FLAGGED,
    JET_COLUMNS,
    JETS,
    PARTICLE_COLUMNS,
    PARTICLES,
    SPECIES,
    TYPES,
    Clouds,
    columns,
    read_conditions,
)
from apps.hep_simulation.clouds.model import CloudModel
from apps.hep_simulation.parts import arrays_of, stream
from core.errors import AleatorError
from core.random import keyed_generator

CHUNK, ORACLE_CHUNK = 1000, 100
"""Jets a part: what a stopped run loses at most. Even numbers: the oracle makes pairs."""
_CONDITION = 1
Say = Callable[[object], None]


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        output: OUT.hdf5.
        model: folder of a cloud model; None for the oracle.
        oracle: a process of Pythia, e.g. "qcd"; None for a model.
        conditions: file with `jet_features` to take pT, η and kind from.
        range: least and greatest pT in GeV, if not those of training.
        kinds: of jets; all of training if empty.
        count: jets, where there is no file of conditions.
        seed: jet i is a function of (seed, i) and its condition.
        steps: evaluations of the network a jet.
        strict: refuse conditions outside training.
        overwrite: replace a file.
    """

    output: Path
    model: Path | None = None
    oracle: str | None = None
    conditions: Path | None = None
    range: tuple[float, float] | None = None
    kinds: tuple[int, ...] = ()
    count: int = 1000
    seed: int = 0
    steps: int | None = None
    strict: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Spread:
    """PT uniform in its logarithm, η uniform, kinds equally likely; jet i by (seed, i).

    Attributes:
        low: pT, GeV.
        high: pT, GeV.
        eta: largest |η|.
        kinds: see `TYPES`.
        count: N.
    """

    low: float
    high: float
    eta: float
    kinds: tuple[int, ...]
    count: int

    def read(self, seed: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw."""
        u = torch.stack([
            torch.rand(3, generator=keyed_generator(seed, i, _CONDITION), dtype=torch.float64)
            for i in range(start, stop)
        ]).numpy()  # fmt: skip
        pt = self.low * (self.high / self.low) ** u[:, 0]
        kind = np.asarray(self.kinds)[(u[:, 2] * len(self.kinds)).astype(int)]
        return pt, self.eta * (2 * u[:, 1] - 1), kind

    def key(self) -> str:
        """Names them."""
        return repr(self)


@dataclass(frozen=True, eq=False)
class Listed:
    """Those of a file.

    Attributes:
        pt: (N,) GeV.
        eta: (N,).
        kind: (N,).
    """

    pt: np.ndarray
    eta: np.ndarray
    kind: np.ndarray

    @property
    def count(self) -> int:
        """N."""
        return len(self.pt)

    def read(self, seed: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Some."""
        return self.pt[start:stop], self.eta[start:stop], self.kind[start:stop]

    def key(self) -> str:
        """Names them."""
        digest = hashlib.sha256(np.stack([self.pt, self.eta, self.kind]).tobytes())
        return digest.hexdigest()[:16]


_Conditions = Spread | Listed


def run(request: Request, say: Say = print) -> Path:
    """Simulate to a file; a run that was stopped goes on.

    Raises:
        AleatorError: model, options or output that cannot be used; (strict) jets outside.
    """
    if request.count < 1:
        raise AleatorError(f"-n {request.count}: at least one jet is needed")
    torch.set_num_threads(1)
    if request.oracle is not None:
        return _oracle(request, request.oracle, say)
    assert request.model is not None
    model = CloudModel.load(request.model)
    wanted = _conditions(request, model)
    if request.strict:
        _refuse(model, wanted, request.seed)

    def make(start: int, stop: int) -> dict[str, np.ndarray]:
        pt, eta, kind = wanted.read(request.seed, start, stop)
        made = model.sample(pt, eta, kind, seed=request.seed, first=start, steps=request.steps)
        return {**columns(made), FLAGGED: model.outside(pt, eta, kind).astype(np.uint8)}

    attributes = {"generator": "aleator", "model": model.fingerprint, "seed": request.seed}
    job = {**attributes, "steps": request.steps, "conditions": wanted.key()}
    done = stream(
        request.output, wanted.count, CHUNK, make, _writer(attributes), job=job,
        overwrite=request.overwrite, unit="jets",
    )  # fmt: skip
    say(f"wrote {request.output}: {wanted.count} jets by model {model.fingerprint}{done.pace}")
    if flagged := _flagged(request.output):
        say(
            f"warning: {flagged} of {wanted.count} jets are outside of what the model was trained "
            f"on ({model.reach()}); they are marked in the dataset '{FLAGGED}'"
        )
    return request.output


def _oracle(request: Request, process: str, say: Say) -> Path:
    from apps.hep_simulation.oracle.clouds import CloudOracle

    if request.model is not None or request.conditions is not None or request.kinds:
        raise AleatorError(
            "the oracle draws its own jets: no --model, --conditions or --particle; give "
            "--energies LOW:HIGH for the range of pT in GeV"
        )
    if request.steps is not None:
        raise AleatorError("--steps: the oracle has none of that kind; leave it out")
    low, high = request.range or (100.0, 500.0)
    engine = CloudOracle(process, low, high)

    def make(start: int, stop: int) -> dict[str, np.ndarray]:
        made = engine.sample(request.seed, start, stop)
        return {**columns(made), FLAGGED: np.zeros(stop - start, np.uint8)}

    facts = {"generator": engine.generator, "process": process, "seed": request.seed}
    job = {**facts, "low": low, "high": high}
    done = stream(
        request.output, request.count, ORACLE_CHUNK, make, _writer(job), job=job,
        overwrite=request.overwrite, unit="jets",
    )  # fmt: skip
    say(f"wrote {request.output}: {request.count} jets by {engine.generator}{done.pace}")
    return request.output


def _conditions(request: Request, model: CloudModel) -> _Conditions:
    if request.conditions is not None:
        if request.range is not None:
            raise AleatorError("give --energies or --conditions, not both")
        pt, eta, kind = read_conditions(request.conditions)
        if request.kinds:
            if len(request.kinds) > 1:
                raise AleatorError("--particle: one kind of jet, where a file gives the others")
            kind = np.full(len(pt), request.kinds[0])
        return Listed(pt, eta, kind)
    if unknown := set(request.kinds) - set(TYPES):
        raise AleatorError(f"--particle {min(unknown)}: jets are of kind {TYPES}")
    low, high = request.range or (float(np.exp(model.low[0])), float(np.exp(model.high[0])))
    return Spread(low, high, float(model.high[1]), request.kinds or model.kinds, request.count)


def _refuse(model: CloudModel, wanted: _Conditions, seed: int) -> None:
    for first in range(0, wanted.count, 10_000):
        pt, eta, kind = wanted.read(seed, first, min(first + 10_000, wanted.count))
        flags = model.outside(pt, eta, kind)
        if flags.any():
            row = int(np.argmax(flags))
            raise AleatorError(
                f"jet {first + row}: {pt[row]:g} GeV, η {eta[row]:.2f}, kind {kind[row]}; the "
                f"model knows {model.reach()}; leave out --strict to simulate it anyway, flagged"
            )


def _flagged(path: Path) -> int:
    import h5py

    with h5py.File(path) as file:
        return int(file[FLAGGED][:].sum())


def _writer(attributes: dict[str, Any]) -> Callable[[list[Path], Path], None]:
    def write(parts: list[Path], path: Path) -> None:
        write_file(path, arrays_of(parts), arrays_of(parts), attributes)

    return write


def write_file(path: Path, first: Any, second: Any, attributes: dict[str, Any]) -> None:
    """Join parts: gone through twice, as the largest jet says how wide the file is."""
    import h5py

    shapes = [part[PARTICLES].shape for part in first]
    count, room = sum(s[0] for s in shapes), max(s[1] for s in shapes)
    with h5py.File(path, "w") as file:
        start = 0
        for part in second:
            stop = start + len(part[JETS])
            for name, values in part.items():
                shape = (count, room, *values.shape[2:]) if values.ndim > 1 and name != JETS else (
                    count, *values.shape[1:]
                )  # fmt: skip
                if name not in file:
                    chunks = (min(count, 256), *shape[1:])
                    file.create_dataset(
                        name, shape, values.dtype, chunks=chunks, compression="gzip", shuffle=True
                    )
                if len(shape) > 1 and name != JETS:
                    file[name][start:stop, : values.shape[1]] = values
                else:
                    file[name][start:stop] = values
            start = stop
        file.attrs["particle_columns"] = ", ".join(PARTICLE_COLUMNS)
        file.attrs["jet_columns"] = ", ".join(JET_COLUMNS)
        file.attrs["particle_types"] = ", ".join(SPECIES)
        for name, value in attributes.items():
            file.attrs[name] = value


def save_clouds(path: Path, clouds: Clouds, attributes: dict[str, Any]) -> None:
    """Write clouds that are in memory."""
    part = columns(clouds)
    write_file(path, [part], [part], attributes)
