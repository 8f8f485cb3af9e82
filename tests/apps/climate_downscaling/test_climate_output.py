"""What is written can be read: the right numbers at the right places, by anyone's reader."""

import json
import shutil
import subprocess
import sys
import warnings

import netCDF4
import numpy as np
import pytest
import xarray as xr

from apps.climate_downscaling import output
from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.grid import Grid, match
from apps.climate_downscaling.output import create_store, exporter
from apps.climate_downscaling.template import OOD, Encoder, template
from core.errors import AleatorError
from core.streaming import PartialStore, stream

FACTOR, MEMBERS = 2, 3
ROTATED = {
    "grid_mapping_name": "rotated_latitude_longitude",
    "grid_north_pole_latitude": 39.25,
    "grid_north_pole_longitude": -162.0,
}


def nature(lat, lon, step=0, member=0):
    """A temperature (K) that tells where, when and in which member it was taken."""
    where = lat / 10 + 3 * np.sin(np.deg2rad(lon)) + 2 * np.cos(np.deg2rad(lon))
    return 280 + where + 20 * step + 0.5 * member


def grid_file(lat, lon, *, steps=5, units="K", times=None):
    """A regular file of `nature`, in its own order of latitude and longitude."""
    times = xr.date_range("2001-01-01", periods=steps).values if times is None else times
    values = nature(lat[:, None], lon, np.arange(len(times))[:, None, None])
    if units == "degC":
        values = values - 273.15
    return xr.Dataset(
        {
            "t": (
                ("time", "lat", "lon"),
                values,
                {"units": units, "standard_name": "air_temperature"},
            )
        },
        {
            "time": times,
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
        },
    )


def rotated_file(tmp_path):
    """A file on a rotated grid, 6 x 8 cells, with its two-dimensional coordinates."""
    mapped = Grid(
        *(-5 + 0.4 * np.arange(3), -20 + 0.4 * np.arange(4), "rlat", "rlon", "projected"),
        lat=np.zeros((3, 4)),
        lon=np.zeros((3, 4)),
        grid_mapping=ROTATED,
    ).refine(2)
    values = nature(mapped.lat, mapped.lon, np.arange(5)[:, None, None])
    attributes = {"units": "K", "standard_name": "air_temperature", "grid_mapping": "rp"}
    data = xr.Dataset(
        {"tas": (("time", "rlat", "rlon"), values, attributes), "rp": ((), 0, ROTATED)},
        {
            "time": xr.date_range("2001-01-01", periods=5).values,
            "rlat": ("rlat", mapped.y, {"units": "degrees", "standard_name": "grid_latitude"}),
            "rlon": ("rlon", mapped.x, {"units": "degrees", "standard_name": "grid_longitude"}),
            "lat": (("rlat", "rlon"), mapped.lat, {"units": "degrees_north"}),
            "lon": (("rlat", "rlon"), mapped.lon, {"units": "degrees_east"}),
        },
    )
    data.to_netcdf(tmp_path / "rotated.nc")
    return open_field(tmp_path / "rotated.nc")


def ensemble(fine, steps):
    """(M, T, 1, H, W) of `nature` on the model's fine grid."""
    lat, lon = (fine.lat, fine.lon) if fine.lat is not None else (fine.y[:, None], fine.x)
    member = np.arange(MEMBERS).reshape(-1, 1, 1, 1, 1)
    step = np.arange(steps).reshape(1, -1, 1, 1, 1)
    return nature(lat, lon, step, member).astype(np.float32)


def downscaled(path, field, fine, chunk=2, **options):
    """Stream `nature` into a file as the command line does."""
    described = template(field, fine, MEMBERS, time_chunk=chunk, **options)
    encoder, values = Encoder.of(field, fine), ensemble(fine, len(field))
    store = PartialStore.open(
        *(path,),
        length=len(field),
        job={},
        create=lambda folder: create_store(described, folder),
        overwrite=True,
    )

    def rows(start, stop):
        return {**encoder(values[:, start:stop]), OOD: np.arange(start, stop, dtype=np.float32)}

    stream(rows, store, chunk=chunk, arrays={**dict.fromkeys(encoder.names, 1), OOD: 0})
    return store.finish(exporter(path))


