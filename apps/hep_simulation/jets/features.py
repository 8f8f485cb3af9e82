r"""Jets as the density sees them, and back: responses, sticks, patterns of exact zeros.

    v = ln(pT/pT_gen), ln((m+μ)/(m_gen+μ)), Δη, Δφ,    μ = 0.1 GeV
    k = which of charged, neutral electromagnetic, neutral hadronic and other energy are not zero
    sticks: logit of each present component's share of what the ones before it have left

so that shares sum to one and zeros are zeros, exactly, whatever is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.errors import AleatorError

COMPONENTS = ("chHEF", "neEmEF", "neHEF")
"""Energy fractions; what is left to one is a fourth component, `other`."""
RECO = ("pt", "eta", "phi", "mass", "nConstituents", *COMPONENTS)
GEN = ("pt", "eta", "phi", "mass", "hadronFlavour", "partonFlavour")
KINEMATICS = ("ln pT response", "ln mass response", "Δη", "Δφ")
MASS = 0.1
"""μ, GeV: a massless jet has a finite logarithm."""
ZERO = 2e-5
"""Shares below are zero: the rounding of float32 sums."""
BITS = np.array([1, 2, 4, 8])

Columns = Mapping[str, np.ndarray]


def conditions(gen: Columns) -> np.ndarray:
    """(N, 6): ln pT, η, ln(m + μ), b, c and gluon flags of generator-level jets."""
    columns = [
        np.log(gen["pt"]), gen["eta"], np.log(gen["mass"].clip(0) + MASS),
        gen["hadronFlavour"] == 5, gen["hadronFlavour"] == 4, gen["partonFlavour"] == 21,
    ]  # fmt: skip
    return np.stack([np.asarray(c, dtype=np.float64) for c in columns], 1)


def wrapped(phi: np.ndarray) -> np.ndarray:
    """An angle in [-π, π)."""
    return (phi + np.pi) % (2 * np.pi) - np.pi


def observed(gen: Columns, reco: Columns) -> np.ndarray:
    """(N, 8): the features that classifiers and plots look at.

    ln(pT/pT_gen), Δη, Δφ, ln((m+μ)/(m_gen+μ)), nConstituents, chHEF, neEmEF, neHEF.
    """
    columns = [
        np.log(reco["pt"] / gen["pt"]), reco["eta"] - gen["eta"],
        wrapped(reco["phi"] - gen["phi"]),
        np.log((reco["mass"].clip(0) + MASS) / (gen["mass"].clip(0) + MASS)),
        reco["nConstituents"], *(reco[name] for name in COMPONENTS),
    ]  # fmt: skip
    return np.stack([np.asarray(c, dtype=np.float64) for c in columns], 1)


def shares(reco: Columns) -> np.ndarray:
    """(N, 4) energy shares that sum to one, zeros where there is nothing but rounding.

    Raises:
        AleatorError: a share is below zero or above one by more than rounding.
    """
    known = np.stack([np.asarray(reco[name], dtype=np.float64) for name in COMPONENTS], 1)
    if (known < -0.01).any() or (known.sum(1) > 1.02).any():
        row = int(np.argmax((known < -0.01).any(1) | (known.sum(1) > 1.02)))
        raise AleatorError(
            f"jet {row}: energy fractions {', '.join(f'{v:.3g}' for v in known[row])} of "
            f"{', '.join(COMPONENTS)} are negative or exceed one"
        )
    known = known.clip(0)
    other = (1 - known.sum(1)).clip(0)
    parts = np.concatenate([known, other[:, None]], 1)
    parts[parts < ZERO] = 0.0
    return parts / parts.sum(1, keepdims=True)


def rules() -> tuple[list[list[int]], list[int]]:
    """Which sticks each of the 15 patterns leaves free, (15, 3), and its least constituents."""
    active, least = [], []
    for pattern in range(1, 16):
        present = [(pattern >> i) & 1 for i in range(4)]
        active.append([int(present[i] and any(present[i + 1 :])) for i in range(3)])
        least.append(sum(present))
    return active, least


@dataclass(frozen=True)
class Scaling:
    """Means and deviations of the continuous values (K,) and of the context (C,)."""

    mean: np.ndarray
    std: np.ndarray
    context_mean: np.ndarray
    context_std: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray, free: np.ndarray, context: np.ndarray) -> Scaling:
        """From training rows; values count where they are free."""
        weight = free / free.sum(0).clip(1)
        mean = (weight * values).sum(0)
        std = np.sqrt((weight * (values - mean) ** 2).sum(0))
        spread = context.std(0)
        return cls(
            mean, np.where(std > 1e-9, std, 1.0), context.mean(0),
            np.where(spread > 1e-9, spread, 1.0),
        )  # fmt: skip

    def context(self, c: np.ndarray) -> Tensor:
        """(N, C) as the networks see it."""
        return torch.as_tensor((c - self.context_mean) / self.context_std, dtype=torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return {name: torch.as_tensor(value) for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Scaling:
        """What `tensors` made."""
        return cls(**{name: tensors[name].numpy() for name in cls.__dataclass_fields__})


def encode(kinematics: np.ndarray, reco: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, 2 + K) of pattern, count and raw values, and which values are free (N, K).

    Args:
        kinematics: (N, K - 3), the second column that of the mass.
        reco: nConstituents and the energy fractions.

    Raises:
        AleatorError: no constituent, or fractions that are none.
    """
    parts = shares(reco)
    pattern = ((parts > 0) * BITS).sum(1) - 1
    count = np.asarray(reco["nConstituents"], dtype=np.float64)
    active, least = rules()
    if (count < 1).any():
        raise AleatorError(f"jet {int(np.argmax(count < 1))}: nConstituents is below one")
    # A file with packed floats may hold a component of one constituent too many.
    count = np.maximum(count, np.asarray(least)[pattern])
    left = 1 - np.concatenate([np.zeros((len(parts), 1)), parts.cumsum(1)[:, :2]], 1)
    stick = (parts[:, :3] / left.clip(1e-12)).clip(1e-6, 1 - 1e-6)
    free = np.concatenate(
        [np.ones_like(kinematics, dtype=bool), np.asarray(active, dtype=bool)[pattern]], 1
    )
    free[:, 1] &= count > 1
    values = np.concatenate([kinematics, np.log(stick / (1 - stick))], 1)
    return np.concatenate([np.stack([pattern, count], 1), np.where(free, values, 0)], 1), free


