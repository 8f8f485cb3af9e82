"""Perfect prognosis end to end: predictors in two files, observations with a sea and a gap."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling import scratch as scratch_module
from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.describe import describe
from apps.climate_downscaling.downscale import Downscaler, ensemble, open_input
from apps.climate_downscaling.drift import Rule
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import open_prepared, prepare, stored_settings
from apps.climate_downscaling.prognosis import PrognosisModel
from apps.climate_downscaling.prognosis_fit import fit_prognosis, levelled
from apps.climate_downscaling.run import Request, run
from apps.climate_downscaling.scratch import Scratch
from apps.climate_downscaling.train import settle, train
from apps.climate_downscaling.year_effect import YearEffect
from core.checkpoint import load_checkpoint
from core.errors import AleatorError

STEPS = 240
SMALL = {
    "split": {"test_fraction": 0.2, "validation_fraction": 0.2, "gap": 2},
    "mean": {"blocks": 3, "gap": 2},
    "residual": {"context": "coarse", "sampler": {"name": "2m", "steps": 4}},
    "fit": {"steps": 30, "batch_size": 16, "validate_every": 10, "warmup": 5, "log_every": 10},
    "predictors": {"strengths": [1.0, 100.0]},
}
SMALL["residual"]["model"] = {"net": {"channels": 8, "multipliers": [1]}}


def fields(values, lat, lon, units):
    arrays = {
        name: (("time", "lat", "lon"), v.astype(np.float32), {"units": units[name]})
        for name, v in values.items()
    }
    times = np.datetime64("2001-01-01", "ns") + np.arange(STEPS) * np.timedelta64(1, "D")
    lat = ("lat", lat, {"units": "degrees_north"})
    lon = ("lon", lon, {"units": "degrees_east"})
    return xr.Dataset(arrays, {"time": times, "lat": lat, "lon": lon})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with pressure.nc, surface.nc, fine.nc and a model of them."""
    folder = tmp_path_factory.mktemp("prognosis")
    rng = np.random.default_rng(0)
    psl = 1e5 + 800 * rng.standard_normal((STEPS, 3, 4))
    tas = 280 + 3 * rng.standard_normal((STEPS, 1, 1)) + 0.5 * rng.standard_normal((STEPS, 4, 5))
    units = {"psl": "Pa", "tas": "K", "pr": "mm day-1"}
    fields({"psl": psl}, np.arange(45.0, 39, -2), np.arange(0.0, 8, 2), units).to_netcdf(
        folder / "pressure.nc"
    )
    fields({"tas": tas}, np.arange(40.0, 46, 1.5), np.arange(0.0, 7, 1.5), units).to_netcdf(
        folder / "surface.nc"
    )
    lat, lon = np.arange(41.25, 44, 0.5), np.arange(0.25, 5.5, 0.75)
    yesterday = np.roll((psl[:, 1, 1] - 1e5) / 800, 1)
    warm = (tas[:, 1:3, 1:3].mean((1, 2)) + yesterday)[:, None, None]
    fine = warm + 0.5 * rng.standard_normal((STEPS, len(lat), len(lon)))
    rain = np.maximum(0, -(psl[:, 1, 2] - 1e5) / 400)[:, None, None] * rng.random(fine.shape)
    truth = fields({"tas": fine, "pr": rain}, lat, lon, units)
    truth = truth.where((truth["lat"] < 43.5) | (truth["lon"] > 1))  # a sea
    truth["tas"][17, 0, 3] = np.nan  # a gap
    truth["orog"] = (("lat", "lon"), rng.random((len(lat), len(lon))) * 900, {"units": "m"})
    truth.to_netcdf(folder / "fine.nc")
    config = read_config(
        None,
        SMALL,
        variables="tas,pr",
        predictors=[str(folder / "pressure.nc"), str(folder / "surface.nc")],
    )
    train(str(folder / "fine.nc"), folder / "model", config, seed=1, say=lambda line: None)
    return folder


@pytest.fixture(scope="module")
def downscaler(world):
    return Downscaler.load(world / "model", "cpu")


def settings(world, **more):
    files = [str(world / "pressure.nc"), str(world / "surface.nc")]
    return read_config(None, {**SMALL, **more}, variables="tas,pr", predictors=files)


def inputs(world):
    return [world / "pressure.nc", world / "surface.nc"]


