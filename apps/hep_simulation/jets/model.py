r"""From generator-level events to reconstructed ones.

    found  ~ P(found | gen jet)                        efficiency
    reco   ~ p(response, constituents, fractions | gen jet)
    fakes  ~ P(number | event),  p(fake | event)       pile-up, split jets, noise
    event  = found ∪ fakes, sorted by pT

Everything in event i is a function of (seed, i) and of that event alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.jets import features
from apps.hep_simulation.jets.choice import Choice
from apps.hep_simulation.jets.data import Events, Jagged
from apps.hep_simulation.jets.density import MixedDensity
from apps.hep_simulation.jets.features import Scaling, wrapped
from apps.hep_simulation.jets.pairs import activity
from apps.hep_simulation.jets.streams import uniforms
from core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

APP = "hep_jets"
_FOUND, _RESPONSE, _FAKES, _FAKE = 1, 2, 3, 4
"""Purposes of random numbers."""
_ROWS = 4096
"""Jets an evaluation: what fits in the cache."""


@dataclass(frozen=True, eq=False)
class ObjectSimulator:
    """The four models, and how their inputs are scaled.

    Attributes:
        response: of matched jets.
        fake: of unmatched ones.
        found: class 1 where a generator-level jet is reconstructed.
        fakes: number of unmatched jets in an event.
        scaling: of matched jets and their conditions.
        fake_scaling: of fakes and the event's activity.
        low: (6,) least conditions in training.
        high: (6,) greatest.
        config: what rebuilds the networks.
        card: facts.
        fingerprint: of the checkpoint.
    """

    response: MixedDensity
    fake: MixedDensity
    found: Choice
    fakes: Choice
    scaling: Scaling
    fake_scaling: Scaling
    low: np.ndarray
    high: np.ndarray
    config: dict[str, Any]
    card: dict[str, Any]
    fingerprint: str = ""

    def simulate(self, events: Events, seed: int = 0) -> Jagged:
        """Reconstructed jets of a chunk of events, hardest first, with `genJetIdx`.

        Args:
            events: with generator-level jets.
            seed: of the run; the event's number is `events.start` + its place.
        """
        gen, event = events.gen, events.gen.event
        number, place = events.start + event, np.arange(len(event)) - gen.starts[event]
        conditions = self.scaling.context(features.conditions(gen.columns))
        u = uniforms(seed, _FOUND, number, place, 1)[:, 0]
        keep = np.flatnonzero(_batched(self.found.from_uniform, torch.as_tensor(u), conditions))
        chosen = {name: column[keep] for name, column in gen.columns.items()}
        reco = self.reconstructed(chosen, number[keep], place[keep], seed, conditions[keep])
        reco["genJetIdx"] = place[keep]
        fakes, fake_event = self._fakes(events, seed)
        fakes["genJetIdx"] = np.full(len(fake_event), -1)
        merged = {name: np.concatenate([reco[name], fakes[name]]) for name in reco}
        owner = np.concatenate([event[keep], fake_event])
        order = np.lexsort((-merged["pt"], owner))
        columns = {name: column[order] for name, column in merged.items()}
        return Jagged(columns, np.bincount(owner, minlength=len(events)))

    def reconstructed(
        self,
        gen: dict[str, np.ndarray],
        event: np.ndarray,
        place: np.ndarray,
        seed: int = 0,
        conditions: Tensor | None = None,
    ) -> dict[str, np.ndarray]:
        """A reconstructed jet for every generator-level one, as if each was found.

        Args:
            gen: columns (N,).
            event: (N,) number of the event.
            place: (N,) of the jet in it.
            seed: of the run.
            conditions: scaled ones, if they are there already.
        """
        if conditions is None:
            conditions = self.scaling.context(features.conditions(gen))
        u = uniforms(seed, _RESPONSE, event, place, self.response.uniforms)
        rows = _batched(self.response.from_uniform, torch.as_tensor(u), conditions)
        kinematics, shape = features.decode(_unscaled(rows, self.scaling))
        return features.applied(gen, kinematics, shape)

    def log_prob(self, gen: dict[str, np.ndarray], reco: dict[str, np.ndarray]) -> np.ndarray:
        """Ln p(reco | gen) (N,) of matched jets, in nats.

        Mass of patterns of zeros and of counts; density of `features.KINEMATICS` and of the logits
        of the sticks.
        """
        x, free = features.encode(features.responses(gen, reco), reco)
        rows, unit = scaled(x, free, self.scaling)
        with torch.no_grad():
            context = self.scaling.context(features.conditions(gen))
            return self.response.log_prob(rows, context).value.double().numpy() + unit

    def _fakes(self, events: Events, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        seen, phi = activity(events.gen)
        number = events.start + np.arange(len(events))
        context = self.fake_scaling.context(seen)
        u = uniforms(seed, _FAKES, number, np.zeros_like(number), 1)[:, 0]
        count = _batched(self.fakes.from_uniform, torch.as_tensor(u), context)
        event = np.repeat(np.arange(len(events)), count)
        place = np.arange(len(event)) - np.repeat(np.cumsum(count) - count, count)
        u = uniforms(seed, _FAKE, events.start + event, place, self.fake.uniforms)
        rows = _batched(self.fake.from_uniform, torch.as_tensor(u), context[event])
        kinematics, shape = features.decode(_unscaled(rows, self.fake_scaling))
        mass = (np.exp(kinematics[:, 1]) - features.MASS).clip(0)
        return {
            "pt": np.exp(kinematics[:, 0]), "eta": kinematics[:, 2],
            "phi": wrapped(kinematics[:, 3] + phi[event]),
            "mass": np.where(shape["nConstituents"] == 1, 0.0, mass), **shape,
        }, event  # fmt: skip

    def outside(self, gen: dict[str, np.ndarray]) -> np.ndarray:
        """Generator-level jets beyond the conditions of training, bool (N,)."""
        c = features.conditions(gen)
        margin = 0.02 * (self.high - self.low)
        return ((c < self.low - margin) | (c > self.high + margin)).any(1)

    def save(self, folder: Path | str, data_fingerprint: str = "") -> Checkpoint:
        """Write the checkpoint."""
        tensors = {"low": torch.as_tensor(self.low), "high": torch.as_tensor(self.high)}
        for name in ("scaling", "fake_scaling"):
            parts = getattr(self, name).tensors()
            tensors |= {f"{name}.{key}": value for key, value in parts.items()}
        for name in self.config:
            tensors |= {f"{name}.{k}": v for k, v in getattr(self, name).state_dict().items()}
        return save_checkpoint(
            folder, app=APP, config=self.config, tensors=tensors, card=self.card,
            data_fingerprint=data_fingerprint,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path | str) -> ObjectSimulator:
        """Read what `save` wrote.

        Raises:
            CheckpointError: not a model of jets.
        """
        found = load_checkpoint(folder, app=APP)
        parts: dict[str, Any] = {}
        for name, options in found.config.items():
            kind = Choice if name in ("found", "fakes") else MixedDensity
            model = kind(**options)
            model.load_state_dict(_part(found.tensors, f"{name}."))
            parts[name] = model.eval()
        for name in ("scaling", "fake_scaling"):
            parts[name] = Scaling.from_tensors(_part(found.tensors, f"{name}."))
        low, high = found.tensors["low"].numpy(), found.tensors["high"].numpy()
        return cls(
            **parts, low=low, high=high, config=found.config, card=found.card,
            fingerprint=found.fingerprint,
        )  # fmt: skip


def scaled(x: np.ndarray, free: np.ndarray, scaling: Scaling) -> tuple[Tensor, np.ndarray]:
    """Rows as the networks see them, and what to add to their ln p for the raw values."""
    values = np.where(free, (x[:, 2:] - scaling.mean) / scaling.std, 0.0)
    rows = torch.as_tensor(np.concatenate([x[:, :2], values], 1), dtype=torch.float32)
    return rows, -(free * np.log(scaling.std)).sum(1)


def _unscaled(rows: np.ndarray, scaling: Scaling) -> np.ndarray:
    rows = rows.astype(np.float64)
    rows[:, 2:] = rows[:, 2:] * scaling.std + scaling.mean
    return rows


def _batched(function: Any, u: Tensor, context: Tensor) -> np.ndarray:
    """`function(u, context)` in parts of the cache's size."""
    parts = zip(u.split(_ROWS), context.split(_ROWS), strict=True)
    return torch.cat([function(a, b) for a, b in parts]).numpy()


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
