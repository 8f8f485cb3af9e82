"""Conservation is exact, a projection, and keeps amounts non-negative."""

import pytest
import torch

from apps.climate_downscaling.conserve import block_mean, project, upsample_nearest

WEIGHTS = torch.linspace(0.5, 1.0, 8)[:, None].expand(8, 12).contiguous()


@pytest.mark.exact
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_block_means_are_conserved(weights, nonnegative):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 12, generator=g, dtype=torch.float64).relu()
    coarse = torch.rand(3, 2, 3, generator=g, dtype=torch.float64)
    out = project(x, coarse, 4, nonnegative=nonnegative, weights=weights)
    torch.testing.assert_close(block_mean(out, 4, weights), coarse, rtol=1e-12, atol=1e-12)
    again = project(out, coarse, 4, nonnegative=nonnegative, weights=weights)
    torch.testing.assert_close(again, out, rtol=1e-12, atol=1e-12)


def test_amounts_stay_nonnegative_and_dry_cells_dry():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 8, 8, generator=g).relu()
    x[0, :4, :4] = 0  # a dry block that the coarse field says is wet
    coarse = torch.tensor([[1.0, 0.0], [2.0, 0.5]]).expand(2, 2, 2)
    out = project(x, coarse, 4, nonnegative=True)
    assert (out >= 0).all()
    assert (out[:, :4, 4:] == 0).all(), "a dry coarse cell leaves no rain"
    assert (out[0, :4, :4] == 1).all(), "rain without a pattern is spread evenly"
    dry = (x == 0) & (upsample_nearest(block_mean(x, 4), 4) > 0)
    assert (out[dry] == 0).all()


@pytest.mark.exact
def test_shift_is_the_orthogonal_projection():
    """The move x − P x is orthogonal to every feasible direction: those with zero block means."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(8, 8, generator=g, dtype=torch.float64)
    coarse = torch.randn(2, 2, generator=g, dtype=torch.float64)
    moved = x - project(x, coarse, 4, nonnegative=False)
    direction = torch.randn(8, 8, generator=g, dtype=torch.float64)
    direction -= upsample_nearest(block_mean(direction, 4), 4)
    assert abs((moved * direction).sum()) < 1e-12
