"""New years for an old model: the level of a training on them, the network of before."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.describe import describe
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import prepare
from apps.climate_downscaling.relevel import relevel
from apps.climate_downscaling.train import train
from core.errors import AleatorError

YEARS, DAYS = 13, 24
UNTIL = "1998-12-31"
LATER = {"split": {"train_until": "2001-12-31"}}
SMALL = {
    "split": {"train_until": UNTIL, "validation_fraction": 0.2, "gap": 0},
    "mean": {"blocks": 12, "gap": 1},
    "residual": {
        "context": "coarse",
        "sampler": {"name": "2m", "steps": 2},
        "model": {"net": {"channels": 8, "multipliers": [1]}},
    },
    "fit": {"steps": 6, "batch_size": 8, "validate_every": 3, "warmup": 2},
    "predictors": {"strengths": [1.0, 100.0], "lags": [0]},
}


def silent(line):
    pass


def written(path, values, lat, lon, name="tas"):
    starts = np.datetime64("1990-01-01", "ns") + np.arange(YEARS) * np.timedelta64(31557600, "s")
    days = np.arange(DAYS) * np.timedelta64(1, "D")
    times = (starts[:, None] + days).ravel().astype("datetime64[D]").astype("datetime64[ns]")
    array = (("time", "lat", "lon"), values.astype(np.float32), {"units": "K"})
    lat = ("lat", lat, {"units": "degrees_north"})
    lon = ("lon", lon, {"units": "degrees_east"})
    xr.Dataset({name: array}, {"time": times, "lat": lat, "lon": lon}).to_netcdf(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with observations that drift against their predictors, and a model until 1998."""
    folder, rng = tmp_path_factory.mktemp("relevel"), np.random.default_rng(0)
    driver = 280 + 3 * rng.standard_normal((YEARS * DAYS, 3, 4))
    written(folder / "era.nc", driver, np.arange(45.0, 39, -2), np.arange(0.0, 8, 2))
    written(folder / "other.nc", driver[:, :2], np.arange(45.0, 42, -2), np.arange(0.0, 8, 2))
    drift = 0.3 * np.repeat(np.arange(YEARS), DAYS)[:, None, None]
    fine = driver[:, 1:2, 1:2] + drift + 0.3 * rng.standard_normal((YEARS * DAYS, 4, 6))
    lat, lon = np.arange(41.25, 43, 0.5), np.arange(0.25, 3, 0.5)
    written(folder / "fine.nc", fine, lat, lon)
    written(folder / "part.nc", fine[:, :, :4], lat, lon[:4])
    train(str(folder / "fine.nc"), folder / "model", config(folder), seed=1, say=silent)
    return folder


def config(world, **more):
    return read_config(
        None, {**SMALL, **more}, variables="tas", predictors=[str(world / "era.nc")]
    )


def test_the_level_is_that_of_a_training_and_the_network_that_of_before(world, tmp_path):
    said = []
    fresh = relevel(
        *(world / "model", str(world / "fine.nc"), tmp_path / "new", LATER), say=said.append
    )
    old = DownscalingModel.load(world / "model")
    split = {**SMALL["split"], **LATER["split"]}
    trained = train(
        *(str(world / "fine.nc"), tmp_path / "trained", config(world, split=split)),
        seed=1,
        say=silent,
    )
    stored = DownscalingModel.load(tmp_path / "new")
    for model in (fresh, stored):
        for part in ("mean", "years"):
            for name, value in getattr(trained, part).tensors().items():
                ours = getattr(model, part).tensors()[name]
                torch.testing.assert_close(ours, value, rtol=0, atol=0, msg=name)
        assert model.rules == trained.rules
        for name, value in old.trained.state_dict().items():
            ours = model.trained.state_dict()[name]
            torch.testing.assert_close(ours, value, rtol=0, atol=0, msg=name)
        assert torch.equal(model.inflation, old.inflation)
    x = torch.from_numpy(xr.open_dataset(world / "era.nc")["tas"].values[-DAYS:, None])
    truth = torch.from_numpy(xr.open_dataset(world / "fine.nc")["tas"].values[-DAYS:, None])
    before, after = ((model.mean.predict(x) - truth).mean().item() for model in (old, fresh))
    assert abs(after) < 0.25 < 0.7 < abs(before)  # of the year 2002, which neither has seen
    assert stored.fingerprint == fresh.fingerprint != old.fingerprint
    (years,) = fresh.years.spread(fresh.valid)
    assert years < 0.1  # what drifts is not taken for what years have in common
    assert stored.card["scores"] != old.card["scores"]
    assert "test 24 steps, 2002-01-01" in " ".join(map(str, said))
    assert f"of {old.fingerprint}" in describe(str(tmp_path / "new"))


