"""`python -m pipelines.hep` on clouds, and Pythia's names: what users type, and mistype."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from apps.hep_simulation.clouds.simulate import save_clouds
from apps.hep_simulation.oracle import pythia
from apps.hep_simulation.simulate import bundled
from pipelines.hep import app
from tests.apps.hep_simulation.clouds.conftest import made_up
from tests.pipelines.mistakes import assert_one_line

TINY = ["--set", "width=8", "--set", "depth=1", "--set", "heads=2", "--set", "fit.steps=4"]


def invoke(*arguments):
    torch.set_num_threads(1)
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of jets and a model that was trained on it by command."""
    folder = tmp_path_factory.mktemp("clouds")
    save_clouds(folder / "jets.hdf5", made_up(600), {})
    done = invoke("train", folder / "jets.hdf5", "-o", folder / "model", *TINY)
    assert done.exit_code == 0, done.output
    return folder


def test_train_simulate_info(folder, tmp_path):
    out = tmp_path / "out.hdf5"
    done = invoke(
        "simulate", "--model", folder / "model", "-n", 20, "--energies", "120:300:log",
        "--particle", "gluon", "--steps", 2, "-o", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "20 jets by model" in done.stderr
    with h5py.File(out) as file:
        pt = file["jet_features"][:, 0]
        assert pt.min() >= 120
        assert pt.max() <= 300
        assert (file["jet_type"][:] == 21).all()
        assert file["particle_features"].shape[0] == 20
    for thing, words in ((out, "20 jets as clouds"), (folder / "model", "jets as clouds, flow_m")):
        told = invoke("info", thing)
        assert told.exit_code == 0, told.output
        assert words in told.stdout
    card = (folder / "model" / "card.md").read_text()
    assert "600 jets" in card


def test_mistakes_are_one_line(folder, tmp_path):
    model, jets = folder / "model", folder / "jets.hdf5"
    out = ["-o", tmp_path / "o.hdf5"]
    assert_one_line(invoke("train", bundled("showers.hdf5"), "-o", tmp_path / "m"), "--geometry")
    assert_one_line(invoke("train", jets, "-o", model), "holds a model")
    assert_one_line(invoke("train", tmp_path / "no.hdf5", "-o", tmp_path / "m"), "no such file")
    assert_one_line(
        invoke("train", jets, "-o", tmp_path / "m", "--family", "cascade"), "flow_matching"
    )
    simulate = ["simulate", "--model", model, *out]
    assert_one_line(invoke(*simulate, "--particle", "top"), "kinds of jets are")
    assert_one_line(invoke(*simulate, "--particle", "6"), "jets are of kind")
    assert_one_line(invoke(*simulate, "--steps", 0), "--steps 0")
    assert_one_line(invoke(*simulate, "-n", 0), "at least one jet")
    assert_one_line(invoke(*simulate, "--oracle", "par04"), "not both")
    assert_one_line(invoke(*simulate, "--strict", "--energies", "5000:6000"), "the model knows")
    assert_one_line(invoke(*simulate, "--energies", "100:200", "--conditions", jets), "not both")
    assert_one_line(
        invoke("simulate", *out, "--oracle", "pythia-x"), "pythia-clouds, pythia-jets, pythia-lep"
    )
    assert_one_line(invoke("simulate", *out, "--theta", "1,2,3"), "pythia-lep")
    assert_one_line(invoke("simulate", *out, "--oracle", "pythia-jets", "--steps", 3), "alone")
    assert_one_line(invoke("evaluate", jets, jets, "-o", tmp_path / "r"), "at least 1200")
    assert not (tmp_path / "o.hdf5").exists()


@pytest.mark.parametrize("name", ["pythia-clouds", "pythia-jets", "pythia-lep"])
def test_pythia_that_is_not_installed_is_one_line(name, tmp_path, monkeypatch):
    def missing():
        raise pythia.AleatorError(pythia.MISSING)

    monkeypatch.setattr(pythia, "_pythia", missing)
    output = tmp_path / ("o.root" if name == "pythia-jets" else "o.hdf5")
    done = invoke("simulate", "--oracle", name, "-n", 1, "-o", output)
    assert_one_line(done, "pythia8mc", "aleator[simulate]")


def test_a_report_from_the_command_line(tmp_path):
    for name, seed in (("a", 5), ("b", 6)):
        save_clouds(tmp_path / name, made_up(1300, seed), {})
    done = invoke("evaluate", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "r")
    assert done.exit_code == 0, done.output
    row = json.loads((tmp_path / "r" / "results.json").read_text())["scores"][0]
    assert np.isfinite([row[k] for k in ("w1_mass", "fpd", "coverage")]).all()
    assert row["auc"] < 0.58
