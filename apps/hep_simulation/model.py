r"""The shower model: a generator of voxels, with everything that turns a condition into a shower.

    showers ~ p(x | E_inc, particle),   validity: where it may be trusted,   closure: how well

One checkpoint holds all of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.cascade import SplittingCascade
from apps.hep_simulation.config import Config, parse_config
from apps.hep_simulation.features import padded, unpadded
from apps.hep_simulation.geometry import Geometry
from apps.hep_simulation.particles import particle_name
from apps.hep_simulation.validity import Validity, outside
from core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from core.errors import AleatorError, CheckpointError
from core.model import GenerativeModel
from core.random import Generators

APP = "hep_simulation"


@dataclass
class ShowerModel:
    """A trained (or new) model.

    Attributes:
        config: what it was made with.
        geometry: of its showers.
        particles: PDG numbers it knows.
        threshold: least energy of a voxel, MeV.
        energy_range: least and greatest incident energy of training, MeV.
        generator: p(x | condition) over padded voxels (L, A, R).
        validity: what training showers look like; None before training is over.
        closure: observable -> what the certificate says of it; empty before.
        fingerprint: of the checkpoint; empty before it is saved.
        data: fingerprint of the training showers, likewise.
        card: what the checkpoint says about its making.
    """

    config: Config
    geometry: Geometry
    particles: tuple[int, ...]
    threshold: float
    energy_range: tuple[float, float]
    generator: GenerativeModel
    validity: Validity | None = None
    closure: dict[str, dict[str, float]] = field(default_factory=dict)
    fingerprint: str = ""
    data: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)

    def context(self, energies: np.ndarray, particles: np.ndarray) -> dict[str, Tensor]:
        """Condition of the generator; unknown particles count as the first one.

        Args:
            energies: (N,) MeV.
            particles: (N,) PDG numbers.
        """
        known = {p: i for i, p in enumerate(self.particles)}
        label = torch.tensor([known.get(int(p), 0) for p in particles], dtype=torch.long)
        logs = torch.from_numpy(np.log(np.asarray(energies, np.float64))).float()
        return {"vector": logs[:, None], "label": label}

    def events(self, showers: np.ndarray) -> Tensor:
        """Showers (N, V) as what the generator generates, (N, L, A, R); sub-threshold is zero."""
        full = torch.from_numpy(padded(np.asarray(showers, np.float32), self.geometry))
        return torch.where(full >= self.threshold, full, 0.0)

    def outside(self, energies: np.ndarray, particles: np.ndarray) -> np.ndarray:
        """(N,) whether conditions are outside of training."""
        return outside(energies, particles, self.energy_range, self.particles)

    def reach(self) -> str:
        """Energies and particles of training, in words."""
        low, high = (energy / 1000 for energy in self.energy_range)
        known = ", ".join(particle_name(number) for number in self.particles)
        return f"{low:.4g} to {high:.4g} GeV and {known}"

    def certificate(self) -> dict[str, Any]:
        """What files of its showers say: training, and closure against unseen showers."""
        worth = {name: round(found["worth"]) for name, found in self.closure.items()}
        return {
            "generator": f"aleator hep {self.config.family}",
            "model": self.fingerprint,
            "trained_GeV": [e / 1000 for e in self.energy_range],
            "trained_on": self.data,
            "trained_particles": list(self.particles),
            "closure": json.dumps(self.closure),
            "oracle_events_worth": json.dumps(worth),
        }

    @torch.inference_mode()
    def sample(
        self,
        energies: np.ndarray,
        particles: np.ndarray,
        generator: Generators,
        steps: int | None = None,
    ) -> np.ndarray:
        """Draw showers (N, V), MeV.

        Args:
            energies: (N,) MeV.
            particles: (N,) PDG numbers.
            generator: one stream, or one a shower.
            steps: evaluations of a family that samples by steps; its own number if None.

        Raises:
            AleatorError: steps asked of a family that has none.
        """
        sampler = None
        if steps is not None:
            if isinstance(self.generator, SplittingCascade):
                raise AleatorError("--steps: the cascade has no steps; leave it out")
            if steps < 1:
                raise AleatorError(f"--steps {steps}: at least 1 is needed")
            sampler = {"steps": steps}
        context = self.context(energies, particles)
        drawn = self.generator.sample((), context, sampler=sampler, generator=generator)
        return unpadded(drawn.numpy(), self.geometry)

    def log_prob(
        self, showers: np.ndarray, energies: np.ndarray, particles: np.ndarray
    ) -> np.ndarray:
        """Ln p of showers (N, V), nats, where the family has a density."""
        found = self.generator.log_prob(self.events(showers), self.context(energies, particles))
        return found.value.numpy()

    def save(self, folder: Path | str, card: Mapping[str, Any], data: str) -> Checkpoint:
        """Write a checkpoint with its card and the fingerprint of the training data."""
        config = {
            "config": self.config.to_dict(),
            "geometry": self.geometry.to_dict(),
            "particles": list(self.particles),
            "threshold": self.threshold,
            "energy_range": list(self.energy_range),
            "closure": self.closure,
        }
        tensors = {f"generator.{n}": v for n, v in self.generator.state_dict().items()}
        if self.validity is not None:
            parts = asdict(self.validity)
            config["validity"] = {n: parts.pop(n) for n in ("particles", "bound", "middle")}
            tensors |= {f"validity.{n}": torch.from_numpy(v) for n, v in parts.items()}
        return save_checkpoint(
            folder, app=APP, config=config, tensors=tensors, card=card, data_fingerprint=data
        )

    @staticmethod
    def load(folder: Path | str) -> ShowerModel:
        """Read a checkpoint.

        Raises:
            CheckpointError: it cannot be read, or is of another application.
            AleatorError: it is not a shower model.
        """
        found = load_checkpoint(folder, app=APP)
        stored, tensors = found.config, found.tensors
        if "geometry" not in stored:
            raise AleatorError(f"{folder}: not a model of showers")
        model = new_model(
            parse_config(stored["config"]),
            Geometry.from_dict(stored["geometry"]),
            tuple(stored["particles"]),
            stored["threshold"],
            tuple(stored["energy_range"]),
        )
        try:
            model.generator.load_state_dict(_without("generator", tensors))
        except RuntimeError:
            raise CheckpointError(
                f"{folder}: its networks are laid out as in another version of this program; "
                "train the model again"
            ) from None
        model.generator.eval()
        if "validity" in stored:
            parts = {n: v.numpy() for n, v in _without("validity", tensors).items()}
            facts = stored["validity"]
            model.validity = Validity(
                tuple(facts["particles"]), bound=facts["bound"], middle=facts["middle"], **parts
            )
        model.closure = stored["closure"]
        model.fingerprint, model.card = found.fingerprint, found.card
        model.data = found.data_fingerprint
        return model


def new_model(
    config: Config,
    geometry: Geometry,
    particles: Sequence[int],
    threshold: float,
    energy_range: tuple[float, float],
) -> ShowerModel:
    """A model with fresh weights."""
    shape = (len(geometry.active), geometry.sectors, geometry.rings)
    rotates = geometry.uniform if config.rotate is None else config.rotate
    if rotates and not geometry.uniform:
        raise AleatorError("rotate=true, but the layers are binned differently")
    common: dict[str, Any] = {
        "classes": len(particles),
        "threshold": threshold,
        "rotates": rotates,
    }
    if config.family == "cascade":
        generator: GenerativeModel = _cascade(shape, common, config.model)
    else:
        from apps.hep_simulation.fields import ProfileAndField

        generator = ProfileAndField(
            shape, family=config.family, options=dict(config.model), **common
        )
    return ShowerModel(
        config,
        geometry,
        tuple(particles),
        threshold,
        (energy_range[0], energy_range[1]),
        generator,
    )


def _cascade(
    shape: tuple[int, int, int], common: dict[str, Any], options: Mapping[str, Any]
) -> SplittingCascade:
    known = {"radial", "angular", "profile"}
    if unknown := set(options) - known:
        listed = ", ".join(sorted(known))
        raise AleatorError(f"cascade: no option model.{min(unknown)}; known: {listed}")
    return SplittingCascade(shape, **common, **options)


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
