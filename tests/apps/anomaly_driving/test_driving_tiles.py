"""Tiles against the whole image, for a network whose receptive field is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.tiles import Tiling, tiled_outputs
from core.errors import AleatorError


class Local(nn.Module):
    """Sees `radius` pixels each way; zero padding at borders, as real networks have."""

    def __init__(self, radius: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 2 * radius + 1, padding=radius)
        for p in self.conv.parameters():
            p.data = torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.conv(x)
        pooled = nn.functional.avg_pool2d(y, 4, ceil_mode=True, count_include_pad=False)
        return Outputs(y[:, :3], y[:, 3], pooled)


@pytest.mark.parametrize("size", [(96, 256), (200, 131), (257, 97), (96, 96), (64, 161)])
def test_tiled_equals_whole_beyond_the_receptive_field(size):
    network = Local().eval()
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = network(x)
        tiled = tiled_outputs(network, x, Tiling(96, 64, margin=16))
    for name in ("logits", "d_out", "features"):
        ours, wanted = getattr(tiled, name), getattr(whole, name)
        assert ours.shape == wanted.shape
        assert torch.allclose(ours, wanted, atol=1e-5), name


def test_a_margin_below_the_receptive_field_shows():
    network = Local().eval()
    x = torch.rand(1, 3, 96, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gap = tiled_outputs(network, x, Tiling(96, 64, margin=0)).logits - network(x).logits
    assert gap.abs().max() > 1e-2


def test_borders_are_blended():
    """A network that says a different constant in each tile: no step between neighbours."""
    said = []

    def network(x):
        said.append(float(len(said)))
        value = torch.full((1, 2, *x.shape[2:]), said[-1])
        return Outputs(value, None, torch.empty(0))

    row = tiled_outputs(network, torch.zeros(1, 3, 64, 256), Tiling(128, 64, margin=0)).logits
    steps = row[0, 0, 0].diff()
    assert len(said) == 3
    assert (steps >= 0).all()
    assert steps.max() < 2 / 64
    assert (row[0, 0, 0, 0], row[0, 0, 0, -1]) == (0.0, 2.0)


def test_small_images_are_not_cut():
    network = Local(2).eval()
    tiled_outputs(network, torch.zeros(1, 3, 96, 90), Tiling(96, 64, 16))
    tiled_outputs(network, torch.zeros(1, 3, 500, 90), None)
    assert network.calls == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((100, 64, 0), "multiples of 32"),
        ((96, 50, 0), "multiples of 32"),
        ((96, 96, 0), "less than the tile"),
        ((96, 64, 32), "leaves nothing to blend"),
        ((96, 0, 1), "leaves nothing to blend"),
    ],
)
def test_tilings_that_cannot_be(options, said):
    with pytest.raises(AleatorError, match=said):
        Tiling(*options)
