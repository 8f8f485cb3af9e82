"""The benchmark: counts become metrics, gains are paired, nothing is made twice."""

import argparse
import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from apps.anomaly_driving.bootstrap import FrameCounts
from apps.anomaly_driving.pixel_metrics import PixelCounts, frame_counts
from apps.anomaly_driving.using import BUNDLED_MODEL
from core.errors import AleatorError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    """The module of the benchmark."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("driving")


@pytest.fixture
def tables(bench):
    """That of its tables."""
    return importlib.import_module("driving_tables")


def frames(strength, count=6):
    """Scores (H, W) float16 and labels of frames; anomalies are `strength` higher."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        labels = (rng.random((20, 30)) < 0.1).astype(np.uint8)
        noise = rng.normal(size=labels.shape)
        yield (noise + strength * labels).astype(np.float16), labels


def counted(bench, strength):
    pixels, by_frame = PixelCounts(), FrameCounts()
    for score, labels in frames(strength):
        found = frame_counts(score, labels)
        pixels.add(found)
        by_frame.add(found)
    return bench.Counts(pixels.counts, by_frame.array())


@pytest.mark.exact
def test_counts_become_sklearns_metrics(bench):
    scores, labels = (
        np.concatenate([a.ravel() for a in part]) for part in zip(*frames(1.5), strict=True)
    )
    found = counted(bench, 1.5).metrics()
    assert found["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)


def made(bench, strengths):
    """What `set_tables` takes: (row, seed) -> counts of every score."""
    return {
        key: {name: counted(bench, strength) for name in bench.DEFAULT}
        for key, strength in strengths.items()
    }


def test_tables_of_a_set(bench, tables):
    rows = {"none": "no negatives", "flow": "flow, joint", "vae": "VAE"}
    found = made(bench, {("none", 0): 0.5, ("flow", 0): 2.0})
    ap, fpr95, auroc, gain = tables.set_tables("a_set", rows, found)
    assert [row["negatives"] for row in ap.rows] == ["no negatives", "flow, joint"]
    assert ap.rows[1]["energy"] > ap.rows[0]["energy"] + 20
    assert fpr95.rows[1]["msp"] < fpr95.rows[0]["msp"]
    assert auroc.rows[1]["jsd"] > 90
    assert (ap.best["energy"], fpr95.best["energy"]) == ("max", "min")
    assert "d_out" not in ap.rows[0]  # its head was never trained
    (line,) = gain.rows
    value, low = line["energy"].split()[0], line["energy"].split("[")[1].split(",")[0]
    assert float(value) == pytest.approx(ap.rows[1]["energy"] - ap.rows[0]["energy"], abs=1.0)
    assert float(low) > 0


def test_seeds_are_averaged_and_their_range_is_told(bench, tables):
    rows = {"none": "no negatives", "flow": "flow, joint", "vae": "VAE"}
    strengths = {("none", 0): 0.5, ("none", 2): 0.7, ("flow", 0): 2.0, ("flow", 1): 3.0}
    strengths |= {("flow", 2): 1.5, ("vae", 0): 1.0}
    found = made(bench, strengths)
    each = {key: 100 * counts["energy"].metrics()["ap"] for key, counts in found.items()}
    ap, *_, ap_range, fpr95_range, gains = tables.set_tables("a_set", rows, found)
    titles = [row["negatives"] for row in ap.rows]
    assert titles == ["no negatives (seeds 0, 2)", "flow, joint (seeds 0, 1, 2)", "VAE"]
    flows = [each["flow", seed] for seed in (0, 1, 2)]
    assert ap.rows[1]["energy"] == pytest.approx(np.mean(flows))
    assert [row["negatives"] for row in ap_range.rows] == titles[:2]
    assert not ap.best  # rows of different seeds are not ranked
    assert ap_range.rows[1]["energy"] == f"{min(flows):.1f} to {max(flows):.1f}"
    assert "FPR95" in fpr95_range.title
    (line,) = gains.rows  # in pairs of one seed: not of seed 1, which no negatives lacks
    assert line["negatives"] == "flow, joint (seeds 0, 2)"
    pairs = sorted(each["flow", seed] - each["none", seed] for seed in (0, 2))
    expected = f"{np.mean(pairs):+.1f} ({pairs[0]:+.1f} to {pairs[1]:+.1f})"
    assert line["energy"] == expected


def test_lost_miou_is_of_the_same_seed(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "read_frames", lambda *_, **__: argparse.Namespace(every=str))
    monkeypatch.setattr(bench, "known_quality", lambda folder, _: quality[folder.name])
    quality = {
        name: {"miou": miou, **{f"seam_{score}": 0.5 for score in bench.SEAM}}
        for name, miou in {
            **{"base": 30.0, "none_9_0": 40.0, "none_9_1": 42.0},
            **{"flow_9_0": 39.5, "flow_9_1": 41.0, "vae_9_1": 41.5, "vae_9_2": 43.5},
        }.items()
    }
    models = [("none", 0), ("none", 1), ("flow", 0), ("flow", 1), ("vae", 1), ("vae", 2)]
    options = argparse.Namespace(
        data=tmp_path, models=tmp_path, steps=9, light=False, set=["a.b=1"]
    )
    rows = {**bench.ROWS}
    base, none, vae, flow = bench.closed_table(rows, models, options).rows
    assert (base["miou"], none["miou"], none["range"]) == (30.0, 41.0, "40.0 to 42.0")
    assert flow["change"] == "-0.8 (-1.0 to -0.5)"
    assert (vae["seeds"], vae["miou"], vae["change"]) == ("1, 2", 42.5, "-0.5")
    assert "change" not in none


def test_rows_differ_in_their_negatives_alone(bench, tmp_path):
    (tmp_path / "coco_cutouts" / "nc").mkdir(parents=True)
    plain = bench.row_config("none", tmp_path, tmp_path / "models", 9).to_dict()
    for name in bench.ROWS:
        row = bench.row_config(name, tmp_path, tmp_path / "models", 9).to_dict()
        differing = {key for key in row if row[key] != plain[key]}
        assert differing <= {"negatives"} | ({"loss"} if name == "light" else set())
        assert row["fit"]["steps"] == 9
        assert row["negatives"]["kind"] in (name, "diffusion", "paste")
        more = {"loss": bench.LIGHT, "augment": {"fade": 0.4}}
        light = bench.row_config(name, tmp_path, tmp_path / "models", 9, more).to_dict()
        assert light["augment"] == row["augment"] | {"fade": 0.4}
        assert light["negatives"] == row["negatives"]
        assert {k: light["loss"][k] for k in bench.LIGHT} == bench.LIGHT
        kept = {"placement", "patch", "temperature"}
        assert all(row["negatives"][key] == plain["negatives"][key] for key in kept)


def test_what_is_trained_and_scored_is_not_made_again(bench, tmp_path):
    folder = bench.model_folder(tmp_path, "none", 0, 9)
    for made in (tmp_path / "base", folder):
        made.mkdir(parents=True)
        (made / "model.json").write_text("{}")
    assert bench.train_row("none", 0, tmp_path / "no_data", tmp_path, 9) == folder
    arrays = {f"{name}/pooled": np.eye(2) for name in bench.DEFAULT}
    arrays |= {f"{name}/frames": np.ones((3, 2, 4)) for name in bench.DEFAULT}
    np.savez_compressed(folder / "counts_a_set_own.npz", **arrays)
    options = argparse.Namespace(
        models=tmp_path, steps=9, longer_side=None, data=tmp_path, scores="jsd,energy"
    )
    found = bench.counts("none", 0, "a_set", options)
    assert list(found) == ["jsd", "energy"]
    assert len(found["jsd"]) == 3
    kept = bench.counts_file("none", 0, "a_set", options)
    assert bench.holds(kept, ["hybrid", "msp"])
    assert not bench.holds(kept, ["msp", "energy+jsd"])  # to be scored again


def test_a_set_is_scored_with_ensembles_of_known_scales(bench, tmp_path):
    known = tmp_path / "camvid" / "train"
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3), np.uint8)
    for part in ("images", "labels"):
        (known / part).mkdir(parents=True)
    for index, image in enumerate(pixels):
        cv2.imwrite(str(known / "images" / f"{index}.png"), image)
        cv2.imwrite(str(known / "labels" / f"{index}.png"), np.zeros((64, 96), np.uint8))
    names = ("energy", "jsd", "energy+jsd")
    network, data = bench.open_network(BUNDLED_MODEL), bench.open_data(known)
    fits = bench.ensembles(network, tmp_path, names)
    assert list(fits) == ["energy+jsd"]
    found = bench.score_set(network, data, names, fits)
    assert found["energy+jsd"].frames[:, 0].sum() == 2 * 64 * 96  # all of them known
    assert bench.ensembles(network, tmp_path / "nowhere", names[:2]) == {}
    with pytest.raises(AleatorError, match="has to be fitted"):
        bench.score_set(network, data, names)


def test_tables_have_the_scores_that_were_measured(bench, tables):
    found = {
        (row, 0): {name: counted(bench, strength) for name in ("d_out", "energy+jsd")}
        for row, strength in (("none", 0.5), ("flow", 2.0))
    }
    ap, *_, gain = tables.set_tables("a_set", {"none": "none", "flow": "flow"}, found)
    assert list(ap.columns) == ["negatives", "d_out", "energy+jsd"]
    assert "d_out" not in ap.rows[0]
    assert "d_out" in ap.rows[1]
    assert list(gain.rows[0]) == ["negatives", "energy+jsd"]
