"""A model as its users meet it: checkpoints, streams, files, families."""

import json

import h5py
import numpy as np
import pytest

from apps.hep_simulation.conditions import Listed, Spectrum, parse_spectrum
from apps.hep_simulation.config import parse_config
from apps.hep_simulation.model import ShowerModel
from apps.hep_simulation.simulate import Request, Simulator, run
from apps.hep_simulation.train import train
from core.errors import AleatorError

TINY = {"steps": 6, "batch_size": 16, "validate_every": 3, "save_every": 2}
SIZES = {"radial": 16, "angular": 16, "profile": 16}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, toy):
    """A model after a few steps, on 300 showers; and what it was trained on."""
    from apps.hep_simulation.geometry import Geometry, Layer

    folder = tmp_path_factory.mktemp("model")
    geometry = Geometry("electron", 11, tuple(Layer(i, (0.0, 1.0, 3.0, 6.0), 4) for i in range(5)))
    showers, energies, particles = toy(geometry, 300)
    with h5py.File(folder / "train.hdf5", "w") as file:
        file["showers"], file["incident_energies"] = showers, energies[:, None]
        file["incident_pdg"] = particles[:, None]
    config = parse_config({"model": SIZES, "fit": TINY})
    train([folder / "train.hdf5"], geometry, folder / "m", config, say=lambda line: None)
    return folder, geometry


def test_a_checkpoint_gives_the_same_showers_back(trained):
    folder, geometry = trained
    model = ShowerModel.load(folder / "m")
    assert model.geometry == geometry
    assert model.particles == (11, 22)
    spectrum = parse_spectrum("1:20:log", "11,22", 12)
    one, two = (Simulator.load(folder / "m").simulate(spectrum, seed=4) for _ in range(2))
    assert one.shape == (12, geometry.voxels)
    assert np.array_equal(one, two)
    assert not np.array_equal(one, Simulator(model).simulate(spectrum, seed=5))
    positive = one[one > 0]
    assert positive.min() >= model.threshold * (1 - 1e-6)
    assert {"response", "depth", "occupancy"} <= set(model.closure)


def test_a_shower_does_not_depend_on_batch_or_neighbours(trained):
    folder, _ = trained
    simulator = Simulator.load(folder / "m")
    energies, particles = np.geomspace(1e3, 2e4, 17), np.resize([11, 22], 17)
    whole = simulator.simulate(Listed(energies, particles), seed=1)
    for batch in (1, 4, 16):
        found = simulator.simulate(Listed(energies, particles), seed=1, batch=batch)
        assert np.array_equal(found, whole)
    spectrum = Spectrum(1e3, 2e4, True, (11,), 20)
    first = simulator.simulate(spectrum, seed=2)
    short = simulator.simulate(Spectrum(1e3, 2e4, True, (11,), 7), seed=2, batch=3)
    assert np.array_equal(first[:7], short)


def test_conditions_outside_are_flagged_or_refused(trained):
    simulator = Simulator.load(trained[0] / "m")
    energies, particles = np.array([5e3, 1e5, 5e3]), np.array([11, 11, 13])
    (block,) = simulator.blocks(Listed(energies, particles), 0, 3, 0)
    assert block[2].tolist() == [False, True, True]
    with pytest.raises(AleatorError, match=r"shower 1: 100 GeV, electron; the model knows"):
        simulator.simulate(Listed(energies, particles), strict=True)


def _request(trained, output, **options):
    spectrum = Spectrum(1e3, 2e4, True, (11, 22), 50)
    return Request(
        **{"conditions": spectrum, "output": output, "model": trained[0] / "m"} | options
    )


def _silent(line):
    return None


