"""Sets of events in HDF5: theta (NT, D), x (NT, N, F) and the prior in the attributes.

    theta          (NT, D)     parameters; only simulations have them
    x              (NT, N, F)  observables of N independent events a set; (N, F) is one set
    attributes     theta_names, prior_low, prior_high (D,), x_names (F,)

The only place of the inference that reads files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.inference.prior import BoxPrior
from core.errors import AleatorError


@dataclass(frozen=True)
class EventSets:
    """Sets of events, perhaps with the parameters that they were simulated with.

    Attributes:
        x: (NT, N, F) float32.
        x_names: F names.
        theta: (NT, D) float64 inside the prior, or None.
        prior: of the file, or None.
        source: name of the file.
    """

    x: np.ndarray
    x_names: tuple[str, ...]
    theta: np.ndarray | None
    prior: BoxPrior | None
    source: str

    def __len__(self) -> int:
        return len(self.x)

    def first(self, events: int) -> EventSets:
        """Only the first so many events of each set.

        Raises:
            AleatorError: there are fewer.
        """
        if not 1 <= events <= self.x.shape[1]:
            raise AleatorError(
                f"{self.source}: sets have {self.x.shape[1]} events; {events} were asked for"
            )
        return EventSets(self.x[:, :events], self.x_names, self.theta, self.prior, self.source)

    def rows(self, rows: Sequence[int] | np.ndarray) -> EventSets:
        """Some of the sets."""
        theta = None if self.theta is None else self.theta[rows]
        return EventSets(self.x[rows], self.x_names, theta, self.prior, self.source)


def read_sets(path: Path | str, *, simulated: bool = False) -> EventSets:
    """Read a file of sets.

    Args:
        path: the HDF5 file.
        simulated: parameters and prior must be there.

    Raises:
        AleatorError: no such file, not HDF5 or cut short, a dataset or attribute is missing, of
            another shape, empty, not finite, or a parameter is outside the prior.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise AleatorError(f"{path} does not exist, or is no file")
    try:
        with h5py.File(path) as file:
            return _read(file, str(path), simulated)
    except OSError as error:
        raise AleatorError(f"{path}: not HDF5, or cut short ({_first_line(error)})") from None


def _read(file: Any, source: str, simulated: bool) -> EventSets:
    wanted = ("theta", "x") if simulated else ("x",)
    for name in wanted:
        if name not in file:
            there = ", ".join(sorted(file)) or "nothing"
            raise AleatorError(f"{source}: no dataset {name!r}; it has {there}")
    x = _floats(file, "x", source).astype(np.float32)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or 0 in x.shape:
        raise AleatorError(
            f"{source}: x has shape {file['x'].shape}; (sets, events, observables), none of them "
            "0, is needed"
        )
    _finite(x, "x", source)
    names = _names(file, "x_names", x.shape[2], source)
    prior = _prior(file, source) if simulated or "prior_low" in file.attrs else None
    theta = None
    if "theta" in file and prior is not None:
        theta = _floats(file, "theta", source)
        if theta.shape != (len(x), prior.dims):
            raise AleatorError(
                f"{source}: theta has shape {theta.shape} for {len(x)} sets and {prior.dims} "
                f"parameters ({', '.join(prior.names)})"
            )
        _finite(theta, "theta", source)
        try:
            prior.to_unit(theta)
        except AleatorError as error:
            raise AleatorError(f"{source}: {error}") from None
    return EventSets(x, names, theta, prior, source)


def _floats(file: Any, name: str, source: str) -> np.ndarray:
    if not hasattr(file[name], "dtype") or file[name].dtype.kind not in "fiu":
        kind = getattr(file[name], "dtype", "a group")
        raise AleatorError(f"{source}: {name} is {kind}; real numbers are needed")
    return np.asarray(file[name][...], dtype=np.float64)


def _finite(values: np.ndarray, name: str, source: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        place = ", ".join(str(i) for i in np.argwhere(bad)[0])
        raise AleatorError(
            f"{source}: {name} is not finite in {int(bad.sum())} places, first at [{place}]; "
            "leave such events out before"
        )


def _names(file: Any, key: str, count: int, source: str) -> tuple[str, ...]:
    if key not in file.attrs:
        raise AleatorError(
            f"{source}: the attribute {key} is missing; {count} names say which is which"
        )
    raw = np.atleast_1d(file.attrs[key])
    names = tuple(n.decode() if isinstance(n, bytes) else str(n) for n in raw)
    if len(names) != count:
        raise AleatorError(f"{source}: {len(names)} {key} for {count} columns")
    return names


def _prior(file: Any, source: str) -> BoxPrior:
    for key in ("prior_low", "prior_high"):
        if key not in file.attrs:
            raise AleatorError(f"{source}: the attribute {key} is missing; it bounds the prior")
    low, high = (np.atleast_1d(file.attrs[key]) for key in ("prior_low", "prior_high"))
    names = _names(file, "theta_names", len(low), source)
    try:
        return BoxPrior(names, tuple(map(float, low)), tuple(map(float, high)))
    except AleatorError as error:
        raise AleatorError(f"{source}: {error}") from None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def write_sets(
    path: Path, x: np.ndarray, x_names: Sequence[str], theta: np.ndarray, prior: BoxPrior
) -> None:
    """Write simulations in the layout that `read_sets` takes, whole or not at all."""
    import h5py

    from core.report import replacing

    with replacing(path) as draft, h5py.File(draft, "w") as file:
        file.create_dataset("theta", data=theta)
        file.create_dataset("x", data=x.astype(np.float32), compression="gzip", shuffle=True)
        file.attrs.update(
            theta_names=list(prior.names), prior_low=list(prior.low), prior_high=list(prior.high),
            x_names=list(x_names),
        )  # fmt: skip