def test_it_has_learnt_and_says_so(downscaler):
    model = downscaler.model
    assert isinstance(model, PrognosisModel)
    assert model.predictor_names == ("psl", "tas")
    tas, pr = model.card["scores"]
    assert tas["rmse"] < 0.8  # noise alone 0.5, climatology 3.2, without yesterday 1.1
    assert 0.6 < tas["spread_skill"] < 1.4
    assert pr["wet_days"] == pytest.approx(0, abs=0.1)
    assert "coarse_error" not in tas
    valid = model.valid
    assert not valid[-1, 0]  # sea
    assert not valid[0, 3]  # a gap at one time
    assert valid.sum() == valid.numel() - 1 - (~valid[-1]).sum()


def test_output_is_on_the_fine_grid_with_a_sea(downscaler, world):
    fine = downscaler.downscale(inputs(world), members=3, time_range="2001-02-01:2001-02-05")
    assert fine["tas"].shape == (3, 5, 6, 7)
    truth = xr.open_dataset(world / "fine.nc")
    np.testing.assert_array_equal(fine["lat"], truth["lat"])
    assert fine["pr"].attrs["units"] == "mm day-1"
    assert float(fine["pr"].min()) == 0.0
    valid = downscaler.model.valid.numpy()
    assert fine["tas"].notnull().values[:, :, valid].all()
    assert fine["tas"].isnull().values[:, :, ~valid].all()
    error = fine["tas"].mean("member") - truth["tas"].sel(time=fine["time"])
    assert float(np.sqrt((error**2).mean())) < 0.9


def test_neighbours_come_from_outside_the_part_that_is_asked_for(downscaler, world):
    field = downscaler.field(inputs(world))
    whole = ensemble(downscaler.model, field, 30, 36, members=2)
    part = downscaler.field(inputs(world), "2001-02-02:2001-02-04")
    again = ensemble(downscaler.model, part, 0, 3, members=2)
    np.testing.assert_array_equal(again, whole[:, 2:5])


def test_any_model_may_drive_it(downscaler, world):
    """Its grid and its order of variables are others; what it has beside is not looked at."""
    both = xr.open_dataset(world / "surface.nc")
    pressure = xr.open_dataset(world / "pressure.nc")
    inside = both.sel(lat=slice(41, 45), lon=slice(0, 6))
    both = inside.assign(psl=pressure["psl"].interp(lat=inside["lat"], lon=inside["lon"]))
    both["psl"].attrs["units"] = "Pa"
    both["strange"] = both["tas"].assign_attrs(units="furlong")
    days = {"members": 2, "time_range": "2001-01-05:2001-01-08"}
    mine, theirs = (downscaler.downscale(source, **days) for source in (both, inputs(world)))
    assert float(np.abs(mine["tas"] - theirs["tas"]).mean()) < 0.6


def test_a_model_survives_its_checkpoint(downscaler, world, tmp_path):
    model = downscaler.model
    assert (
        model.save(tmp_path / "m", {}, "").fingerprint
        == DownscalingModel.load(world / "model").save(tmp_path / "n", {}, "").fingerprint
    )
    field = downscaler.field(inputs(world))
    one, two = (
        ensemble(m, field, 0, 2, members=2) for m in (model, DownscalingModel.load(tmp_path / "m"))
    )
    np.testing.assert_array_equal(one, two)


def with_years(model, spread=2.0):
    """The model with an effect that is the same in all cells of tas, and none of pr."""
    shape = (len(model.names), *model.fine_grid.shape)
    maps = torch.zeros(1, *shape)
    maps[0, 0] = spread
    daily = torch.full(shape, 0.5)
    effect = YearEffect(maps, daily, torch.tensor([0.0], dtype=torch.float64))
    return dataclasses.replace(model, years=effect, rules=(Rule(0.5, trend=True), Rule()))


def test_members_share_the_error_of_a_year(downscaler, world):
    field, valid = downscaler.field(inputs(world)), downscaler.model.valid.numpy()
    plain = dataclasses.replace(downscaler.model, years=None)
    days = range(10, 13)
    moved, usual = (
        ensemble(m, field, days.start, days.stop, members=4, conserve=False)[..., valid]
        for m in (with_years(plain), plain)
    )
    mean = plain.mean.predict(plain.predictors(torch.from_numpy(field.read(10, 13)))).numpy()
    tas, rest = mean[:, 0][..., valid], (usual[:, :, 0] - mean[:, 0][..., valid])
    left = moved[:, :, 0] - tas - 0.5 * rest  # half of what the days vary by, and one level each
    np.testing.assert_allclose(
        left, left[:, :1, :1].repeat(3, 1).repeat(left.shape[2], 2), atol=2e-4
    )
    level = left[:, 0, 0]
    assert level.std() > 0.5
    alone = ensemble(with_years(plain), field, 12, 13, members=2)[..., valid]
    np.testing.assert_allclose(alone, moved[:2, 2:], rtol=1e-6, atol=1e-6)
    assert (moved[:, :, 1] >= 0).all()


