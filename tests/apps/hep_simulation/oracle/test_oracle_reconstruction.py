"""The parametrised detector: resolutions and efficiencies are those it was given."""

import numpy as np
import pytest

from apps.hep_simulation.oracle.jets import heaviest, matched
from apps.hep_simulation.oracle.pythia import Jet
from apps.hep_simulation.oracle.reconstruction import (
    efficiency,
    reconstruct,
    tower_resolution,
    track_resolution,
)


def particles(count, pt, eta, pdg, charge, mass=0.0):
    phi = np.random.default_rng(5).uniform(-np.pi, np.pi, count)
    rows = [pt * np.cos(phi), pt * np.sin(phi), np.full(count, pt * np.sinh(eta))]
    energy = np.full(count, np.sqrt((pt * np.cosh(eta)) ** 2 + mass**2))
    return np.stack([*rows, energy, np.full(count, pdg), np.full(count, charge)], 1)


def test_muons_leave_tracks_with_the_efficiency_and_resolution():
    flow = reconstruct(particles(4000, 40.0, 1.0, 13, -3), np.random.default_rng(1))
    assert set(flow.pdg) == {-13.0}
    share = len(flow.pt) / 4000
    assert share == pytest.approx(0.95, abs=0.012)
    expected = track_resolution(np.array(40.0), np.array(1.0))
    assert (flow.pt / 40).std() == pytest.approx(expected, rel=0.05)
    assert flow.pt.mean() == pytest.approx(40, rel=0.002)


def test_photons_are_measured_by_towers():
    one = [
        reconstruct(particles(1, 60.0, 0.2, 22, 0), np.random.default_rng(k)) for k in range(600)
    ]
    energy = np.array([(f.pt * np.cosh(f.eta)).sum() for f in one])
    truth = 60 * np.cosh(0.2)
    width = tower_resolution(np.array(truth), np.array(0.2), False)
    assert energy.mean() == pytest.approx(truth, rel=0.005)
    assert energy.std() == pytest.approx(width, rel=0.12)
    assert {int(p) for f in one for p in f.pdg} == {22}


def test_neutrinos_and_what_is_too_far_forward_are_not_seen():
    for pdg, eta in ((12, 0.0), (22, 5.5)):
        flow = reconstruct(particles(50, 20.0, eta, pdg, 0), np.random.default_rng(1))
        assert len(flow.pt) == 0
    assert efficiency(np.array([50.0]), np.array([2.6]))[0] == 0
    assert efficiency(np.array([0.05]), np.array([0.0]))[0] == 0


def test_a_charged_pion_is_not_counted_twice():
    one = [
        reconstruct(particles(1, 30.0, 0.3, 211, 3), np.random.default_rng(k)) for k in range(400)
    ]
    total = np.array([(f.pt * np.cosh(f.eta)).sum() for f in one])
    found = np.array([(f.pdg == 211).any() for f in one])
    truth = 30 * np.cosh(0.3)
    assert np.median(total[found]) == pytest.approx(truth, rel=0.03)
    assert total[found].mean() < 1.35 * truth


@pytest.mark.exact
def test_flavours_and_matches():
    assert [heaviest(p) for p in (511, -5122, 421, 211, 5, 4122, 100553)] == [5, 5, 4, 0, 0, 4, 0]
    gen = [Jet(100, 0.0, 0.0, 1, ()), Jet(50, 0.1, 0.0, 1, ())]
    reco = [Jet(90, 0.02, 0.0, 1, ()), Jet(40, 0.03, 0.0, 1, ()), Jet(30, 2.0, 3.1, 1, ())]
    assert matched(reco, gen).tolist() == [0, 1, -1]
    assert matched(reco[2:], [Jet(30, 2.0, -3.15, 1, ())]).tolist() == [0]
