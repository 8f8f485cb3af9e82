"""Networks: identity at birth, exact wrap-around, any grid, conditions that arrive."""

import pytest
import torch

from core.errors import AleatorError
from core.nets import MLP, UNet

SHAPE = (2, 12, 16)


def shaken(net, seed=0):
    """The zero-initialised layers made random, so that everything speaks."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def inputs(shape=SHAPE, batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, *shape, generator=generator),
        torch.rand(batch, generator=generator),
    )


CONTEXT = {
    "field": torch.randn(3, 1, 12, 16, generator=torch.Generator().manual_seed(1)),
    "vector": torch.randn(3, 2, generator=torch.Generator().manual_seed(2)),
    "label": torch.tensor([0, 1, 2]),
}
UNET = {"field_channels": 1, "vector_dim": 2, "classes": 3, "channels": 8, "attention": (1,)}


@pytest.mark.exact
def test_output_is_zero_at_birth():
    x, noise = inputs()
    assert not UNet(SHAPE, **UNET)(x, noise, CONTEXT).any()
    assert not MLP((5,), vector_dim=2)(torch.randn(3, 5), noise, CONTEXT).any()


@pytest.mark.exact
def test_blocks_are_the_identity_at_birth():
    net = UNet(SHAPE, **UNET)
    block, attend = net.down[0]
    h = torch.randn(3, 8, 12, 16)
    condition = torch.randn(3, 32)
    torch.testing.assert_close(attend(block(h, condition)), block.skip(h))


@pytest.mark.exact
@pytest.mark.parametrize("patch", [1, 2])
def test_periodic_network_commutes_with_shifts(patch):
    net = shaken(UNet(SHAPE, channels=8, multipliers=(1, 2), patch=patch, periodic_x=True))
    x, noise = inputs()
    shift = 2 * patch
    rolled = net(x.roll(shift, -1), noise)
    torch.testing.assert_close(rolled, net(x, noise).roll(shift, -1), rtol=1e-4, atol=1e-4)
    plain = shaken(UNet(SHAPE, channels=8, multipliers=(1, 2), patch=patch))
    apart = plain(x.roll(shift, -1), noise) - plain(x, noise).roll(shift, -1)
    assert apart.abs().max() > 1e-2


@pytest.mark.parametrize("size", [(12, 16), (13, 17), (7, 9), (32, 31)])
@pytest.mark.parametrize("patch", [1, 2])
def test_any_grid_and_any_batch(size, patch):
    net = shaken(UNet(SHAPE, channels=8, patch=patch))
    x, noise = inputs((2, *size))
    together = net(x, noise)
    assert together.shape == x.shape
    torch.testing.assert_close(together[1:2], net(x[1:2], noise[1:2]), rtol=1e-4, atol=1e-4)


def test_every_condition_has_a_gradient_and_an_effect():
    net = shaken(UNet(SHAPE, **UNET))
    x, noise = inputs()
    context = {**CONTEXT, "field": CONTEXT["field"].clone().requires_grad_()}
    context["vector"] = CONTEXT["vector"].clone().requires_grad_()
    net(x, noise, context).square().sum().backward()
    assert context["field"].grad.abs().min() >= 0
    assert context["field"].grad.abs().mean() > 0
    assert (context["vector"].grad.abs() > 0).all()
    base = net(x, noise, CONTEXT)
    for change in ({"label": torch.tensor([1, 2, 0])}, {"vector": -CONTEXT["vector"]}):
        assert (net(x, noise, {**CONTEXT, **change}) - base).abs().flatten(1).amax(1).min() > 1e-3
    assert (net(x, noise + 0.5, CONTEXT) - base).abs().flatten(1).amax(1).min() > 1e-3


@pytest.mark.exact
def test_null_context_is_absence():
    """Zeros and -1 are what the network sees where there is no context."""
    net = shaken(UNet(SHAPE, **UNET))
    x, noise = inputs()
    null = {
        "field": torch.zeros_like(CONTEXT["field"]),
        "vector": torch.zeros_like(CONTEXT["vector"]),
        "label": torch.full((3,), -1),
    }
    torch.testing.assert_close(net(x, noise, null), net(x, noise))


def test_coarse_context_fields_are_interpolated():
    net = shaken(UNet(SHAPE, field_channels=1, channels=8))
    x, noise = inputs()
    coarse = CONTEXT["field"][..., ::4, ::4]
    fine = torch.nn.functional.interpolate(coarse, (12, 16), mode="bilinear")
    torch.testing.assert_close(net(x, noise, coarse), net(x, noise, fine))


def test_size_is_pinned():
    """A change of architecture is a change of every checkpoint: make it on purpose."""
    assert sum(p.numel() for p in UNet((1, 32, 48), channels=16).parameters()) == 263073
    assert sum(p.numel() for p in MLP((5,), width=64).parameters()) == 59461


def test_mistakes_are_named():
    with pytest.raises(AleatorError, match="use an MLP"):
        UNet((3,))
    with pytest.raises(AleatorError, match="attention"):
        UNet(SHAPE, attention=(3,))