def test_a_year_effect_survives_a_checkpoint_and_old_models_have_none(downscaler, world, tmp_path):
    model = with_years(downscaler.model)
    model.save(tmp_path / "m", model.card, "")
    again = DownscalingModel.load(tmp_path / "m")
    assert again.rules == model.rules
    torch.testing.assert_close(again.years.maps, model.years.maps, rtol=0, atol=0)
    assert "years differ by: tas 2.000, pr 0.000" in describe(str(tmp_path / "m"))
    assert "for the trend of the years" in describe(str(tmp_path / "m"))
    stored = load_checkpoint(tmp_path / "m", app="climate_downscaling")
    old = {**stored.config, "memory": [0.5, 1.0]}
    del old["drift"]
    tensors = {n: v for n, v in stored.tensors.items() if not n.startswith("years.")}
    parts = PrognosisModel.parts(old, tensors)
    assert parts["rules"] == (Rule(0.5), Rule())
    assert parts["years"] is None


def test_the_level_is_fitted_again_and_the_network_kept(downscaler, world):
    model = downscaler.model
    prepared = open_prepared(str(world / "fine.nc"), model.config)
    elsewhere = torch.full_like(model.mean.offset, 5.0)
    moved = dataclasses.replace(model, mean=model.mean.at(elsewhere), years=None)
    fresh = levelled(moved, prepared, prepared.train)
    torch.testing.assert_close(fresh.mean.offset, model.mean.offset)
    assert fresh.years is not None
    assert fresh.residual is model.residual
    other = dataclasses.replace(model, valid=torch.ones_like(model.valid))
    with pytest.raises(AleatorError, match="of the model's cells have no data at more than 2%"):
        levelled(other, prepared, prepared.train)


def test_the_command_writes_draws_and_scores(world, tmp_path, capsys):
    run(
        Request(
            sources=tuple(map(str, inputs(world))),
            output=tmp_path / "fine.nc",
            model=world / "model",
            members=3,
            time_range="2001-02-01:2001-02-05",
            truth=str(world / "fine.nc"),
        ),
        say=lambda line: None,
    )
    assert "this model" in capsys.readouterr().out
    assert (tmp_path / "fine.png").stat().st_size > 10_000
    found = open_field(tmp_path / "fine.nc", ensemble=True)
    assert set(found.names) == {"tas", "pr"}
    assert found.members == 3


def test_what_was_prepared_trains_the_same_model(world, tmp_path):
    files = [str(world / "pressure.nc"), str(world / "surface.nc")]
    config = read_config(None, SMALL, variables="tas,pr", predictors=files)
    text = prepare(str(world / "fine.nc"), tmp_path / "p.zarr", config)
    assert "psl[-1]" in text
    assert "6 x 7 cells" in text
    assert "3 x 4 cells" in text
    stored = stored_settings(str(tmp_path / "p.zarr"))
    assert stored["variables"] == ["tas", "pr"]
    assert stored["predictors"]["files"] == files
    again = read_config(None, SMALL, base=stored)  # nothing need be said twice
    assert again == config
    one = open_prepared(str(tmp_path / "p.zarr"), again)
    two = open_prepared(str(world / "fine.nc"), config)
    assert one.coarse.names == two.coarse.names
    assert one.describe_split() == two.describe_split()
    for a, b in zip(one.arrays(one.train), two.arrays(two.train), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    trained = train(str(tmp_path / "p.zarr"), tmp_path / "m", again, seed=1, say=lambda x: None)
    known = DownscalingModel.load(world / "model")
    for name, value in known.trained.state_dict().items():
        torch.testing.assert_close(trained.trained.state_dict()[name], value, msg=name)
    torch.testing.assert_close(trained.mean.weights, known.mean.weights)


def tensors_of(model):
    found = {f"residual.{name}": value for name, value in model.trained.state_dict().items()}
    for part in ("mean", "dispersion", "ood", "years"):
        found |= {f"{part}.{k}": v for k, v in getattr(model, part).tensors().items()}
    return found | {"inflation": model.inflation, "persistence": model.persistence}


def test_predictors_of_their_own_are_trained_with_from_disk_too(world, tmp_path, monkeypatch):
    """In nineteen pieces, to the last bit as in memory; of a prepared store as of the files."""
    monkeypatch.setattr(scratch_module, "PIECE_BYTES", 10 * 4 * 2 * 6 * 7)
    prepare(str(world / "fine.nc"), tmp_path / "p.zarr", settings(world, memory=0))
    models, said = [], []
    for source, memory in ((world / "fine.nc", 8), (tmp_path / "p.zarr", 0)):
        folder = tmp_path / f"{memory}"
        config = settings(world, memory=memory)
        models.append(train(str(source), folder, config, seed=1, say=said.append))
        assert not (folder / "training").exists()
    assert sum("they go to" in str(line) for line in said) == 1
    ours, theirs = map(tensors_of, models)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0, msg=name)


