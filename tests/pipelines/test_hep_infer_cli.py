"""`python -m pipelines.hep_infer` as a user meets it."""

import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from apps.hep_simulation.inference.infer import SAMPLE
from apps.hep_simulation.jets.simulate import SAMPLE as JETS
from pipelines.hep_infer import app


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments):
    """The one line that a mistake ends with."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = [text for text in result.stderr.splitlines() if text.startswith("error: ")]
    return line


@pytest.fixture
def sample(tmp_path):
    """A copy of the bundled events, to be spoilt."""
    path = tmp_path / "x.hdf5"
    path.write_bytes((SAMPLE / "events.hdf5").read_bytes())
    return path


def test_infer_without_an_argument_runs_on_the_sample(tmp_path):
    out = tmp_path / "p.nc"
    result = invoke("infer", "-o", out, "--samples", 200)
    assert result.exit_code == 0, result.output
    assert "TimeShower:alphaSvalue" in result.stdout
    with xr.open_dataset(out) as found:
        assert found["theta"].shape == (8, 200, 3)
        assert (
            (found["theta"] > found["prior_low"]) & (found["theta"] < found["prior_high"])
        ).all()
        assert found["log_density"].attrs["kind"] == "exact"
        gain = found["log_density_of_truth"].mean() - found.attrs["log_density_of_prior"]
        assert float(gain) > 1.2
        assert 0.64 < found.attrs["out_of_fold_coverage_68"] < 0.71
        assert not found["flagged"].any()
        quantiles = np.quantile(found["theta"], 0.16, axis=1)
        assert np.allclose(found["quantile"].sel(level=0.16), quantiles)


def test_same_seed_same_file_and_fewer_events_know_less(tmp_path):
    for name, more in {"a": (), "b": (), "c": ("--seed", 1), "d": ("--events", 5)}.items():
        run = invoke("infer", "-o", tmp_path / f"{name}.nc", "--samples", 50, *more)
        assert run.exit_code == 0, run.output
    a, b, c, d = (xr.open_dataset(tmp_path / f"{name}.nc") for name in "abcd")
    assert a["theta"].equals(b["theta"])
    assert not a["theta"].equals(c["theta"])
    assert d.attrs["events_per_set"] == 5
    assert float(d["std"].isel(parameter=0).mean()) > float(a["std"].isel(parameter=0).mean())


def test_sets_unlike_training_are_flagged_and_refused_if_strict(sample, tmp_path):
    with h5py.File(sample, "a") as file:
        x = file["x"][...]
        x[2, :, 3] += 6  # six protons more an event
        file["x"][...] = x
    run = invoke("infer", sample, "-o", tmp_path / "p.nc", "--samples", 50)
    assert run.exit_code == 0
    assert "1 of 8 sets look unlike" in run.stderr
    with xr.open_dataset(tmp_path / "p.nc") as found:
        assert found["flagged"].values.tolist() == [False, False, True, *[False] * 5]
        assert found["predictive_p"].sel(observable="n_proton")[2] > 0.99
    line = refused("infer", sample, "-o", tmp_path / "q.nc", "--strict")
    assert "first: set 2" in line
    assert not (tmp_path / "q.nc").exists()


def change(path, **changes):
    with h5py.File(path, "a") as file:
        for name, value in changes.items():
            where = file if name in ("x", "theta") else file.attrs
            if name in where:
                del where[name]
            where[name] = value


def test_bad_input_is_one_line(sample, tmp_path):
    out = tmp_path / "p.nc"
    (tmp_path / "text.hdf5").write_text("no")
    assert "does not exist" in refused("infer", tmp_path / "none.hdf5", "-o", out)
    assert "not HDF5, or cut short" in refused("infer", tmp_path / "text.hdf5", "-o", out)
    assert "name it *.nc" in refused("infer", sample, "-o", tmp_path / "p.txt")
    assert "at least two" in refused("infer", sample, "-o", out, "--samples", 1)
    assert "sets have 50 events" in refused("infer", sample, "-o", out, "--events", 51)
    assert "no model.json" in refused("infer", sample, "-o", out, "--model", tmp_path)
    out.write_text("mine")
    assert "exists" in refused("infer", sample, "-o", out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_names": [f"v{i}" for i in range(12)]}, "no observable 'n_charged'; it has v0, v1"),
        ({"theta_names": ["a", "b", "c"]}, "parameters a, b, c; the model infers TimeShower"),
        ({"theta": np.full((8, 3), 0.9)}, "is not inside the prior"),
        ({"x": np.full((8, 5, 12), np.nan)}, "x is not finite in 480 places, first at [0, 0, 0]"),
        ({"x": np.zeros((0, 5, 12))}, "none of them 0"),
    ],
)
def test_bad_events_are_one_line(sample, tmp_path, changes, message):
    change(sample, **changes)
    assert message in refused("infer", sample, "-o", tmp_path / "p.nc")


def test_train_inference_trains_and_refuses(sample, tmp_path):
    rng = np.random.default_rng(0)
    u = rng.random((60, 1))
    path, model = tmp_path / "s.hdf5", tmp_path / "m"
    with h5py.File(path, "w") as file:
        file["theta"], file["x"] = 2 * u, (u[:, None] + rng.normal(size=(60, 10, 2)))
        file.attrs.update(theta_names=["t"], prior_low=[0.0], prior_high=[2.0], x_names=["a", "b"])
    quick = ("--set", "folds=2", "--set", "fit.steps=20", "--device", "cpu")
    run = invoke("train-inference", path, "-o", model, *quick)
    assert run.exit_code == 0, run.output
    assert (model / "card.md").exists()
    run = invoke("infer", path, "--model", model, "-o", tmp_path / "p.nc", "--samples", 20)
    assert run.exit_code == 0, run.output
    assert "holds a model" in refused("train-inference", path, "-o", model)
    other = tmp_path / "n"
    assert "known: npe, nle" in refused("train-inference", path, "-o", other, "--method", "abc")
    assert "fit has no option 'x'" in refused(
        "train-inference", path, "-o", other, "--set", "fit.x=1"
    )
    assert "network has no option 'y'" in refused(
        "train-inference", path, "-o", other, "--set", "network.y=1"
    )
    assert "at least 40" in refused("train-inference", sample, "-o", other)


def test_help_is_instant():
    since = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipelines.hep_infer", "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "simulate-objects" in run.stdout
    assert "torch" not in {line.rsplit("|", 1)[-1].strip() for line in run.stderr.splitlines()}
    assert time.perf_counter() - since < 10


def test_simulate_objects_without_an_argument_runs_on_the_sample(tmp_path):
    uproot = pytest.importorskip("uproot")
    out = tmp_path / "o.root"
    result = invoke("simulate-objects", "-o", out)
    assert result.exit_code == 0, result.output
    made, real = (
        uproot.open(path)["Events"].arrays(["Jet_pt", "GenJet_pt", "Jet_chHEF"])
        for path in (out, JETS / "events.root")
    )
    assert made.GenJet_pt.tolist() == real.GenJet_pt.tolist()
    count, expected = (sum(len(jets) for jets in a.Jet_pt) for a in (made, real))
    assert count == pytest.approx(expected, rel=0.06)


def test_jets_are_trained_and_simulated_and_mistakes_named(tmp_path):
    ak, uproot = pytest.importorskip("awkward"), pytest.importorskip("uproot")
    rng = np.random.default_rng(0)
    n = np.full(700, 2)

    def jets(**more):
        flat = {
            "pt": np.sort(20 + rng.exponential(30, 1400))[::-1], "eta": rng.uniform(-2, 2, 1400),
            "phi": rng.uniform(-3, 3, 1400), "mass": 1 + rng.random(1400), **more,
        }  # fmt: skip
        return ak.zip(
            {k: ak.unflatten(np.asarray(v, dtype=np.float32), n) for k, v in flat.items()}
        )

    gen = jets(hadronFlavour=np.zeros(1400), partonFlavour=np.full(1400, 21))
    reco = jets(
        nConstituents=5 + rng.poisson(3, 1400), chHEF=np.full(1400, 0.6),
        neEmEF=np.full(1400, 0.4), neHEF=np.zeros(1400), genJetIdx=np.tile([0, 1], 700),
    )  # fmt: skip
    path, model = tmp_path / "e.root", tmp_path / "m"
    for name, kept in ((path, gen), (tmp_path / "few.root", gen[["pt", "phi"]])):
        with uproot.recreate(name) as file:
            arrays = {"GenJet": kept, "Jet": reco}
            file.mktree("Events", {k: ak.type(v).content for k, v in arrays.items()})
            file["Events"].extend(arrays)
    quick = ("--set", "fit.steps=20", "--set", "width=8", "--set", "mixtures=2", "--device", "cpu")
    run = invoke("train-objects", path, "-o", model, *quick)
    assert run.exit_code == 0, run.output
    run = invoke("simulate-objects", path, "--model", model, "-o", tmp_path / "o.root")
    assert run.exit_code == 0, run.output
    assert uproot.open(tmp_path / "o.root")["Events"].num_entries == 700
    again = ("simulate-objects", path, "--model", model, "-o")
    assert "exists" in refused(*again, tmp_path / "o.root")
    assert "name it *.root or *.parquet" in refused(*again, tmp_path / "o.txt")
    assert "--events 701" in refused(*again, tmp_path / "p.root", "--events", 701)
    line = refused("train-objects", tmp_path / "few.root", "-o", tmp_path / "x")
    assert "no branch GenJet_eta; of GenJet_* it has GenJet_pt, GenJet_phi" in line
    assert "known are width, mixtures" in refused(
        "train-objects", path, "-o", tmp_path / "x", "--set", "depth=3"
    )
    assert "not of hep_jets" in refused(
        "simulate-objects", path, "--model", SAMPLE, "-o", tmp_path / "p.root"
    )
