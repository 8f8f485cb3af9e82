r"""The pattern in each layer: the energy of a layer is split down its tree, from front to back.

Every split of every layer is drawn from one network, told of the energy that is shared, of what
its two parts got in the layers before and what the same sectors got further in, of its
surroundings, and of what is coming (the energies of the next layers are known). Splits of level k
in layer l happen at time k + l, all together: a shower of 45 layers takes some 60 evaluations, and
only where there is energy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from apps.hep_simulation import splits
from apps.hep_simulation.layers import Perceptron
from apps.hep_simulation.profile import UNIT, compress
from apps.hep_simulation.tree import Split, Tree

BACK, AHEAD = 4, 3
"""Layers before, and layer energies after, that a split may look at."""
SINGLE = 12
"""Places that a split looks at alone; all others are pairs, one for each of its parts."""
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
        of = torch.tensor([[s.parent, s.a, s.b, s.kind, s.level, s.ring] for s in tree.splits])
        self.register_buffer("splits", of.reshape(-1, 6), persistent=False)
        looks = self.look.shape[1]
        inputs = looks + (looks - SINGLE) // 2 + 2 + conditions + LONGITUDINAL
        # rings and sectors: few splits that shape the shower, and many that fill it in
        self.radial, self.angular = (
            SplitLaw(inputs, hidden, tree.kinds, layers) for hidden in (radial, angular)
        )

    look: Tensor
    splits: Tensor

    def _looks(self) -> Tensor:
        if not self.tree.splits:
            return torch.zeros(0, SINGLE, dtype=torch.long)
        return torch.tensor([self._look(split) for split in self.tree.splits])

    def _look(self, split: Split) -> list[int]:
        """Offsets, from the layer's start, of what a split is told: `SINGLE`, a's and b's.

        Ring r happens one level after ring r - 1: in this layer it sees what lies further in, of
        the layer before what lies no further out, of the one before that the next ring out.
        """
        tree, ring, angular = self.tree, split.ring, split.ring >= 0
        a, b, parent = split.a, split.b, split.parent
        out = 0 if not angular or tree.whole(parent) else 1
        found = [parent, tree.beside(parent, -1), tree.beside(parent, 1)]
        found += [tree.across(parent, -1), self._at(tree.across(parent, 1), out), tree.root]
        found += [self._at(tree.root, back) for back in (-1, -2, -3, 1)]
        found += [self._at(node, 1) for node in (tree.beside(a, -1), tree.beside(b, 1))]
        far = min(BACK - 1, tree.rings - 1 - ring)
        for node in (a, b):
            found += [self._at(node, back) for back in (1, 2, 3)]
            found += [self._sum(node, 1)]
            # single rings come of splits of any level, maybe of a later one: not to be looked at
            inner, outer = (tree.across(node, step) if angular else 0 for step in (-1, 1))
            found += [inner, self._sum(inner, 1), self._at(outer, 2), self._sum(outer, 2)]
            found += [tree.wedge(ring - 1, node), self._at(tree.wedge(ring, node), 1)]
            found += [self._sum(tree.wedge(ring, node), 1)]
            found += [self._sum(tree.wedge(ring + far, node), 1 + far)]
        return found

    def _at(self, node: int, back: int) -> int:
        """Offset of a node `back` layers before; of node 0, which is always empty, too."""
        return node - back * self.tree.nodes

    def _sum(self, node: int, back: int) -> int:
        """Likewise of its running sum up to there."""
        return self._at(node, back) + (self.layers + BACK + AHEAD) * self.tree.nodes

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
        energy = memory.at(shower, layer, self.look[split])
        # in a core both parts have hundreds of MeV: which of them has a few more is what tells
        a, b = energy[:, SINGLE:].chunk(2, 1)
        seen, lean = compress(energy), (a - b) / (a + b + UNIT)
        parent, root = seen[:, :1], seen[:, 5:6]
        return torch.cat(
            [seen, lean, parent - root, parent.square() / 10, facts[shower, layer]], 1
        )

    def _facts(self, nodes: Tensor, condition: Tensor) -> Tensor:
        """What a whole layer is told, (B, L, D + LONGITUDINAL), of nodes with their roots."""
        condition = condition[:, None].expand(-1, self.layers, -1)
        return torch.cat([condition, longitudinal(nodes[..., self.tree.root])], -1)

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
        for layers, chosen, parent, children, wedges in self._schedule:
            parents = memory.energies(parent)
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
                memory.put(shower, children[column], torch.stack(drawn, 1))
            memory.widen(*wedges)
            memory.carry(torch.cat([children.flatten(), wedges[2]]))
        return memory.energy[:, BACK : BACK + self.layers]

    @cached_property
    def _schedule(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...]]]:
        """What is split at each time: (M,) layers, splits and parents, (M, 2) children; wedges.

        Those are (W,) each: parts of rings, the wedges within these, and those with them. All of
        these are places of nodes as of `_Memory`.
        """
        level = self.splits[:, 4]
        by_level = [(level == k).nonzero()[:, 0] for k in range(self.tree.levels)]
        wedges = torch.tensor([self._wedges(split) for split in self.tree.splits]).reshape(
            -1, 3, 2
        )
        found = []
        for time in range(self.layers + self.tree.levels - 1):
            pairs = [(time - k, s) for k, s in enumerate(by_level) if 0 <= time - k < self.layers]
            layers = torch.cat([torch.full_like(s, layer) for layer, s in pairs])
            chosen = torch.cat([s for _, s in pairs])
            start = _Memory.start(layers, self.tree.nodes)
            parent, *children = (start + node for node in self.splits[chosen, :3].unbind(1))
            beyond = (self.splits[chosen, 5] > 0).nonzero()[:, 0]
            wide = wedges[chosen[beyond]] + start[beyond, None, None]
            spread = tuple(wide.transpose(0, 1).reshape(3, -1).unbind(0))
            found.append((layers, chosen, parent, torch.stack(children, 1), spread))
        return found

    def _wedges(self, split: Split) -> list[list[int]]:
        """(3, 2) the parts of a split, the wedges within them, the wedges with them."""
        nodes = [split.a, split.b]
        return [nodes, *([self.tree.wedge(split.ring - k, n) for n in nodes] for k in (1, 0))]


def longitudinal(energies: Tensor) -> Tensor:
    """Where layers are in their shower, (B, L, LONGITUDINAL), of layer energies (B, L) in MeV."""
    # running sums add up in one order, whatever the batch; sums do not
    done = energies.cumsum(1)
    total = done[:, -1:].clamp(min=1e-6)
    depth = torch.arange(energies.shape[1]) / 20
    middle = (energies * depth).cumsum(1)[:, -1:] / total
    facts = [
        (done - energies) / total,
        compress(total - done),
        depth - middle,
        middle.expand_as(done),
        compress(total).expand_as(done),
    ]
    return torch.stack(facts, -1)


class SplitLaw(nn.Module):
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
        self.flat = self.all.view(batch, -1)
        self.half = self.flat.shape[1] // 2

    @staticmethod
    def start(layer: Tensor, width: int) -> Tensor:
        """Where nodes of layers (M,) begin in a shower's row: a node's place is this plus it."""
        return (layer + BACK) * width

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
        start = shower * self.flat.shape[1] + self.start(layer, self.width)
        return self.flat.view(-1)[start[:, None] + offsets]

    def energies(self, places: Tensor) -> Tensor:
        """(B, M) MeV at places (M,)."""
        return self.flat.index_select(1, places)

    def put(self, shower: Tensor, places: Tensor, energies: Tensor) -> None:
        """Note energies (M, 2) at places (M, 2) of showers (M,)."""
        self.flat[shower[:, None], places] = energies

    def widen(self, part: Tensor, inner: Tensor, outer: Tensor) -> None:
        """Wedges with one more ring, at places (W,): those within it, and the part of it."""
        self.flat.index_copy_(1, outer, self.energies(inner) + self.energies(part))

    def carry(self, places: Tensor) -> None:
        """Update the running sums of what is settled now, at places (M,)."""
        sums = places + self.half
        now = self.energies(places).add_(self.energies(sums - self.width), alpha=DECAY)
        self.flat.index_copy_(1, sums, now)
