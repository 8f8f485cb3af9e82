"""tasmin ≤ tas ≤ tasmax in every cell and member, coarse means kept: daily values of ERA5."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.conserve import block_mean
from apps.climate_downscaling.data import open_field, sample_path
from apps.climate_downscaling.downscale import Downscaler
from apps.climate_downscaling.model import APP
from apps.climate_downscaling.ordering import Order, Positive
from apps.climate_downscaling.preprocessing import Transforms
from apps.climate_downscaling.train import train
from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import AleatorError

NAMES = ("tasmax", "tas", "tasmin")
SMALL = {
    "split": {"test_fraction": 0.2, "validation_fraction": 0, "gap": 2},
    "mean": {"lengths": [1.0], "strengths": [1.0, 10.0], "blocks": 3, "gap": 2},
    "residual": {"sampler": {"name": "2m", "steps": 3}},
    "fit": {"steps": 15, "batch_size": 8, "warmup": 2, "log_every": 5},
}
SMALL["residual"]["model"] = {"net": {"channels": 8, "multipliers": [1]}}


@pytest.fixture(scope="module")
def daily(tmp_path_factory):
    """Extremes of 8 hours of the bundled sample, taken for days: dates of the same calendar."""
    hourly = xr.open_dataset(sample_path())["tas"][:, :8, :16]
    blocks = hourly.coarsen(time=8)
    found = {"tas": blocks.mean(), "tasmax": blocks.max(), "tasmin": blocks.min()}
    for name, array in found.items():
        method = {"tas": "mean", "tasmax": "maximum", "tasmin": "minimum"}[name]
        array.attrs = {"units": "K", "cell_methods": f"time: {method}"}
    fine = xr.Dataset(found).drop_vars([n for n in hourly.coords if n not in hourly.dims])
    days = np.datetime64("2001-01-01", "ns") + np.arange(93) * np.timedelta64(1, "D")
    fine = fine.assign_coords(time=days)
    fine["latitude"].attrs["units"] = "degrees_north"
    fine["longitude"].attrs["units"] = "degrees_east"
    folder = tmp_path_factory.mktemp("daily")
    fine.to_netcdf(folder / "fine.nc")
    coarse = open_field(folder / "fine.nc", list(NAMES)).coarsen(4)
    arrays = {n: (("time", "lat", "lon"), coarse.data[n].values) for n in NAMES}
    axes = {"lat": coarse.grid.y, "lon": coarse.grid.x, "time": days}
    of_blocks = xr.Dataset(arrays, axes)
    for name in NAMES:
        of_blocks[name].attrs = fine[name].attrs
    of_blocks.to_netcdf(folder / "coarse.nc")
    return folder


def trained(daily, names, folder, **overrides):
    config = read_config(None, {**SMALL, **overrides}, variables=",".join(names), factor=4)
    train(str(daily / "fine.nc"), folder, config, say=lambda line: None)
    return Downscaler.load(folder, "cpu")


@pytest.mark.parametrize("names", [NAMES, ("tasmin", "tasmax")])
def test_members_are_in_order_and_keep_every_coarse_mean(names, daily, tmp_path):
    downscaler = trained(daily, names, tmp_path / "m")
    coarse = xr.open_dataset(daily / "coarse.nc")
    # hard cases, too: hardly any range, and none
    coarse["tasmax"][5] = coarse["tasmin"][5] + 0.02
    coarse["tas"][5] = coarse["tasmin"][5] + 0.01
    coarse["tasmax"][6] = coarse["tas"][6] = coarse["tasmin"][6]
    fine = downscaler.downscale(coarse, members=6)
    assert (fine["tasmax"] >= fine["tasmin"]).all()
    if "tas" in names:
        assert (fine["tasmax"] >= fine["tas"]).all()
        assert (fine["tas"] >= fine["tasmin"]).all()
    area = torch.from_numpy(downscaler.model.fine_grid.area_weights())
    wanted = downscaler.field(coarse)
    for name in names:
        got = block_mean(torch.from_numpy(fine[name].values).double(), 4, area)
        known = torch.from_numpy(wanted.data[name].values).double()
        assert (got - known).abs().max() < 1e-4, name
    spread = (fine["tasmax"] - fine["tasmin"]).isel(time=slice(10, None)).std("member")
    assert float(spread.mean()) > 0.05  # the range is drawn, not fixed


@pytest.fixture(scope="module")
def unordered(daily):
    return trained(daily, ("tasmin", "tasmax"), daily / "unordered", ordered=False)


def test_without_the_order_members_cross(unordered, daily):
    """The test above would notice: variables that are drawn side by side do cross."""
    downscaler = unordered
    assert downscaler.model.transforms.order is None
    fine = downscaler.downscale(xr.open_dataset(daily / "coarse.nc"), members=6)
    assert (fine["tasmax"] < fine["tasmin"]).any()


def test_the_order_is_found_and_inverted():
    assert Order.of(["pr", "tasmin", "tasmax"]) == Order(1, above=2)
    assert Order.of(["tasmax", "tas", "tasmin"]) == Order(1, above=0, below=2)
    assert Order.of(["tas", "tasmin"]) == Order(0, below=1)
    assert Order.of(["tas", "pr"]) is None
    y = torch.tensor([290.0, 283.0, 280.0])[:, None, None]
    order = Order(1, above=0, below=2)
    assert order.split(y).flatten().tolist() == [7.0, 283.0, 3.0]
    assert torch.equal(order.join(order.split(y)), y)


def test_the_transform_of_a_difference_inverts_and_never_leaves_the_positive():
    positive = Positive(width=2.0)
    d = torch.logspace(-2, 2, 200, dtype=torch.float64)
    torch.testing.assert_close(positive.inverse(positive.forward(d)), d, rtol=1e-12, atol=0)
    z = torch.linspace(-200, 200, 999)
    assert (positive.inverse(z) >= 0).all()
    assert positive.forward(torch.zeros(3)).isfinite().all()
    far = torch.tensor([60.0], dtype=torch.float64)
    torch.testing.assert_close(positive.forward(far), far)  # large differences are themselves


def test_transforms_of_ordered_variables_invert():
    transforms = Transforms.of([*NAMES, "pr"], {"tasmax": {"width": 0.5}}, ordered=True)
    assert transforms.nonnegative == (False, False, False, True)
    y = torch.tensor([290.0, 283.0, 282.5, 4.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(transforms.inverse(transforms.forward(y)), y)
    shifted = transforms.inverse(transforms.forward(y) - 50)
    assert shifted[0] >= shifted[1] >= shifted[2]


def test_old_models_are_read_as_they_were_trained(unordered, daily, tmp_path):
    stored = load_checkpoint(daily / "unordered", app=APP)
    del stored.config["config"]["ordered"]
    facts = {"config": stored.config, "tensors": stored.tensors, "card": {}}
    save_checkpoint(tmp_path, app=APP, **facts, data_fingerprint="")
    assert Downscaler.load(tmp_path).model.transforms.order is None
    assert unordered.model.config == Downscaler.load(tmp_path).model.config


def test_mistakes_have_one_clear_line(daily, tmp_path):
    fine = xr.open_dataset(daily / "fine.nc")
    swapped = fine.assign(tasmin=fine["tasmax"], tasmax=fine["tasmin"])
    swapped["tasmin"].attrs, swapped["tasmax"].attrs = fine["tasmin"].attrs, fine["tasmax"].attrs
    swapped.to_netcdf(tmp_path / "swapped.nc")
    config = read_config(None, SMALL, variables="tasmin,tasmax", factor=4)
    with pytest.raises(AleatorError, match=r"tasmax is below tasmin in \d+ % .*exchanged"):
        train(str(tmp_path / "swapped.nc"), tmp_path / "m", config, say=lambda line: None)
    with pytest.raises(AleatorError, match=r"width=-1.* must be positive"):
        Transforms.of(["tasmin", "tasmax"], {"tasmax": {"width": -1}}, ordered=True)
    with pytest.raises(AleatorError, match=r"transforms\.tasmax: .*sharpness"):
        Transforms.of(["tasmin", "tasmax"], {"tasmax": {"sharpness": 1}}, ordered=True)


def test_inputs_that_are_exchanged_and_observed_ranges_are_refused(daily, tmp_path):
    downscaler = trained(daily, ("tasmin", "tasmax"), tmp_path / "m")
    coarse = xr.open_dataset(daily / "coarse.nc")
    swapped = coarse.assign(tasmin=coarse["tasmax"], tasmax=coarse["tasmin"])
    swapped["tasmin"].attrs, swapped["tasmax"].attrs = ({"units": "K"},) * 2
    with pytest.raises(AleatorError, match="tasmax is below tasmin"):
        downscaler.downscale(swapped, members=1)
    lat, lon = (float(v) for v in (coarse["lat"][1], coarse["lon"][1]))
    rows = f"2001-01-05,{lat},{lon},275,280\n"
    (tmp_path / "s.csv").write_text("time,lat,lon,tasmin [K],tasmax [K]\n" + rows)
    with pytest.raises(AleatorError, match="tasmax is modelled as its difference to tasmin"):
        downscaler.stations(tmp_path / "s.csv")
    (tmp_path / "s.csv").write_text(f"time,lat,lon,tasmin [K]\n2001-01-05,{lat},{lon},275\n")
    assert downscaler.stations(tmp_path / "s.csv").places == 1


def test_the_config_says_whether(daily):
    config = read_config(None, SMALL, variables="tasmin,tasmax", factor=4)
    assert config.ordered
    assert not dataclasses.replace(config, ordered=False).to_dict()["ordered"]
