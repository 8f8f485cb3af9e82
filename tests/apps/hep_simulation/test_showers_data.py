"""Shower files, good and bad."""

import h5py
import numpy as np
import pytest

from apps.hep_simulation.data import open_showers, read_conditions
from apps.hep_simulation.prepare import prepare
from core.errors import AleatorError


def test_chunks_join_to_the_whole_file(small, write):
    file = open_showers(write(small), small)
    whole = file.read()
    parts = list(file.chunks(7))
    assert [len(part) for part in parts] == [7] * 8 + [4]
    assert np.array_equal(np.concatenate([p.showers for p in parts]), whole.showers)
    assert np.array_equal(np.concatenate([p.energies for p in parts]), whole.energies)
    assert parts[2].start == 14


def test_without_pdg_the_particle_is_that_of_the_geometry(small, write):
    found = open_showers(write(small, incident_pdg=None), small).read()
    assert set(found.particles) == {11}


def _nan(showers):
    showers[11, 5] = np.nan
    return showers


def _negative(showers):
    showers[11, 5] = -0.25
    return showers


def test_bad_files_are_named_by_dataset_and_row(small, write, toy):
    showers, energies, _ = toy(small, 60)
    wrong = energies.copy()
    wrong[17] = 0
    cases = [
        ({"showers": None}, r"no dataset 'showers'; the file has incident_energies, incident_pdg"),
        ({"incident_energies": None}, r"no dataset 'incident_energies'"),
        ({"incident_energies": energies[:50, None]}, r"50 incident_energies but 60 showers"),
        ({"incident_pdg": np.ones((3, 1))}, r"3 incident_pdg but 60 showers"),
        (
            {"showers": showers[:, :-1]},
            r"59 voxels a shower, but the binning of 'electron' has 60",
        ),
        ({"showers": np.zeros((60, 368))}, r"368 voxels is CaloChallenge data set 1, photons"),
        ({"showers": showers[:0], "incident_energies": energies[:0]}, "no shower in it"),
        ({"showers": _nan(showers.copy())}, r"row 11, voxel 5: nan"),
        ({"showers": _negative(showers.copy())}, r"row 11, voxel 5: -0.25 MeV"),
        ({"incident_energies": wrong[:, None]}, r"incident_energies, row 17: 0"),
        ({"incident_energies": energies[:, None] / 1000}, r"incident energies in GeV\?"),
        ({"showers": showers / 1000}, r"showers in GeV"),
        ({"showers": showers.astype("S8")}, r"showers is of type"),
    ]
    for changed, message in cases:
        with pytest.raises(AleatorError, match=message):
            open_showers(write(small, "bad.hdf5", **changed), small).read()


def test_a_truncated_or_foreign_file_is_not_hdf5(small, write, tmp_path):
    whole = write(small).read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.hdf5").write_text("hello")
    (tmp_path / "empty.hdf5").write_text("")
    cases = {
        "cut": "truncated",
        "text": "another format",
        "empty": "empty",
        "none": "no such file",
    }
    for name, message in cases.items():
        with pytest.raises(AleatorError, match=message):
            open_showers(tmp_path / f"{name}.hdf5", small)


def test_conditions_need_a_particle_from_somewhere(small, write):
    path = write(small, incident_pdg=None)
    energies, particles = read_conditions(path, 22)
    assert len(energies) == 60
    assert set(particles) == {22}
    with pytest.raises(AleatorError, match="give --particle"):
        read_conditions(path, None)


def test_prepare_joins_files_and_refuses_the_same_one_twice(small, write, tmp_path, toy):
    showers, energies, particles = toy(small, 40, seed=5)
    other = write(
        small,
        "other.hdf5",
        showers=showers,
        incident_energies=energies[:, None],
        incident_pdg=particles[:, None],
    )
    one = write(small)
    said = prepare([one, other], small, tmp_path / "joined.hdf5")
    assert "100 showers of 2 files" in said
    joined = open_showers(tmp_path / "joined.hdf5", small).read()
    assert np.array_equal(joined.showers[60:], showers)
    assert joined.energies[60:] == pytest.approx(energies)
    with pytest.raises(AleatorError, match="exists"):
        prepare([one], small, tmp_path / "joined.hdf5")
    with pytest.raises(AleatorError, match="hold the same showers"):
        prepare([one, one], small, tmp_path / "twice.hdf5")
    assert not (tmp_path / "twice.hdf5").exists()


def test_the_fingerprint_tells_files_apart(small, write, toy):
    one = open_showers(write(small), small).fingerprint()
    with h5py.File(write(small, "b.hdf5"), "a") as file:
        file["showers"][0, 0] = 7
    assert open_showers(write(small, "c.hdf5"), small).fingerprint() == one
    path = write(small, "d.hdf5", showers=toy(small, 60)[0] * 1.01)
    assert open_showers(path, small).fingerprint() != one
