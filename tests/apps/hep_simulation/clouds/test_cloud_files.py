"""Files in JetNet's layout: written, read back, streamed, resumed; mistakes named."""

import h5py
import numpy as np
import pytest

from apps.hep_simulation.clouds.data import (
    JET_TYPE,
    JETS,
    PARTICLES,
    SPECIES_SET,
    columns,
    is_clouds,
    join,
    read_clouds,
    read_conditions,
)
from apps.hep_simulation.clouds.simulate import Request, Spread, run, save_clouds
from apps.hep_simulation.clouds.train import make_config, train
from apps.hep_simulation.parts import arrays_of, stream
from core.errors import AleatorError

TINY = {"width": 8, "depth": 1, "heads": 2, "fit": {"steps": 4, "batch_size": 16}}


@pytest.fixture(scope="module")
def folder(jets, tmp_path_factory):
    """A model that has seen next to nothing: enough for files."""
    folder = tmp_path_factory.mktemp("m")
    train(jets, make_config(TINY), folder / "training", say=lambda _: None).save(folder)
    return folder


def test_what_is_written_is_read(jets, tmp_path):
    save_clouds(tmp_path / "a.hdf5", jets, {"seed": 3})
    found = read_clouds(tmp_path / "a.hdf5")
    np.testing.assert_allclose(found.points, jets.points, atol=1e-7)
    assert (found.species == jets.species).all()
    assert (found.kind == jets.kind).all()
    assert is_clouds(tmp_path / "a.hdf5")
    pt, eta, kind = read_conditions(tmp_path / "a.hdf5")
    np.testing.assert_allclose(pt, jets.pt, rtol=1e-6)
    assert len(eta) == len(kind) == 600
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file.attrs["seed"] == 3
        assert file[JETS].shape == (600, 4)
        assert (file[JETS][:, 3] == jets.counts).all()


def test_jetnets_own_files_are_read_without_species_and_types(jets, tmp_path):
    with h5py.File(tmp_path / "g.hdf5", "w") as file:
        for name in (PARTICLES, JETS):
            file[name] = columns(jets)[name]
    found = read_clouds(tmp_path / "g.hdf5", 50)
    assert len(found) == 50
    assert not found.species.any()
    assert not found.kind.any()


def test_clouds_of_different_width_are_joined(jets):
    few = jets.rows(slice(0, 3)).padded(30)
    both = join([jets.rows(slice(0, 2)), few])
    assert both.mask.shape == (5, 30)
    assert (both.counts == [*jets.counts[:2], *jets.counts[:3]]).all()


def broken(jets, change):
    data = columns(jets.rows(slice(0, 5)))
    change(data)
    return data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop(JETS), "no dataset 'jet_features'; the file has jet_type"),
        (lambda d: d.update({PARTICLES: d[PARTICLES][:, :, :3]}), r"expected \(N, P, 4\): etarel"),
        (lambda d: d.update({JETS: d[JETS][:3]}), r"jet_features has shape \(3,\) for 5 jets"),
        (lambda d: d.update({SPECIES_SET: d[SPECIES_SET][:, :2]}), "particle_type has shape"),
        (lambda d: d[PARTICLES].__setitem__((2, 1, 0), np.nan), "jet 2, particle 1: a value that"),
        (lambda d: d[PARTICLES].__setitem__((1, 0, 2), 80.0), "relative to the jet"),
        (lambda d: d[PARTICLES].__setitem__((3, 0, 2), -0.1), "jet 3, particle 0: ptrel"),
        (lambda d: d[PARTICLES].__setitem__((4, slice(None), 3), 0), "jet 4: no particle in it"),
        (lambda d: d[JETS].__setitem__((2, 0), -5), "row 2: pt=-5; it must be positive"),
        (lambda d: d[JETS].__setitem__((1, 1), 11), "row 1: eta=11; it must be within"),
        (lambda d: d[JET_TYPE].__setitem__(3, 13), "jet_type, row 3: 13; known are quarks"),
        (lambda d: d[SPECIES_SET].__setitem__((0, 0), 9), "particle_type that is unknown"),
        (lambda d: d.update({n: v[:0] for n, v in d.items()}), "no jet in it"),
    ],
)
def test_mistakes_are_named(jets, tmp_path, change, message):
    data = broken(jets, change)
    with h5py.File(tmp_path / "bad.hdf5", "w") as file:
        for name, values in data.items():
            file[name] = values
    with pytest.raises(AleatorError, match=message):
        read_clouds(tmp_path / "bad.hdf5")


