"""Training from disk: the same fits and weights as in memory, read in runs of neighbours."""

import numpy as np
import pytest
import torch

from apps.climate_downscaling import mean as mean_module
from apps.climate_downscaling import scratch as scratch_module
from apps.climate_downscaling.config import read_config
from apps.climate_downscaling.mean import MeanConfig, cross_fit, upsample
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.residuals import Validation, fit_view, make_batches
from apps.climate_downscaling.scratch import (
    Scratch,
    mean_and_spread,
    pieces,
    run_of,
    scratch_for,
)
from apps.climate_downscaling.train import settle, train
from core.errors import AleatorError
from core.registry import build


def silent(line):
    pass


def tensors_of(model):
    found = {f"residual.{k}": v for k, v in model.residual.state_dict().items()}
    for part in ("mean", "dispersion", "ood"):
        found |= {f"{part}.{k}": v for k, v in getattr(model, part).tensors().items()}
    return found | {"inflation": model.inflation, "persistence": model.persistence}


def test_a_training_from_disk_is_that_in_memory(climate_files, settings, tmp_path):
    source, said = str(climate_files / "fine.nc"), []
    models = []
    for memory in (8, 0):
        config = settings(memory=memory)
        folder = tmp_path / str(memory)
        models.append(train(source, folder, config, seed=3, say=said.append))
        assert not (folder / "training").exists()
    assert sum("they go to" in str(line) for line in said) == 1
    ours, theirs = map(tensors_of, models)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=0, msg=name)


def test_a_training_from_a_zarr_store_is_that_from_the_file(climate_files, settings, tmp_path):
    from apps.climate_downscaling.prepare import prepare

    config = settings()
    prepare(str(climate_files / "fine.nc"), tmp_path / "prepared.zarr", config)
    models = [
        train(source, tmp_path / name, settings(memory=memory), seed=3, say=silent)
        for name, source, memory in (
            ("file", str(climate_files / "fine.nc"), 8),
            ("store", str(tmp_path / "prepared.zarr"), 0),
        )
    ]
    ours, theirs = map(tensors_of, models)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-4, msg=name)


def test_fits_in_pieces_are_fits_of_the_whole(monkeypatch):
    g = torch.Generator().manual_seed(0)
    coarse = 280 + torch.randn(90, 1, 3, 4, generator=g)
    fine = upsample(coarse, 2) + 0.3 * torch.randn(90, 1, 6, 8, generator=g)
    config = MeanConfig(lengths=(0.5, 1.0), strengths=(1.0, 10.0), blocks=3, gap=2)
    whole = cross_fit(coarse, fine, config)
    monkeypatch.setattr(scratch_module, "PIECE_BYTES", 7 * 4 * 48)
    assert [len(p) for p in pieces(90, fine)] == [7] * 12 + [6]
    parts = cross_fit(coarse, fine, config)
    assert parts.errors == pytest.approx(whole.errors, rel=1e-6)
    torch.testing.assert_close(parts.mean, whole.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(parts.ridge.weights, whole.ridge.weights, atol=1e-5, rtol=1e-4)
    mean, spread = mean_and_spread(fine)
    torch.testing.assert_close(mean, fine.double().mean(0))
    torch.testing.assert_close(spread, fine.double().std(0))
    assert mean_module.pieces is pieces


def test_masks_are_filled_alike_in_pieces(small_climate, settings, tmp_path, monkeypatch):
    climate = small_climate()
    sea = (climate["lat"] > 49.3) & (climate["lon"] < 5.5)
    climate["tas"] = climate["tas"].where(~sea).assign_attrs(climate["tas"].attrs)
    climate.to_netcdf(tmp_path / "fine.nc")
    config = settings()
    prepared = open_prepared(str(tmp_path / "fine.nc"), config)
    config = settle(config, prepared.train.stop, prepared.fine.grid.shape)
    views = [fit_view(prepared, config, prepared.train)]
    monkeypatch.setattr(scratch_module, "PIECE_BYTES", 4 * 4 * 96)
    views.append(fit_view(prepared, config, prepared.train, Scratch(tmp_path / "fields")))
    for name in ("fine", "coarse", "mean", "scale"):
        ours, theirs = (getattr(view, name) for view in views)
        torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=1e-4, msg=name)
    assert len(list((tmp_path / "fields").iterdir())) == 4
    climate["tas"][30, 7, 11] = np.nan
    climate.to_netcdf(tmp_path / "gap.nc")
    gap = open_prepared(str(tmp_path / "gap.nc"), config)
    with pytest.raises(AleatorError, match="first at step 30"):
        fit_view(gap, config, gap.train)


def test_batches_from_disk_look_at_few_chunks(climate_files, settings, tmp_path, monkeypatch):
    config = settings()
    prepared = open_prepared(str(climate_files / "fine.nc"), config)
    config = settle(config, prepared.train.stop, prepared.fine.grid.shape)
    view = fit_view(prepared, config, prepared.train, Scratch(tmp_path / "fields"))
    monkeypatch.setattr("apps.climate_downscaling.residuals.BUFFER", 1)
    seen = []
    monkeypatch.setattr(
        type(view), "residual", lambda self, index, g: seen.append(index) or self.fine[index]
    )
    batches = make_batches([view], 64)
    for step in range(4):
        batches(step, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(seen).tolist()) == list(range(64))  # an epoch sees all, once
    for index in seen:  # 16 of the 32 of one chunk
        assert len(set((index // 32).tolist())) == 1


def test_members_to_judge_with_are_drawn_in_parts(climate_files, settings, monkeypatch):
    """However many are drawn in a batch, they are the same; none is lost."""
    config = settings()
    prepared = open_prepared(str(climate_files / "fine.nc"), config)
    config = settle(config, prepared.train.stop, prepared.fine.grid.shape)
    view = fit_view(prepared, config, prepared.train)
    torch.manual_seed(0)
    network = build(view.model.residual_config()).eval()
    judge = Validation.of(view, 0, len(view.fine), 5)
    whole = judge.draw(network, 3)
    monkeypatch.setattr("apps.climate_downscaling.residuals.MOST_DRAWN", 6 * whole[0, 0].numel())
    parts = judge.draw(network, 3)
    assert whole.shape == parts.shape == (3, 5, *view.fine.shape[1:])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_where_fields_go(tmp_path, monkeypatch):
    assert scratch_for(tmp_path, 1000, 1.0).folder is None
    assert scratch_for(tmp_path, 1000, 0.0).folder == tmp_path
    array = Scratch(tmp_path / "new").empty((3, 2))
    array[1] = 5.0
    assert np.fromfile(tmp_path / "new" / "000.float32", np.float32).sum() == 10
    assert run_of(torch.tensor([3, 4, 5])) == slice(3, 6)
    assert torch.is_tensor(run_of(torch.tensor([3, 5])))
    monkeypatch.setattr(scratch_module, "_free", lambda folder: 100)
    with pytest.raises(AleatorError, match="GiB are needed"):
        Scratch(tmp_path).empty((1000,))
    with pytest.raises(AleatorError, match="memory=-1"):
        read_config(None, {"memory": -1}, variables="tas", factor=2)
