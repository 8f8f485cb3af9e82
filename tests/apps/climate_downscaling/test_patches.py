"""Training on patches of a domain and sampling it by tiles."""

import numpy as np
import pytest
import torch

from apps.climate_downscaling.conserve import block_mean
from apps.climate_downscaling.downscale import Downscaler, ensemble
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.patches import Windows, checked_crop, tile, tiles_of
from apps.climate_downscaling.train import train
from core.errors import AleatorError
from core.registry import build


def test_windows_cut_the_same_place_of_everything():
    generator = torch.Generator().manual_seed(0)
    windows = Windows(5, 16, (40, 56), generator)
    y, x = torch.meshgrid(torch.arange(40), torch.arange(56), indexing="ij")
    fields = (100 * y + x).expand(5, 3, -1, -1)
    cut = windows.cut(fields)
    assert cut.shape == (5, 3, 16, 16)
    corners = cut[:, 0, 0, 0]
    assert (corners // 100 % 8 == 0).all()
    assert (corners % 100 % 8 == 0).all()
    assert len(corners.unique()) > 1
    torch.testing.assert_close(cut[:, 2], cut[:, 0])
    torch.testing.assert_close(cut[:, 0] - corners[:, None, None], fields[:, 0, :16, :16])
    vector = torch.ones(5, 4)
    assert windows.cut_all({"vector": vector})["vector"] is vector
    members = windows.cut(fields.expand(2, -1, -1, -1, -1))
    assert torch.equal(members[1], cut)


def test_patches_that_do_not_fit_are_refused():
    assert checked_crop(None, (40, 56)) is None
    assert checked_crop(64, (40, 56)) is None
    assert checked_crop(32, (40, 56)) == 32
    for crop in (30, 8, 48):
        with pytest.raises(AleatorError, match=f"residual.crop={crop}"):
            checked_crop(crop, (40, 56))


def test_tiles_are_of_the_size_of_patches():
    grid = Grid(np.arange(-89.5, 90), np.arange(0.5, 360))
    tiles = tiles_of(64, grid)
    assert (tiles.size, tiles.overlap, tiles.periodic_x) == (64, 32, True)
    flow = build({"family": "nsf", "event_shape": [4]})
    with pytest.raises(AleatorError, match="patches are for diffusion"):
        tile(flow, 64, grid)


@pytest.fixture(scope="module")
def tiled(tmp_path_factory, small_climate, settings):
    folder = tmp_path_factory.mktemp("tiled")
    small_climate(60, (40, 56)).to_netcdf(folder / "fine.nc")
    config = settings(residual__crop=16, residual__positions=0)
    train(str(folder / "fine.nc"), folder / "model", config, say=lambda line: None)
    return folder


def test_a_model_trained_on_patches_downscales_the_domain(tiled):
    downscaler = Downscaler.load(tiled / "model", "cpu")
    model = downscaler.model
    assert model.trained.event_shape == (1, 40, 56)
    assert model.trained.tiles.size == 16
    from apps.climate_downscaling.data import open_field

    coarse = open_field(tiled / "fine.nc", ["tas"]).coarsen(2)
    drawn = ensemble(model, coarse, 0, 2, members=3)
    assert drawn.shape == (3, 2, 1, 40, 56)
    means = block_mean(
        torch.from_numpy(drawn), 2, torch.from_numpy(model.fine_grid.area_weights())
    )
    np.testing.assert_allclose(means, np.broadcast_to(coarse.read(0, 2), means.shape), atol=1e-3)
    again = ensemble(model, coarse, 1, 2, members=3)
    np.testing.assert_allclose(again[:, 0], drawn[:, 1], rtol=3e-7)
    spread = drawn.std(0).mean((0, 1))
    seams = [8, 16, 24, 32]
    assert spread[seams].mean() == pytest.approx(spread.mean(), rel=0.25)
