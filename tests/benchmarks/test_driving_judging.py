"""The benchmarks of the evaluator, of speed and of thresholds measure what they say."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.using import BUNDLED_MODEL
from core.errors import AleatorError
from core.report import Table, write_results

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    """Import a module of the benchmarks by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_evaluator_is_compared_on_the_same_pixels(bench):
    module = bench("driving_evaluator")
    rows, count = module.compared(20_000, (40, 60))
    assert count == 8
    streamed, of_stored, exact, reference = rows
    for name in ("ap", "fpr95", "auroc"):
        assert streamed[name] == pytest.approx(of_stored[name], abs=1e-9)
        assert exact[name] == pytest.approx(reference[name], abs=1e-9)
        assert streamed[name] == pytest.approx(reference[name], abs=0.1)
    found = module.stream(8, (40, 60))
    assert found["ap"] == pytest.approx(streamed["ap"])
    assert found["low"] < found["ap"] < found["high"]


def test_frames_are_a_function_of_their_index(bench):
    module = bench("driving_evaluator")
    score, label = module.frame(3, (40, 60))
    again = module.frame(3, (40, 60))
    assert (score == again[0]).all()
    assert (label == again[1]).all()
    assert set(np.unique(label)) == {0, 1, 255}
    assert 1 not in module.frame(4, (40, 60))[1]


def test_a_score_costs_its_time_on_top_of_the_network(bench):
    module = bench("driving_speed")

    def network(x):
        torch.linalg.matrix_power(torch.eye(300), 40)
        return Outputs(torch.rand(1, 5, *x.shape[2:]), torch.rand(1, *x.shape[2:]), torch.rand(1))

    found = module.measure(network, ("energy", "hybrid"), (64, 64), 3)
    assert set(found) == {"plain", "energy", "hybrid"}
    assert all(found[name] > found["plain"] > 0 for name in ("energy", "hybrid"))


def test_halves_are_halves_and_a_drive_is_cut_where_it_goes_round(bench):
    module = bench("driving_thresholds")
    for way in ("random halves", "the drive cut in two"):
        first, second = module.halves(21, way, 4)
        assert sorted([*first, *second]) == list(range(21))
        assert (len(first), len(second)) == (10, 11)
    assert ((np.diff(first) == 1) | (np.diff(first) == -20)).all()


def test_coverage_of_exchangeable_frames_is_near_nominal(bench):
    from apps.anomaly_driving.pixel_metrics import frame_counts

    module = bench("driving_thresholds")
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(80):
        score = (rng.standard_normal((1, 500)) + 0.4 * rng.standard_normal()).astype(np.float16)
        counts = frame_counts(score, np.zeros((1, 500), np.uint8))
        ranks = np.flatnonzero(counts.any(0))
        frames.append((ranks, counts[:, ranks]))
    found = module.coverage(frames, "random halves", "fpr", 0.05, 10)
    assert found["mean"] == pytest.approx(5, abs=1)
    assert found["drives"] >= 60  # nominal 90, ten splits of the same frames
    assert found["frames"] == pytest.approx(92, abs=7)


def test_tables_are_added_to_those_of_the_same_models_alone(bench, tmp_path):
    module = bench("driving_bundled")
    path = tmp_path / "driving_bundled.json"
    assert module.earlier(path, ["a", "b"]) == []
    table = Table([{"score": "energy", "ap": 12.5}], {"score": "score", "ap": "AP %"})
    write_results(path, [table], models=["a", "b"])
    (kept,) = module.earlier(path, ["a", "b"])
    assert kept.rows == table.rows
    with pytest.raises(AleatorError, match=r"of other models than c, b; leave --add out"):
        module.earlier(path, ["c", "b"])


