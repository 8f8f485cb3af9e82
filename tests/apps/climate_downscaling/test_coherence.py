"""Coherent members: alike in time, each time as before, whatever is computed beside."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from apps.climate_downscaling.downscale import Downscaler, ensemble
from core.errors import AleatorError


@pytest.fixture
def downscaler(small_model):
    return Downscaler.load(small_model, "cpu")


@pytest.fixture
def field(downscaler, climate_files):
    return downscaler.field(climate_files / "coarse.nc")


def residual(drawn, model, field):
    """What members add to the mean, in units of its error: (M, T, V, cells)."""
    x = model.predictors(torch.from_numpy(field.read(0, drawn.shape[1])))
    mean = model.mean.predict(x)
    scale = model.uncertainty(x, mean)
    return ((torch.from_numpy(drawn) - mean) / scale).flatten(3)


def lag_one(r):
    now, then = r[:, :-1].flatten(), r[:, 1:].flatten()
    return torch.corrcoef(torch.stack([now, then]))[0, 1].item()


def test_training_notes_how_residuals_persist(downscaler):
    assert downscaler.model.time_step == 3600
    assert 0 <= downscaler.model.persistence[0] < 0.7


@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_residuals_of_neighbouring_times_go_together(downscaler, field, rho):
    downscaler.model.persistence = torch.tensor([rho])
    options = {"members": 3, "conserve": False}
    drawn = ensemble(downscaler.model, field, 0, 40, coherent=True, **options)
    r = residual(drawn, downscaler.model, field)
    alone = residual(ensemble(downscaler.model, field, 0, 40, **options), downscaler.model, field)
    assert lag_one(r) == pytest.approx(rho, abs=0.1)
    assert lag_one(alone) == pytest.approx(0, abs=0.1)
    assert r.std().item() == pytest.approx(alone.std().item(), rel=0.1)
    if rho == 0:
        torch.testing.assert_close(r, alone)


def test_a_part_of_a_series_is_the_part_of_the_whole(downscaler, field):
    downscaler.model.persistence = torch.tensor([0.6])
    whole = ensemble(downscaler.model, field, 0, 20, members=2, coherent=True)
    part = ensemble(downscaler.model, field, 7, 11, members=2, coherent=True)
    np.testing.assert_array_equal(part, whole[:, 7:11])


def test_what_is_not_known_is_refused(downscaler, field, climate_files):
    coarse = xr.open_dataset(climate_files / "coarse.nc").isel(time=slice(None, None, 3))
    with pytest.raises(AleatorError, match="time step is 3 h, the model was trained on 1 h"):
        downscaler.downscale(coarse, members=1, coherent=True)
    downscaler.model.persistence = torch.tensor([torch.nan])
    with pytest.raises(AleatorError, match="train it again"):
        ensemble(downscaler.model, field, 0, 2, members=1, coherent=True)


def test_models_of_before_still_load(small_model, tmp_path):
    model = Downscaler.load(small_model, "cpu").model
    old = dataclasses.replace(model, persistence=torch.tensor([torch.nan]), time_step=0)
    old.save(tmp_path / "old", {}, "")
    assert Downscaler.load(tmp_path / "old", "cpu").model.time_step == 0
