"""Geant4 behind the interface of the models; most of it where its data sets are installed."""

import os

import h5py
import numpy as np
import pytest

from apps.hep_simulation.conditions import Listed, Spectrum
from apps.hep_simulation.geometry import read_geometry
from apps.hep_simulation.oracle.detector import PAR04, Detector
from apps.hep_simulation.oracle.geant4 import DATA, Geant4
from apps.hep_simulation.simulate import Request, Simulator, bundled, run
from core.errors import AleatorError

here = pytest.mark.skipif(
    not os.environ.get("G4LEDATA"), reason="Geant4's data sets are not installed"
)


@pytest.fixture(scope="module")
def geant4():
    pytest.importorskip("geant4_pybind")
    return Simulator.oracle()


def test_data_sets_are_never_fetched_behind_the_users_back(monkeypatch):
    for name in DATA:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Geant4, "_running", None)
    with pytest.raises(AleatorError, match="set GEANT4_DATA_DIR"):
        Simulator.oracle()


def test_a_model_and_an_oracle_at_once_are_refused(tmp_path):
    one = Listed(np.array([1e3]), np.array([11]))
    both = Request(one, tmp_path / "o.hdf5", model=tmp_path, oracle="par04")
    with pytest.raises(AleatorError, match="--model or --oracle, not both"):
        run(both, say=lambda line: None)
    binning = read_geometry(bundled("binning.xml"))
    with pytest.raises(AleatorError, match="it is the oracle's option"):
        run(Request(one, tmp_path / "o.hdf5", geometry=binning), say=lambda line: None)


@here
def test_an_event_does_not_depend_on_those_before_it(geant4):
    spectrum = Spectrum(1e3, 4e3, True, (11, 22), 8)
    whole = geant4.simulate(spectrum, seed=1)
    (part,) = geant4.blocks(spectrum, 5, 7, 1)
    assert np.array_equal(part[3], whole[5:7])
    assert not np.array_equal(geant4.simulate(spectrum, seed=2), whole)


@here
def test_showers_are_those_that_the_program_brings(geant4):
    from scipy.stats import ks_2samp

    with h5py.File(bundled("showers.hdf5")) as file:
        energies, numbers = file["incident_energies"][:60, 0], file["incident_pdg"][:60, 0]
        known = file["showers"][:]
        ratio = known.sum(1) / file["incident_energies"][:, 0]
    few = energies < 20e3
    showers = geant4.simulate(Listed(energies[few], numbers[few]), seed=5)
    assert ks_2samp(showers.sum(1) / energies[few], ratio).pvalue > 1e-3
    assert (showers[showers > 0] >= PAR04.threshold_mev).all()
    lateral = [(x.reshape(-1, 9) * np.arange(9)).sum() / x.sum() for x in showers]
    reference = [(x.reshape(-1, 9) * np.arange(9)).sum() / x.sum() for x in known]
    assert ks_2samp(lateral, reference).pvalue > 1e-3


@here
def test_files_say_what_made_them(geant4, tmp_path):
    conditions = Listed(np.array([1e3, 2e3]), np.array([11, 22]))
    run(Request(conditions, tmp_path / "g.hdf5", oracle="par04"), say=lambda line: None)
    with h5py.File(tmp_path / "g.hdf5") as file:
        assert str(file.attrs["generator"]).startswith("Geant4 11")
        assert file.attrs["absorber"] == "1.4 mm G4_W"
        assert np.array_equal(file["showers"][:], geant4.simulate(conditions))


@here
def test_what_it_cannot_do_is_refused(geant4):
    pion = Listed(np.array([1e3]), np.array([211]))
    with pytest.raises(AleatorError, match="particle 211: the oracle knows"):
        geant4.simulate(pion)
    with pytest.raises(AleatorError, match="leave it out"):
        geant4.simulate(Listed(np.array([1e3]), np.array([11])), steps=4)
    with pytest.raises(AleatorError, match="one detector only in a process"):
        Geant4(Detector(absorber="G4_Pb"), geant4.model.geometry)
