"""The parts of the climate benchmarks that could be wrong without anybody noticing."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from adapt import distances
from climate_peers import UNetRegression, XsdbaMapping
from climate_scale import fields, memory, write
from climate_steps import joined, table
from piecewise import added
from warming import OnAnomalies

from apps.climate_downscaling.baselines import Ridge
from core.report import Table, write_results
from core.training import FitConfig


def climate(steps=200, seed=0):
    g = torch.Generator().manual_seed(seed)
    coarse = 280 + 2 * torch.randn(steps, 2, 3, generator=g)
    pattern = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    up = coarse.repeat_interleave(2, -2).repeat_interleave(2, -1)
    return coarse, up + pattern * (1 + 0.1 * (up - 280))


def test_a_baseline_on_anomalies_does_not_extrapolate_the_level():
    coarse, fine = climate()
    method = OnAnomalies(Ridge(strength=1.0)).fit(coarse, fine)
    change = method.predict(coarse + 7) - method.predict(coarse)
    torch.testing.assert_close(change, torch.full_like(change, 7.0), atol=1e-3, rtol=0)


def test_a_unet_learns_a_fixed_pattern_that_interpolation_does_not_know():
    coarse, fine = climate()
    options = FitConfig(steps=60, batch_size=16, warmup=5, learning_rate=5e-3, log_every=60)
    network = UNetRegression(torch.zeros(1, 4, 6), options, channels=8).fit(coarse, fine)
    new_coarse, new_fine = climate(seed=5)
    drawn = network.predict(new_coarse, 4)
    assert drawn.shape == (1, 200, 4, 6)
    before = (network._base(new_coarse)[:, 0] - new_fine).square().mean()
    assert (drawn[0] - new_fine).square().mean() < 0.5 * before
    dry = UNetRegression(torch.zeros(1, 4, 6), options, channels=8, nonnegative=True)
    assert dry.fit(coarse - 285, fine - 285).predict(coarse - 285).min() >= 0


def test_xsdba_maps_the_quantiles_of_a_cell():
    pytest.importorskip("xsdba")
    coarse, fine = climate(400)
    drawn = XsdbaMapping().fit(coarse, fine).predict(coarse)[0]
    for level in (0.1, 0.5, 0.9):
        torch.testing.assert_close(
            drawn.quantile(level, 0), fine.quantile(level, 0), atol=0.2, rtol=0
        )


@pytest.mark.exact
def test_distances_are_zero_of_the_same_and_known_of_a_shift():
    x = np.random.default_rng(0).standard_normal((300, 2, 3, 4))
    same = distances(x, x)
    for name in ("marginal", "q99", "space", "between"):
        assert same[name] == pytest.approx(0, abs=1e-12)
    moved = distances(x + 0.5 * x.std(0), x)
    assert moved["marginal"] == pytest.approx(0.5, abs=1e-6)
    assert moved["q99"] == pytest.approx(0.5, abs=1e-6)
    assert moved["space"] == pytest.approx(0, abs=1e-12)
    assert moved["energy"] > same["energy"] + 0.1


def test_the_series_of_the_scale_benchmark(tmp_path):
    write(tmp_path / "fine.zarr", 3, 15.0, seed=1)
    write(tmp_path / "coarse.zarr", 3, 15.0, seed=1, average=2)
    with xr.open_zarr(tmp_path / "fine.zarr") as a, xr.open_zarr(tmp_path / "coarse.zarr") as b:
        fine, coarse = a["tas"].values, b["tas"].values
        area = np.cos(np.deg2rad(a["lat"].values))
    assert fine.shape == (3, 12, 24)
    top = (fine[1, :2, :2] * area[:2, None]).sum() / area[:2].sum() / 2
    assert coarse[1, 0, 0] == pytest.approx(top, abs=1e-3)
    axes = np.arange(-82.5, 90, 15), np.arange(7.5, 360, 15)
    np.testing.assert_allclose(list(fields(3, *axes, seed=1)), fine, rtol=1e-6)
    assert memory(os.getpid()) > 20
    assert memory(2**30) == 0


def test_a_table_of_samplers_is_made_row_by_row(tmp_path):
    """New rows join, rows made again replace; the change is from 2m at the most evaluations."""

    def row(sampler, evaluations, crps):
        return {"sampler": sampler, "evaluations": evaluations, "crps": crps}

    path = tmp_path / "results.json"
    first = table([row("2m", 32, 2.0), row("2m", 4, 3.0)], "tas")
    other = Table([{"a": 1}], {"a": "a"}, title="other")
    write_results(path, [first, other], made_by={"command": "first"})
    new = table([row("angle", 4, 2.1), row("2m", 4, 2.5)], "tas")
    tables, made_by = added(path, [new], joined)
    assert [found.title for found in tables] == ["tas", "other"]
    assert [(r["sampler"], r["evaluations"]) for r in tables[0].rows] == [
        ("2m", 32),
        ("2m", 4),
        ("angle", 4),
    ]
    assert [r["change"] for r in tables[0].rows] == pytest.approx([0, 25, 5])
    assert made_by["command"].startswith("first\n")
    assert added(tmp_path / "none.json", [new])[0] == [new]
    assert added(path, [new])[0][0] == new
