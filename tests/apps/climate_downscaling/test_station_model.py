"""Stations as predictand: read, trained on, written and judged, gaps and all."""

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.downscale import Downscaler, ensemble
from apps.climate_downscaling.gaps import enough, filled
from apps.climate_downscaling.grid import Grid, match
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.run import Request, run
from apps.climate_downscaling.station_model import StationModel, vector_config
from apps.climate_downscaling.train import train
from apps.climate_downscaling.verify import verify
from core.errors import AleatorError
from core.random import keyed_generator
from core.registry import build

STEPS, PLACES = 400, 5
SMALL = {
    "split": {"test_fraction": 0.2, "validation_fraction": 0.2, "gap": 2},
    "mean": {"blocks": 3, "gap": 2},
    "residual": {"context": "coarse", "sampler": {"name": "2m", "steps": 6}},
    "fit": {"steps": 250, "batch_size": 64, "validate_every": 50, "warmup": 5, "log_every": 50},
    "predictors": {"strengths": [1.0, 100.0], "lags": [0]},
}
SMALL["fit"]["learning_rate"] = 2e-3
LAT, LON = np.array([40.1, 41.3, 42.2, 43.4, 44.2]), np.array([0.2, 3.1, 1.0, 4.4, 2.2])
TIMES = np.datetime64("2001-01-01", "ns") + np.arange(STEPS) * np.timedelta64(1, "D")
CORRELATION = 0.8


def reanalysis(rng):
    lat = ("lat", np.arange(45.0, 39, -1.5), {"units": "degrees_north"})
    lon = ("lon", np.arange(0.0, 6, 1.5), {"units": "degrees_east"})
    tas = 280 + 3 * rng.standard_normal((STEPS, 1, 1)) + 0.1 * rng.standard_normal((STEPS, 4, 4))
    array = (("time", "lat", "lon"), tas.astype(np.float32), {"units": "K"})
    return xr.Dataset({"tas": array}, {"time": TIMES, "lat": lat, "lon": lon})


