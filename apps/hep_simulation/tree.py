r"""How the energy of a layer is shared out: rings first, then halves of the circle, and so on.

A tree of binary splits with the layer at its root and the voxels as leaves: groups of rings are
divided into inner and outer ones down to single rings, each ring into half circles, quarters and
so on, the inner ring one level before the next: a shower that leans to one side does so in all
rings, and each ring can see what those within it did. Node 0 is always empty, for neighbours that
are not there; wedges add up the rings from the middle outwards, for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """One binary split.

    Attributes:
        parent: node whose energy is shared.
        a: its first child: the inner rings, or the first half of the sectors.
        b: its other child.
        level: splits of a level happen at the same time; children are of a deeper level.
        kind: number of its class: splits of one kind are alike up to a rotation.
        ring: of an angular split; -1 of a radial one.
    """

    parent: int
    a: int
    b: int
    level: int
    kind: int
    ring: int


@dataclass(frozen=True)
class Tree:
    """The splits of a layer of R rings and A sectors (padded to P, a power of two).

    Attributes:
        rings: R.
        sectors: A.
    """

    rings: int
    sectors: int

    @cached_property
    def padded(self) -> int:
        """P ≥ A."""
        return 1 << (self.sectors - 1).bit_length()

    @cached_property
    def nodes(self) -> int:
        """N: the empty node, R (2 P - 1) of rings and their parts, R - 1 groups, wedges."""
        return self._wedges + (self.rings - 1) * (2 * self.padded - 2)

    @property
    def _wedges(self) -> int:
        """The first wedge."""
        return 1 + self.rings * (2 * self.padded - 1) + self.rings - 1

    @property
    def root(self) -> int:
        """The node of the whole layer."""
        return self._group_node(0, self.rings)

    @property
    def levels(self) -> int:
        """K, the depth."""
        return max(split.level for split in self.splits) + 1 if self.splits else 0

    @property
    def kinds(self) -> int:
        """Number of classes of splits."""
        return max((split.kind for split in self.splits), default=-1) + 1

    def heap(self, ring: int, place: int) -> int:
        """Node of part `place` ≥ 1 of a ring: 1 is the whole, 2 p and 2 p + 1 the halves of p."""
        return 1 + ring * (2 * self.padded - 1) + place - 1

    def leaf(self, ring: int, sector: int) -> int:
        """Node of a voxel."""
        return self.heap(ring, self.padded + sector)

    def wedge(self, ring: int, node: int) -> int:
        """Node of the same sectors as those of a part of a ring, in all rings up to `ring`.

        0 where there is no such ring; whole rings have none.
        """
        _, place = self._place(node)
        if not 0 <= ring < self.rings or place < 2:
            return 0
        if ring == 0:
            return self.heap(0, place)
        return self._wedges + (ring - 1) * (2 * self.padded - 2) + place - 2

    @cached_property
    def ranges(self) -> list[tuple[int, int, int, int]]:
        """(low, cut, high, level) of the radial splits, a parent before its children."""
        found, queue = [], [(0, self.rings, 0)]
        while queue:
            low, high, level = queue.pop(0)
            if high - low > 1:
                cut = low + ((high - low) // 2 if high - low <= 4 else (high - low) // 3)
                found.append((low, cut, high, level))
                queue += [(low, cut, level + 1), (cut, high, level + 1)]
        return found

    def _group_node(self, low: int, high: int) -> int:
        if high - low == 1:
            return self.heap(low, 1)
        index = [(a, c) for a, _, c, _ in self.ranges].index((low, high))
        return 1 + self.rings * (2 * self.padded - 1) + index

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """All S of them, by level."""
        found = []
        for kind, (low, cut, high, level) in enumerate(self.ranges):
            parent, a, b = (self._group_node(*r) for r in ((low, high), (low, cut), (cut, high)))
            found.append(Split(parent, a, b, level, kind, -1))
        radial_levels = 1 + max((r[-1] for r in self.ranges), default=-1)
        kinds, depth = len(self.ranges), self.padded.bit_length() - 1
        for deep in range(depth):
            for ring in range(self.rings):
                kind = kinds + deep * self.rings + ring
                for place in range(1 << deep, 2 << deep):
                    parent, a, b = (self.heap(ring, p) for p in (place, 2 * place, 2 * place + 1))
                    found.append(Split(parent, a, b, radial_levels + deep + ring, kind, ring))
        return tuple(sorted(found, key=lambda split: (split.ring >= 0, split.level)))

    @cached_property
    def generations(self) -> list[Tensor]:
        """Numbers of the splits, parents before their children: as few groups as that takes."""
        depth: dict[int, int] = {}
        for split in self.splits:  # by level: a parent comes before its children
            own = depth.get(split.parent, 0)
            depth[split.a] = depth[split.b] = own + 1
        found: dict[int, list[int]] = {}
        for number, split in enumerate(self.splits):
            found.setdefault(depth[split.a], []).append(number)
        return [torch.tensor(found[key]) for key in sorted(found)]

    def beside(self, node: int, step: int) -> int:
        """The part of the same ring and size next to a node, around the circle; 0 if none."""
        ring, place = self._place(node)
        if place < 2:
            return 0
        size = 1 << (place.bit_length() - 1)
        return self.heap(ring, size + (place - size + step) % size)

    def across(self, node: int, step: int) -> int:
        """The same sectors of the ring `step` further out; 0 if there is none."""
        ring, place = self._place(node)
        return self.heap(ring + step, place) if place and 0 <= ring + step < self.rings else 0

    def _place(self, node: int) -> tuple[int, int]:
        """Ring and heap place of a node; place 0 of what is not part of a ring."""
        ring, place = divmod(node - 1, 2 * self.padded - 1)
        return (ring, place + 1) if node and ring < self.rings else (-1, 0)

    def whole(self, node: int) -> bool:
        """Whether a node is a whole ring."""
        return self._place(node)[1] == 1

    def energies(self, layers: Tensor) -> Tensor:
        """Energy of every node: padded voxels (..., P, R) -> (..., N)."""
        level = layers.transpose(-1, -2)  # (..., R, P)
        parts = [level]
        while level.shape[-1] > 1:
            level = level.unflatten(-1, (-1, 2)).sum(-1)
            parts.insert(0, level)
        rings = torch.cat(parts, -1)
        whole = level[..., 0]
        groups = [whole[..., low:high].sum(-1) for low, _, high, _ in self.ranges]
        empty = torch.zeros_like(whole[..., :1])
        tail = [torch.stack(groups, -1)] if groups else []
        wedges = rings[..., 1:].cumsum(-2)[..., 1:, :]
        return torch.cat([empty, rings.flatten(-2), *tail, wedges.flatten(-2)], -1)

    def voxels(self, nodes: Tensor) -> Tensor:
        """The leaves, as (..., A, R)."""
        places = [self.leaf(r, a) for a in range(self.sectors) for r in range(self.rings)]
        return nodes[..., places].unflatten(-1, (self.sectors, self.rings))
