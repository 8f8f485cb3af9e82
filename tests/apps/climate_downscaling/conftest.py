"""A small climate whose fine scale follows from its coarse one, as files, and a model of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.train import train

FACTOR = 2
SMALL = {
    "split": {"test_fraction": 0.2, "validation_fraction": 0.2, "gap": 2},
    "mean": {"lengths": [1.0], "strengths": [1.0], "blocks": 3, "gap": 2},
    "residual": {"context": "coarse", "positions": 1, "sampler": {"name": "2m", "steps": 4}},
    "fit": {"steps": 30, "batch_size": 16, "validate_every": 10, "warmup": 5, "log_every": 10},
}
SMALL["residual"]["model"] = {"net": {"channels": 8, "multipliers": [1]}}


def make_climate(steps=100, size=(8, 12), variable="tas", seed=0) -> xr.Dataset:
    """Hourly fine fields with orography; coarse structure plus noise within the cells."""
    rng = np.random.default_rng(seed)
    ny, nx = size
    coarse = rng.standard_normal((steps, ny // FACTOR, nx // FACTOR)).cumsum(0) / 4
    fine = coarse.repeat(FACTOR, 1).repeat(FACTOR, 2)
    orog = rng.random((ny, nx)) * 500
    fine = fine - 0.004 * orog + 0.3 * rng.standard_normal(fine.shape)
    units = "K"
    if variable == "pr":
        fine, units = np.maximum(fine, 0) * 2, "mm day-1"
    else:
        fine = fine + 280
    names = {"tas": "air_temperature", "pr": "precipitation_flux"}
    return xr.Dataset(
        {
            variable: (
                ("time", "lat", "lon"),
                fine.astype(np.float32),
                {"units": units, "standard_name": names[variable]},
            ),
            "orog": (("lat", "lon"), orog.astype(np.float32), {"units": "m"}),
        },
        {
            "time": np.datetime64("2001-01-01", "ns") + np.arange(steps) * np.timedelta64(1, "h"),
            "lat": ("lat", 50.0 - 0.25 * np.arange(ny), {"units": "degrees_north"}),
            "lon": ("lon", 5.0 + 0.25 * np.arange(nx), {"units": "degrees_east"}),
        },
        {"title": "a small climate"},
    )


def make_settings(variable="tas", **overrides):
    """The config of a model that trains in seconds."""
    merged = json.loads(json.dumps(SMALL))
    for path, value in overrides.items():
        *parents, leaf = path.split("__")
        level = merged
        for parent in parents:
            level = level.setdefault(parent, {})
        level[leaf] = value
    return read_config(None, merged, variables=variable, factor=FACTOR)


@pytest.fixture(scope="session")
def small_climate():
    """`make_climate`."""
    return make_climate


@pytest.fixture(scope="session")
def settings():
    """`make_settings`."""
    return make_settings


@pytest.fixture(scope="session")
def climate_files(tmp_path_factory):
    """Folder with fine.nc and coarse.nc (its block means)."""
    folder = tmp_path_factory.mktemp("climate")
    fine = make_climate()
    fine.to_netcdf(folder / "fine.nc")
    coarse = fine.drop_vars("orog").coarsen(lat=FACTOR, lon=FACTOR).mean()
    coarse["tas"].attrs = fine["tas"].attrs
    coarse["lat"].attrs, coarse["lon"].attrs = fine["lat"].attrs, fine["lon"].attrs
    coarse.to_netcdf(folder / "coarse.nc")
    return folder


@pytest.fixture(scope="session")
def small_model(climate_files):
    """Folder of a trained model of fine.nc."""
    folder = climate_files / "model"
    train(str(climate_files / "fine.nc"), folder, make_settings(), seed=3, say=lambda line: None)
    return folder