def observed(rng, large):
    """Errors of 1 K, correlated between stations; rain when it is warm; stations with gaps."""
    common = rng.standard_normal((STEPS, 1))
    own = rng.standard_normal((STEPS, PLACES))
    error = np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * own
    mean = large["tas"].values.mean((1, 2))[:, None] + np.arange(PLACES)
    rain = np.maximum(0, mean - 281) * rng.random((STEPS, PLACES))
    tas, pr = (v.astype(np.float32) for v in (mean + error, rain))
    tas[rng.random(STEPS) < 0.1, 2] = np.nan
    pr[::7, 1] = np.nan
    tas[:300, 4] = np.nan  # hardly ever there
    place = ("station",)
    return xr.Dataset(
        {
            "tas": (("time", "station"), tas, {"units": "K"}),
            "pr": (("time", "station"), pr, {"units": "mm day-1"}),
        },
        {
            "time": TIMES,
            "lat": (place, LAT),
            "lon": (place, LON),
            "station_name": (place, ["Ávila", "Bilbao", "Cádiz", "Denia", "Elche"]),
        },
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stations")
    rng = np.random.default_rng(0)
    large = reanalysis(rng)
    large.to_netcdf(folder / "large.nc")
    observed(rng, large).to_netcdf(folder / "stations.nc")
    config = read_config(None, SMALL, variables="tas,pr", predictors=[str(folder / "large.nc")])
    train(str(folder / "stations.nc"), folder / "model", config, seed=1, say=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def downscaler(world):
    return Downscaler.load(world / "model", "cpu")


def test_a_file_of_stations_is_a_row_of_cells(world):
    field = open_field(world / "stations.nc")
    assert field.shape == (STEPS, 2, 1, PLACES)
    assert field.grid.stations == ("Ávila", "Bilbao", "Cádiz", "Denia", "Elche")
    np.testing.assert_array_equal(field.grid.lat[0], LAT)
    np.testing.assert_array_equal(field.grid.area_weights(), 1.0)
    assert "5 stations (Ávila, Bilbao, Cádiz, ...), within 40.1...44.2 N" in field.describe()
    known = xr.load_dataset(world / "stations.nc")["tas"].values
    np.testing.assert_array_equal(field.read(allow_missing=True)[:, 0, 0], known)
    assert Grid.from_dict(field.grid.to_dict()).same_as(field.grid)


def test_a_table_says_the_same(world, tmp_path):
    known = xr.load_dataset(world / "stations.nc")
    names = [str(n) for n in known["station_name"].values]
    table = known.drop_vars("station_name").to_dataframe().reset_index()
    table["station"] = [names[i] for i in table["station"]]
    table = table.rename(columns={"tas": "tas [K]", "pr": "pr [mm day-1]"})
    table.to_csv(tmp_path / "stations.csv", index=False)
    one, two = open_field(tmp_path / "stations.csv"), open_field(world / "stations.nc")
    assert one.grid.stations == two.grid.stations
    again = match(one, two.grid)
    both = [f.read(allow_missing=True)[:, [f.names.index(n) for n in ("tas", "pr")]]
            for f in (again, two)]  # fmt: skip
    np.testing.assert_allclose(*both, rtol=1e-6)


def test_it_has_learnt_what_stations_have_in_common(downscaler, world):
    model = downscaler.model
    assert isinstance(model, StationModel)
    tas, pr = model.card["scores"]
    assert 0.9 < tas["rmse"] < 1.25  # the error of the truth is 1 K
    assert 0.8 < tas["spread_skill"] < 1.25
    assert np.isnan(tas["lsd"])
    assert abs(pr["wet_days"]) < 0.1
    valid = model.valid[0].tolist()
    assert valid == [True, True, True, True, False]
    drawn = ensemble(model, downscaler.field(world / "large.nc"), 330, 400, members=8)
    error = drawn[:, :, 0, 0, :4] - drawn[:, :, 0, 0, :4].mean(0)
    pairs = np.corrcoef(error.reshape(-1, 4).T)[np.triu_indices(4, 1)]
    assert np.abs(pairs.mean() - CORRELATION) < 0.12
    assert np.isnan(drawn[..., 4]).all()


def test_members_do_not_depend_on_the_part_asked_for(downscaler, world):
    whole = downscaler.downscale(world / "large.nc", members=2, time_range="2001-03-01:2001-03-09")
    part = downscaler.downscale(world / "large.nc", members=2, time_range="2001-03-04:2001-03-05")
    np.testing.assert_array_equal(part["tas"], whole["tas"].sel(time=part["time"]))
    again = downscaler.downscale(
        world / "large.nc", members=2, time_range="2001-03-04:2001-03-05", seed=1
    )
    assert (again["tas"] != part["tas"]).any()


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_the_output_is_a_file_of_stations_and_can_be_judged(world, tmp_path, suffix):
    out = tmp_path / f"fine{suffix}"
    run(
        Request(
            sources=(str(world / "large.nc"),),
            output=out,
            model=world / "model",
            members=4,
            time_range="2002-01-01:2002-01-20",
            truth=str(world / "stations.nc"),
        ),
        say=lambda line: None,
    )
    fine = xr.open_zarr(out) if suffix == ".zarr" else xr.load_dataset(out)
    assert fine["tas"].dims == ("member", "time", "station")
    assert fine["lat"].dims == ("station",)
    assert fine["station_name"].values.tolist()[0] == "Ávila"
    assert fine.attrs["featureType"] == "timeSeries"
    assert fine["station_name"].attrs["cf_role"] == "timeseries_id"
    assert (tmp_path / "fine.png").stat().st_size > 10_000
    verify(out, world / "stations.nc", tmp_path / "report")
    import json

    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert found["variables"]["tas"]["scores"]["rmse"] < 1.5
    known = xr.load_dataset(world / "stations.nc")["tas"].sel(time=fine["time"])
    error = (fine["tas"].mean("member") - known.values).isel(station=slice(4))
    rmse = float(np.sqrt((error.astype(float) ** 2).mean()))
    assert found["variables"]["tas"]["scores"]["rmse"] == pytest.approx(rmse, rel=1e-5)
    assert "5 stations" in found["grid"]


def test_the_truth_may_have_its_stations_in_another_order(downscaler, world):
    known = xr.load_dataset(world / "stations.nc").isel(station=[3, 1, 4, 0, 2])
    turned = match(open_field(known), downscaler.model.fine_grid)
    plain = open_field(world / "stations.nc")
    np.testing.assert_array_equal(turned.read(allow_missing=True), plain.read(allow_missing=True))


@pytest.mark.parametrize("family", ["diffusion", "flow_matching", "nsf", "maf", "real_nvp"])
def test_any_family_of_vectors_will_do(family):
    model = build(vector_config(family, 2, 3, 4, {"net": {"width": 8}} if "f" in family else {}))
    context = {"vector": torch.randn(6, 4)}
    x = torch.randn(6, 2, 1, 3)
    assert model.loss(x, context).mean().isfinite()
    drawn = model.sample((3,), context, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 6, 2, 1, 3)
    assert drawn.isfinite().all()


def test_gaps_are_drawn_as_what_they_hide():
    """Regression and correlation are recovered, the variance is kept, what is known stays."""
    g = keyed_generator(3)
    x = torch.randn(600, 1, 1, 2, generator=g)
    common = torch.randn(600, 1, generator=g)
    own = torch.randn(600, 3, generator=g)
    error = 0.9 * common + (1 - 0.81) ** 0.5 * own
    truth = (x.flatten(1)[:, :1] * 2 + error)[:, None, None]
    z = truth.clone()
    lost = torch.rand(600, generator=g) < 0.3
    z[lost, ..., 1] = torch.nan
    valid = torch.ones(1, 3, dtype=torch.bool)
    found = filled(x, z, valid, (1.0,), keyed_generator(4), blocks=4, gap=0)
    assert torch.equal(found[~lost], z[~lost])
    guess = found[lost][:, 0, 0, 1] - truth[lost][:, 0, 0, 1]
    exact = 2 * (1 - 2 * 0.81**2 / (1 + 0.81))  # twice the conditional variance: both are draws
    assert guess.square().mean().item() == pytest.approx(exact, rel=0.25)
    spread = (found[lost][:, 0, 0, 1] - 2 * x[lost].flatten(1)[:, 0]).std().item()
    assert spread == pytest.approx(1.0, abs=0.12)


def test_stations_that_are_rarely_there_are_left_out():
    fine = torch.zeros(10, 2, 1, 3)
    fine[:6, 0, 0, 1] = torch.nan
    fine[:5, 1, 0, 2] = torch.nan
    assert enough(fine).tolist() == [[True, False, True]]


def test_a_model_survives_its_checkpoint(downscaler, world, tmp_path):
    downscaler.model.save(tmp_path / "m", {}, "")
    again = DownscalingModel.load(tmp_path / "m")
    assert isinstance(again, StationModel)
    field = downscaler.field(world / "large.nc")
    one, two = (ensemble(m, field, 0, 2, members=2) for m in (downscaler.model, again))
    np.testing.assert_array_equal(one, two)


def test_mistakes_have_one_clear_line(world, tmp_path):
    known = xr.load_dataset(world / "stations.nc")
    nowhere = known.assign_coords(lat=("station", [np.nan, *LAT[1:]]))
    with pytest.raises(AleatorError, match="lat of a station is missing"):
        open_field(nowhere)
    with pytest.raises(AleatorError, match="1 of 5 stations are not there, the first is Denia"):
        match(open_field(known.isel(station=[0, 1, 2, 4])), open_field(known).grid)
    with pytest.raises(AleatorError, match=r"residual\.family='glow': of stations there are"):
        vector_config("glow", 1, 2, 3, {})
    files = [str(world / "large.nc")]
    config = read_config(None, SMALL, variables="tas,pr", predictors=files)
    known.isel(station=[4]).to_netcdf(tmp_path / "rare.nc")
    with pytest.raises(AleatorError, match="no station has tas, pr at half of the training times"):
        train(str(tmp_path / "rare.nc"), tmp_path / "m", config, say=lambda line: None)
    maps = {**SMALL, "residual": {"family": "vae"}}
    for settings, why in (
        (maps, "of stations there are diffusion"),
        ({**SMALL, "residual": {"channels": ["sun"]}}, r"residual\.channels: of maps"),
    ):
        config = read_config(None, settings, variables="tas,pr", predictors=files)
        with pytest.raises(AleatorError, match=why):
            train(str(world / "stations.nc"), tmp_path / "m", config, say=lambda line: None)
    blocks = read_config(None, {}, variables="tas", factor=2)
    with pytest.raises(AleatorError, match=r"stations have no blocks.*--predictors"):
        train(str(world / "stations.nc"), tmp_path / "m", blocks, say=lambda line: None)
