"""Remapping is exact where it claims to be: integrals, constants, planes, the same cells."""

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.downscale import Downscaler
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.predictors import open_predictors
from apps.climate_downscaling.regrid import Bilinear
from apps.climate_downscaling.remap import Remap, on_grid
from apps.climate_downscaling.sphere import unit_vectors, unrotate
from core.errors import AleatorError

RNG = np.random.default_rng(0)


def latlon(south, north, west, east, step):
    return Grid(np.arange(south + step / 2, north, step), np.arange(west + step / 2, east, step))


def integral(values, grid):
    """Over the sphere, with exact areas of cells."""
    y, x = grid.bounds()
    area = np.diff(np.sin(np.deg2rad(y)), axis=1) * np.deg2rad(np.abs(np.diff(x, axis=1))).T
    return float((values * np.abs(area)).sum())


@pytest.mark.parametrize("step", [1.0, 0.75, 3.0, 2.0])
def test_conservative_keeps_the_integral(step):
    """Cells of the target tile the same region, aligned with the source's or not."""
    source, target = latlon(30, 60, -12, 12, 1.5), latlon(30, 60, -12, 12, step)
    values = RNG.random((3, *source.shape))
    got = Remap.between(source, target, "conservative")(values)
    for one, other in zip(values, got, strict=True):
        assert integral(other, target) == pytest.approx(integral(one, source), rel=1e-12)


def test_conservative_means_of_whole_blocks_are_those_of_coarsening():
    fine = latlon(40, 52, 350, 374, 0.5)
    values = RNG.random(fine.shape)
    coarse = fine.coarsen(4)
    got = Remap.between(fine, coarse, "conservative")(values)
    area = torch.from_numpy(fine.area_weights())
    from apps.climate_downscaling.conserve import block_mean

    known = block_mean(torch.from_numpy(values), 4, area)
    np.testing.assert_allclose(got, known, rtol=1e-12)


def test_conservative_goes_around_the_globe():
    """0 to 360 onto -180 to 180, cells across the seam, north to south."""
    source = Grid(np.arange(88.0, -89, -4), np.arange(0, 360, 4.0))
    target = Grid(np.arange(-85.0, 86, 10), np.arange(-178.0, 180, 6.0))
    lat = np.deg2rad(source.y)[:, None]
    values = np.sin(lat) + 2 + 0 * source.x
    got = Remap.between(source, target, "conservative")(values)
    assert integral(got, target) == pytest.approx(integral(values, source), rel=1e-3)
    whole = Remap.between(source, Grid(source.y, source.x - 180), "conservative")
    np.testing.assert_allclose(whole(np.ones(source.shape)), 1.0, rtol=1e-12)


@pytest.mark.parametrize("method", ["bilinear", "conservative", "nearest"])
def test_constants_and_the_same_cells_stay(method):
    source, target = latlon(30, 60, -12, 12, 1.5), latlon(33, 57, -9, 9, 1.0)
    move = Remap.between(source, target, method)
    np.testing.assert_allclose(move(np.full(source.shape, 7.0)), 7.0, rtol=1e-7)
    values = RNG.random(source.shape)
    np.testing.assert_allclose(Remap.between(source, source, method)(values), values, rtol=1e-7)


def rotated(step=0.5):
    mapping = {
        "grid_mapping_name": "rotated_latitude_longitude",
        "grid_north_pole_latitude": 39.25,
        "grid_north_pole_longitude": -162.0,
    }
    y, x = np.arange(-6, 6.1, step), np.arange(-6, 6.1, step)
    lat, lon = unrotate(y, x, mapping)
    return Grid(y, x, "rlat", "rlon", "projected", lat=lat, lon=lon, grid_mapping=mapping)


def test_from_a_rotated_pole_bilinear_and_nearest():
    source = rotated(0.25)
    centre = source.lat.mean(), source.lon.mean()
    target = latlon(centre[0] - 3, centre[0] + 3, centre[1] - 3, centre[1] + 3, 0.5)

    def smooth(lat, lon):
        p = unit_vectors(lat, lon)
        return 3 * p[0] - 2 * p[1] + p[2] ** 2

    values, known = (smooth(*g.geographic()) for g in (source, target))
    got = Remap.between(source, target, "bilinear")(values)
    np.testing.assert_allclose(got, known, atol=2e-5)
    near = Remap.between(source, target, "nearest")(values)
    assert np.isin(near, values).all()
    apart = np.deg2rad(0.25)
    assert np.abs(near - known).max() < 4 * apart
    back = Remap.between(latlon(40, 60, 0, 40, 0.25), rotated(2.0), "bilinear")
    field = smooth(*latlon(40, 60, 0, 40, 0.25).geographic())
    inner = rotated(2.0)
    np.testing.assert_allclose(back(field), smooth(inner.lat, inner.lon), atol=2e-5)