def test_a_stopped_run_goes_on_to_the_same_file(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("apps.hep_simulation.simulate.CHUNK", 10)
    run(_request(trained, tmp_path / "whole.hdf5"), say=_silent)
    blocks, count = Simulator.blocks, 0

    def failing(self, *arguments, **options):
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        return blocks(self, *arguments, **options)

    monkeypatch.setattr(Simulator, "blocks", failing)
    with pytest.raises(KeyboardInterrupt):
        run(_request(trained, tmp_path / "part.hdf5"), say=_silent)
    assert not (tmp_path / "part.hdf5").exists()
    assert len(list((tmp_path / "part.hdf5.parts").glob("*.npz"))) == 2
    monkeypatch.setattr(Simulator, "blocks", blocks)
    with pytest.raises(AleatorError, match=r"begun with seed=0, not 1"):
        run(_request(trained, tmp_path / "part.hdf5", seed=1), say=_silent)
    run(_request(trained, tmp_path / "part.hdf5"), say=_silent)
    assert (tmp_path / "part.hdf5").read_bytes() == (tmp_path / "whole.hdf5").read_bytes()
    assert not (tmp_path / "part.hdf5.parts").exists()


def test_the_file_is_of_the_layout_and_carries_its_certificate(trained, tmp_path):
    said = []
    conditions = Listed(np.array([5e3, 9e4]), np.array([11, 22]))
    run(_request(trained, tmp_path / "o.hdf5", conditions=conditions), say=said.append)
    with h5py.File(tmp_path / "o.hdf5") as file:
        assert file["incident_energies"].shape == (2, 1)
        assert file["showers"].shape == (2, 60)
        assert file["incident_energies"][:, 0].tolist() == [5e3, 9e4]
        assert file["incident_pdg"][:, 0].tolist() == [11, 22]
        assert file["flagged"][:, 0].tolist() == [0, 1]
        assert file.attrs["flagged"] == 1
        assert json.loads(file.attrs["oracle_events_worth"])["response"] >= 0
        expected = Simulator.load(trained[0] / "m").simulate(conditions)
        assert np.array_equal(file["showers"][:], expected)
    assert "1 of 2 showers are outside" in said[-1]
    with pytest.raises(AleatorError, match="exists"):
        run(_request(trained, tmp_path / "o.hdf5"), say=_silent)
    refused = _request(trained, tmp_path / "p.hdf5", conditions=conditions, strict=True)
    with pytest.raises(AleatorError, match="leave out --strict"):
        run(refused, say=_silent)
    assert not (tmp_path / "p.hdf5.parts").exists()


@pytest.mark.parametrize("family", ["flow", "flow_matching", "diffusion", "vae"])
def test_every_family_trains_and_conserves_the_layer_energies(family, trained, tmp_path):
    folder, geometry = trained
    values = {"family": family, "fit": {**TINY, "steps": 2}}
    if family in ("flow_matching", "diffusion"):
        values["model"] = {"net": {"width": 16}}
    config = parse_config(values)
    train([folder / "train.hdf5"], geometry, tmp_path / "m", config, say=_silent)
    simulator = Simulator.load(tmp_path / "m")
    spectrum = parse_spectrum("1:20:log", "11", 6)
    stepped = family in ("flow_matching", "diffusion")
    showers = simulator.simulate(spectrum, steps=2 if stepped else None)
    assert showers.shape == (6, geometry.voxels)
    assert showers[showers > 0].min() >= simulator.model.threshold * (1 - 1e-6)
    energies, _ = spectrum.read(0, 0, 6)
    assert (np.abs(showers.sum(1) / energies - 1) < 2).all()
    few = [simulator.simulate(spectrum, steps=2 if stepped else None, batch=b) for b in (1, 4)]
    assert all(np.array_equal(part, showers) for part in few)
    if not stepped:
        with pytest.raises(AleatorError, match="has no steps"):
            simulator.simulate(spectrum, steps=2)


@pytest.mark.slow
def test_a_pupil_does_in_one_evaluation_what_its_teacher_does_in_many(trained, tmp_path):
    folder, geometry = trained
    values = {"family": "diffusion", "model": {"net": {"width": 16}}}
    fit = {**TINY, "steps": 60, "batch_size": 32, "validate_every": 60, "learning_rate": 0.002}
    taught = parse_config({**values, "fit": fit})
    sources = [folder / "train.hdf5"]
    train(sources, geometry, tmp_path / "teacher", taught, say=_silent)
    config = parse_config({"family": "consistency", "fit": {**fit, "steps": 150, "ema": 0.9}})
    said = {"say": _silent, "teacher": tmp_path / "teacher"}
    train(sources, geometry, tmp_path / "pupil", config, **said)
    teacher, pupil = (Simulator.load(tmp_path / name) for name in ("teacher", "pupil"))
    spectrum = parse_spectrum("1:20:log", "11,22", 200)
    many, one = (teacher.simulate(spectrum, seed=3, steps=steps) for steps in (32, 1))
    found = pupil.simulate(spectrum, seed=3, steps=1)
    assert np.allclose(found.sum(1), many.sum(1), rtol=1e-4)  # the same layer energies
    near, far = (np.abs(x - many).sum() / many.sum() for x in (found, one))
    assert near < 0.1 + far  # where there is more to learn: test_showers_coordinates
    assert not np.array_equal(found, pupil.simulate(spectrum, seed=3))  # two, if nobody asks


def test_a_pupil_needs_a_teacher_that_can_be_distilled(trained, tmp_path):
    folder, geometry = trained
    sources, config = [folder / "train.hdf5"], parse_config({"family": "consistency"})
    with pytest.raises(AleatorError, match=r"family cascade; only diffusion can be distilled"):
        train(sources, geometry, tmp_path / "x", config, say=_silent, teacher=folder / "m")
    with pytest.raises(AleatorError, match="goes with --family consistency"):
        train(sources, geometry, tmp_path / "x", config, say=_silent)
    with pytest.raises(AleatorError, match="goes with --family consistency"):
        train(
            *(sources, geometry, tmp_path / "x", parse_config({"family": "diffusion"})),
            teacher=folder / "m",
        )


def test_training_goes_on_where_it_stopped(trained, tmp_path):
    folder, geometry = trained
    config = parse_config({"model": SIZES, "fit": TINY})
    (tmp_path / "m").mkdir()
    with pytest.raises(AleatorError, match="holds a model"):
        train([folder / "train.hdf5"], geometry, folder / "m", config, say=_silent)
    model = train([folder / "train.hdf5"], geometry, tmp_path / "m", config, say=_silent)
    assert model.fingerprint == ShowerModel.load(folder / "m").fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "gan"}, "family 'gan'; known: cascade"),
        ({"familly": "vae"}, "no option 'familly'"),
        ({"fit": {"step": 3}}, "no option fit.step"),
        ({"fit": {"steps": 0}}, "fit.steps=0"),
        ({"validation": 0.9}, "validation=0.9"),
    ],
)
def test_bad_options_are_named(values, message):
    with pytest.raises(AleatorError, match=message):
        parse_config(values)


