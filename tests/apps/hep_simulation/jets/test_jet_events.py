"""Whole events: reading, training, simulation, resume; and files that are refused."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from apps.hep_simulation.jets import features, simulate
from apps.hep_simulation.jets.baselines import NearestNeighbours, Smearing
from apps.hep_simulation.jets.data import EventFile
from apps.hep_simulation.jets.evaluation import scores
from apps.hep_simulation.jets.model import ObjectSimulator
from apps.hep_simulation.jets.pairs import pairs_of
from core.errors import AleatorError

ak = pytest.importorskip("awkward")
uproot = pytest.importorskip("uproot")

_spec = importlib.util.spec_from_file_location("toy_jets", Path(__file__).with_name("conftest.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


def run(source, model, output, **options):
    request = simulate.Request(output, source, model, **options)
    return simulate.run(request, say=lambda line: None)


def branches(path):
    return uproot.open(path)["Events"].arrays()


def test_pairs_are_those_of_the_index(events_root):
    pairs = pairs_of(EventFile(events_root, reconstructed=True).chunks(400))
    arrays = branches(events_root)
    matched = arrays.Jet_genJetIdx >= 0
    assert len(pairs.event) == ak.sum(matched)
    assert len(pairs.fake_event) == ak.sum(~matched)
    expected = ak.sum(arrays.GenJet_pt[arrays.Jet_genJetIdx[matched]])
    assert pairs.gen["pt"].sum() == pytest.approx(float(expected), rel=1e-6)
    assert pairs.found.mean() == pytest.approx(0.9, abs=0.02)


def test_simulated_events_are_like_those_of_training(events_root, jets_model, tmp_path):
    run(events_root, jets_model, tmp_path / "o.root", seed=1)
    made, real = branches(tmp_path / "o.root"), branches(events_root)
    matched = made.Jet_genJetIdx >= 0
    assert ak.sum(matched) / ak.sum(ak.num(real.GenJet_pt)) == pytest.approx(0.9, abs=0.03)
    assert ak.sum(~matched) / len(made) == pytest.approx(0.5, abs=0.12)
    response = made.Jet_pt[matched] / made.GenJet_pt[made.Jet_genJetIdx[matched]]
    assert float(ak.mean(np.log(response))) == pytest.approx(0, abs=0.02)
    assert float(ak.std(np.log(response))) == pytest.approx(0.1, abs=0.025)
    zeros = [float(ak.mean(a.Jet_neHEF[a.Jet_genJetIdx >= 0] == 0)) for a in (made, real)]
    assert zeros[0] == pytest.approx(zeros[1], abs=0.03)
    total = ak.flatten(made.Jet_chHEF + made.Jet_neEmEF + made.Jet_neHEF)
    assert float(ak.mean(abs(total - 1) > 1e-5)) < 0.005  # the toy has no other energy
    assert float(ak.max(total)) < 1 + 1e-6
    assert ak.all(made.Jet_pt[:, :-1] >= made.Jet_pt[:, 1:])
    assert np.array_equal(made.event, real.event)
    assert ak.all(made.GenJet_pt == real.GenJet_pt)


def test_an_event_does_not_depend_on_its_neighbours(events_root, jets_model):
    model, file = ObjectSimulator.load(jets_model), EventFile(events_root, reconstructed=False)
    whole = model.simulate(file.read(0, 100), seed=5)
    part = model.simulate(file.read(60, 70), seed=5)
    rows = (whole.event >= 60) & (whole.event < 70)
    for name, column in part.columns.items():
        assert np.allclose(column, whole.columns[name][rows], rtol=1e-5, atol=1e-6)
    other = model.simulate(file.read(60, 70), seed=6)
    assert other.counts.sum() != part.counts.sum() or not np.allclose(
        other.columns["pt"], part.columns["pt"]
    )


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
def test_a_stopped_run_gives_the_same_events(
    events_root, jets_model, tmp_path, monkeypatch, suffix
):
    monkeypatch.setattr(simulate, "CHUNK", 256)
    run(events_root, jets_model, tmp_path / f"a{suffix}")
    finish = simulate._keep
    calls = []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) > 3:
            raise KeyboardInterrupt
        finish(*arguments)

    monkeypatch.setattr(simulate, "_keep", dies)
    with pytest.raises(KeyboardInterrupt):
        run(events_root, jets_model, tmp_path / f"b{suffix}")
    assert not (tmp_path / f"b{suffix}").exists()
    monkeypatch.setattr(simulate, "_keep", finish)
    run(events_root, jets_model, tmp_path / f"b{suffix}")
    if suffix == ".root":
        a, b = (branches(tmp_path / name) for name in ("a.root", "b.root"))
        assert a.fields == b.fields
        assert all(ak.array_equal(a[name], b[name]) for name in a.fields)
    else:
        assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    facts = json.loads((tmp_path / f"b{suffix}.json").read_text())
    assert facts["events"] == 1500


def test_parquet_goes_in_again(events_root, jets_model, tmp_path):
    run(events_root, jets_model, tmp_path / "a.parquet", events=300)
    run(tmp_path / "a.parquet", jets_model, tmp_path / "b.root")
    assert EventFile(tmp_path / "b.root", reconstructed=True).num_events == 300


def test_log_prob_prefers_what_was_measured(events_root, jets_model):
    model = ObjectSimulator.load(jets_model)
    pairs = pairs_of(EventFile(events_root, reconstructed=True).chunks(400))
    good = model.log_prob(pairs.gen, pairs.reco).mean()
    off = {**pairs.reco, "pt": pairs.reco["pt"] * 1.3}
    assert good > model.log_prob(pairs.gen, off).mean() + 1


def test_baselines_and_scores(events_root):
    pairs = pairs_of(EventFile(events_root, reconstructed=True).chunks(400))
    rng = np.random.default_rng(0)
    near = NearestNeighbours.fit(pairs.gen, pairs.reco).sample(pairs.gen, rng)
    smeared = Smearing.fit(pairs.gen, pairs.reco, pt_bins=6).sample(pairs.gen, rng)
    same = scores(pairs.gen, pairs.reco, pairs.reco)
    assert same["w1"] == 0
    assert same["correlation"] == 0
    found, blunt = (scores(pairs.gen, made, pairs.reco) for made in (near, smeared))
    assert found["zeros"] < 0.02 < blunt["zeros"]
    assert found["integers"] < 1e-9 < blunt["integers"]


def test_jets_beyond_training_are_counted_or_refused(events_root, jets_model, tmp_path):
    events = toy.toy_events(50, seed=9)
    gen = events["GenJet"]
    events["GenJet"] = ak.with_field(gen, ak.values_astype(gen.pt * 50, np.float32), "pt")
    toy.write_root(tmp_path / "hard.root", events)
    facts = run(tmp_path / "hard.root", jets_model, tmp_path / "o.root")
    assert facts["outside"] > 0.5 * facts["gen_jets"]
    with pytest.raises(AleatorError, match="outside the conditions of training"):
        run(tmp_path / "hard.root", jets_model, tmp_path / "p.root", strict=True)


def spoiled(path, change):
    events = toy.toy_events(60, seed=2)
    change(events)
    toy.write_root(path, events)
    return path


def unequal(events):
    gen = events["GenJet"]
    flat = {f"GenJet_{name}": gen[name] for name in gen.fields if name != "eta"}
    longer = ak.concatenate([gen.eta, gen.eta[:, :1]], axis=1)
    events.pop("GenJet")
    events |= {**flat, "GenJet_eta": longer}


def with_value(record, name, value):
    def change(events):
        old = events[record]
        new = ak.where(ak.local_index(old[name]) == 0, value, old[name])
        kept = ak.values_astype(new, old[name].type.content.content.primitive)
        events[record] = ak.with_field(old, kept, name)

    return change


def without(record, name):
    def change(events):
        old = events[record]
        events[record] = ak.zip({k: old[k] for k in old.fields if k != name})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("Jet", "chHEF"), r"no branch Jet_chHEF; of Jet_\* it has Jet_pt, Jet_eta"),
        (unequal, "jagged branches must be equally long"),
        (with_value("Jet", "pt", np.nan), "Jet_pt=nan in event"),
        (with_value("GenJet", "pt", -3.0), "it must be positive"),
        (with_value("Jet", "genJetIdx", 99), "Jet_genJetIdx=99 in event .*, which has . GenJets"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, change, message):
    path = spoiled(tmp_path / "e.root", change)
    with pytest.raises(AleatorError, match=message):
        pairs_of(EventFile(path, reconstructed=True).chunks(50))


def test_an_index_beyond_cut_genjets_is_no_match_if_asked_for(tmp_path):
    path = spoiled(tmp_path / "e.root", with_value("Jet", "genJetIdx", 99))
    file = EventFile(path, reconstructed=True, cut_genjets=True)
    reco = file.read(0, 60).reco
    assert (reco.columns["genJetIdx"] == -1).sum() >= np.count_nonzero(reco.counts)


def test_files_that_are_none_are_refused(events_root, tmp_path):
    content = events_root.read_bytes()
    (tmp_path / "cut.root").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.root").write_text("no")
    (tmp_path / "text.parquet").write_text("no")
    with uproot.recreate(tmp_path / "other.root") as file:
        file["T"] = {"a": np.arange(3)}
    toy.write_root(tmp_path / "empty.root", toy.toy_events(0))
    for name, message in {
        "cut.root": "cut short", "text.root": "not ROOT", "text.parquet": "not Parquet",
        "other.root": "no tree 'Events'; it has T", "empty.root": "no events",
        "absent.root": "does not exist",
    }.items():  # fmt: skip
        with pytest.raises(AleatorError, match=message):
            list(EventFile(tmp_path / name, reconstructed=True).chunks(500))


def test_conditions_and_features_are_what_the_field_calls_them():
    gen = {k: np.array([v]) for k, v in zip(features.GEN, (50, 1, 3.1, 4.9, 5, 21), strict=True)}
    reco = {
        k: np.array([v]) for k, v in zip(features.RECO, (55, 1.1, -3.1, 4.9, 7, 0.5, 0.3, 0.2),
                                          strict=True)
    }  # fmt: skip
    seen = features.observed(gen, reco)[0]
    assert seen[:4] == pytest.approx([np.log(1.1), 0.1, 2 * np.pi - 6.2, 0])
    again = features.applied(gen, features.responses(gen, reco), {"nConstituents": np.array([7])})
    assert again["phi"] == pytest.approx(reco["phi"])
    assert features.conditions(gen)[0, 3:].tolist() == [1, 0, 1]