def test_what_was_prepared_and_the_disk_give_the_same(world, tmp_path):
    split = {**SMALL["split"], **LATER["split"]}
    plain = config(world, split=split, predictors={"lags": [0], "strengths": [7.0]})
    prepare(str(world / "fine.nc"), tmp_path / "p.zarr", plain)
    changes = {"memory": 0}
    models = [
        relevel(world / "model", source, tmp_path / name, given, say=silent)
        for name, source, given in (
            ("file", str(world / "fine.nc"), LATER),
            ("store", str(tmp_path / "p.zarr"), changes),
        )
    ]
    assert [model.config.predictors.strengths for model in models] == [(1.0, 100.0)] * 2
    ours, theirs = (model.mean.tensors() for model in models)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0, msg=name)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == [
        "card.md",
        "model.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("source", "changes", "more", "words"),
    [
        ("fine.nc", {"fit": {"steps": 9}}, {}, "--set fit: with --relevel all but split and"),
        ("part.nc", LATER, {}, "4 x 4 cells .* the model has 4 x 6"),
        ("fine.nc", LATER, {"predictors": "other.nc"}, "2 x 4 cells .* the model has 3 x 4"),
        ("fine.nc", {"split": {"train_until": "1980-01-01"}}, {}, "starts later"),
        ("none.nc", LATER, {}, "no such file"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(world, tmp_path, source, changes, more, words):
    files = [str(world / name) for name in more.values()]
    with pytest.raises(AleatorError, match=words):
        relevel(
            *(world / "model", str(world / source), tmp_path / "m", changes),
            predictors=files,
            say=silent,
        )
    assert not (tmp_path / "m").exists()
    with pytest.raises(AleatorError, match="holds a model"):
        relevel(world / "model", str(world / "fine.nc"), world / "model", LATER, say=silent)


def test_other_predictors_are_refused(world, tmp_path):
    model = DownscalingModel.load(world / "model")
    config = dataclasses.replace(
        model.config, predictors=dataclasses.replace(model.config.predictors, lags=(-1, 0))
    )
    dataclasses.replace(model, config=config).save(tmp_path / "odd", model.card, "")
    with pytest.raises(AleatorError, match=r"predictors tas\[-1\], tas; the model has tas, in"):
        relevel(tmp_path / "odd", str(world / "fine.nc"), tmp_path / "m", LATER, say=silent)


def test_a_few_gaps_in_new_years_change_little_and_many_are_refused(world, tmp_path):
    data = xr.open_dataset(world / "fine.nc").load()
    data["tas"][-30, 1, 2] = np.nan
    data.to_netcdf(tmp_path / "gap.nc")
    data["tas"][-48:, 1, 2] = np.nan
    data.to_netcdf(tmp_path / "gaps.nc")
    whole, part = (
        relevel(world / "model", str(source), tmp_path / source.stem, LATER, say=silent)
        for source in (world / "fine.nc", tmp_path / "gap.nc")
    )
    assert part.valid.all()
    apart = (
        part.mean.offset + part.mean.intercept - whole.mean.offset - whole.mean.intercept
    ).abs()
    assert 0 < apart[0, 1, 2] < 0.05  # what the model expected in place of the truth, on one day
    apart[0, 1, 2] = 0
    assert apart.max() < 0.01  # by the trend of the domain
    with pytest.raises(AleatorError, match="1 of the model's cells have no data at more than 2%"):
        relevel(world / "model", str(tmp_path / "gaps.nc"), tmp_path / "m", LATER, say=silent)