@pytest.mark.parametrize(
    ("text", "particles", "count", "message"),
    [
        ("1:64:exp", "11", 1, "expected LOW:HIGH:log"),
        ("a:b", "11", 1, "expected LOW:HIGH:log"),
        ("-1:5", "11", 1, "must be positive"),
        ("9:5", "11", 1, "the lower one first"),
        ("1:5", "muonium", 1, "neither a PDG number"),
        ("1:5", "11", 0, "at least one shower"),
    ],
)
def test_bad_spectra_are_named(text, particles, count, message):
    with pytest.raises(AleatorError, match=message):
        parse_spectrum(text, particles, count)


def test_spectra_are_drawn_as_asked():
    energies, particles = parse_spectrum("1:64:log", "electron,22", 4000).read(0, 0, 4000)
    assert np.log(energies / 1e3).mean() == pytest.approx(np.log(64) / 2, rel=0.03)
    assert (particles == 22).mean() == pytest.approx(0.5, abs=0.03)
    flat, _ = parse_spectrum("10:20", "11", 4000).read(0, 0, 4000)
    assert flat.mean() == pytest.approx(15e3, rel=0.01)
    fixed, _ = parse_spectrum("50", "11", 3).read(0, 0, 3)
    assert fixed.tolist() == [5e4] * 3
    assert np.array_equal(parse_spectrum("1:64:log", "11", 9).read(0, 5, 9)[0], energies[5:9])
