"""The tree of splits of a layer."""

import pytest
import torch

from apps.hep_simulation.tree import Tree


@pytest.mark.parametrize(
    ("rings", "sectors"), [(9, 16), (1, 1), (1, 8), (5, 1), (3, 10), (18, 50)]
)
def test_a_tree_shares_out_all_energy_and_gives_the_voxels_back(rings, sectors):
    tree = Tree(rings, sectors)
    x = torch.rand(4, tree.padded, rings, dtype=torch.float64)
    x[:, sectors:] = 0
    nodes = tree.energies(x)
    assert nodes.shape == (4, tree.nodes)
    assert torch.equal(tree.voxels(nodes), x[:, :sectors])
    assert nodes[:, tree.root].tolist() == pytest.approx(x.sum((1, 2)).tolist())
    assert (nodes[:, 0] == 0).all()
    for split in tree.splits:
        parts = nodes[:, split.a] + nodes[:, split.b]
        assert nodes[:, split.parent].tolist() == pytest.approx(parts.tolist())


def test_every_node_is_split_off_once_and_parents_come_first():
    tree = Tree(9, 16)
    children = [node for split in tree.splits for node in (split.a, split.b)]
    assert len(tree.splits) == 8 + 9 * 15
    wedges = [tree.wedge(r, tree.heap(0, p)) for r in range(1, 9) for p in range(2, 32)]
    assert sorted([*children, *wedges, tree.root, 0]) == list(range(tree.nodes))
    level = {tree.root: -1}
    for split in tree.splits:
        assert level[split.parent] < split.level
        level |= {split.a: split.level, split.b: split.level}


def test_wedges_add_up_the_rings_from_the_middle_outwards():
    tree = Tree(3, 4)
    nodes = tree.energies(torch.rand(5, 4, 3))
    for node in (tree.heap(0, 2), tree.leaf(1, 3)):
        rings = [tree.heap(r, 2) if node == tree.heap(0, 2) else tree.leaf(r, 3) for r in range(3)]
        for ring in range(3):
            whole = nodes[:, rings[: ring + 1]].sum(1)
            assert nodes[:, tree.wedge(ring, node)].tolist() == pytest.approx(whole.tolist())
    assert tree.wedge(-1, tree.leaf(0, 0)) == tree.wedge(3, tree.leaf(0, 0)) == 0
    assert tree.wedge(1, tree.heap(1, 1)) == tree.wedge(1, tree.root) == 0


def test_an_inner_ring_is_split_before_the_next():
    tree = Tree(9, 16)
    level = {(s.ring, s.kind): s.level for s in tree.splits if s.ring >= 0}
    for (ring, kind), own in level.items():
        if ring:
            assert level[ring - 1, kind - 1] == own - 1


def test_neighbours_go_around_the_circle_and_stop_at_the_rim():
    tree = Tree(3, 4)
    assert tree.beside(tree.leaf(1, 3), 1) == tree.leaf(1, 0)
    assert tree.beside(tree.leaf(1, 0), -1) == tree.leaf(1, 3)
    assert tree.beside(tree.heap(1, 1), 1) == 0
    assert tree.across(tree.leaf(1, 2), 1) == tree.leaf(2, 2)
    assert tree.across(tree.leaf(2, 2), 1) == 0
    assert tree.across(tree.root, 1) == 0
