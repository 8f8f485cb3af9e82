"""Pythia behind our interface: events by number, jets as FastJet finds them, files."""

import numpy as np
import pytest

from core.errors import AleatorError
from core.random import keyed_generator

pytest.importorskip("pythia8mc")

from apps.hep_simulation.clouds.data import masses, read_clouds
from apps.hep_simulation.clouds.kinematics import axis
from apps.hep_simulation.clouds.observables import labelled
from apps.hep_simulation.clouds.simulate import Request
from apps.hep_simulation.clouds.simulate import run as simulate
from apps.hep_simulation.inference.data import read_sets
from apps.hep_simulation.jets.data import EventFile
from apps.hep_simulation.oracle import jets, lep
from apps.hep_simulation.oracle.clouds import RADIUS, CloudOracle
from apps.hep_simulation.oracle.pythia import LHC, PROCESSES, Pythia, stable


@pytest.fixture(scope="module")
def oracle():
    try:
        return CloudOracle("qcd", 100.0, 500.0)
    except AleatorError as error:  # installed, but without its data
        pytest.skip(str(error))


def test_an_event_does_not_depend_on_those_before(oracle):
    whole = oracle.sample(3, 0, 10)
    alone = oracle.sample(3, 7, 9)
    for row in range(2):
        n = alone.counts[row]
        assert n == whole.counts[7 + row]
        assert np.array_equal(alone.points[row, :n], whole.points[7 + row, :n])
    assert not np.array_equal(oracle.sample(4, 0, 10).pt, whole.pt)


def test_jets_are_in_range_and_keep_the_laws(oracle):
    found = oracle.sample(1, 0, 20)
    assert found.pt.min() > 99
    assert found.pt.max() < 501
    assert set(found.kind) <= {0, 1, 4, 5, 21}
    total = axis(found.points, found.mask)
    np.testing.assert_allclose(total.pt, 1, atol=1e-9)
    np.testing.assert_allclose(total.rapidity, 0, atol=1e-9)
    radius = np.hypot(found.points[:, :, 0], found.points[:, :, 1])[found.mask]
    assert radius.max() < 2.2 * RADIUS
    assert 0.5 < labelled(found)[:, 0].mean() < 0.7  # charged hadrons have about 60 % of the pT
    assert (masses(found) > 0).all()


@pytest.mark.exact
def test_jets_are_those_of_fastjet(oracle):
    fastjet = pytest.importorskip("fastjet")
    record = oracle.run.collide(keyed_generator(0, 12))
    rows = stable(record)
    seen = ~np.isin(np.abs(rows[:, 4]), (12, 14, 16))
    particles = [fastjet.PseudoJet(*map(float, row[:4])) for row in rows[seen]]
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, 0.4)
    expected = fastjet.ClusterSequence(particles, definition).inclusive_jets(20.0)
    expected = sorted((j.perp() for j in expected), reverse=True)
    found = oracle.run.jets(0.4, 20.0)
    np.testing.assert_allclose([j.pt for j in found], expected, rtol=1e-9)
    members = np.array(found[0].members)
    assert len(set(members)) == len(members) > 3
    assert all(record[int(i)].isFinal() for i in members)


def test_a_file_of_clouds_is_read_back(tmp_path):
    said = []
    simulate(Request(tmp_path / "c.hdf5", oracle="qcd", count=5, seed=2), said.append)
    assert len(read_clouds(tmp_path / "c.hdf5")) == 5
    assert "ms of CPU each" in said[0]
    for bad, message in (
        (Request(tmp_path / "d.hdf5", oracle="nothing"), "process 'nothing'; known: qcd"),
        (Request(tmp_path / "d.hdf5", oracle="qcd", range=(5, 9)), "20 ≤ low < high"),
        (Request(tmp_path / "d.hdf5", oracle="qcd", steps=3), "--steps"),
        (Request(tmp_path / "d.hdf5", oracle="qcd", kinds=(21,)), "draws its own jets"),
    ):
        with pytest.raises(AleatorError, match=message):
            simulate(bad)


def test_events_with_a_detector_are_what_train_objects_reads(tmp_path):
    done, by = jets.run("qcd", tmp_path / "e.root", 8, 1)
    assert done.made == 8
    assert "qcd" in by
    events = EventFile(tmp_path / "e.root", reconstructed=True).read(0, 8)
    assert events.gen.counts.sum() > 8
    index = events.reco.columns["genJetIdx"]
    pairs = index >= 0
    target = events.gen.starts[events.reco.event] + index
    ratio = events.reco.columns["pt"][pairs] / events.gen.columns["pt"][target[pairs]]
    assert 0.8 < np.median(ratio) < 1.1
    parts = ("chHEF", "neEmEF", "neHEF")
    assert sum(events.reco.columns[p] for p in parts).max() <= 1 + 1e-6
    again = jets.JetOracle().sample(1, 5, 6)
    last = events.reco.starts[5]
    np.testing.assert_allclose(
        again["Jet_pt"], events.reco.columns["pt"][last : last + again["Jet_count"][0]]
    )
    with pytest.raises(AleatorError, match=r"name it \*.root"):
        jets.run("qcd", tmp_path / "e.hdf5", 8, 1)


def test_theta_goes_in_and_observables_come_out(tmp_path):
    lep.run(tmp_path / "x.hdf5", 2, 30, 5)
    sets = read_sets(tmp_path / "x.hdf5", simulated=True)
    assert sets.x.shape == (2, 30, 12)
    assert (sets.x[:, :, 0] % 2 == 0).all()  # charges cancel
    one = lep.events(sets.theta[1], 4, 5, 1)
    np.testing.assert_allclose(one, sets.x[1, :4])
    hard, soft = (
        lep.events(lep.parameters(f"{alpha},0.7,0.3", 1, 0)[0], 150, 1, 0)[:, 4].mean()
        for alpha in (0.18, 0.10)
    )
    assert hard > soft  # more radiation with a stronger coupling
    for theta, message in (
        ("0.3,0.7,0.3", "alphaSvalue=0.3 is outside"),
        ("1,2", "three numbers"),
    ):
        with pytest.raises(AleatorError, match=message):
            lep.run(tmp_path / "y.hdf5", 1, 1, 0, theta=theta)


def test_a_setting_that_pythia_does_not_know_is_named():
    with pytest.raises(AleatorError, match="does not know the setting 'Nonsense:on=1'"):
        Pythia([*LHC, *PROCESSES["qcd"], "Nonsense:on=1"])
