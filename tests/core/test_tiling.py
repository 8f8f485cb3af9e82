"""Tiles: they cover, blend to one, and with a margin of the network's reach change nothing."""

import pytest
import torch
from torch import nn

from core.diffusion import Diffusion
from core.errors import AleatorError
from core.nets import UNet
from core.random import keyed_generator
from core.tiling import Tiles

PATH = {"name": "edm", "sigma_min": 0.02, "sigma_max": 10.0}


class Convolution(nn.Module):
    """A network that reaches three pixels, knows its field, and pads by zeros or around."""

    def __init__(self, periodic=False):
        super().__init__()
        torch.manual_seed(0)
        self.mode = "circular" if periodic else "constant"
        self.conv = nn.Conv2d(3, 1, 7, dtype=torch.float64)

    def forward(self, x, noise, context=None):
        inputs = torch.cat([x, context["field"]], 1)
        padded = nn.functional.pad(inputs, (3, 3, 0, 0), mode=self.mode)
        return self.conv(nn.functional.pad(padded, (0, 0, 3, 3)))


def model(shape, periodic=False):
    return Diffusion(Convolution(periodic), (1, *shape), path=PATH).double()


def context(shape):
    generator = torch.Generator().manual_seed(1)
    return {"field": torch.randn(2, 2, *shape, generator=generator, dtype=torch.float64)}


def draw(model, shape):
    streams = [keyed_generator(i) for i in range(4)]
    sampler = {"name": "2m", "steps": 6}
    return model.sample((2,), context(shape), sampler=sampler, generator=streams)


@pytest.mark.parametrize("shape", [(40, 56), (43, 61), (24, 90)])
@pytest.mark.parametrize(("size", "overlap"), [(16, 8), (24, 12)])
def test_with_a_margin_of_its_reach_tiles_are_the_whole(shape, size, overlap):
    network = model(shape)
    whole = draw(network, shape)
    network.tiles = Tiles(size, overlap, margin=3, multiple=8 if size == 24 else 4)
    torch.testing.assert_close(draw(network, shape), whole, rtol=0, atol=1e-9)


def test_a_domain_that_wraps_around():
    shape = (24, 64)
    network = model(shape, periodic=True)
    whole = draw(network, shape)
    network.tiles = Tiles(24, 12, margin=3, multiple=4, periodic_x=True)
    torch.testing.assert_close(draw(network, shape), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("length", [17, 32, 33, 50, 101])
def test_tiles_cover_every_pixel(length):
    tiles = Tiles(16, 8, margin=2, multiple=4)
    total = torch.zeros(length, dtype=torch.float64)
    for start in tiles.starts(length):
        index, weight = tiles._span(start, length, False)
        assert start % 4 == 0
        total[index] += weight
    assert (total > 0.2).all()


def test_a_field_that_fits_is_denoised_whole():
    network = model((16, 16))
    whole = draw(network, (16, 16))
    network.tiles = Tiles(16, 8, multiple=4)
    assert torch.equal(draw(network, (16, 16)), whole)


def test_no_seam_shows_with_a_network_that_sees_its_whole_tile():
    """A U-Net's group norms see all of a tile: borders must be as smooth as any other place."""
    torch.manual_seed(0)
    net = UNet((1, 96, 96), channels=8, multipliers=(1, 2))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.08)
    network = Diffusion(net.eval(), (1, 96, 96), path=PATH)
    network.tiles = Tiles(32, 16, multiple=4)
    streams = [keyed_generator(i) for i in range(24)]
    fields = network.sample((24,), sampler={"name": "2m", "steps": 6}, generator=streams)
    steps = fields.diff(dim=-1).square().mean((0, 1, 2))
    starts = network.tiles.starts(96)[1:]
    seams = torch.zeros(95, dtype=torch.bool)
    for start in starts:
        for border in (start, start + 16):
            seams[border - 1] = True
    ratio = steps[seams].mean() / steps[~seams].mean()
    assert ratio.item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 30, "overlap": 8}, "multiple of 8"),
        ({"size": 32, "overlap": 32}, "overlap < size"),
        ({"size": 32, "overlap": 8, "margin": 4}, "2 margin < overlap"),
    ],
)
def test_bad_tiles_are_refused(options, message):
    with pytest.raises(AleatorError, match=message):
        Tiles(**options)


def test_bad_fields_are_refused():
    network = model((40, 40))
    network.tiles = Tiles(16, 8)
    with pytest.raises(AleatorError, match="interpolate it first"):
        network.denoise(torch.zeros(2, 1, 40, 40).double(), 1.0, context((20, 20)))
    with pytest.raises(AleatorError, match="tiles are of images"):
        network.denoise(torch.zeros(2, 40).double(), 1.0)
