"""A regression on anomalies carries a warmer level through, exactly; gaps and amounts aside."""

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.downscale import Downscaler, ensemble
from apps.climate_downscaling.mean import LocalRidge, level_of, upsample
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.preprocessing import Transforms
from apps.climate_downscaling.residuals import _level, fit_view
from apps.climate_downscaling.train import settle, train
from core.errors import AleatorError


def fields(steps=200, seed=0):
    g = torch.Generator().manual_seed(seed)
    coarse = 280 + torch.randn(steps, 1, 3, 4, generator=g).cumsum(0) / 5
    pattern = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(9))
    fine = upsample(coarse, 2) + pattern * (upsample(coarse, 2, "nearest") - 280)
    return coarse, fine + 0.1 * torch.randn(fine.shape, generator=g)


LEVEL = torch.full((1, 3, 4), 1 / 12)


@pytest.mark.exact
def test_a_warmer_field_is_warmer_by_that_everywhere():
    coarse, fine = fields()
    kept, moved = (
        LocalRidge.fit(coarse, fine, length=1.0, strength=1.0, level=level)
        for level in (LEVEL, None)
    )
    change = kept.predict(coarse + 8) - kept.predict(coarse)
    torch.testing.assert_close(change, torch.full_like(change, 8.0), atol=2e-3, rtol=0)
    torch.testing.assert_close(kept.leverage(coarse + 8), kept.leverage(coarse), rtol=1e-2, atol=0)
    other = moved.predict(coarse + 8) - moved.predict(coarse)
    assert other.std() > 1  # the pattern of the cold days, extrapolated


@pytest.mark.exact
def test_it_is_the_regression_of_fields_less_their_level():
    coarse, fine = fields()
    m = level_of(coarse, LEVEL)
    of_anomalies = LocalRidge.fit(coarse - m, fine - m, length=1.0, strength=1.0)
    fitted = LocalRidge.fit(coarse, fine, length=1.0, strength=1.0, level=LEVEL)
    torch.testing.assert_close(
        fitted.predict(coarse), of_anomalies.predict(coarse - m) + m, atol=2e-3, rtol=0
    )


def test_a_trained_model_is_equivariant_and_still_knows_that_the_field_is_unusual(
    climate_files, settings, tmp_path
):
    config = settings(mean__anomalies=True)
    train(str(climate_files / "fine.nc"), tmp_path / "model", config, say=lambda line: None)
    downscaler = Downscaler.load(tmp_path / "model")
    assert "on anomalies" in downscaler.model.mean.describe()
    assert downscaler.model.config.mean.anomalies
    with xr.open_dataset(climate_files / "coarse.nc") as opened:
        coarse = opened.load()
    warmer = coarse.assign(tas=(coarse["tas"] + 10).assign_attrs(coarse["tas"].attrs))
    members, ood = [], []
    for dataset in (coarse, warmer):
        out = downscaler.downscale(dataset.isel(time=slice(0, 3)), members=2)
        members.append(out["tas"].values)
        ood.append(out["ood_score"].values)
    np.testing.assert_allclose(members[1] - members[0], 10, atol=5e-3)
    assert (ood[1] > ood[0] + 1).all()


def test_cells_without_data_are_seen_alike_in_training_and_after(
    small_climate, settings, tmp_path
):
    """Blocks of sea: a constant, whose rounding must not be taken for weather."""
    climate = small_climate()
    sea = (climate["lat"] > 49.3) & (climate["lon"] < 5.5)
    climate["tas"] = climate["tas"].where(~sea).assign_attrs(climate["tas"].attrs)
    climate.to_netcdf(tmp_path / "fine.nc")
    for anomalies in (False, True):
        config = settings(mean__anomalies=anomalies)
        prepared = open_prepared(str(tmp_path / "fine.nc"), config)
        config = settle(config, prepared.train.stop, prepared.fine.grid.shape)
        view = fit_view(prepared, config, prepared.train)
        model = view.model
        assert not model.needs.all()
        coarse = torch.where(model.needs, view.coarse, torch.zeros(()))
        seen = model.mean.standardised(model.predictors(coarse))[:, 0, ~model.needs]
        assert seen.abs().max() < 1e-2
        assert model.mean.scale[0, ~model.needs].min() == 1
        assert model.dispersion.weights.abs().max() < 3
        drawn_mean = model.mean.predict(model.predictors(coarse))[:, 0, model.valid]
        known = view.fine[:, 0, model.valid]
        assert (drawn_mean - known).square().mean().sqrt() < 0.4


def test_the_ensemble_of_a_masked_domain_has_gaps_where_the_data_have(
    small_climate, settings, tmp_path
):
    climate = small_climate()
    sea = (climate["lat"] > 49.3) & (climate["lon"] < 5.5)
    climate["tas"] = climate["tas"].where(~sea).assign_attrs(climate["tas"].attrs)
    climate.to_netcdf(tmp_path / "fine.nc")
    config = settings(mean__anomalies=True)
    model = train(str(tmp_path / "fine.nc"), tmp_path / "model", config, say=lambda line: None)
    prepared = open_prepared(str(tmp_path / "fine.nc"), config)
    drawn = ensemble(model, prepared.coarse, 90, 92, members=2)
    np.testing.assert_array_equal(np.isnan(drawn[0, 0, 0]), sea.values)


def test_the_level_is_that_of_the_anchor_and_differences_have_none():
    valid = torch.ones(4, 6, dtype=torch.bool)
    valid[:2, :2] = False  # a block without data
    names = ("tasmax", "pr", "tas", "tasmin")
    ordered, free = (_level(valid, 2, Transforms.of(names, ordered=o)) for o in (True, False))
    cells = torch.full((2, 3), 1 / 5)
    cells[0, 0] = 0
    torch.testing.assert_close(ordered[2], cells)
    assert not ordered[[0, 1, 3]].any()
    torch.testing.assert_close(free[[0, 2, 3]], cells.expand(3, 2, 3))
    assert not free[1].any()


def test_warmth_moves_the_anchor_and_leaves_the_differences(small_climate, settings, tmp_path):
    climate = small_climate()
    wide = np.random.default_rng(0).uniform(1, 4, climate["tas"].shape)
    climate["tasmax"] = (climate["tas"] + wide).assign_attrs(climate["tas"].attrs)
    climate.to_netcdf(tmp_path / "fine.nc")
    config = settings("tas,tasmax", mean__anomalies=True)
    prepared = open_prepared(str(tmp_path / "fine.nc"), config)
    view = fit_view(prepared, settle(config, 80, prepared.fine.grid.shape), slice(0, 80))
    model, coarse = view.model, view.coarse[:5]
    means = [model.mean.predict(model.predictors(c)) for c in (coarse, coarse + 6)]
    moved = model.transforms.inverse(means[1]) - model.transforms.inverse(means[0])
    torch.testing.assert_close(moved, torch.full_like(moved, 6.0), atol=5e-3, rtol=0)


def test_amounts_and_predictors_have_no_level(small_climate, settings, tmp_path):
    small_climate(variable="pr").to_netcdf(tmp_path / "pr.nc")
    config = settings("pr", mean__anomalies=True)
    with pytest.raises(AleatorError, match="amounts"):
        train(str(tmp_path / "pr.nc"), tmp_path / "model", config, say=lambda line: None)
    with pytest.raises(AleatorError, match=r"mean\.anomalies is for block means"):
        read_config(None, {"mean": {"anomalies": True}}, variables="tas", predictors=["a.nc"])
    stored = settings().to_dict()
    assert "anomalies" not in stored["mean"]  # of runs begun before there was the option
