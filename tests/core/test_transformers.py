"""Transformers on patches and on points: inverses, identities, equivariance, conditions."""

import pytest
import torch

from core import build
from core.errors import AleatorError
from core.nets import DiT, SetTransformer
from core.nets.dit import AdaLNBlock, places
from core.nets.set_transformer import InducedBlock
from core.random import keyed_generator

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=keyed_generator(seed), dtype=F64)


def awake(net, scale=0.1):
    """With no weight at zero."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(scale * torch.randn(p.shape, generator=keyed_generator(1)))
    return net.double()


@pytest.mark.exact
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_put_back(patch):
    net, x = DiT((2, 6, 12), patch=patch, width=16, depth=1), normal(3, 2, 6, 12)
    tokens, grid = net.patchify(x)
    assert tokens.shape == (3, 72 // patch**2, 2 * patch**2)
    torch.testing.assert_close(net.unpatchify(tokens, grid), x)
    first = x[0, :, :patch, :patch].flatten()
    torch.testing.assert_close(tokens[0, 0], first)


@pytest.mark.exact
@pytest.mark.parametrize("block", [AdaLNBlock(16, 4), InducedBlock(16, 4, 3)])
def test_blocks_start_as_the_identity(block):
    h, condition = normal(2, 5, 16), normal(2, 16, seed=1)
    block = block.double()
    assert torch.equal(block(h, condition), h)
    assert not torch.allclose(awake(block)(h, condition), h)


@pytest.mark.exact
def test_a_fresh_dit_puts_out_zeros_and_any_size_will_do():
    net = DiT((1, 8, 8), width=16, depth=2)
    assert (net(torch.ones(2, 1, 8, 8), torch.zeros(2)) == 0).all()
    net = awake(net)
    x = normal(2, 1, 9, 7)
    out = net(x, torch.zeros(2, dtype=F64))
    assert out.shape == (2, 1, 9, 7)
    assert out.std() > 0
    assert sum(p.numel() for p in DiT((1, 28, 28), width=128, depth=4).parameters()) == 1_254_532


@pytest.mark.exact
def test_places_are_told_apart():
    found = places(5, 7, 16)
    assert found.shape == (35, 16)
    assert torch.pdist(found).min() > 0.1
    torch.testing.assert_close(found[:7, :8], found[:1, :8].expand(7, -1))  # rows come first


@pytest.mark.parametrize("name", ["field", "vector", "label"])
def test_contexts_are_seen(name):
    net = awake(DiT((1, 8, 8), field_channels=2, vector_dim=3, classes=4, width=16, depth=1))
    context = {"field": normal(2, 2, 4, 4), "vector": normal(2, 3)}
    context["label"] = torch.tensor([0, 1])
    x, level = normal(2, 1, 8, 8), torch.zeros(2, dtype=F64)
    before = net(x, level, context)
    other = dict(context)
    other[name] = 3 - other[name] if name == "label" else other[name] + 1
    assert not torch.allclose(net(x, level, other), before, atol=1e-6)
    assert not torch.allclose(net(x, level + 1, context), before, atol=1e-6)


@pytest.mark.exact
@pytest.mark.parametrize("induced", [0, 3])
def test_points_have_no_order_and_padded_ones_are_not_seen(induced):
    net = awake(SetTransformer((6, 2), width=16, depth=2, induced=induced, classes=2), 0.3)
    x, level = normal(3, 6, 2), torch.zeros(3, dtype=F64)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    out = net(x, level)
    torch.testing.assert_close(net(x[:, order], level), out[:, order])
    far = x.clone()
    far[:, 5] += 1
    assert not torch.allclose(out[:, :1], net(far, level)[:, :1])
    mask = torch.tensor([[True] * 4 + [False] * 2]).expand(3, -1)
    padded = net(x, level, {"mask": mask})
    torch.testing.assert_close(padded[:, :4], net(x[:, :4], level))
    assert (padded[:, 4:] == 0).all()
    moved = x.clone()
    moved[:, 4:] += 5
    torch.testing.assert_close(net(moved, level, {"mask": mask}), padded)
    label = torch.tensor([0, 1, 1])
    assert not torch.allclose(net(x, level, label), out)


@pytest.mark.contract
def test_models_on_them_are_one_word():
    dit = {"name": "dit", "width": 16, "depth": 1}
    model = build({"family": "diffusion", "event_shape": [1, 8, 8], "net": dit})
    assert model.sample((2,), generator=keyed_generator(0)).shape == (2, 1, 8, 8)
    learned = build(
        {"family": "diffusion", "event_shape": [1, 8, 8], "net": dit, "learned_variance": True}
    )
    assert learned.denoise(torch.zeros(1, 1, 8, 8), 0.5).variance_fraction.shape == (1, 1, 8, 8)
    cloud = {"name": "set_transformer", "width": 16, "depth": 1, "induced": 2}
    model = build({"family": "flow_matching", "event_shape": [5, 3], "net": cloud})
    loss = model.loss(torch.randn(4, 5, 3), generator=keyed_generator(1)).value
    assert loss.shape == (4,)
    assert model.sample((2,), generator=keyed_generator(0)).shape == (2, 5, 3)


def test_mistakes_are_named():
    for make, message in (
        (lambda: DiT((3,)), r"not \(3,\); use an MLP"),
        (lambda: DiT((1, 8, 8), width=18), "width=18"),
        (lambda: SetTransformer((3,)), r"an event \(N, D\)"),
        (lambda: SetTransformer((3, 2), width=10), "width=10"),
    ):
        with pytest.raises(AleatorError, match=message):
            make()
    net, x = SetTransformer((3, 2), width=8, depth=1), torch.zeros(1, 3, 2)
    for mask in (torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)):
        with pytest.raises(AleatorError, match="with a point in every set"):
            net(x, torch.zeros(1), {"mask": mask})
