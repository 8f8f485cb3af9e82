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
    assert sorted([*children, tree.root, 0]) == list(range(tree.nodes))
    level = {tree.root: -1}
    for split in tree.splits:
        assert level[split.parent] < split.level
        level |= {split.a: split.level, split.b: split.level}


def test_neighbours_go_around_the_circle_and_stop_at_the_rim():
    tree = Tree(3, 4)
    assert tree.beside(tree.leaf(1, 3), 1) == tree.leaf(1, 0)
    assert tree.beside(tree.leaf(1, 0), -1) == tree.leaf(1, 3)
    assert tree.beside(tree.heap(1, 1), 1) == 0
    assert tree.across(tree.leaf(1, 2), 1) == tree.leaf(2, 2)
    assert tree.across(tree.leaf(2, 2), 1) == 0
    assert tree.across(tree.root, 1) == 0
