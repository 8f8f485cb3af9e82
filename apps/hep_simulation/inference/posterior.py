"""The trained posterior: an ensemble, how observables are standardised, the prior, the guard."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.inference.guard import Guard
from apps.hep_simulation.inference.network import SetPosterior
from apps.hep_simulation.inference.prior import BoxPrior
from core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from core.data import Standardizer
from core.errors import AleatorError
from core.model import Density
from core.random import keyed_generator

APP = "hep_inference"
_ROWS = 20_000
"""Evaluations at a time; results do not depend on it."""


@dataclass(frozen=True, eq=False)
class Inference(ABC):
    """What every method shares.

    Attributes:
        prior: of the parameters.
        x_names: F observables.
        standardizer: of them.
        guard: what sets of the training distribution look like.
        config: what rebuilds the networks; JSON.
        card: facts, with the out-of-fold scores.
        fingerprint: of the checkpoint.
    """

    prior: BoxPrior
    x_names: tuple[str, ...]
    standardizer: Standardizer
    guard: Guard
    config: dict[str, Any]
    card: dict[str, Any]
    fingerprint: str = ""

    @abstractmethod
    def sample_unit(self, x: np.ndarray, draws: int, stream: torch.Generator) -> Tensor:
        """Draws of u (S, D) given one set x (n, F)."""

    @abstractmethod
    def log_prob_unit(self, u: Tensor, x: np.ndarray) -> Density:
        """Ln q(u | x) of u (S, D) given one set (n, F), in nats; 0 is the prior."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Weights of the networks, by name."""

    def standardised(self, x: np.ndarray) -> Tensor:
        """Observables (..., F) as the networks see them.

        Raises:
            AleatorError: another number of observables, no event, or something is not finite.
        """
        if x.ndim < 2 or x.shape[-1] != len(self.x_names) or 0 in x.shape:
            raise AleatorError(
                f"a set of shape {x.shape}; (events, {len(self.x_names)}) is needed: "
                f"{', '.join(self.x_names)}"
            )
        if not np.isfinite(x).all():
            raise AleatorError("observables are not finite; leave such events out before")
        return self.standardizer(torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float32))

    def sample(self, x: np.ndarray, draws: int, *, seed: int = 0, number: int = 0) -> np.ndarray:
        """Draws of θ (S, D) given one set (n, F); a function of (seed, number, x)."""
        u = self.sample_unit(x, draws, keyed_generator(seed, number))
        return self.prior.from_unit(u.numpy())

    def log_prob(self, theta: np.ndarray, x: np.ndarray) -> Density:
        """Ln q(θ | x) of θ (S, D), a density in the units of θ.

        Raises:
            AleatorError: θ outside the prior.
        """
        u = torch.as_tensor(self.prior.to_unit(theta))
        found = self.log_prob_unit(u, x)
        return Density(found.value - self.prior.log_volume, found.kind, found.stderr)

    def save(self, folder: Path | str, data_fingerprint: str = "") -> Checkpoint:
        """Write the checkpoint."""
        shared = {
            "prior": self.prior.config(),
            "x_names": list(self.x_names),
            "networks": self.config,
        }
        tensors = {
            "standardizer.mean": self.standardizer.mean,
            "standardizer.std": self.standardizer.std,
            **{f"guard.{name}": value for name, value in self.guard.tensors().items()},
            **self.tensors(),
        }
        return save_checkpoint(
            folder, app=APP, config=shared, tensors=tensors, card=self.card,
            data_fingerprint=data_fingerprint,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Posterior(Inference):
    """An ensemble of posteriors of sets: q = mean of the members' densities."""

    members: tuple[SetPosterior, ...] = ()

    @torch.no_grad()
    def log_prob_unit(self, u: Tensor, x: np.ndarray) -> Density:
        """Exact, by the members' exact densities."""
        context = self._context(x)
        parts = [_of(member, u.double(), context) for member in self.members]
        return Density(torch.stack(parts).logsumexp(0) - math.log(len(parts)), "exact")

    @torch.no_grad()
    def sample_unit(self, x: np.ndarray, draws: int, stream: torch.Generator) -> Tensor:
        """Each draw from a member of its own choice."""
        context = self._context(x)
        z = torch.randn((draws, self.prior.dims), generator=stream, dtype=torch.float64)
        choice = torch.randint(len(self.members), (draws,), generator=stream)
        out = torch.empty_like(z)
        for i, member in enumerate(self.members):
            rows = (choice == i).nonzero()[:, 0]
            law = _repeated(member.law(context), len(rows))
            out[rows] = member.from_noise(z[rows], law)
        return out

    def _context(self, x: np.ndarray) -> dict[str, Tensor]:
        events = self.standardised(x)[None]
        return {"events": events, "mask": torch.ones(events.shape[:2], dtype=torch.bool)}

    def tensors(self) -> dict[str, Tensor]:
        """Members one after the other."""
        return {
            f"member.{i}.{name}": value
            for i, member in enumerate(self.members)
            for name, value in member.state_dict().items()
        }


def _of(member: SetPosterior, u: Tensor, context: dict[str, Tensor]) -> Tensor:
    law = member.law(context)
    return torch.cat(
        [member.log_prob_given(part, _repeated(law, len(part))) for part in u.split(_ROWS)]
    )


def _repeated(law: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    return {name: value.expand(rows, *value.shape[1:]) for name, value in law.items()}


def load(folder: Path | str) -> Inference:
    """Read a model of either method.

    Raises:
        CheckpointError: not a model of this application.
    """
    found = load_checkpoint(folder, app=APP)
    tensors, networks = found.tensors, found.config["networks"]
    shared = {
        "prior": BoxPrior.from_config(found.config["prior"]),
        "x_names": tuple(found.config["x_names"]),
        "standardizer": Standardizer(tensors["standardizer.mean"], tensors["standardizer.std"]),
        "guard": Guard(**_part(tensors, "guard.")),
        "config": networks,
        "card": found.card,
        "fingerprint": found.fingerprint,
    }
    if networks["method"] == "nle":
        from apps.hep_simulation.inference.likelihood import Likelihood, flow_of

        flow = flow_of(networks["network"])
        flow.load_state_dict(_part(tensors, "flow."))
        integer = tensors["integer"]
        return Likelihood(**shared, flow=flow.eval(), integer=integer)
    members = []
    for i in range(networks["count"]):
        member = SetPosterior(**networks["network"])
        weights = _part(tensors, f"member.{i}.")
        member.knots, member.log_temper = weights["knots"], weights["log_temper"]
        member.load_state_dict(weights)
        members.append(member.eval())
    return Posterior(**shared, members=tuple(members))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
