"""`python -m pipelines.single_cell` as a user meets it: outputs, verdicts, one line a mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from apps.single_cell.data import sample_path
from apps.single_cell.evaluation import truth_scores
from apps.single_cell.inputs import bundled_model
from pipelines.single_cell import app
from tests.pipelines.mistakes import the_error

QUICK = ("--no-search", "--steps", 40)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """120 cells of the sample, as a file a user might have."""
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    adata = ad.read_h5ad(sample_path())[:120, :200].copy()
    adata.layers["lognorm"] = sp.csr_matrix(np.log1p(adata.X.toarray() / 7).astype(np.float32))
    adata.write_h5ad(path)
    return path


def assert_refused(*arguments):
    """The one line that a mistake ends with."""
    return the_error(invoke(*arguments))


def test_help_is_instant_and_teaches():
    started = time.perf_counter()
    command = [sys.executable, "-m", "pipelines.single_cell", "--help"]
    subprocess.run(command, check=True, capture_output=True)
    assert time.perf_counter() - started < 5  # loaded machines; 0.4 s alone
    for word in ("--batch-key", "--layer", "--model", "--seed", "--target-sum"):
        assert word in invoke("denoise", "--help").output


def test_the_sample_is_denoised_towards_the_truth(tmp_path):
    out = tmp_path / "out.h5ad"
    found = invoke("denoise", "-o", out)
    assert found.exit_code == 0, found.output
    assert "denoising helps here" in found.stderr
    adata = ad.read_h5ad(out)
    ours = truth_scores(adata.layers["denoised"], adata.layers["truth"])
    raw = truth_scores(adata.X.toarray(), adata.layers["truth"])
    assert ours["mse"] < 0.35 * raw["mse"]
    assert ours["gene_r"] > raw["gene_r"]
    assert (adata.obs["aleator_ood"] > 1).mean() < 0.05


def test_fits_on_the_input_itself_and_keeps_it(cells, tmp_path):
    out = tmp_path / "out.h5ad"
    before = cells.read_bytes()
    found = invoke("denoise", cells, "-o", out, "--log", *QUICK)
    assert found.exit_code == 0, found.output
    assert "held-out molecules" in found.stderr
    assert cells.read_bytes() == before
    adata = ad.read_h5ad(out)
    assert {"denoised", "denoised_lower", "denoised_upper", "denoised_log"} <= set(adata.layers)
    assert {"truth", "lognorm"} <= set(adata.layers)
    assert "X_aleator" in adata.obsm


def test_train_then_denoise_then_info(cells, tmp_path):
    assert invoke("train", cells, "-o", tmp_path / "m", *QUICK).exit_code == 0
    out = tmp_path / "out.zarr"
    found = invoke("denoise", cells, "--model", tmp_path / "m", "-o", out, "--dtype", "float16")
    assert found.exit_code == 0, found.output
    assert ad.read_zarr(out).layers["denoised"].dtype == np.float16
    scored = tmp_path / "scored.h5ad"
    found = invoke("score", cells, "--model", tmp_path / "m", "-o", scored)
    assert found.exit_code == 0, found.output
    adata, whole = ad.read_h5ad(scored), ad.read_zarr(out)
    assert "denoised" not in adata.layers
    assert ((adata.obs["aleator_doublet"] >= 0) & (adata.obs["aleator_doublet"] <= 1)).all()
    assert ((adata.obs["aleator_empty"] > 0) & (adata.obs["aleator_empty"] <= 1)).all()
    assert "not told from empty droplets" in found.output
    assert (adata.obs["aleator_ood"].to_numpy() == whole.obs["aleator_ood"].to_numpy()).all()
    assert (adata.obsm["X_aleator"] == whole.obsm["X_aleator"]).all()
    told = invoke("info", tmp_path / "m").stdout
    assert "denoiser of single cells" in told
    assert "deviations from the mean drawn in by" in told
    assert "120 cells x 200 genes" in invoke("info", cells).stdout
    assert "holds a model" in assert_refused("train", cells, "-o", tmp_path / "m", *QUICK)
    assert "covariates belong to training" in assert_refused(
        *("denoise", cells, "--model", tmp_path / "m", "-o", tmp_path / "x.h5ad"),
        *("--batch-key", "batch"),
    )


def test_generates_from_the_bundled_weights_and_translates(tmp_path):
    out = tmp_path / "new.h5ad"
    found = invoke("generate", "-o", out, "--n", 40, "--by", "cell_line=H838")
    assert found.exit_code == 0, found.output
    new, sample = ad.read_h5ad(out), ad.read_h5ad(sample_path())
    assert new.shape == (40, 2000)
    assert set(new.obs["cell_line"]) == {"H838"}
    mean = {
        k: sample.X[(sample.obs["cell_line"] == k).to_numpy()].mean(0) for k in ("H838", "A549")
    }
    like = {k: np.corrcoef(new.X.mean(0), mean[k])[0, 1] for k in mean}
    assert like["H838"] > 0.98 > like["A549"]
    moved = tmp_path / "moved.h5ad"
    pair = ("--from", "cell_line=H838", "--to", "cell_line=A549")
    assert invoke("generate", "-o", moved, *pair).exit_code == 0
    found = np.asarray(ad.read_h5ad(moved).X.mean(0))
    assert np.corrcoef(found, mean["A549"])[0, 1] > 0.97
    said = assert_refused("generate", "-o", tmp_path / "x.h5ad", "--by", "cell_line=HeLa")
    assert "cell_line=HeLa was not seen" in said
    said = assert_refused("generate", "-o", tmp_path / "x.h5ad", "--like", "donor")
    assert "does not know donor" in said
    assert "both --from" in assert_refused("generate", "-o", tmp_path / "x.h5ad", *pair[:2])
    assert "at least one cell" in assert_refused("generate", "-o", tmp_path / "x.h5ad", "--n", 0)


def test_trained_with_a_prior_it_generates_from_the_folder(cells, tmp_path):
    folder, out = tmp_path / "m", tmp_path / "new.zarr"
    found = invoke("train", cells, "-o", folder, "--like", "cell_line", *QUICK)
    assert found.exit_code == 0, found.output
    found = invoke("generate", "--model", folder, "-o", out, "--n", 7)
    assert found.exit_code == 0, found.output
    assert ad.read_zarr(out).shape == (7, 200)
    said = assert_refused("generate", cells, "-o", tmp_path / "x.h5ad", "--by", "cell_line=HeLa")
    assert "no cell has cell_line=HeLa" in said
    said = assert_refused("train", cells, "-o", tmp_path / "n", "--like", "plate", *QUICK)
    assert "no column plate" in said
    assert invoke("train", cells, "-o", folder, "--overwrite", *QUICK).exit_code == 0
    said = assert_refused("generate", "--model", folder, "-o", tmp_path / "x.h5ad")
    assert "has no prior" in said


def test_evaluate_writes_a_report(cells, tmp_path):
    found = invoke("evaluate", cells, "-o", tmp_path / "r", "--no-search")
    assert found.exit_code == 0, found.output
    tables = json.loads((tmp_path / "r" / "results.json").read_text())["tables"]
    named = [row["method"] for row in tables[0]["rows"]]
    assert named[:3] == ["ours", "raw", "library mean"]
    assert "library mean" in (tmp_path / "r" / "report.md").read_text()


def test_evaluate_measures_mixing_where_batches_and_types_are_known(cells, tmp_path):
    adata = ad.read_h5ad(cells)
    adata.obs["half"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    adata.write_h5ad(path := tmp_path / "halves.h5ad")
    keys = ("--batch-key", "half", "--label-key", "cell_line")
    found = invoke("evaluate", path, "-o", tmp_path / "r", "--no-search", *keys)
    assert found.exit_code == 0, found.output
    table = json.loads((tmp_path / "r" / "results.json").read_text())["tables"][2]
    assert [row["space"] for row in table["rows"]] == ["principal components", "integrated"]
    assert all(row["mixed"] > 0.7 for row in table["rows"])  # halves differ by chance alone
    assert "kept apart" in (tmp_path / "r" / "report.md").read_text()
    said = assert_refused("evaluate", path, "-o", tmp_path / "s", "--label-key", "cell_line")
    assert "no batch key" in said
    assert "no column kind" in assert_refused(
        "evaluate", path, "-o", tmp_path / "s", "--batch-key", "half", "--label-key", "kind"
    )


@pytest.mark.slow
def test_two_processes_learn_what_one_does(cells, tmp_path):
    layers = []
    for devices in ("1", "2"):
        folder, out = tmp_path / devices, tmp_path / f"{devices}.h5ad"
        command = [sys.executable, "-m", "pipelines.single_cell", "train", str(cells)]
        options = ["-o", str(folder), "--devices", devices, "--device", "cpu", *map(str, QUICK)]
        subprocess.run([*command, *options], check=True, timeout=300)
        found = invoke("denoise", cells, "--model", folder, "-o", out)
        assert found.exit_code == 0, found.output
        layers.append(np.log1p(ad.read_h5ad(out).layers["denoised"]))
    one, two = layers
    assert np.square(one - two).mean() < 0.02 * one.var()
    assert "devices=0" in assert_refused(
        "train", cells, "-o", tmp_path / "x", "--devices", 0, *QUICK
    )


def test_mistakes_are_one_line(cells, tmp_path):
    out = tmp_path / "out.h5ad"
    said = assert_refused("denoise", cells, "-o", out, "--layer", "lognorm")
    assert "log1p of" in said
    assert "no layer counts" in assert_refused("denoise", cells, "-o", out, "--layer", "counts")
    assert "no column plate" in assert_refused("denoise", cells, "-o", out, "--batch-key", "plate")
    assert "no such file" in assert_refused("denoise", tmp_path / "none.h5ad", "-o", out)
    assert "is the input" in assert_refused("denoise", cells, "-o", cells, "--overwrite")
    assert "name it .h5ad or .zarr" in assert_refused("denoise", cells, "-o", tmp_path / "out.csv")
    assert "not a model folder" in assert_refused("denoise", cells, "-o", out, "--model", tmp_path)
    assert "nb, poisson, zinb" in assert_refused(
        "denoise", cells, "-o", out, "--likelihood", "normal"
    )
    assert "balanced, mean" in assert_refused("denoise", cells, "-o", out, "--estimate", "median")
    assert "from 0 to 1" in assert_refused("denoise", cells, "-o", out, "--shrink", 2)
    assert "name the output .zarr" in assert_refused("denoise", cells, "-o", out, "--workers", 2)
    assert "workers=0" in assert_refused("denoise", cells, "-o", out, "--workers", 0)
    assert "scheduler tcp://127.0.0.1:1: no answer" in assert_refused(
        *("denoise", "-o", tmp_path / "out.zarr", "--scheduler", "tcp://127.0.0.1:1")
    )
    out.touch()
    assert "exists" in assert_refused("denoise", cells, "-o", out)
    cut = tmp_path / "cut.h5ad"
    cut.write_bytes(cells.read_bytes()[:5000])
    assert "damaged or was cut short" in assert_refused("info", cut)


def test_model_of_another_application_is_refused(cells, tmp_path):
    shutil.copytree(bundled_model(), tmp_path / "m")
    meta = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "m" / "model.json").write_text(json.dumps({**meta, "app": "climate_downscaling"}))
    out = tmp_path / "out.h5ad"
    said = assert_refused("denoise", cells, "-o", out, "--model", tmp_path / "m")
    assert "a model of climate_downscaling" in said
    (tmp_path / "m" / "model.json").write_text(json.dumps({**meta, "format": 99}))
    assert "newer version" in assert_refused(
        "denoise", cells, "-o", out, "--model", tmp_path / "m"
    )