def strictly_opened(path):
    """The output, loaded by plain xarray with warnings as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_dataset(path) as found:
            loaded = found.load()
        if path.is_dir():
            assert xr.open_zarr(path).load().identical(loaded)
    return loaded


def down(start, stop, step):
    return np.arange(start, stop, -step)


MODEL = Grid(np.arange(50.25, 54, 0.5), np.arange(-3.75, 2, 0.5))
GLOBE = Grid(np.arange(-75.0, 80, 30), np.arange(-165.0, 180, 30))
CASES = {
    "as the model": (MODEL, np.arange(50.5, 54), np.arange(-3.5, 2), "K"),
    "latitude down": (MODEL, down(53.5, 50, 1.0), np.arange(-3.5, 2), "K"),
    "0-360": (MODEL, np.arange(50.5, 54), np.arange(-3.5, 2) + 360, "K"),
    "larger, down, 0-360, degC": (MODEL, down(59.5, 40, 1.0), np.arange(340.5, 370), "degC"),
    "cut at Greenwich": (MODEL, np.arange(50.5, 54), np.sort(np.arange(-3.5, 2) % 360), "K"),
    "the globe from 0": (GLOBE, np.arange(-60.0, 90, 60), np.arange(30.0, 360, 60), "K"),
    "the globe, both down": (GLOBE, down(60.0, -90, 60), down(330.0, 0, 60), "degC"),
}


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("case", CASES)
def test_every_number_is_where_its_coordinates_say(tmp_path, case, suffix):
    fine, lat, lon, units = CASES[case]
    grid_file(lat, lon, units=units).to_netcdf(tmp_path / "in.nc")
    field = match(open_field(tmp_path / "in.nc"), fine.coarsen(FACTOR))
    found = strictly_opened(downscaled(tmp_path / f"out{suffix}", field, fine))
    t = found["t"]
    assert t.dims == ("member", "time", "lat", "lon")
    assert t.attrs["units"] == units
    expected = nature(found["lat"], found["lon"], xr.DataArray(np.arange(5), dims="time"))
    expected = (expected + 0.5 * found["member"]).transpose(*t.dims)
    np.testing.assert_allclose(t, expected - (273.15 if units == "degC" else 0), rtol=0, atol=5e-5)
    # the file's direction and convention; cells of the model, halves of the file's
    assert (np.diff(found["lat"]) > 0).all() == (lat[1] > lat[0])
    assert found["lat"].size * found["lon"].size == fine.shape[0] * fine.shape[1]
    if case != "cut at Greenwich":
        step = fine.spacing[1]
        assert lon.min() - step < found["lon"].min() < found["lon"].max() < lon.max() + step
    for axis in ("lat", "lon"):
        edges = found[f"{axis}_bnds"].values
        np.testing.assert_allclose(edges.mean(1), found[axis], atol=1e-9)
        np.testing.assert_allclose(edges[1:, 0], edges[:-1, 1], atol=1e-9)
    np.testing.assert_array_equal(found[OOD], np.arange(5))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_rotated_grid_keeps_its_projection_and_its_places(tmp_path, suffix):
    fine = rotated_file(tmp_path)
    field = match(fine.coarsen(FACTOR), fine.grid.coarsen(FACTOR))
    found = strictly_opened(downscaled(tmp_path / f"out{suffix}", field, fine.grid))
    given = xr.open_dataset(tmp_path / "rotated.nc")
    for name in ("lat", "lon", "rlat", "rlon"):
        np.testing.assert_allclose(found[name], given[name], atol=1e-9)
    assert found["tas"].dims == ("member", "time", "rlat", "rlon")
    np.testing.assert_allclose(found["tas"][1], given["tas"] + 0.5, rtol=2e-6)
    name = (found["tas"].attrs | found["tas"].encoding)["grid_mapping"]
    assert name == "rp"
    assert found["rp"].attrs == ROTATED
    assert {"lat", "lon"} <= set(found.coords)
    again = open_field(tmp_path / f"out{suffix}", ensemble=True)
    assert again.grid.same_as(fine.grid)
    np.testing.assert_allclose(again.grid.lat, fine.grid.lat)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_the_output_is_an_input_with_members(tmp_path, suffix):
    fine, lat, lon, units = CASES["larger, down, 0-360, degC"]
    field = match(open_field(grid_file(lat, lon, units=units)), fine.coarsen(FACTOR))
    path = downscaled(tmp_path / f"out{suffix}", field, fine)
    again = open_field(path, ensemble=True)
    assert again.names == ("tas",)  # the score is not a field
    assert again.members == MEMBERS
    assert again.variables[0].units == "K"
    turned = match(again, fine)
    np.testing.assert_allclose(turned.read(1, 4), ensemble(fine, 5)[:, 1:4], rtol=1e-6)
    with pytest.raises(AleatorError, match="3 members along member"):
        open_field(path)


def test_chunks_and_compression(tmp_path):
    fine, lat, lon, _ = CASES["as the model"]
    field = match(open_field(grid_file(lat, lon)), fine.coarsen(FACTOR))
    chunks = (MEMBERS, 2, 8, 12)
    nc = downscaled(tmp_path / "out.nc", field, fine)
    with netCDF4.Dataset(nc) as file:
        assert tuple(file["t"].chunking()) == chunks
        assert file["t"].filters()["zlib"]
        assert file["t"].filters()["shuffle"]
        assert file.dimensions["time"].isunlimited()
        assert file.data_model == "NETCDF4"
    zarr = downscaled(tmp_path / "out.zarr", field, fine)
    stored = json.loads((zarr / "t" / ".zarray").read_text())
    assert tuple(stored["chunks"]) == chunks
    assert stored["compressor"]["cname"] == "zstd"
    assert (zarr / ".zmetadata").exists()
    # a dataset from Python packs as well when its user writes it
    described = template(field, fine, MEMBERS, time_chunk=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        described.to_netcdf(tmp_path / "user.nc")
        described.isel(time=[0]).to_zarr(tmp_path / "user.zarr", zarr_format=2)
    with netCDF4.Dataset(tmp_path / "user.nc") as file:
        assert tuple(file["t"].chunking()) == chunks
        assert file["t"].filters()["zlib"]


def test_fields_come_before_the_score(tmp_path):
    fine, lat, lon, _ = CASES["as the model"]
    field = match(open_field(grid_file(lat, lon)), fine.coarsen(FACTOR))
    found = strictly_opened(downscaled(tmp_path / "out.nc", field, fine))
    assert list(found.data_vars) == ["t", OOD]


def test_the_suffix_decides():
    assert exporter("a.zarr") is None
    assert exporter("a.NC") is not None
    for name in ("a.grib", "a"):
        with pytest.raises(AleatorError, match=r"must end in \.nc or \.zarr"):
            exporter(name)


@pytest.fixture
def filled(tmp_path):
    """A finished Zarr output."""
    fine, lat, lon, _ = CASES["as the model"]
    field = match(open_field(grid_file(lat, lon)), fine.coarsen(FACTOR))
    return downscaled(tmp_path / "whole.zarr", field, fine)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(filled, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("NetCDF: HDF error")

    target = tmp_path / "result"
    monkeypatch.setattr(output, "_copy", fail)
    with pytest.raises(RuntimeError, match="HDF error"):  # whatever else it is, it is not hidden
        exporter("out.nc")(filled, target)
    assert not target.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(AleatorError, match=r"^out\.nc: the disk is full; free some space"):
        exporter("out.nc")(filled, target)
    assert not target.exists()


FULL = """
import pathlib, subprocess, sys
from apps.climate_downscaling.output import exporter
from core.errors import AleatorError
store, disk = map(pathlib.Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "none", disk], check=True)
try:
    exporter("out.nc")(store, disk / "result")
