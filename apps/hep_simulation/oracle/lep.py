"""e⁺e⁻ → Z → hadrons in Pythia: θ in, observables of events out, as `train-inference` reads.

θ = (α_s of the final-state shower, Lund's a, σ of the transverse momentum in fragmentation).
Event j of set k is a function of (seed, k, j) and of θ. Thrust and sphericity are Pythia's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.inference.prior import BoxPrior
from apps.hep_simulation.oracle.pythia import Pythia
from apps.hep_simulation.parts import Arrays, Streamed, arrays_of, stream
from core.errors import AleatorError
from core.random import keyed_generator

ENERGY = 91.1876
PRIOR = BoxPrior(
    ("TimeShower:alphaSvalue", "StringZ:aLund", "StringPT:sigma"),
    (0.10, 0.20, 0.20), (0.18, 1.20, 0.45),
)  # fmt: skip
OBSERVABLES = (
    "n_charged", "n_photon", "n_kaon_ch", "n_proton", "one_minus_thrust", "thrust_major",
    "thrust_minor", "sphericity", "aplanarity", "max_x_p_charged", "charged_energy_frac",
    "mean_ln_inv_xp",
)  # fmt: skip
_COLLIDER = (
    "Beams:idA=11", "Beams:idB=-11", f"Beams:eCM={ENERGY}", "PDF:lepton=off",
    "WeakSingleBoson:ffbar2gmZ=on", "23:onMode=off", "23:onIfAny=1 2 3 4 5",
)  # fmt: skip
_THETA, _EVENT = 8, 9
CHUNK = 10
"""Sets a part."""


def parameters(text: str | None, count: int, seed: int) -> np.ndarray:
    """(count, 3) parameters: those given, or drawn from the uniform prior, set k by (seed, k).

    Raises:
        AleatorError: not three numbers, or outside the prior.
    """
    if text is not None:
        try:
            given = np.array([float(part) for part in text.split(",")])
        except ValueError:
            given = np.zeros(0)
        if given.shape != (3,):
            raise AleatorError(
                f"--theta {text}: three numbers are needed, {', '.join(PRIOR.names)}"
            )
        low, high = np.array(PRIOR.low), np.array(PRIOR.high)
        if not ((given >= low) & (given <= high)).all():
            k = int(np.argmin((given >= low) & (given <= high)))
            raise AleatorError(
                f"--theta: {PRIOR.names[k]}={given[k]:g} is outside of {low[k]:g} to {high[k]:g}"
            )
        return np.repeat(given[None], count, 0)
    import torch

    u = [torch.rand(3, generator=keyed_generator(seed, k, _THETA), dtype=torch.float64)
         for k in range(count)]  # fmt: skip
    return PRIOR.from_unit(torch.stack(u).numpy())


def events(theta: np.ndarray, count: int, seed: int, number: int) -> np.ndarray:
    """(count, 12) observables of events at one θ (3,), those of set `number`."""
    chosen = [f"{name}={value:.10g}" for name, value in zip(PRIOR.names, theta, strict=True)]
    run = Pythia([*_COLLIDER, *chosen])
    library = run.library
    thrust, sphericity = library.Thrust(2), library.Sphericity(2.0, 2)
    rows = []
    for j in range(count):
        record = run.collide(keyed_generator(seed, number, j, _EVENT))
        thrust.analyze(record)
        sphericity.analyze(record)
        shape = (
            1 - thrust.thrust(), thrust.tMajor(), thrust.tMinor(), sphericity.sphericity(),
            sphericity.aplanarity(),
        )  # fmt: skip
        rows.append(_row(record, shape))
    return np.array(rows, np.float32)


def _row(record: Any, shape: tuple[float, ...]) -> list[float]:
    charged = [(p.pAbs(), p.e(), abs(p.id())) for p in record if p.isFinal() and p.isCharged()]
    photons = sum(p.id() == 22 for p in record if p.isFinal())
    x = np.array([2 * momentum / ENERGY for momentum, *_ in charged])
    kinds = [code for *_, code in charged]
    return [
        len(charged), photons, kinds.count(321), kinds.count(2212), *shape,
        x.max(initial=0.0), sum(e for _, e, _ in charged) / ENERGY,
        float(-np.log(x).mean()) if len(x) else 0.0,
    ]  # fmt: skip


def run(
    output: Path,
    sets: int,
    count: int,
    seed: int,
    *,
    theta: str | None = None,
    overwrite: bool = False,
) -> Streamed:
    """Write sets of events to OUT.hdf5.

    Raises:
        AleatorError: θ outside the prior, no event asked for, the output exists, or Pythia
            cannot be set up.
    """
    if sets < 1 or count < 1:
        raise AleatorError(f"-n {sets} sets of {count} events: at least one of each is needed")
    chosen = parameters(theta, sets, seed)

    def make(start: int, stop: int) -> Arrays:
        x = np.stack([events(chosen[k], count, seed, k) for k in range(start, stop)])
        return {"theta": chosen[start:stop], "x": x}

    job = {"seed": seed, "events": count, "theta": theta}
    return stream(
        output, sets, CHUNK, make, _writer(seed), job=job, overwrite=overwrite, unit="sets"
    )


def _writer(seed: int) -> Any:
    def write(parts: list[Path], path: Path) -> None:
        import h5py

        arrays = list(arrays_of(parts))
        with h5py.File(path, "w") as file:
            for name in ("theta", "x"):
                values = np.concatenate([part[name] for part in arrays])
                file.create_dataset(name, data=values, compression="gzip", shuffle=True)
            file.attrs.update(
                theta_names=list(PRIOR.names), prior_low=np.array(PRIOR.low),
                prior_high=np.array(PRIOR.high), x_names=list(OBSERVABLES), seed=seed,
                generator=f"Pythia 8, e+e- -> Z -> hadrons, {ENERGY} GeV",
            )  # fmt: skip

    return write
