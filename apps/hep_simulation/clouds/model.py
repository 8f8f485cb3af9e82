r"""From a jet to its constituents.

    n, m/pT ~ P(n | pT, η, kind) p(m/pT | n, pT, η, kind)     whole numbers, and a density
    cloud   ~ flow matching of a set of n points | n, m/pT, pT, η, kind

The network of the cloud is a set transformer: no order of constituents, and none that is padded.
Everything of jet i is a function of (seed, i) and of its condition, up to the rounding of
products of matrices of another size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.clouds.data import TYPES, Clouds
from apps.hep_simulation.clouds.features import LEAST_SPREAD, Scaling
from apps.hep_simulation.jets.density import MixedDensity
from core import build
from core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from core.errors import AleatorError
from core.path_model import PathModel
from core.random import keyed_generator
from core.solvers import make_sampler

APP = "hep_clouds"
STEPS = 24
"""Evaluations of the network a jet, unless asked otherwise."""
BATCH = 128
_SHAPE, _NOISE = 2, 3
"""Last parts of the keys of streams."""


@dataclass(frozen=True, eq=False)
class CloudModel:
    """Multiplicity and mass, and the cloud.

    Attributes:
        shape: density of (n, ln m/pT).
        cloud: flow matching or diffusion of sets.
        scaling: of both.
        shape_scale: (2,) mean and deviation of ln m/pT.
        most: constituents of the largest training jet; no cloud has more.
        low: (3,) least pT, |η| of training; the last is not used.
        high: (3,) greatest.
        kinds: of jets in training.
        typed: whether training told species of constituents.
        config: what rebuilds the networks.
        card: facts.
        fingerprint: of the checkpoint.
    """

    shape: MixedDensity
    cloud: PathModel
    scaling: Scaling
    shape_scale: np.ndarray
    most: int
    low: np.ndarray
    high: np.ndarray
    kinds: tuple[int, ...]
    typed: bool
    config: dict[str, Any]
    card: dict[str, Any]
    fingerprint: str = ""

    def outside(self, pt: np.ndarray, eta: np.ndarray, kind: np.ndarray) -> np.ndarray:
        """(N,) whether jets are beyond the conditions of training."""
        given = np.stack([np.log(pt), np.abs(eta)], 1)
        margin = 0.01 * (self.high - self.low)
        beyond = ((given < self.low - margin) | (given > self.high + margin)).any(1)
        return beyond | ~np.isin(kind, self.kinds)

    def reach(self) -> str:
        """In words."""
        low, high = np.exp(self.low[0]), np.exp(self.high[0])
        kinds = ", ".join(KIND_NAMES[k] for k in self.kinds)
        return f"jets ({kinds}) of {low:.4g} to {high:.4g} GeV, |η| up to {self.high[1]:.3g}"

    @torch.no_grad()
    def sample(
        self,
        pt: np.ndarray,
        eta: np.ndarray,
        kind: np.ndarray,
        *,
        seed: int = 0,
        first: int = 0,
        steps: int | None = None,
        counts: np.ndarray | None = None,
        spread: np.ndarray | None = None,
    ) -> Clouds:
        """Constituents of jets.

        Args:
            pt: (N,) GeV.
            eta: (N,).
            kind: (N,) see `TYPES`.
            seed: of the run.
            first: number of the first of these jets.
            steps: evaluations of the network.
            counts: (N,) multiplicities, if they are to be these.
            spread: (N,) masses over pT, if they are to be these.

        Raises:
            AleatorError: steps below 1, an unknown kind, or counts that are out of range.
        """
        if steps is not None and steps < 1:
            raise AleatorError(f"--steps {steps}: at least 1 is needed")
        if not np.isin(kind, TYPES).all():
            raise AleatorError(f"kinds of jets: known are {TYPES}")
        drawn_counts, drawn_spread = self._shapes(pt, eta, kind, seed, first)
        counts = drawn_counts if counts is None else np.asarray(counts)
        spread = drawn_spread if spread is None else np.asarray(spread).clip(LEAST_SPREAD)
        if ((counts < 1) | (counts > self.most)).any():
            raise AleatorError(f"constituents must number 1 to {self.most}")
        mask = np.arange(int(counts.max())) < counts[:, None]
        points, species = np.zeros((*mask.shape, 3)), np.zeros(mask.shape, np.int64)
        context = self.scaling.context(pt, eta, kind, counts, spread)
        for rows in np.array_split(np.argsort(counts, kind="stable"), -(-len(counts) // BATCH)):
            room = int(counts[rows].max())
            x = self._clouds(rows, room, mask, context, seed, first, steps)
            points[rows, :room], species[rows, :room] = self.scaling.decode(
                x, mask[rows, :room], eta[rows], spread[rows]
            )
        order = np.argsort(-points[:, :, 2], 1, kind="stable")
        points = np.take_along_axis(points, order[:, :, None], 1)
        species = np.take_along_axis(species, order, 1) if self.typed else 0 * species
        return Clouds(pt, eta, np.asarray(kind), points, mask, species)

    def _shapes(
        self, pt: np.ndarray, eta: np.ndarray, kind: np.ndarray, seed: int, first: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Multiplicities and masses over pT."""
        u = torch.stack([
            torch.rand(self.shape.uniforms, generator=keyed_generator(seed, first + i, _SHAPE))
            for i in range(len(pt))
        ])  # fmt: skip
        rows = self.shape.from_uniform(u, self.scaling.shape_context(pt, eta, kind)).double()
        counts = rows[:, 1].long().clamp(1, self.most).numpy()
        mean, std = self.shape_scale
        spread = np.exp((rows[:, 2].numpy() * std + mean).clip(-12, 0.5))
        return counts, np.where(counts > 1, spread, LEAST_SPREAD).clip(LEAST_SPREAD)

    def _clouds(
        self, rows: np.ndarray, room: int, mask: np.ndarray, context: Tensor, seed: int,
        first: int, steps: int | None,
    ) -> Tensor:  # fmt: skip
        """Encoded clouds (B, room, D)."""
        shape = (self.most, self.cloud.event_shape[1])
        noise = torch.stack([
            torch.randn(shape, generator=keyed_generator(seed, first + int(i), _NOISE))[:room]
            for i in rows
        ])  # fmt: skip
        there = torch.as_tensor(mask[rows, :room])
        given = {"vector": context[rows], "mask": there}
        sampler = make_sampler(None, steps=steps or STEPS)
        start = self.cloud.prior_std * noise * there[:, :, None]
        return sampler(self.cloud.bind(given), start, path=self.cloud.path)

    def save(self, folder: Path | str, data_fingerprint: str = "") -> Checkpoint:
        """Write the checkpoint."""
        tensors = {f"scaling.{k}": v for k, v in self.scaling.tensors().items()}
        for name in ("shape_scale", "low", "high"):
            tensors[name] = torch.as_tensor(getattr(self, name))
        for name in ("shape", "cloud"):
            tensors |= {f"{name}.{k}": v for k, v in getattr(self, name).state_dict().items()}
        facts = {"most": self.most, "kinds": list(self.kinds), "typed": self.typed}
        return save_checkpoint(
            folder, app=APP, config={**self.config, **facts}, tensors=tensors, card=self.card,
            data_fingerprint=data_fingerprint,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path | str) -> CloudModel:
        """Read what `save` wrote.

        Raises:
            CheckpointError: not a model of clouds.
        """
        found = load_checkpoint(folder, app=APP)
        part = {name: _part(found.tensors, f"{name}.") for name in ("shape", "cloud", "scaling")}
        shape, cloud = networks(found.config)
        shape.load_state_dict(part["shape"])
        cloud.load_state_dict(part["cloud"])
        return cls(
            shape.eval(), cloud.eval(), Scaling.from_tensors(part["scaling"]),
            found.tensors["shape_scale"].numpy(), found.config["most"],
            found.tensors["low"].numpy(), found.tensors["high"].numpy(),
            tuple(found.config["kinds"]), found.config["typed"],
            {name: found.config[name] for name in ("shape", "cloud")}, found.card,
            found.fingerprint,
        )  # fmt: skip


KIND_NAMES = {0: "of unknown origin", 1: "light quark", 4: "c", 5: "b", 21: "gluon"}


def networks(config: dict[str, Any]) -> tuple[MixedDensity, PathModel]:
    """Fresh ones of a configuration."""
    cloud = build(config["cloud"])
    assert isinstance(cloud, PathModel)
    return MixedDensity(**config["shape"]), cloud


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
