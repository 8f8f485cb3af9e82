"""`python -m pipelines.hep` as a user meets it: outputs, one line a mistake, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from apps.hep_simulation.simulate import bundled
from pipelines.hep import app
from tests.pipelines.mistakes import assert_one_line

BINNING, SHOWERS = bundled("binning.xml"), bundled("showers.hdf5")


def invoke(*arguments):
    torch.set_num_threads(1)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_help_is_instant():
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipelines.hep", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - started < 10
    assert "simulate" in done.stdout
    assert "torch" not in done.stderr
    assert "h5py" not in done.stderr


def test_simulate_with_no_argument_runs_the_bundled_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("simulate", "-n", 30)
    assert result.exit_code == 0, result.output
    with h5py.File(tmp_path / "showers.hdf5") as file:
        assert file["showers"].shape == (30, 6480)
        energies = file["incident_energies"][:, 0]
        assert (energies > 1e3).all()
        response = file["showers"][:].sum(1) / energies
        assert response.mean() == pytest.approx(1.0, abs=0.06)
        assert file.attrs["flagged"] == 0
    again = invoke("simulate", "-n", 30, "-o", "b.hdf5", "--batch", 7)
    assert again.exit_code == 0
    with h5py.File("showers.hdf5") as one, h5py.File("b.hdf5") as two:
        assert np.array_equal(one["showers"][:], two["showers"][:])
    assert "30 showers of 6480 voxels" in invoke("info", "b.hdf5").stdout


def test_train_simulate_evaluate_of_a_users_own_showers(tmp_path):
    model, out, report = tmp_path / "m", tmp_path / "o.hdf5", tmp_path / "r"
    tiny = ["--set", "fit.steps=4", "--set", "fit.batch_size=16", "--set", "model.angular=16"]
    made = invoke("train", SHOWERS, "--geometry", BINNING, "-o", model, *tiny)
    assert made.exit_code == 0, made.output
    assert "knows: electron, photon" in invoke("info", model).stdout
    drawn = invoke("simulate", "--model", model, "--conditions", SHOWERS, "-o", out)
    assert drawn.exit_code == 0, drawn.output
    options = ["--geometry", BINNING, "-o", report, "--train", SHOWERS, "--no-figures"]
    judged = invoke("evaluate", out, SHOWERS, *options)
    assert judged.exit_code == 0, judged.output
    assert "is what the model of" in judged.stderr
    assert "distributed differently" not in judged.stderr
    results = json.loads((report / "results.json").read_text())
    assert results["scores"][0]["auc_high"] > 0.9  # four steps teach nothing
    assert results["scores"][1]["sample"] == "showers.hdf5 (floor)"
    assert "Certificate" in (report / "report.md").read_text()
    assert_one_line(invoke("evaluate", out, SHOWERS, *options), "holds a report")
    assert_one_line(
        invoke("train", SHOWERS, "--geometry", BINNING, "-o", model, *tiny), "holds a model"
    )


def test_prepare_joins_and_info_describes(tmp_path):
    out = tmp_path / "joined.hdf5"
    assert invoke("prepare", SHOWERS, "--geometry", BINNING, "-o", out).exit_code == 0
    assert "300 showers" in invoke("info", out).stdout
    assert "6480 voxels" in invoke("info", BINNING).stdout
    assert_one_line(invoke("prepare", SHOWERS, "--geometry", BINNING, "-o", out), "exists")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shower_model", ["cascade", "closure of response", "## Made by"]),
        ("jets", ["reconstructed jets of", "Efficiency"]),
        ("inference", ["TimeShower:alphaSvalue in 0.1 to 0.18", "n_charged", "## Limits"]),
    ],
)
def test_info_describes_every_kind_of_model(name, words):
    result = invoke("info", bundled(name))
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.stdout


def test_mistakes_are_one_line(tmp_path):
    with h5py.File(tmp_path / "no.hdf5", "w") as file:
        file["incident_energies"] = np.ones((3, 1))
    with h5py.File(tmp_path / "gev.hdf5", "w") as file, h5py.File(SHOWERS) as real:
        file["incident_energies"] = real["incident_energies"][:] / 1000
        file["showers"] = real["showers"][:]
    (tmp_path / "cut.hdf5").write_bytes(SHOWERS.read_bytes()[:100_000])
    (tmp_path / "one.xml").write_text(
        '<Bins><Bin name="e" pid="11"><Layer id="0" r_edges="0,1" n_bin_alpha="1"/></Bin></Bins>'
    )
    out = tmp_path / "out"

    def trained(name, binning=BINNING):
        return invoke("train", tmp_path / name, "--geometry", binning, "-o", out)

    assert_one_line(trained("no.hdf5"), "no dataset 'showers'", "incident_energies")
    assert_one_line(trained("gev.hdf5"), "GeV")
    assert_one_line(trained("cut.hdf5"), "truncated")
    assert_one_line(trained("none.hdf5"), "no such file")
    assert_one_line(
        invoke("train", SHOWERS, "--geometry", tmp_path / "one.xml", "-o", out),
        "6480 voxels is CaloChallenge data set 2",
    )
    assert_one_line(
        invoke("train", SHOWERS, "--geometry", BINNING, "-o", out, "--family", "gan"), "cascade"
    )
    simulate = ["simulate", "-o", out]
    assert_one_line(invoke(*simulate, "--energies", "64:1:log"), "lower one first")
    assert_one_line(invoke(*simulate, "--particle", "quark"), "neither a PDG number")
    assert_one_line(invoke(*simulate, "--energies", "500", "--strict"), "500 GeV", "--strict")
    assert_one_line(invoke(*simulate, "--particle", "13", "--strict"), "PDG 13")
    assert_one_line(invoke(*simulate, "--model", tmp_path), "not a model folder")
    assert_one_line(invoke(*simulate, "--steps", 4), "no steps")
    assert_one_line(invoke(*simulate, "-n", 0), "at least one shower")
    assert_one_line(invoke(*simulate, "--energies", "1:2", "--conditions", SHOWERS), "not both")
    assert_one_line(invoke("info", tmp_path / "nothing"), "no such file")


def test_conditions_outside_training_are_flagged_with_a_warning(tmp_path):
    out = tmp_path / "o.hdf5"
    result = invoke("simulate", "--energies", "80:90", "-n", 5, "-o", out)
    assert result.exit_code == 0
    assert "5 of 5 showers are outside" in result.stderr
    with h5py.File(out) as file:
        assert file["flagged"][:].sum() == 5