def test_models_fresh_from_training_look_as_the_bundled_one_and_others_as_they_say(
    bench, tmp_path
):
    module = bench("driving_bundled")
    bundled = module.load(module.BUNDLED_MODEL)
    looks = ((1.0,), 1.0), ((1.0, 0.5), 0.9)
    for name, (scales, colours) in zip(("fresh", "own"), looks, strict=True):
        bundled.config = dataclasses.replace(bundled.config, scales=scales, colours=colours)
        bundled.save(tmp_path / name)
    shipped = module.load(module.BUNDLED_MODEL).config
    fresh, own = (module.looking_alike(tmp_path / name).model.config for name in ("fresh", "own"))
    assert (fresh.scales, fresh.colours) == (shipped.scales, shipped.colours)
    assert (own.scales, own.colours) == ((1.0, 0.5), 0.9)


def test_rows_of_a_held_out_class_never_see_it_and_differ_in_their_negatives_alone(
    bench, tmp_path
):
    module = bench("driving_held_out")
    base = module.held_out(module.base_config(7))
    assert (base.held_out, base.negatives.kind, base.fit.steps) == ("bicyclist", "none", 7)
    assert base.fit.stop_at == 0
    plain, other = (
        module.held_out(module.driving.row_config(name, tmp_path, tmp_path, 9)).to_dict()
        for name in ("none", "diffusion")
    )
    assert {key for key in plain if plain[key] != other[key]} == {"negatives"}
    assert plain["held_out"] == other["held_out"] == "bicyclist"


def test_means_are_of_as_many_models_each_and_made_once(bench, tmp_path):
    module = bench("driving_means")
    assert {len(set(members)) for members in module.MEANS.values()} == {6}
    assert set(module.MEANS) == set(module.TITLES)
    assert all(kind == "none" for kind, _ in module.MEANS["none"])
    assert module.told(module.MEANS["simulated"]) == "flow 0 1 2, diffusion 0 1 2"
    model = bench("driving_bundled").load(BUNDLED_MODEL)
    for name in "ab":
        model.save(tmp_path / name)
        with torch.no_grad():
            next(model.parameters()).add_(1)
    module.mean_of(tmp_path / "mean", [tmp_path / "a", tmp_path / "b"])
    first, mean = (next(module.driving.load(tmp_path / n).parameters()) for n in ("a", "mean"))
    assert torch.allclose(mean, first + 0.5, atol=1e-5)
    module.mean_of(tmp_path / "mean", [])  # it is there


def test_models_are_compared_on_frames_of_every_object(bench, tmp_path):
    module = bench("driving_choice")
    objects, numbers = 6, range(101)  # static_val shows six objects in turn
    for name in ("static_val", "static_shift"):
        seen = {number % objects for number in numbers[:: module.EVERY[name]]}
        assert seen == set(range(objects))
    rows = [{"model": "a", "score": "jsd", "miou": 41.43, "mean": module.pair(32.84, 56.28)}]
    text = module.table_of(rows).markdown()
    assert "41.4" in text
    assert "32.8 / 56.3" in text


def test_a_choice_may_be_added_to(bench, tmp_path):
    module = bench("driving_choice")
    path = tmp_path / "driving_choice.json"
    assert module.earlier(path, ["b"], ["energy"]) == []
    rows = [
        {"model": name, "score": score, "miou": 41.4}
        for name, score in (("a", "energy"), ("b", "energy"), ("b", "jsd"))
    ]
    write_results(path, [module.table_of(rows)])
    kept = module.earlier(path, ["b", "c"], ["jsd", "msp"])
    assert kept == rows[:2]
    old = [{"model": "a", "miou": 41.4}]  # before a score could be chosen
    write_results(path, [module.table_of(old)])
    assert module.earlier(path, ["b"], ["jsd"]) == [{**old[0], "score": "energy"}]
    assert module.earlier(path, ["a"], ["energy"]) == []
    assert module.titled(Path("models/b"), 1.0) == "b"
    assert module.titled(Path("models/b"), 0.6) == "b, 0.6 of the colours"
