"""The yardsticks of the flow benchmarks: splits that do not leak, turns that are fair."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    """Import a module of the benchmarks by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def folder(tmp_path):
    """A table of a normal column, a die, an atom with a tail, and a constant."""
    rng = np.random.default_rng(1)
    normal = rng.normal(size=(600, 2))
    die = rng.integers(0, 6, 600)
    atom = np.where(rng.random(600) < 0.4, 0.0, rng.normal(size=600))
    x = np.column_stack([normal, die, atom, np.full(600, 3.0)])
    np.savetxt(tmp_path / "protein.csv.gz", x, delimiter=",")
    return tmp_path


def test_splits_are_fixed_disjoint_and_standardised_on_the_training_part(bench, folder):
    tables = bench("density_tables")
    split, again = (tables.load("protein", folder, False) for _ in range(2))
    assert torch.equal(split.train, again.train)
    parts = (split.train, split.valid, split.test)
    assert [len(part) for part in parts] == [480, 60, 60]
    assert split.dims == 4  # the constant is left out
    assert split.train.mean(0).abs().max() < 1e-5
    assert (split.train.std(0, correction=0) - 1).abs().max() < 1e-5
    seen = [set(map(tuple, part[:, :2].tolist())) for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]


def test_spreading_leaves_no_value_twice(bench, folder):
    tables = bench("density_tables")
    split, raw = tables.load("protein", folder, True), tables.load("protein", folder, False)
    assert split.spread == 2
    assert len(raw.train[:, 2].unique()) == 6
    for column in split.train.T:
        assert len(column.unique()) == len(column)


@pytest.mark.slow
def test_a_race_counts_only_its_own_seconds(bench, folder):
    density, tables = bench("density"), bench("density_tables")
    density.warm_up()
    found = density.race(tables.load("protein", folder, True), 3.0, peer=True)
    assert found["ours_steps"] > 0
    assert found["zuko_steps"] > 0
    assert found["candidate"] in ("plain", "whitened", "mixture")
    assert math.isfinite(found["ours"] + found["zuko"])
    assert found["ours_best"] <= found["ours_steps"]


def test_ratios_are_over_the_networks_of_the_same_kind(bench):
    flows = bench("flows")
    times = {
        (6, "bare networks", "step"): 2.0,
        (6, "bare networks", "log_prob"): 1.0,
        (6, "bare networks of couplings", "step"): 4.0,
        (6, "bare networks of couplings", "log_prob"): 2.0,
    }
    for name, scale in (("aleator", 1.0), ("zuko", 3.0), ("nflows coupling", 2.0)):
        for verb in ("step", "log_prob", "sample"):
            times[6, name, verb] = 6.0 * scale
    rows = {row["flow"]: row for row in flows.discrete_rows(times)}
    assert rows["aleator"]["step ratio"] == 3.0
    assert rows["aleator"]["log_prob ratio"] == 6.0
    assert rows["aleator"]["sample ratio"] == 3.0
    assert rows["nflows coupling"]["step ratio"] == 3.0
    assert "step ratio" not in rows["bare networks"]


def test_bare_networks_are_those_of_the_flow(bench):
    flows = bench("flows")
    ours = flows.ours(6, False, True)[0]
    bare = flows.Bare(6, True)
    assert sum(p.numel() for p in bare.parameters()) == sum(p.numel() for p in ours.parameters())
    assert [h.shape for h in bare(torch.zeros(2, 6))] == [(2, 6 * 23)] * 5


def test_sizes_come_close_to_the_budget(bench):
    images = bench("images")
    made = images.Images("digits", 17, (torch.zeros(1, 1, 8, 8),) * 3, (), torch.zeros(0))
    for name, make in images.configs(made).items():
        config, count = images.sized(make, 20_000)
        assert abs(count / 20_000 - 1) < 0.25, name
        assert config["levels"] == 17


def test_auroc_of_separate_scores_is_one(bench):
    images = bench("images")
    assert images.auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert images.auroc(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])) == 0.25
