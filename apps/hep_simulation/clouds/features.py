r"""Clouds as the network sees them, and back.

    s = m / pT of the jet                       where its constituents spread to
    (u, v) = (Δη, Δφ) / s, its radius r pulled in to asinh(r / c)
    w = ln(n ptrel)
    one number for each species: +½ where it is the constituent's, -½ elsewhere

so that jets of all masses and multiplicities look alike. Nature does not tell +η from -η: jets
with η < 0 are seen reflected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.clouds.data import SPECIES, TYPES, Clouds
from apps.hep_simulation.clouds.kinematics import axis, centred, closed

CORE = 0.3
"""c, where radii begin to be pulled in."""
LEAST_SPREAD = 1e-4
"""Of s: a jet of one particle has no mass."""
_RAREST = 1e-7
"""Least ptrel that is told apart."""


@dataclass(frozen=True)
class Scaling:
    """Means and deviations, from training jets alone.

    Attributes:
        points: (2,) deviation of u and v, and of w.
        middle: () mean of w.
        context_mean: (4,) of `numbers`.
        context_std: (4,).
    """

    points: np.ndarray
    middle: np.ndarray
    context_mean: np.ndarray
    context_std: np.ndarray

    @classmethod
    def fit(cls, clouds: Clouds) -> Scaling:
        """From clouds that are centred."""
        spread, counts = spreads(clouds.points, clouds.mask), clouds.counts
        raw = _raw(clouds, spread)[clouds.mask]
        given = numbers(clouds.pt, clouds.eta, counts, spread)
        return cls(
            np.array([raw[:, :2].std(), raw[:, 2].std()]).clip(1e-6), np.array(raw[:, 2].mean()),
            given.mean(0), np.where(given.std(0) > 1e-9, given.std(0), 1.0),
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return {name: torch.as_tensor(value) for name, value in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Scaling:
        """What `tensors` made."""
        return cls(**{name: tensors[name].numpy() for name in cls.__dataclass_fields__})

    def context(
        self, pt: np.ndarray, eta: np.ndarray, kind: np.ndarray, counts: np.ndarray,
        spread: np.ndarray,
    ) -> Tensor:  # fmt: skip
        """(N, 4 + kinds): what the cloud is conditioned on."""
        given = (numbers(pt, eta, counts, spread) - self.context_mean) / self.context_std
        both = np.concatenate([given, np.asarray(kind)[:, None] == np.array(TYPES)], 1)
        return torch.as_tensor(both, dtype=torch.float32)

    def shape_context(self, pt: np.ndarray, eta: np.ndarray, kind: np.ndarray) -> Tensor:
        """(N, 2 + kinds): what multiplicity and mass are conditioned on."""
        keep = [0, 1, *range(4, 4 + len(TYPES))]
        ones = np.ones(len(pt))
        return self.context(pt, eta, kind, ones, ones)[:, keep]

    def encode(self, clouds: Clouds) -> Tensor:
        """(N, P, 3 + species) of centred clouds; zeros where nothing is."""
        raw = _raw(clouds, spreads(clouds.points, clouds.mask))
        raw[:, :, :2] /= self.points[0]
        raw[:, :, 2] = (raw[:, :, 2] - self.middle) / self.points[1]
        raw[:, :, 0] *= _side(clouds.eta)
        kinds = (clouds.species[:, :, None] == np.arange(1, len(SPECIES) + 1)) - 0.5
        both = np.concatenate([raw, kinds], 2) * clouds.mask[:, :, None]
        return torch.as_tensor(both, dtype=torch.float32)

    def decode(
        self, x: Tensor, mask: np.ndarray, eta: np.ndarray, spread: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, P, 3) that keep the laws of jets, and species (N, P)."""
        values = x.double().numpy()
        plane = values[:, :, :2] * self.points[0]
        pulled = np.hypot(plane[:, :, 0], plane[:, :, 1])
        stretch = CORE * np.sinh(pulled.clip(max=6.0)) / np.maximum(pulled, 1e-12)
        points = np.empty((*mask.shape, 3))
        points[:, :, :2] = (plane * stretch[:, :, None] * spread[:, None, None]).clip(-1.5, 1.5)
        points[:, :, 0] *= _side(eta)
        share = np.exp((values[:, :, 2] * self.points[1] + self.middle).clip(-20, 8))
        points[:, :, 2] = (share / mask.sum(1)[:, None]).clip(_RAREST)
        points = closed(points * mask[:, :, None], mask, spread)
        return points, (values[:, :, 3:].argmax(2) + 1) * mask


def numbers(pt: np.ndarray, eta: np.ndarray, counts: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """(N, 4): ln pT, |η|, ln n, ln s."""
    logs = np.log(np.stack([pt, counts, spread], 1))
    return np.stack([logs[:, 0], np.abs(eta), logs[:, 1], logs[:, 2]], 1)


def spreads(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N,) s = m / pT, at least `LEAST_SPREAD`."""
    return axis(points, mask).mass.clip(LEAST_SPREAD)


def relative(clouds: Clouds) -> Clouds:
    """The same jets relative to the sum of their constituents; species told or all unknown."""
    return Clouds(
        clouds.pt, clouds.eta, clouds.kind, centred(clouds.points, clouds.mask), clouds.mask,
        clouds.species,
    )  # fmt: skip


def turned(x: Tensor, generator: torch.Generator, *, rotate: bool) -> Tensor:
    """Each jet reflected in φ half of the time, and turned about its axis at random."""
    x = x.clone()
    flip = torch.rand((len(x), 1), generator=generator) < 0.5
    x[:, :, 1] = torch.where(flip, -x[:, :, 1], x[:, :, 1])
    if rotate:
        angle = 2 * np.pi * torch.rand((len(x), 1), generator=generator)
        cosine, sine = angle.cos(), angle.sin()
        u, v = x[:, :, 0].clone(), x[:, :, 1].clone()
        x[:, :, 0], x[:, :, 1] = cosine * u - sine * v, sine * u + cosine * v
    return x


def _raw(clouds: Clouds, spread: np.ndarray) -> np.ndarray:
    plane = clouds.points[:, :, :2] / spread[:, None, None]
    radius = np.hypot(plane[:, :, 0], plane[:, :, 1])
    pull = np.arcsinh(radius / CORE) / np.maximum(radius, 1e-12)
    share = clouds.points[:, :, 2] * clouds.counts[:, None]
    w = np.log(np.where(clouds.mask, share, 1.0).clip(_RAREST))
    return np.concatenate([plane * pull[:, :, None], w[:, :, None]], 2)


def _side(eta: np.ndarray) -> np.ndarray:
    return np.where(eta < 0, -1.0, 1.0)[:, None]
