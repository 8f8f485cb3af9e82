"""Bilinear interpolation: exact where it must be, refused where it cannot be."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.regrid import Bilinear
from core.errors import AleatorError


def latlon(lat, lon):
    return Grid(np.asarray(lat, float), np.asarray(lon, float))


def test_equals_scipy_inside_and_keeps_the_edge_outside():
    source = latlon(np.arange(45.0, 34, -2.5), np.arange(-10.0, 6, 2.5))
    target = latlon(np.arange(35.25, 44.5, 0.5), np.arange(-9.75, 4.5, 0.5))
    fields = torch.randn(3, 2, *source.shape, generator=torch.Generator().manual_seed(0))
    moved = Bilinear.between(source, target)(fields)
    assert moved.shape == (3, 2, *target.shape)
    places = np.stack(np.meshgrid(target.y, target.x, indexing="ij"), -1)
    for i in range(3):
        theirs = RegularGridInterpolator((source.y[::-1], source.x), fields[i, 1].numpy()[::-1])
        np.testing.assert_allclose(moved[i, 1], theirs(places), atol=1e-5)
    beyond = latlon([46.0, 43.0], [-11.0, 0.0])
    edge = Bilinear.between(source, beyond)(fields)
    torch.testing.assert_close(edge[..., 0, 0], fields[..., 0, 0])


def test_either_convention_of_longitude_and_the_seam_of_a_global_grid():
    whole = latlon(np.arange(-85.0, 90, 10), np.arange(0.0, 360, 10))
    wave = torch.from_numpy(np.cos(np.deg2rad(whole.x)))[None].expand(whole.shape)
    target = latlon([40.0, 41.0], [-7.5, -2.5, 2.5])
    found = Bilinear.between(whole, target)(wave)[0]
    a, b = np.cos(np.deg2rad([0, 10]))
    np.testing.assert_allclose(found, [a / 4 + 3 * b / 4, 3 * a / 4 + b / 4, 3 * a / 4 + b / 4])


def test_projected_targets_use_their_latitudes():
    lat, lon = np.meshgrid([40.0, 41.0], [0.0, 1.0], indexing="ij")
    target = Grid(np.arange(2.0), np.arange(2.0), "y", "x", "projected", "1", lat + 0.1 * lon, lon)
    source = latlon(np.arange(38.0, 44), np.arange(-2.0, 4))
    field = torch.from_numpy(np.broadcast_to(source.y[:, None], source.shape).copy())
    np.testing.assert_allclose(Bilinear.between(source, target)(field), target.lat, atol=1e-5)


def test_grids_that_do_not_cover_or_are_projected_are_refused():
    source = latlon(np.arange(40.0, 45), np.arange(0.0, 5))
    with pytest.raises(AleatorError, match=r"a.nc: its latitudes \(40 to 44\) do not cover.*36"):
        Bilinear.between(source, latlon([36.0, 41.0], [1.0, 2.0]), "a.nc")
    rotated = Grid(np.arange(3.0), np.arange(3.0), "rlat", "rlon", "projected")
    with pytest.raises(AleatorError, match="remap them first"):
        Bilinear.between(rotated, source)