def test_a_file_cut_short_is_refused(jets, tmp_path):
    save_clouds(tmp_path / "a.hdf5", jets, {})
    whole = (tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AleatorError, match="truncated"):
        read_clouds(tmp_path / "cut.hdf5")


def test_conditions_are_functions_of_seed_and_number():
    wanted = Spread(100, 500, 2.0, (1, 21), 50)
    whole, part = wanted.read(3, 0, 50), wanted.read(3, 20, 25)
    for a, b in zip(whole, part, strict=True):
        assert np.array_equal(a[20:25], b)
    assert whole[0].min() >= 100
    assert whole[0].max() <= 500
    assert set(whole[2]) == {1, 21}


def test_a_run_that_was_stopped_gives_the_same_file(jets, folder, tmp_path, monkeypatch):
    from apps.hep_simulation.clouds import simulate

    monkeypatch.setattr(simulate, "CHUNK", 20)
    said = []
    run(Request(tmp_path / "a.hdf5", folder, count=50, seed=4, steps=2), said.append)
    assert "50 jets by model" in said[0]
    original, calls = simulate.CloudModel.sample, []

    def failing(self, *args, **options):
        calls.append(options["first"])
        if options["first"] == 40 and calls.count(40) == 1:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    monkeypatch.setattr(simulate.CloudModel, "sample", failing)
    request = Request(tmp_path / "b.hdf5", folder, count=50, seed=4, steps=2)
    with pytest.raises(KeyboardInterrupt):
        run(request, said.append)
    assert not (tmp_path / "b.hdf5").exists()
    run(request, said.append)
    assert calls == [0, 20, 40, 40]
    with h5py.File(tmp_path / "a.hdf5") as a, h5py.File(tmp_path / "b.hdf5") as b:
        for name in a:
            assert np.array_equal(a[name][:], b[name][:])
    with pytest.raises(AleatorError, match=r"b.hdf5 exists"):
        run(request)


def test_conditions_of_a_file_are_kept_and_foreign_ones_flagged(jets, folder, tmp_path):
    some = jets.rows(slice(0, 30))
    some.pt[3] = 9000.0
    save_clouds(tmp_path / "c.hdf5", some, {})
    said = []
    out = tmp_path / "o.hdf5"
    run(Request(out, folder, conditions=tmp_path / "c.hdf5", steps=1), said.append)
    found = read_clouds(out)
    np.testing.assert_allclose(found.pt, some.pt, rtol=1e-6)
    with h5py.File(out) as file:
        assert file["flagged"][:].nonzero()[0].tolist() == [3]
    assert "warning: 1 of 30 jets" in said[-1]
    strict = Request(
        tmp_path / "s.hdf5", folder, conditions=tmp_path / "c.hdf5", steps=1, strict=True
    )
    with pytest.raises(AleatorError, match="jet 3: 9000 GeV"):
        run(strict)
    assert not (tmp_path / "s.hdf5").exists()


def test_parts_are_made_once_and_in_order(tmp_path):
    made = []

    def make(start, stop):
        made.append((start, stop))
        return {"x": np.arange(start, stop)}

    def write(parts, path):
        np.save(path.with_suffix(".npy"), np.concatenate([a["x"] for a in arrays_of(parts)]))
        path.with_suffix(".npy").rename(path)

    done = stream(tmp_path / "out", 25, 10, make, write, job={"a": 1})
    assert made == [(0, 10), (10, 20), (20, 25)]
    assert done.made == 25
    assert np.array_equal(np.load(tmp_path / "out", allow_pickle=False), np.arange(25))