def test_bilinear_is_the_one_that_predictors_use():
    source, target = latlon(30, 60, -12, 12, 1.5), latlon(33, 57, -9, 9, 1.0)
    values = RNG.random((2, *source.shape)).astype(np.float32)
    known = Bilinear.between(source, target)(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(Remap.between(source, target, "bilinear")(values), known, rtol=1e-5)


def test_missing_cells_stay_missing_or_are_left_out():
    source, target = latlon(0, 4, 0, 4, 1.0), latlon(0, 4, 0, 4, 2.0)
    values = np.arange(16.0).reshape(4, 4)
    values[0, 0] = values[2, 2] = values[2, 3] = values[3, 2] = np.nan
    got = Remap.between(source, target, "conservative")(values)
    cos = np.diff(np.sin(np.deg2rad([0, 1, 2])))
    expected = (cos[0] * 1 + cos[1] * (4 + 5)) / (cos[0] + 2 * cos[1])
    assert got[0, 0] == pytest.approx(expected, rel=1e-12)
    assert np.isnan(got[1, 1])  # three of four are missing
    assert np.isnan(Remap.between(source, target, "bilinear")(values)[0, 0])


@pytest.fixture(scope="module")
def other_grid(climate_files):
    """The coarse input on cells of 0.2 degrees in place of 0.5, a little larger a domain."""
    coarse = xr.load_dataset(climate_files / "coarse.nc")
    lat = np.arange(50.3, 48.0, -0.2)
    lon = np.arange(4.7, 8.3, 0.2)
    fine = coarse.interp(lat=lat, lon=lon, method="nearest", kwargs={"fill_value": "extrapolate"})
    fine["tas"].attrs = coarse["tas"].attrs
    fine["lat"].attrs, fine["lon"].attrs = coarse["lat"].attrs, coarse["lon"].attrs
    return fine


@pytest.mark.parametrize("method", ["bilinear", "conservative", "nearest"])
def test_a_model_takes_input_on_another_grid_if_told_to(small_model, other_grid, method):
    downscaler = Downscaler.load(small_model, "cpu")
    with pytest.raises(AleatorError, match=r"does not match the model's.*--regrid"):
        downscaler.field(other_grid)
    field = downscaler.field(other_grid, regrid=method)
    assert field.grid.same_as(downscaler.model.coarse_grid)
    known = Remap.between(open_field(other_grid).grid, downscaler.model.coarse_grid, method)
    np.testing.assert_allclose(
        field.read(0, 3)[:, 0], known(other_grid["tas"].values[:3]), rtol=1e-6
    )
    assert f"remapped ({method})" in field.describe()
    fine = downscaler.downscale(other_grid.isel(time=slice(2)), members=2, regrid=method)
    assert fine["tas"].shape == (2, 2, 8, 12)
    assert fine["tas"].notnull().all()


def test_input_that_fits_is_not_touched(small_model, climate_files):
    downscaler = Downscaler.load(small_model, "cpu")
    plain = downscaler.field(climate_files / "coarse.nc")
    asked = downscaler.field(climate_files / "coarse.nc", regrid="bilinear")
    assert asked.fingerprint() == plain.fingerprint()
    assert not any("remapped" in note for note in asked.notes)


def test_predictors_may_be_averaged_rather_than_interpolated(tmp_path):
    fine, coarse = latlon(40, 48, 0, 8, 0.5), latlon(40, 48, 0, 8, 2.0)
    values = RNG.random((3, *fine.shape)).astype(np.float32)
    times = np.datetime64("2001-01-01", "ns") + np.arange(3) * np.timedelta64(1, "D")
    data = xr.Dataset(
        {"tas": (("time", "lat", "lon"), values, {"units": "K"})},
        {
            "time": times,
            "lat": ("lat", fine.y, {"units": "degrees_north"}),
            "lon": ("lon", fine.x, {"units": "degrees_east"}),
        },
    )
    got = open_predictors([data], ["tas"], coarse, method="conservative").read()[:, 0]
    known = Remap.between(fine, coarse, "conservative")(values)
    np.testing.assert_allclose(got, known, rtol=1e-6)


def test_mistakes_have_one_clear_line(small_model, other_grid):
    source = latlon(30, 60, -12, 12, 1.5)
    with pytest.raises(AleatorError, match="--regrid bicubic: known are bilinear"):
        Remap.between(source, source, "bicubic")
    with pytest.raises(AleatorError, match="latitudes do not cover"):
        Remap.between(source, latlon(30, 63, -9, 9, 1.0), "conservative")
    with pytest.raises(AleatorError, match="longitudes do not cover"):
        Remap.between(source, latlon(33, 57, -9, 18, 1.0), "conservative")
    with pytest.raises(AleatorError, match="between grids of latitudes and longitudes"):
        Remap.between(rotated(), source, "conservative")
    for method in ("bilinear", "nearest"):
        with pytest.raises(AleatorError, match=r"do(es)? not cover"):
            Remap.between(source, latlon(70, 80, -9, 9, 1.0), method)
        with pytest.raises(AleatorError, match=r"do(es)? not cover"):
            Remap.between(rotated(), source, method)
    nameless = Grid(np.arange(4.0), np.arange(4.0), kind="projected", units="1")
    with pytest.raises(AleatorError, match="latitudes and longitudes of a map are needed"):
        Remap.between(nameless, source, "nearest")
    field = open_field(other_grid.isel(lat=slice(4)))
    grid = Downscaler.load(small_model, "cpu").model.coarse_grid
    with pytest.raises(AleatorError, match="do not cover"):
        on_grid(field, grid, "conservative")
