r"""Coordinates of a shower in which every voxel family starts from the right marginals.

    z = score of each split of each layer's tree, given E_inc, particle and all layer energies

(`tree`, `scores`): one number a split, N(0, 1) by itself. Energy is kept, zeros are zeros and
nothing lies below the threshold whatever z is; the law of the splits is learnt by maximum
likelihood next to the family, which has to learn only how splits of a shower go together. Where
there is no energy to split z is noise. One preprocessing for all families.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apps.hep_simulation import splits
from apps.hep_simulation.cascade import thinned
from apps.hep_simulation.pattern import LONGITUDINAL, SplitLaw, longitudinal
from apps.hep_simulation.profile import compress
from apps.hep_simulation.scores import from_normal, to_normal
from apps.hep_simulation.tree import Tree
from core.random import Generators

FACTS = 1 + LONGITUDINAL
"""What the field is told of each layer, beside the condition."""


class Coordinates(nn.Module):
    """Nodes (B, L, N) of showers to scores of splits, and back, given layer energies."""

    which: Tensor

    def __init__(
        self, tree: Tree, layers: int, conditions: int, threshold: float, hidden: int = 64
    ) -> None:
        """L layers of the same tree, D features of the condition, τ in MeV."""
        super().__init__()
        self.tree, self.layers, self.threshold = tree, layers, threshold
        of = torch.tensor([[s.parent, s.a, s.b, s.kind] for s in tree.splits]).reshape(-1, 4)
        self.register_buffer("which", of, persistent=False)
        self.law = SplitLaw(2 + conditions + FACTS, hidden, tree.kinds, layers)

    def loss(self, nodes: Tensor, condition: Tensor, generator: Generators | None) -> Tensor:
        """Negative log-likelihood (B,) of a random part of the splits, nats."""
        shower, layer, split = self._there(nodes)
        weight = thinned(split >= len(self.tree.ranges), len(nodes), generator)
        kept = (weight > 0).nonzero()[:, 0]
        shower, layer, split, weight = (part[kept] for part in (shower, layer, split, weight))
        parameters = self._law(nodes, condition, shower, layer, split)
        a, b = (nodes[shower, layer, self.which[split, c]] for c in (1, 2))
        found = weight * splits.log_prob(parameters, a, b, self.threshold)
        return nodes.new_zeros(len(nodes)).index_add(0, shower, -found)

    @torch.no_grad()
    def forward(
        self, nodes: Tensor, condition: Tensor, chosen: Tensor, uniform: Tensor, noise: Tensor
    ) -> Tensor:
        """Scores (B, J, L) of some of the splits.

        Args:
            nodes: (B, L, N) MeV.
            condition: (B, D).
            chosen: (J,) numbers of the splits.
            uniform: (B, J, L) in [0, 1): places within whole outcomes.
            noise: (B, J, L) N(0, 1): scores where there is nothing to split.
        """
        shower, layer, column = (nodes[..., self.which[chosen, 0]] > 0).nonzero().unbind(1)
        split = chosen[column]
        parameters = self._law(nodes, condition, shower, layer, split)
        a, b = (nodes[shower, layer, self.which[split, c]] for c in (1, 2))
        place = uniform[shower, column, layer]
        z = noise.clone()
        z[shower, column, layer] = to_normal(parameters, a, b, place, self.threshold)
        return z

    @torch.no_grad()
    def inverse(self, z: Tensor, energies: Tensor, condition: Tensor) -> Tensor:
        """Nodes (B, L, N) of scores (B, S, L), layer energies (B, L) and condition (B, D)."""
        nodes = energies.new_zeros(*energies.shape, self.tree.nodes)
        nodes[..., self.tree.root] = energies
        for chosen in self.tree.generations:
            parent = nodes[..., self.which[chosen, 0]]
            shower, layer, column = (parent > 0).nonzero().unbind(1)
            split = chosen[column]
            parameters = self._law(nodes, condition, shower, layer, split)
            parts = from_normal(
                parameters, parent[shower, layer, column], z[shower, split, layer], self.threshold
            )
            for child, energy in zip((1, 2), parts, strict=True):
                nodes[shower, layer, self.which[split, child]] = energy
        return nodes

    def standardise(self, nodes: Tensor, condition: Tensor) -> None:
        """Take the spread of the law's inputs from showers."""
        shower, layer, split = self._there(nodes)
        facts = self.facts(nodes[..., self.tree.root], condition)
        self.law.net.standardise(self._rows(nodes, facts, shower, layer, split))

    def facts(self, energies: Tensor, condition: Tensor) -> Tensor:
        """What is known of each layer before it is split, (B, L, D + FACTS)."""
        condition = condition[:, None].expand(-1, self.layers, -1)
        own = compress(energies)[..., None]
        return torch.cat([condition, own, longitudinal(energies)], -1)

    def standard_facts(self, energies: Tensor, condition: Tensor) -> Tensor:
        """`facts` on the scale of those of the training showers, at most 5 from their middle."""
        net = self.law.net
        facts = (self.facts(energies, condition) - net.mean[2:]) / net.scale[2:]
        return facts.clamp(-5, 5)

    def _there(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(M,) showers, layers and splits with energy."""
        shower, layer, split = (nodes[..., self.which[:, 0]] > 0).nonzero().unbind(1)
        return shower, layer, split

    def _law(
        self, nodes: Tensor, condition: Tensor, shower: Tensor, layer: Tensor, split: Tensor
    ) -> Tensor:
        facts = self.facts(nodes[..., self.tree.root], condition)
        rows = self._rows(nodes, facts, shower, layer, split)
        return self.law(rows, self.which[split, 3], layer)

    def _rows(
        self, nodes: Tensor, facts: Tensor, shower: Tensor, layer: Tensor, split: Tensor
    ) -> Tensor:
        parent = compress(nodes[shower, layer, self.which[split, 0]])[:, None]
        return torch.cat([parent, parent.square() / 10, facts[shower, layer]], 1)
