"""A run that was begun by an earlier version is gone on with; another one is refused at once."""

import dataclasses

import pytest
import torch

from apps.climate_downscaling import train as training
from apps.climate_downscaling.prepare import open_prepared
from apps.climate_downscaling.train import _job, settle, train
from core.errors import AleatorError
from core.training.fit import STATE
from core.training.state import Progress, begun_with, save_state

NEW = ("ordered", "time_range", "region")


@pytest.fixture
def begun(climate_files, settings, tmp_path):
    """A folder with the state of a run, what was prepared, and its settled config."""
    prepared = open_prepared(str(climate_files / "fine.nc"), settings())
    config = settle(settings(), 80, prepared.fine.grid.shape)
    save(tmp_path, {"data": prepared.fingerprint(), "config": config.to_dict()})
    return tmp_path, prepared, config


def save(folder, job):
    module = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(module.parameters())
    save_state(folder / STATE, Progress(), {"model": module.state_dict()}, optimizer, job)


def test_options_that_have_come_since_do_not_count(begun):
    folder, prepared, config = begun
    old = config.to_dict()
    for name in NEW:
        del old[name]
    del old["residual"]["crop"]
    save(folder, {"data": prepared.fingerprint(), "config": old})
    assert _job(folder, prepared, config, True)["config"] == old  # what `fit` will find there
    assert _job(folder, prepared, config, False)["config"] == config.to_dict()
    assert begun_with(folder / STATE)["config"] == old
    assert begun_with(folder / "nothing") == {}


def test_old_runs_of_ordered_variables_were_not_ordered(begun):
    folder, prepared, config = begun
    both = dataclasses.replace(config, variables=("tas", "tasmax"))
    old = both.to_dict()
    del old["ordered"]
    save(folder, {"data": prepared.fingerprint(), "config": old})
    with pytest.raises(AleatorError, match="this run was begun with config="):
        _job(folder, prepared, both, True)
    free = dataclasses.replace(both, ordered=False)
    assert _job(folder, prepared, free, True)["config"] == old


def test_another_run_is_refused_before_anything_is_fitted(
    begun, climate_files, settings, monkeypatch
):
    folder, prepared, config = begun
    (folder / "model" / "training").mkdir(parents=True)
    other = {"data": "0123456789abcdef", "config": config.to_dict()}
    save(folder / "model" / "training", other)

    def never(*arguments, **options):
        raise AssertionError("it was fitted first")

    monkeypatch.setattr(training, "fit_view", never)
    with pytest.raises(AleatorError, match="begun with data='0123456789abcdef', not "):
        train(
            str(climate_files / "fine.nc"),
            folder / "model",
            settings(),
            resume=True,
            say=lambda line: None,
        )
    changed = dataclasses.replace(config, fit=dataclasses.replace(config.fit, steps=7))
    with pytest.raises(AleatorError, match="this run was begun with config="):
        _job(folder, prepared, changed, True)
