"""The benchmark end to end against scikit-learn, from a network and from files."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from apps.anomaly_driving.data import open_data
from apps.anomaly_driving.evaluation import Options, closed_miou, evaluate
from apps.anomaly_driving.feature_scores import FlowDensity
from apps.anomaly_driving.files import write_score
from apps.anomaly_driving.fits import fit_scores, load_fits, save_fits
from apps.anomaly_driving.network import Scorer, open_network
from apps.anomaly_driving.segment_metrics import SegmentMetrics, Sizes
from apps.anomaly_driving.sources import FromFiles, FromNetwork, Spool
from core.errors import AleatorError

SIZE = (64, 96)


def quiet(message):
    del message


@pytest.fixture
def data(draw, tmp_path):
    return open_data(draw.plain(tmp_path / "p", 0, 0, 0, 1, 1, 255, frames=6, size=SIZE))


def as_files(folder, data, informative=1.5, name="mine"):
    rng = np.random.default_rng(0)
    kept = []
    for sample in data:
        value = rng.standard_normal(sample.size) + informative * (sample.anomaly == 1)
        write_score(folder / name / f"{sample.frame.key}.hdf5", value)
        kept.append((value.astype(np.float16), sample.anomaly))
    return kept


def test_equals_sklearn_on_all_pixels_of_a_network(driving_model, data):
    source = FromNetwork(Scorer(open_network(driving_model), ("msp", "hybrid")))
    found = evaluate(source, data, Options(draws=50), say=quiet)
    assert [row["score"] for row in found.rows] == ["msp", "hybrid"]
    for row in found.rows:
        scores = [source(sample).scores[row["score"]] for sample in data]
        labels = np.concatenate([sample.anomaly.ravel() for sample in data])
        flat = np.concatenate([s.ravel() for s in scores]).astype(float)
        judged = labels < 2
        ap = average_precision_score(labels[judged], flat[judged])
        assert row["ap"] == pytest.approx(ap, abs=1e-9)
        assert row["auroc"] == pytest.approx(roc_auc_score(labels[judged], flat[judged]), abs=1e-9)
        assert row["images_per_second"] > 0
        assert row["ap_low"] <= row["ap_high"]
        assert row["objects"] == 6
    assert found.against == "msp"
    assert set(found.ap_difference) == {"hybrid"}


def test_files_of_another_program_are_judged_alike(data, tmp_path):
    kept = as_files(tmp_path / "files", data)
    found = evaluate(FromFiles(tmp_path / "files", data), data, Options(draws=0), say=quiet)
    score = np.concatenate([s[label < 2] for s, label in kept]).astype(float)
    label = np.concatenate([label[label < 2] for _, label in kept])
    (row,) = found.rows
    assert row["score"] == "mine"
    assert row["ap"] == pytest.approx(average_precision_score(label, score), abs=1e-9)
    assert row["images_per_second"] is None
    flat = FromFiles(tmp_path / "files" / "mine", data)  # without a folder a score
    assert evaluate(flat, data, Options(draws=0), say=quiet).rows[0]["ap"] == row["ap"]


def test_files_are_found_by_their_frames(draw, driving_model, tmp_path):
    data = open_data(draw.camvid(tmp_path / "c", SIZE), hold_out=["bicyclist"])
    keys = [frame.key for frame in data.frames]
    assert keys[0] == "test/0001TP_006690"
    for i, key in enumerate(keys):
        write_score(tmp_path / f"flat/{key}.hdf5", np.full(SIZE, float(i)))
        write_score(tmp_path / f"two/a/{key}.hdf5", np.full(SIZE, float(i)))
        write_score(tmp_path / f"two/b/{key}.hdf5", np.full(SIZE, -float(i)))
    flat, two = FromFiles(tmp_path / "flat", data), FromFiles(tmp_path / "two", data)
    assert (flat.names, two.names) == (("flat",), ("a", "b"))  # splits are no scores
    for i, sample in enumerate(data):
        assert (flat(sample).scores["flat"] == i).all()
        assert (two(sample).scores["b"] == -i).all()
    # equal names in different splits: the short name would take one for another
    write_score(tmp_path / "short/0001TP_006690.hdf5", np.zeros(SIZE))
    with pytest.raises(AleatorError, match="no score of frame test/0001TP_006690"):
        FromFiles(tmp_path / "short", data)(next(iter(data)))
    one = open_data(tmp_path / "c", split="val")
    assert (FromFiles(tmp_path / "short", one)(next(iter(one))).scores["short"] == 0).all()
    with pytest.raises(AleatorError, match="no folder of score c in it; it has a, b"):
        FromFiles(tmp_path / "two", data, ("a", "c"))


def test_scores_beyond_the_budget_are_computed_again(driving_model, data):
    source = FromNetwork(Scorer(open_network(driving_model), ("energy",)))
    found = [
        evaluate(source, data, Options(sizes=Sizes(0, 0), draws=0, budget=b), say=quiet).rows[0]
        for b in (0, 30_000, 1 << 30)
    ]
    for row in found:
        del row["images_per_second"]
    assert found[0] == found[1] == found[2]


def test_the_spool_keeps_to_its_budget(driving_model, data, tmp_path):
    source = FromNetwork(Scorer(open_network(driving_model), ("energy",)))
    scored = [source(sample) for sample in data]
    spool = Spool(tmp_path, budget=int(2.5 * (2 + 1) * SIZE[0] * SIZE[1]))
    for i, one in enumerate(scored):
        spool.put(f"a/{i}", one)
    assert (spool.get("a/1").scores["energy"] == scored[1].scores["energy"]).all()
    assert (spool.get("a/1").classes == scored[1].classes).all()
    assert spool.get("a/2") is None
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_frozen_threshold_is_judged_beside_the_oracle(data, tmp_path):
    kept = as_files(tmp_path / "files", data, informative=3.0)
    options = Options(Sizes(0, 0), {"mine": 0.0}, draws=0)
    (row,) = evaluate(FromFiles(tmp_path / "files", data), data, options, say=quiet).rows
    assert row["frozen_f1"] < row["f1"]
    assert row["frozen_threshold"] == 0.0
    assert row["frozen_fpr"] == pytest.approx(0.5, abs=0.02)
    segments = SegmentMetrics(Sizes(0, 0))
    for score, label in kept:
        segments.add(score >= 0.0, label)
    assert row["frozen_mean_f1"] == segments.metrics()["mean_f1"]


def test_the_worst_frames_are_drawn(draw, data, tmp_path):
    as_files(tmp_path / "files", data, informative=4.0)
    worst = data.frames[3]
    write_score(tmp_path / f"files/mine/{worst.key}.hdf5", np.full(SIZE, -5.0))
    found = evaluate(
        FromFiles(tmp_path / "files", data),
        data,
        Options(draws=0, worst=2),
        pictures=tmp_path / "worst",
        say=quiet,
    )
    assert found.worst[0][0] == worst.key
    assert found.worst[0][1] == pytest.approx(1.0, abs=0.01)  # everything missed
    drawn = sorted(path.name for path in (tmp_path / "worst").iterdir())
    assert drawn[0] == f"01_{worst.key}.png"
    assert len(drawn) == 2


def test_closed_and_open_miou(draw, driving_model, tmp_path):
    data = open_data(draw.camvid(tmp_path / "c", SIZE), hold_out=["bicyclist"])
    network = open_network(driving_model)  # knows sky, road and car
    source = FromNetwork(Scorer(network, ("energy",)))
    (row,) = evaluate(source, data, Options(Sizes(0, 0), draws=0), say=quiet).rows
    closed = closed_miou(network, data, quiet)
    assert row["closed_miou"] == pytest.approx(closed)
    assert 0 <= row["open_miou"] <= closed  # anomalies and rejected pixels can only cost
    with pytest.raises(AleatorError, match="closed mIoU needs labels of the model's classes"):
        closed_miou(network, open_data(draw.plain(tmp_path / "p")), quiet)


def test_bad_benchmarks_are_refused(draw, driving_model, tmp_path):
    source = FromNetwork(Scorer(open_network(driving_model), ("energy",)))

    def refused(*ids, of=source):
        data = open_data(draw.plain(tmp_path / "p", *ids, size=SIZE))
        with pytest.raises(AleatorError) as found:
            evaluate(of, data, Options(draws=0), say=quiet)
        return str(found.value)

    assert "no anomalous pixel (label 1) in any frame" in refused(0, 255)
    assert "no known pixel (label 0) in any frame" in refused(1, 255)
    assert "no anomalous pixel" in refused(255)
    data = open_data(draw.plain(tmp_path / "p", 0, 1, size=SIZE))
    for sample in data:
        write_score(tmp_path / f"files/{sample.frame.key}.hdf5", np.ones(SIZE))
    files = FromFiles(tmp_path / "files", data)
    assert "score files is 1 at every pixel" in refused(0, 1, of=files)
    write_score(tmp_path / "files/001.hdf5", np.ones((64, 95)))
    assert "001.hdf5: scores of size 64×95 for an image of 64×96" in refused(0, 1, of=files)
    (tmp_path / "files/001.hdf5").unlink()
    assert "001.hdf5: no score of frame 001" in refused(0, 1, of=files)
    with pytest.raises(AleatorError, match="no such folder of score files"):
        FromFiles(tmp_path / "none", data)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(AleatorError, match="no score files in it"):
        FromFiles(tmp_path / "nothing", data)


def test_reversed_polarity_is_noticed(data, tmp_path):
    as_files(tmp_path / "files", data, informative=-2.0)
    said: list[str] = []
    evaluate(FromFiles(tmp_path / "files", data), data, Options(draws=0), say=said.append)
    assert any("below chance" in line and "sign reversed" in line for line in said)


def test_fits_are_kept_with_their_model(driving_model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(FlowDensity, "STEPS", 10)
    network = open_network(driving_model)
    names = ("std_max_logit", "mahalanobis", "knn", "energy+hybrid", "msp", "flow")
    fits = fit_scores(network, data.samples, names)
    assert set(fits) == {"std_max_logit", "mahalanobis", "knn", "energy+hybrid", "flow"}
    again = fit_scores(network, lambda: data.samples(workers=1, ahead=0), names)
    save_fits(tmp_path, fits, "m")
    kept = load_fits(tmp_path, "m")
    image = next(iter(data)).image
    found = [Scorer(network, tuple(fits), f)(image).scores for f in (fits, again, kept)]
    for name in fits:
        assert (found[0][name] == found[1][name]).all(), name
        assert (found[0][name] == found[2][name]).all(), name
        assert found[0][name].std() > 0
    assert set(load_fits(tmp_path, "m", ("energy+hybrid", "msp"))) == {"energy+hybrid"}
    with pytest.raises(AleatorError, match="fitted to another model"):
        load_fits(tmp_path, "other")


def test_nothing_known_cannot_be_fitted(draw, driving_model, tmp_path):
    data = open_data(draw.plain(tmp_path / "p", 1, 255, size=SIZE))
    with pytest.raises(AleatorError, match="no known pixel to fit a score to"):
        fit_scores(open_network(driving_model), data.samples, ("mahalanobis",))
