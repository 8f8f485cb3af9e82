r"""The pattern in each layer: the energy of a layer is split down its tree, from front to back.

Every split of every layer is drawn from one network, told of the energy that is shared, of what
its two parts got in the layers before, of its surroundings, and of what is coming (the energies
of the next layers are known). Splits of level k in layer l happen at time k + l, all together:
a shower of 45 layers takes 52 evaluations, and only where there is energy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from apps.hep_simulation import splits
from apps.hep_simulation.layers import Perceptron
from apps.hep_simulation.profile import compress
from apps.hep_simulation.tree import Split, Tree

BACK, AHEAD = 4, 3
"""Layers before, and layer energies after, that a split is told of."""
LONGITUDINAL = 5
"""Features of a layer's place in its shower."""
DECAY = 0.9
"""Decay a layer of the running sum over all layers before."""


class Pattern(nn.Module):
    """p(voxels | layer energies, condition)."""

    def __init__(
        self,
        tree: Tree,
        layers: int,
        conditions: int,
        threshold: float,
        radial: int = 192,
        angular: int = 96,
    ) -> None:
        """L layers of the same (padded) tree; D features of the condition; hidden units."""
        super().__init__()
        self.tree, self.layers, self.threshold = tree, layers, threshold
        # places that splits look at: (S, F), in a shower's memory laid out as in `_Memory`
        self.register_buffer("look", self._looks(), persistent=False)
        of = torch.tensor([[s.parent, s.a, s.b, s.kind, s.level] for s in tree.splits])
        self.register_buffer("splits", of.reshape(-1, 5), persistent=False)
        inputs = self.look.shape[1] + 2 + conditions + LONGITUDINAL
        # rings and sectors: few splits that shape the shower, and many that fill it in
        self.radial, self.angular = (
            _Law(inputs, hidden, tree.kinds, layers) for hidden in (radial, angular)
        )

    look: Tensor
    splits: Tensor

    def _looks(self) -> Tensor:
        if not self.tree.splits:
            return torch.zeros(0, 1, dtype=torch.long)
        return torch.tensor([self._look(split) for split in self.tree.splits])

    def _look(self, split: Split) -> list[int]:
        """Offsets, from the layer's start, of what a split is told."""
        tree, width = self.tree, self.tree.nodes
        depth = self.layers + BACK + AHEAD
        a, b, parent = split.a, split.b, split.parent

        def memory(node: int) -> int:
            return (depth - 1) * width + node

        found = [parent, tree.beside(parent, -1), tree.beside(parent, 1)]
        found += [tree.across(parent, -1), tree.across(parent, 1), tree.root]
        found += [ahead * width + tree.root for ahead in range(1, AHEAD + 1)]
        found += [-width + tree.root]
        for back in range(1, BACK + 1):
            found += [node - back * width for node in (a, b)]
        found += [memory(node) for node in (a, b)]
        # single rings come of splits of any level, maybe of a later one: not to be looked at
        angular = split.ring >= 0
        around = [tree.beside(a, -1), tree.beside(b, 1)]
        for step in (-1, 1):
            around += [tree.across(node, step) if angular else 0 for node in (a, b)]
        found += [node - width for node in around]
        return found + [memory(node) for node in around[2:]]

    def log_prob(
        self, nodes: Tensor, condition: Tensor, thin: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ln p of splits.

        Args:
            nodes: (B, L, N) energies of the tree of each layer, MeV.
            condition: (B, D).
            thin: takes (M,) whether each split with energy is an angular one, and returns the
                weight of each, 0 to leave it out; all count alike if None.

        Returns:
            (M',) weighted nats and (M',) their showers.
        """
        memory = _Memory.full(nodes)
        there = (nodes[..., self.splits[:, 0]] > 0).flatten().nonzero()[:, 0]
        weight = nodes.new_ones(len(there))
        if thin is not None:
            weight = thin(there % len(self.splits) >= len(self.tree.ranges))
            there, weight = there[weight > 0], weight[weight > 0]
        which, split = there // len(self.splits), there % len(self.splits)
        shower, layer = which // self.layers, which % self.layers
        parameters = self._law(memory, shower, layer, split, self._facts(nodes, condition))
        flat = nodes.reshape(-1, nodes.shape[-1])
        a, b = (flat[which, self.splits[split, c]] for c in (1, 2))
        return weight * splits.log_prob(parameters, a, b, self.threshold), shower

    def _law(
        self, memory: _Memory, shower: Tensor, layer: Tensor, split: Tensor, facts: Tensor
    ) -> Tensor:
        """Parameters (M, P) of splits (M,) of layers (M,) of showers (M,)."""
        rows, kind = self._rows(memory, shower, layer, split, facts), self.splits[split, 3]
        found = rows.new_empty(len(rows), splits.width())
        angular = split >= len(self.tree.ranges)
        for law, which in ((self.radial, ~angular), (self.angular, angular)):
            mine = which.nonzero()[:, 0]
            if len(mine):
                found[mine] = law(rows[mine], kind[mine], layer[mine])
        return found

    def _rows(
        self, memory: _Memory, shower: Tensor, layer: Tensor, split: Tensor, facts: Tensor
    ) -> Tensor:
        seen = compress(memory.at(shower, layer, self.look[split]))
        parent, root = seen[:, :1], seen[:, 5:6]
        return torch.cat([seen, parent - root, parent.square() / 10, facts[shower, layer]], 1)

    def _facts(self, nodes: Tensor, condition: Tensor) -> Tensor:
        """What a whole layer is told, (B, L, D + LONGITUDINAL), of nodes with their roots."""
        # running sums add up in one order, whatever the batch; sums do not
        energies = nodes[..., self.tree.root]
        done = energies.cumsum(1)
        total = done[:, -1:].clamp(min=1e-6)
        depth = torch.arange(self.layers) / 20
        middle = (energies * depth).cumsum(1)[:, -1:] / total
        facts = [
            (done - energies) / total,
            compress(total - done),
            depth - middle,
            middle.expand_as(done),
            compress(total).expand_as(done),
        ]
        condition = condition[:, None].expand(-1, self.layers, -1)
        return torch.cat([condition, torch.stack(facts, -1)], -1)

    def standardise(self, nodes: Tensor, condition: Tensor) -> None:
        """Take the spread of the networks' inputs from showers."""
        memory, radial = _Memory.full(nodes), len(self.tree.ranges)
        there = (nodes[..., self.splits[:, 0]] > 0).flatten().nonzero()[:, 0]
        which, split = there // len(self.splits), there % len(self.splits)
        shower, layer = which // self.layers, which % self.layers
        rows = self._rows(memory, shower, layer, split, self._facts(nodes, condition))
        for law, mine in ((self.radial, split < radial), (self.angular, split >= radial)):
            if mine.any():
                law.net.standardise(rows[mine])

    def sample(self, energies: Tensor, condition: Tensor, uniform: Tensor) -> Tensor:
        """Nodes (B, L, N), given layer energies (B, L), (B, D) and (B, L, S, 2) uniforms."""
        memory = _Memory.empty(energies, self.tree)
        facts = self._facts(memory.energy[:, BACK : BACK + self.layers], condition)
        for layers, chosen, parent, children in self._schedule:
            parents = memory.energy[:, layers + BACK, parent]
            shower, column = (parents > 0).nonzero().unbind(1)
            if len(shower):
                layer, split = layers[column], chosen[column]
                parameters = self._law(memory, shower, layer, split, facts)
                drawn = splits.draw(
                    parameters,
                    parents[shower, column],
                    uniform[shower, layer, split],
                    self.threshold,
                )
                memory.put(shower, layer, children[column], torch.stack(drawn, 1))
            memory.carry(layers, children)
        return memory.energy[:, BACK : BACK + self.layers]

    @cached_property
    def _schedule(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """What is split at each time: (M,) layers, splits and parents, and (M, 2) children."""
        level = self.splits[:, 4]
        by_level = [(level == k).nonzero()[:, 0] for k in range(self.tree.levels)]
        found = []
        for time in range(self.layers + self.tree.levels - 1):
            pairs = [(time - k, s) for k, s in enumerate(by_level) if 0 <= time - k < self.layers]
            layers = torch.cat([torch.full_like(s, layer) for layer, s in pairs])
            chosen = torch.cat([s for _, s in pairs])
            found.append((layers, chosen, self.splits[chosen, 0], self.splits[chosen, 1:3]))
        return found


class _Law(nn.Module):
    """The network of the splits of rings, or of sectors."""

    def __init__(self, inputs: int, hidden: int, kinds: int, layers: int) -> None:
        super().__init__()
        self.net = Perceptron(inputs, hidden, splits.width())
        splits.spread_out(self.net.last.bias)
        self.kind, self.depth = nn.Embedding(max(1, kinds), hidden), nn.Embedding(layers, hidden)
        for embedding in (self.kind, self.depth):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, rows: Tensor, kind: Tensor, layer: Tensor) -> Tensor:
        """(M, inputs), (M,) and (M,) -> (M, P)."""
        return self.net(rows, self.kind(kind) + self.depth(layer))


class _Memory:
    """Energies of every node of every layer, and their running sum over the layers before.

    One flat row a shower, so that all that a split looks at is one `gather`: energies first, then
    sums, each of BACK + L + AHEAD layers of N nodes.
    """

    def __init__(self, like: Tensor, width: int) -> None:
        """For showers and layers (B, L, ...) of `like`."""
        batch, layers = like.shape[:2]
        self.width = width
        self.all = like.new_zeros(batch, 2, BACK + layers + AHEAD, width)
        self.energy, self.sums = self.all.unbind(1)

    @classmethod
    def full(cls, nodes: Tensor) -> _Memory:
        """Of whole showers (B, L, N)."""
        layers = nodes.shape[1]
        memory = cls(nodes, nodes.shape[2])
        memory.energy[:, BACK : BACK + layers] = nodes
        for layer in range(BACK, BACK + layers):
            memory.sums[:, layer] = memory.energy[:, layer] + DECAY * memory.sums[:, layer - 1]
        return memory

    @classmethod
    def empty(cls, energies: Tensor, tree: Tree) -> _Memory:
        """Only the energies (B, L) of whole layers are known."""
        memory = cls(energies, tree.nodes)
        memory.energy[:, BACK : BACK + energies.shape[1], tree.root] = energies
        return memory

    def at(self, shower: Tensor, layer: Tensor, offsets: Tensor) -> Tensor:
        """(M, F) what rows look at, MeV."""
        start = shower * self.all[0].numel() + (layer + BACK) * self.width
        return self.all.view(-1)[start[:, None] + offsets]

    def put(self, shower: Tensor, layer: Tensor, nodes: Tensor, energies: Tensor) -> None:
        """Note energies (M, 2) of nodes (M, 2)."""
        self.energy[shower[:, None], layer[:, None] + BACK, nodes] = energies

    def carry(self, layers: Tensor, nodes: Tensor) -> None:
        """Update the running sums of nodes (M, 2) that are settled now."""
        depth, flat = (layers + BACK).repeat_interleave(2), nodes.flatten()
        now = self.energy[:, depth, flat]
        self.sums[:, depth, flat] = now.add_(self.sums[:, depth - 1, flat], alpha=DECAY)
