r"""The splitting cascade: a shower as a sequence of energy splits, with an exact density.

    p(x | E_inc, particle) = p(E_tot) Π_l p(u_l | ...) Π_splits p(E_a | E_a + E_b, upstream, ...)

Energies are conserved by construction, zeros are exact, and a voxel has either nothing or at
least the threshold. Every factor is learnt by maximum likelihood from all splits of all showers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apps.hep_simulation.pattern import Pattern
from apps.hep_simulation.profile import Profile
from apps.hep_simulation.tree import Tree
from core.errors import AleatorError
from core.model import Context, Density, GenerativeModel, Loss
from core.random import Generators, rand

RADIAL, ANGULAR = 125, 160
"""Splits of either kind a shower that a training step takes, about: a random part of them."""


class SplittingCascade(GenerativeModel):
    """Events (L, A, R) in MeV; context `vector` (B, 1) ln E_inc / MeV and `label` (B,)."""

    takes_net = False

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        classes: int,
        threshold: float,
        radial: int = 192,
        angular: int = 96,
        profile: int = 128,
        rotates: bool = True,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (L, A, R), padded where layers differ.
            classes: number of particles.
            threshold: least energy of a voxel, MeV.
            radial: hidden units of the network of splits between rings.
            angular: of the one between sectors.
            profile: of the one of the layer energies.
            rotates: draw the angle of the first sector, and the sense, at random.
        """
        super().__init__()
        self.event_shape, self.context_shape = torch.Size(event_shape), torch.Size((1,))
        layers, sectors, rings = self.event_shape
        self.classes, self.threshold, self.rotates = classes, threshold, rotates
        self.tree = Tree(rings, sectors)
        self.profile = Profile(layers, 1 + classes, threshold, profile)
        self.pattern = Pattern(self.tree, layers, 1 + classes, threshold, radial, angular)

    def nodes(self, x: Tensor) -> Tensor:
        """Energies of all nodes, (B, L, N), of showers (B, L, A, R)."""
        return self.tree.energies(F.pad(x, (0, 0, 0, self.tree.padded - x.shape[2])))

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Negative log-likelihood in hundreds of nats, from a random part of the splits."""
        nodes, condition = self.nodes(x), standard_condition(context, self.classes)
        profile = -self.profile.log_prob(nodes[..., self.tree.root], condition)
        found, shower = self.pattern.log_prob(
            nodes, condition, lambda a: thinned(a, len(x), generator)
        )
        pattern = x.new_zeros(len(x)).index_add(0, shower, -found)
        terms = {"profile": profile.detach(), "pattern": pattern.detach()}
        return Loss((profile + pattern) / 100, terms)

    @torch.no_grad()
    def log_prob(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Density:
        """Exact ln p of showers (B, L, A, R), in the mixed measure of `splits`, nats.

        It is that of the orientation given: a model with `rotates` gives the same, on average,
        to all.
        """
        nodes, condition = self.nodes(x), standard_condition(context, self.classes)
        value = self.profile.log_prob(nodes[..., self.tree.root], condition)
        found, shower = self.pattern.log_prob(nodes, condition)
        return Density(value.index_add(0, shower, found), "exact")

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: Any = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draw showers (B, L, A, R), MeV; `shape` must be ()."""
        if sampler is not None or guidance is not None or tuple(shape):
            raise AleatorError("the cascade takes no shape, no sampler and no guidance")
        condition = standard_condition(context, self.classes)
        layers, (sectors, _) = self.event_shape[0], self.event_shape[1:]
        splits, batch = len(self.tree.splits), len(condition)
        sizes = [2, 2 * (layers + 1), 2 * layers * splits]
        turn, first, second = rand((batch, sum(sizes)), generator).split(sizes, 1)
        energies = self.profile.sample(condition, first)
        uniform = second.reshape(batch, layers, splits, 2)
        nodes = self.pattern.sample(energies, condition, uniform)
        x = self.tree.voxels(nodes)
        return rotated(x, (turn[:, 0] * sectors).long(), turn[:, 1] < 0.5) if self.rotates else x

    def standardise(self, x: Tensor, context: Context) -> None:
        """Fit the scales of the networks' inputs to some training showers."""
        with torch.no_grad():
            nodes, condition = self.nodes(x), standard_condition(context, self.classes)
            self.pattern.standardise(nodes, condition)
            self.profile.standardise(nodes[..., self.tree.root], condition)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The two parts."""
        return self.profile, self.pattern


def standard_condition(context: Context, classes: int) -> Tensor:
    """(B, 1 + classes): ln E_inc / MeV and the particle, one-hot.

    Raises:
        AleatorError: a context without `vector` (B, 1) and `label` (B,).
    """
    if not isinstance(context, Mapping) or not {"vector", "label"} <= set(context):
        raise AleatorError("showers need a context with vector (ln E_inc) and label (particle)")
    return torch.cat([context["vector"], F.one_hot(context["label"], classes)], 1)


def thinned(angular: Tensor, batch: int, generator: Generators | None) -> Tensor:
    """Weights of splits (M,): a random part of each kind, so that the sum stays unbiased."""
    share = torch.where(
        angular,
        min(1.0, batch * ANGULAR / max(int(angular.sum()), 1)),
        min(1.0, batch * RADIAL / max(int((~angular).sum()), 1)),
    )
    return (rand(share.shape, generator) < share) / share


def rotated(x: Tensor, steps: Tensor, mirror: Tensor) -> Tensor:
    """Turn showers (B, L, A, R) by `steps` (B,) sectors, and reflect where `mirror` (B,)."""
    sectors = x.shape[2]
    index = torch.arange(sectors)[None]
    index = torch.where(mirror[:, None], sectors - 1 - index, index)
    index = (index + steps[:, None]) % sectors
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
