"""What `pipelines.hep` does with jets as clouds, and with Pythia in the place of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipelines._door import say

PYTHIA = "pythia-"
KINDS = {"quark": 1, "light": 1, "c": 4, "b": 5, "gluon": 21, "g": 21}


def is_clouds(path: Path, geometry: Path | None) -> bool:
    """Whether a file holds clouds; with a binning it is one of showers."""
    if geometry is not None:
        return False
    from apps.hep_simulation.clouds.data import is_clouds as found

    return found(path)


def needed(geometry: Path | None, source: Path) -> Path:
    """The binning of showers.

    Raises:
        AleatorError: none was given.
    """
    from core.errors import AleatorError

    if geometry is None:
        raise AleatorError(
            f"{source} has no particle_features, so that it is no file of clouds; showers need "
            "--geometry BINNING.xml"
        )
    return geometry


def train(
    sources: list[Path],
    output: Path,
    config: Path | None,
    chosen: dict[str, Any],
    seed: int,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train on clouds."""
    from apps.hep_simulation.clouds.train import make_config, run
    from core.settings import read_settings

    made = make_config(read_settings(config, chosen), seed)
    run(sources, output, made, resume=resume, overwrite=overwrite, say=say)


def evaluate(
    generated: Path, reference: Path, output: Path, train: Path | None, **options: Any
) -> None:
    """Judge clouds."""
    from apps.hep_simulation.clouds.evaluate import evaluate as run

    run(generated, reference, output, train=train, **options, say=say)


def simulate(
    *,
    output: Path | None,
    model: Path | None,
    oracle: str | None,
    energies: str | None,
    particle: str | None,
    theta: str | None,
    events: int,
    count: int,
    seed: int,
    overwrite: bool,
    **more: Any,
) -> bool:
    """Simulate if this is about clouds or Pythia; whether it was."""
    from core.errors import AleatorError

    name, _, process = (oracle or "").partition(":")
    if theta is not None and name != "pythia-lep":
        raise AleatorError("--theta belongs to --oracle pythia-lep")
    if name in ("pythia-jets", "pythia-lep"):
        if model is not None or energies is not None or particle is not None or any(more.values()):
            raise AleatorError(f"--oracle {name} takes -n, --seed, -o and --overwrite alone")
        if name == "pythia-jets":
            from apps.hep_simulation.oracle import jets

            path = output or Path("jets.root")
            done, by = jets.run(process or "qcd", path, count, seed, overwrite=overwrite)
            say(f"wrote {path}: {count} events by {by}{done.pace}")
        else:
            from apps.hep_simulation.oracle import lep

            path = output or Path("lep.hdf5")
            done = lep.run(path, count, events, seed, theta=theta, overwrite=overwrite)
            say(f"wrote {path}: {count} sets of {events} events by Pythia{done.pace}")
        return True
    if name.startswith(PYTHIA) and name != "pythia-clouds":
        raise AleatorError(f"--oracle {oracle}: known are pythia-clouds, pythia-jets, pythia-lep")
    if name != "pythia-clouds" and not _is_cloud_model(model):
        return False
    if model is not None and oracle is not None:
        raise AleatorError("give --model or --oracle, not both")
    from apps.hep_simulation.clouds.simulate import Request, run

    request = Request(
        output=output or Path("clouds.hdf5"), model=model,
        oracle=None if oracle is None else process or "qcd",
        range=None if energies is None else _range(energies),
        kinds=() if particle is None else _kinds(particle),
        count=count, seed=seed, overwrite=overwrite, **more,
    )  # fmt: skip
    run(request, say=say)
    return True


def _is_cloud_model(model: Path | None) -> bool:
    """By its configuration, read without loading a library."""
    if model is None:
        return False
    try:
        return json.loads((model / "model.json").read_text()).get("app") == "hep_clouds"
    except (OSError, ValueError, AttributeError):
        return False


def _range(text: str) -> tuple[float, float]:
    from apps.hep_simulation.conditions import GEV, parse_spectrum

    found = parse_spectrum(text, None, 1)
    return found.low / GEV, found.high / GEV


def _kinds(text: str) -> tuple[int, ...]:
    from core.errors import AleatorError

    found = []
    for word in text.split(","):
        try:
            found.append(KINDS.get(word.strip()) or abs(int(word)))
        except ValueError:
            raise AleatorError(
                f"--particle {word.strip()}: kinds of jets are {', '.join(KINDS)} or PDG numbers"
            ) from None
    return tuple(found)
