"""What training makes, downscaling uses: shapes, seeds, conservation, masks, errors."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.conserve import block_mean
from apps.climate_downscaling.data import open_field
from apps.climate_downscaling.describe import describe
from apps.climate_downscaling.downscale import Downscaler, ensemble
from apps.climate_downscaling.model import DownscalingModel
from apps.climate_downscaling.prepare import open_prepared, prepare
from apps.climate_downscaling.train import train
from core.checkpoint import META, save_checkpoint
from core.errors import AleatorError, CheckpointError


@pytest.fixture(scope="module")
def downscaler(small_model):
    return Downscaler.load(small_model, "cpu")


FACTOR = 2


def silent(line):
    pass


def test_members_keep_the_input_in_its_own_terms(downscaler, climate_files):
    source = xr.open_dataset(climate_files / "coarse.nc")
    fine = downscaler.downscale(source.isel(time=slice(0, 3)), members=5, seed=1)
    assert fine["tas"].dims == ("member", "time", "lat", "lon")
    assert fine["tas"].shape == (5, 3, 8, 12)
    assert fine["tas"].attrs["units"] == "K"
    assert fine.attrs["aleator_model"] == downscaler.model.fingerprint
    weights = torch.from_numpy(downscaler.model.fine_grid.area_weights())
    means = block_mean(torch.from_numpy(fine["tas"].values), FACTOR, weights)
    torch.testing.assert_close(
        means, torch.from_numpy(source["tas"].values[:3]).expand_as(means), rtol=0, atol=1e-4
    )
    assert fine["tas"].std("member").mean() > 0.1
    assert (fine["ood_score"] < 1.5).all()


def test_same_seed_same_numbers_whatever_is_computed_beside(downscaler, climate_files):
    field = downscaler.field(climate_files / "coarse.nc")
    whole = ensemble(downscaler.model, field, 0, 12, members=4, seed=7)
    part = ensemble(downscaler.model, field, 5, 9, members=4, seed=7)
    np.testing.assert_array_equal(part, whole[:, 5:9])
    fewer = ensemble(downscaler.model, field, 5, 9, members=2, seed=7)
    np.testing.assert_allclose(fewer, whole[:2, 5:9], rtol=1e-6)
    other = ensemble(downscaler.model, field, 5, 9, members=4, seed=8)
    assert np.abs(other - part).mean() > 0.05
    assert np.abs(whole[0] - whole[1]).mean() > 0.05


def test_without_conservation_means_differ(downscaler, climate_files):
    field = downscaler.field(climate_files / "coarse.nc")
    free = ensemble(downscaler.model, field, 0, 4, members=2, conserve=False)
    weights = torch.from_numpy(downscaler.model.fine_grid.area_weights())
    means = block_mean(torch.from_numpy(free), FACTOR, weights)
    assert (means - torch.from_numpy(field.read(0, 4))).abs().mean() > 0.01


def test_a_model_survives_its_checkpoint(small_model, tmp_path, climate_files):
    model = DownscalingModel.load(small_model)
    again = model.save(tmp_path / "m", {}, "")
    assert again.fingerprint == model.fingerprint
    field = Downscaler(model).field(climate_files / "coarse.nc")
    one, two = (
        ensemble(m, field, 0, 2, members=2) for m in (model, DownscalingModel.load(tmp_path / "m"))
    )
    np.testing.assert_array_equal(one, two)


def test_training_is_reproducible_also_from_prepared_data(climate_files, tmp_path, settings):
    small = settings(fit__steps=5)
    prepare(str(climate_files / "fine.nc"), tmp_path / "p.zarr", small)
    made = [
        train(source, tmp_path / name, small, seed=1, say=silent).fingerprint
        for name, source in (
            ("a", str(climate_files / "fine.nc")),
            ("b", str(climate_files / "fine.nc")),
            ("c", str(tmp_path / "p.zarr")),
        )
    ]
    assert made[0] == made[1] == made[2]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        *("card.md", "metrics.jsonl", "model.json", "model.safetensors")
    ]


def test_the_test_part_is_not_looked_at(climate_files, tmp_path, settings, small_climate):
    fine = small_climate()
    changed = fine.copy(deep=True)
    changed["tas"][80:] += 50.0
    small = settings(fit__steps=5)
    kept = []
    for name, data in (("a", fine), ("b", changed)):
        data.to_netcdf(tmp_path / f"{name}.nc")
        model = train(str(tmp_path / f"{name}.nc"), tmp_path / name, small, say=silent)
        kept.append(model)
    assert kept[0].fingerprint == kept[1].fingerprint
    assert kept[0].card["scores"] != kept[1].card["scores"]


def test_prepared_stores_say_what_they_hold(climate_files, tmp_path, settings, small_climate):
    store = tmp_path / "p.zarr"
    text = prepare(str(climate_files / "fine.nc"), store, settings())
    assert "train 78 steps" in text
    fine, coarse, normaliser = (
        xr.open_zarr(store, group=g, consolidated=False) for g in ("fine", "coarse", "normaliser")
    )
    assert np.bincount(fine["part"]).tolist() == [78, 2, 20]
    truth = small_climate()["tas"].values[:78]
    np.testing.assert_allclose(normaliser["tas_fine_mean"], truth.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normaliser["tas_coarse_std"], coarse["tas"][:78].std("time"), 1e-4)
    with pytest.raises(AleatorError, match="exists"):
        prepare(str(climate_files / "fine.nc"), store, settings())
    other = settings(split__test_fraction=0.3)
    with pytest.raises(AleatorError, match="was prepared with split"):
        open_prepared(str(store), other)


def test_cells_without_data_stay_without(tmp_path, settings, small_climate):
    fine = small_climate()
    fine["tas"][:, :2, :3] = np.nan  # one coarse cell and half of its neighbour
    fine.to_netcdf(tmp_path / "masked.nc")
    small = settings(fit__steps=5)
    model = train(str(tmp_path / "masked.nc"), tmp_path / "m", small, say=silent)
    coarse = open_prepared(str(tmp_path / "masked.nc"), small).coarse
    drawn = ensemble(model, coarse, 90, 93, members=3)
    missing = np.isnan(drawn)
    assert missing[..., :2, :3].all()
    assert not missing[..., 2:, :].any()
    assert not missing[..., 3:].any()
    inside = drawn[:, :, 0, :2, 3].mean(-1)  # of the cell that has data in one column
    known = coarse.read(90, 93, allow_missing=True)[:, 0, 0, 1]
    np.testing.assert_allclose(inside, known[None].repeat(3, 0), rtol=1e-5)
    fine["tas"][3, 5, 5] = np.nan
    fine.to_netcdf(tmp_path / "gaps.nc")
    with pytest.raises(AleatorError, match="missing at some training times only"):
        train(str(tmp_path / "gaps.nc"), tmp_path / "g", small, say=silent)


def test_precipitation_is_never_negative_and_may_be_zero(tmp_path, settings, small_climate):
    small_climate(variable="pr").to_netcdf(tmp_path / "pr.nc")
    small = settings("pr", fit__steps=20)
    model = train(str(tmp_path / "pr.nc"), tmp_path / "m", small, say=silent)
    coarse = open_prepared(str(tmp_path / "pr.nc"), small).coarse
    for conserve in (True, False):
        drawn = ensemble(model, coarse, 80, 100, members=4, conserve=conserve)
        assert drawn.min() == 0.0
        assert 0.02 < (drawn == 0).mean() < 0.9


@pytest.mark.parametrize("family", ["flow_matching"])
def test_the_family_is_one_word(climate_files, tmp_path, family, settings):
    small = settings(residual__family=family)
    model = train(str(climate_files / "fine.nc"), tmp_path / "m", small, say=silent)
    loaded = DownscalingModel.load(tmp_path / "m")
    assert type(loaded.residual).__name__ == "FlowMatching"
    assert model.card["scores"][0]["spread_skill"] > 0.3


def test_info_says_what_is_there(small_model, climate_files, tmp_path):
    text = describe(str(small_model))
    assert "local ridge, length 1 cells" in text
    assert "train 78 steps" in text
    assert "100, 2001-01-01 00:00" in describe(str(climate_files / "fine.nc"))
    with pytest.raises(AleatorError, match="neither a model"):
        describe(str(tmp_path))


def test_members_and_steps_below_one_are_refused(downscaler, climate_files):
    for bad in ({"members": 0}, {"steps": 0}):
        with pytest.raises(AleatorError, match="at least one"):
            downscaler.downscale(climate_files / "coarse.nc", **bad)


def test_other_grids_are_refused(downscaler, climate_files):
    with pytest.raises(AleatorError, match="2 times finer than trained"):
        downscaler.field(climate_files / "fine.nc")
    ensemble_file = xr.open_dataset(climate_files / "coarse.nc").expand_dims(member=2)
    with pytest.raises(AleatorError, match=r"ensemble|several|members"):
        downscaler.field(ensemble_file)


def test_missing_input_is_refused(downscaler, climate_files):
    coarse = xr.open_dataset(climate_files / "coarse.nc").load()
    coarse["tas"][4, 1, 1] = np.nan
    with pytest.raises(AleatorError, match=r"missing \(NaN\) at 1 of"):
        downscaler.downscale(coarse, members=1)


def test_models_of_other_applications_are_refused(tmp_path, small_model):
    save_checkpoint(tmp_path / "m", app="hep_simulation", config={}, tensors={})
    with pytest.raises(CheckpointError, match="a model of hep_simulation"):
        Downscaler.load(tmp_path / "m")
    meta = json.loads((small_model / META).read_text())
    assert meta["card"]["parameters"] > 1000


def test_a_model_is_not_overwritten_unasked(small_model, climate_files, settings):
    with pytest.raises(AleatorError, match="holds a model"):
        train(str(climate_files / "fine.nc"), small_model, settings(), say=silent)


def test_open_field_finds_what_downscaling_wrote(downscaler, climate_files, tmp_path):
    fine = downscaler.downscale(climate_files / "coarse.nc", members=2)
    fine.to_netcdf(tmp_path / "out.nc")
    field = open_field(tmp_path / "out.nc", ensemble=True)
    assert field.members == 2
    assert field.names == ("tas",)