def decode(rows: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Kinematics (N, K - 3), and nConstituents and energy fractions, of rows (N, 2 + K)."""
    pattern = rows[:, 0].astype(int) + 1
    present = (pattern[:, None] & BITS) > 0
    left, found = np.ones(len(rows)), []
    for i in range(3):
        later = present[:, i + 1 :].any(1)
        share = 1 / (1 + np.exp(-rows[:, -3 + i]))
        part = np.where(present[:, i], np.where(later, share, 1.0), 0.0) * left
        found.append(part)
        left = left - part
    reco = dict(zip(COMPONENTS, found, strict=True))
    return rows[:, 2:-3], {"nConstituents": rows[:, 1].astype(np.int64), **reco}


def responses(gen: Columns, reco: Columns) -> np.ndarray:
    """(N, 4) of `KINEMATICS`."""
    seen = observed(gen, reco)
    return seen[:, [0, 3, 1, 2]]


def applied(gen: Columns, kinematics: np.ndarray, shape: dict[str, Any]) -> dict[str, np.ndarray]:
    """Reconstructed jets from generator-level ones and responses (N, 4)."""
    mass = (gen["mass"].clip(0) + MASS) * np.exp(kinematics[:, 1]) - MASS
    return {
        "pt": gen["pt"] * np.exp(kinematics[:, 0]),
        "eta": gen["eta"] + kinematics[:, 2],
        "phi": wrapped(gen["phi"] + kinematics[:, 3]),
        "mass": np.where(shape["nConstituents"] == 1, 0.0, mass.clip(0)),
        **shape,
    }