except AleatorError as error:
    print("refused:", error)
print("left:", [path.name for path in disk.iterdir()])
"""


def test_a_disk_that_is_really_full(tmp_path):
    try:
        subprocess.run(["unshare", "-rm", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no namespaces here")
    import zarr

    disk, store = tmp_path / "disk", tmp_path / "store"
    disk.mkdir()
    field = open_field(grid_file(np.arange(40.0, 56), np.arange(0.0, 16), steps=20))
    create_store(template(field, field.grid.refine(8), 12), store)
    filling = zarr.open_group(store, mode="r+")["t"]
    filling[:] = np.random.default_rng(0).standard_normal(filling.shape, np.float32)
    line = ["unshare", "-rm", sys.executable, "-c", FULL, store, disk]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "refused: out.nc: the disk is full; free some space: the same command continues",
        "left: []",
    ], done.stderr


LARGE = """
import pathlib, resource, sys
import numpy as np
from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.output import create_store, to_netcdf
from apps.climate_downscaling.template import template
coarse, folder = sys.argv[1], pathlib.Path(sys.argv[2])
field = open_field(coarse)
fine = field.grid.refine(8)
for steps in (20, len(field)):
    create_store(template(field.isel(time=slice(steps)), fine, 16), folder / f"{steps}.zarr")
    to_netcdf(folder / f"{steps}.zarr", folder / f"{steps}.nc")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_netcdf_is_written_in_bounded_memory(tmp_path):
    lat, lon = np.arange(40.0, 56), np.arange(0.0, 16)
    grid_file(lat, lon, steps=600).to_netcdf(tmp_path / "coarse.nc")
    size = 16 * 600 * 128 * 128 * 4 / 2**20
    line = [sys.executable, "-c", LARGE, tmp_path / "coarse.nc", tmp_path]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    small, large = map(float, done.stdout.split())
    assert size == 600
    assert large - small < 100