def test_all_fields_of_such_a_training_are_on_disk_and_read_in_runs(world, tmp_path):
    config = settings(world)
    prepared = open_prepared(str(world / "fine.nc"), config)
    config = settle(config, prepared.train.stop, prepared.fine.grid.shape)
    view = fit_prognosis(prepared, config, prepared.train, Scratch(tmp_path / "fields"))
    whole = fit_prognosis(prepared, config, prepared.train)
    files = sorted(tmp_path.glob("fields/*"))
    assert len(files) == 3
    for name in ("fine", "mean", "scale"):
        ours = getattr(view, name)
        torch.testing.assert_close(ours, getattr(whole, name), rtol=0, atol=0)
        stored = [np.fromfile(f, np.float32).reshape(ours.shape) for f in files]
        assert any(np.array_equal(s, ours.numpy()) for s in stored), name
    assert (view.chunk, whole.chunk) == (32, None)


def test_what_was_prepared_is_not_trained_otherwise(world, tmp_path):
    files = [str(world / "surface.nc")]
    config = read_config(None, SMALL, variables="tas,pr", predictors=files)
    prepare(str(world / "fine.nc"), tmp_path / "p.zarr", config)
    base = stored_settings(str(tmp_path / "p.zarr"))
    other = read_config(None, SMALL, predictors=[str(world / "pressure.nc")], base=base)
    with pytest.raises(AleatorError, match=r"prepared with predictors=.*surface.nc at lags"):
        open_prepared(str(tmp_path / "p.zarr"), other)
    later = read_config(None, SMALL, base=base, time_range="2001-02:")
    with pytest.raises(AleatorError, match="prepared with time_range=None, not 2001-02:"):
        open_prepared(str(tmp_path / "p.zarr"), later)
    assert stored_settings(str(world / "fine.nc")) == {}


def test_a_part_of_the_data_is_enough(world):
    files = [str(world / "pressure.nc"), str(world / "surface.nc")]
    window = {"time_range": "2001-03-01:2001-06-30", "region": "41:42.8,0:3.3"}
    config = read_config(None, SMALL, variables="tas", predictors=files, **window)
    part, whole = (
        open_prepared(str(world / "fine.nc"), c)
        for c in (config, dataclasses.replace(config, time_range=None, region=None))
    )
    assert len(part.fine) == len(part.coarse) == 122
    assert part.fine.grid.shape == (4, 5)
    steps = np.flatnonzero(np.isin(whole.coarse.times, part.coarse.times))
    known = whole.coarse.read(steps[0], steps[-1] + 1)
    np.testing.assert_array_equal(part.coarse.read(), known)  # neighbours of the ends, too


def test_info_says_what_it_needs(world):
    text = describe(str(world / "model"))
    assert "predictors: psl, tas, at time steps -1, 0, +1" in text
    assert "ridge on all 72 predictors" in text


def test_leverage_makes_members_of_strange_inputs_spread(downscaler, world):
    model = downscaler.model
    x = model.predictors(torch.from_numpy(downscaler.field(inputs(world)).read(0, 4)))
    far = model.mean.centres + 8 * (x - model.mean.centres)
    near_reach, far_reach = (model.mean.leverage(v).mean() for v in (x, far))
    assert far_reach > 30 * near_reach
    assert model.ood.score(model.standardised(far)).min() > 1


def test_mistakes_have_one_clear_line(downscaler, world):
    with pytest.raises(AleatorError, match="no variable psl, which the model needs"):
        downscaler.field([world / "surface.nc"])
    with pytest.raises(AleatorError, match="no input: give the files"):
        open_input(downscaler, ())
    with pytest.raises(AleatorError, match="not both"):
        read_config(None, SMALL, variables="tas", factor=2, predictors=["a.nc"])
    with pytest.raises(AleatorError, match=r"--factor is missing.*or give --predictors"):
        read_config(None, {}, variables="tas")
