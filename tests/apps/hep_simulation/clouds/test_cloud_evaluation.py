"""Scores: the floor is low, broken samples are seen, replay is found out."""

import json

import numpy as np
import pytest

from apps.hep_simulation.clouds.baselines import independent, replay
from apps.hep_simulation.clouds.evaluate import evaluate
from apps.hep_simulation.clouds.evaluation import Sample, coverage, memorised, scores
from apps.hep_simulation.clouds.simulate import save_clouds
from core.errors import AleatorError
from tests.apps.hep_simulation.clouds.conftest import made_up

TRAIN, TEST, OTHER = (made_up(1500, seed) for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def floor():
    return scores(Sample(TRAIN), Sample(TEST), seeds=(0,))


def test_equal_laws_are_not_told_apart(floor):
    assert 0.44 < floor["auc"] < 0.56
    assert floor["coverage"] > 0.4
    assert floor["w1_count"] < 0.4


def test_broken_ones_are_seen_where_they_are_broken(floor):
    wide = made_up(1500, 4)
    wide.points[:, :, :2] *= 1.1
    found = scores(Sample(wide), Sample(TEST), seeds=(0,))
    assert found["w1_mass"] > 3 * floor["w1_mass"]
    assert found["w1_eta"] > 2 * floor["w1_eta"]
    assert found["w1_count"] < 0.4
    assert found["auc"] > floor["auc"] + 0.02
    assert found["fpd"] > floor["fpd"]


def test_replay_is_found_out_and_fresh_jets_are_not():
    copied = memorised(replay(TRAIN, TEST), TRAIN, TEST)
    assert copied.ratio < 1e-3
    assert copied.replayed > 0.99
    fresh = memorised(OTHER, TRAIN, TEST)
    assert 0.9 < fresh.ratio < 1.1
    assert fresh.replayed < 0.05


def test_a_turned_copy_is_a_copy():
    found = replay(TRAIN, TEST)
    found.points[:, :, :2] = found.points[:, :, [1, 0]] * [1, -1]
    assert (
        memorised(found, TRAIN, TEST).ratio < 0.05
    )  # masses are those of a sphere, not of a plane


def test_replay_is_of_a_jet_of_like_condition():
    found = replay(TRAIN, TEST)
    assert (found.pt == TEST.pt).all()
    row = int(np.argmin(np.abs(np.log(TRAIN.pt / TEST.pt[0]))))
    assert np.isfinite(row)
    match = (TRAIN.points[:, 0, 2][:, None] == found.points[:, 0, 2]).argmax(0)
    assert (TRAIN.kind[match] == TEST.kind).all()
    assert np.abs(np.log(TRAIN.pt[match] / TEST.pt)).max() < 0.6


def test_independent_constituents_keep_marginals_alone():
    found = independent(TRAIN, TEST, seed=1)
    assert abs(found.counts.mean() - TEST.counts.mean()) < 0.4
    assert (found.points[~found.mask] == 0).all()
    again = independent(TRAIN, TEST, seed=1)
    assert np.array_equal(found.points, again.points)
    assert memorised(found, TRAIN, TEST).ratio > 0.8


def test_coverage_of_itself_is_whole():
    x = np.random.default_rng(0).normal(size=(300, 3))
    share, distance = coverage(x, x)
    assert share == 1
    assert distance == 0
    share, distance = coverage(np.repeat(x[:3], 100, 0), x)
    assert share == 0.01
    assert distance > 1


def test_a_report_has_the_floor_and_the_baselines(tmp_path, capsys):
    for name, jets in (("a", OTHER), ("b", TEST), ("t", TRAIN)):
        save_clouds(tmp_path / name, jets, {})
    evaluate(
        tmp_path / "a", tmp_path / "b", tmp_path / "r", train=tmp_path / "t", say=lambda _: None
    )
    rows = json.loads((tmp_path / "r" / "results.json").read_text())["scores"]
    names = [row["sample"] for row in rows]
    assert names[0] == "a"
    assert any("floor" in name for name in names)
    assert any("replay" in name for name in names)
    assert rows[0]["auc"] < 0.58
    assert "Scores" in (tmp_path / "r" / "report.md").read_text()
    drawn = sorted(path.name for path in (tmp_path / "r" / "figures").iterdir())
    assert drawn == ["spectra.png", "substructure.png"]
    with pytest.raises(AleatorError, match="holds a report"):
        evaluate(tmp_path / "a", tmp_path / "b", tmp_path / "r")
    save_clouds(tmp_path / "few", TEST.rows(slice(0, 100)), {})
    with pytest.raises(AleatorError, match="100 jets; at least 1200"):
        evaluate(tmp_path / "few", tmp_path / "b", tmp_path / "s")
