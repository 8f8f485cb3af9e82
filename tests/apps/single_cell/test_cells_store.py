"""Denoising to a Zarr store: the same bytes in one go, after kill -9, and from workers."""

import os
import signal
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest

from apps.single_cell import Denoiser, Output, run, store
from apps.single_cell.data import open_cells, sample_path
from apps.single_cell.inputs import Input, bundled_model
from apps.single_cell.store import Job, Workers
from core.errors import AleatorError

OUTPUT = Output(dtype="float16", samples=1, seed=3)


@pytest.fixture(scope="module", autouse=True)
def tasks():
    """Of 256 cells, so that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "TASK_BYTES", 1)
        yield


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The sample twice over: 1 142 cells, five tasks."""
    path = tmp_path_factory.mktemp("store") / "in.zarr"
    sample = ad.read_h5ad(sample_path())
    twice = ad.concat([sample, sample], index_unique="-", merge="same")
    twice.write_zarr(path)
    return path


@pytest.fixture(scope="module")
def whole(cells):
    """What one process writes in one go."""
    return denoise(cells, cells.with_name("whole.zarr"))


def denoise(cells, out, workers=None, output=OUTPUT, said=None):
    say = (lambda _: None) if said is None else said.append
    options = {"model": bundled_model(), "workers": workers, "say": say}
    return run.denoise(Input(str(cells)), out, output, **options)


def files(folder):
    """Place -> bytes of everything in a store."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_a_store_holds_what_denoise_returns(cells, whole):
    read = ad.read_zarr(whole)
    direct = Denoiser.load(bundled_model()).denoise(str(cells), output=OUTPUT)
    for name in OUTPUT.layers:
        assert (read.layers[name] == direct.layers[name]).all()
    for name in ("aleator_elbo", "aleator_ood"):
        assert (read.obs[name].to_numpy() == direct.obs[name].to_numpy()).all()
    assert (read.obsm["X_aleator"] == direct.obsm["X_aleator"]).all()
    assert read.uns["aleator"]["verdict"]["helps"]
    assert list(read.obs)[-2:] == ["aleator_elbo", "aleator_ood"]
    before = ad.read_zarr(cells)
    assert abs(read.X - before.X).max() == 0
    assert list(read.obs)[:-2] == list(before.obs)
    assert not whole.with_name("whole.zarr.partial").exists()


KILLED = """
import os, signal, sys
from apps.single_cell import store
from apps.single_cell.store import Job
from tests.apps.single_cell.test_cells_store import denoise
from pathlib import Path

compute = Job.__call__
def until(self, start, stop):
    if start:
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(self, start, stop)
Job.__call__ = until
store.TASK_BYTES = 1
denoise(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_run_goes_on_and_gives_the_same_bytes(cells, whole, tmp_path, monkeypatch):
    out = tmp_path / "out.zarr"
    died = subprocess.run([sys.executable, "-c", KILLED, cells, out], cwd=os.getcwd(), check=False)
    assert died.returncode == -signal.SIGKILL
    assert not out.exists()
    done = list((tmp_path / "out.zarr.partial" / "done").iterdir())
    assert len(done) == 1
    computed, compute = [], Job.__call__

    def noted(job, start, stop):
        computed.append(start)
        return compute(job, start, stop)

    with pytest.raises(AleatorError, match=r"was begun with output=.*'seed': 3"):
        denoise(cells, out, output=Output(dtype="float16", samples=1, seed=4))
    monkeypatch.setattr(Job, "__call__", noted)
    denoise(cells, out)
    assert computed
    assert 0 not in computed
    assert files(out) == files(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_two_workers_write_the_same_bytes(cells, whole, tmp_path):
    out = denoise(cells, tmp_path / "out.zarr", Workers(2))
    assert files(out) == files(whole)


def test_workers_know_which_cells_express_a_gene(cells, tmp_path):
    output = Output(dtype="float16", estimate="expressed")
    alone = denoise(cells, tmp_path / "alone.zarr", output=output)
    shared = denoise(cells, tmp_path / "shared.zarr", Workers(2), output)
    assert files(shared) == files(alone)
    assert (ad.read_zarr(alone).layers["denoised"] == 0).any()


def test_workers_of_a_scheduler_get_selected_cells_and_all_their_genes(tmp_path):
    """Cells of an h5ad that were left out, unknown genes, and another order of the rest."""
    from distributed import LocalCluster

    sample = ad.read_h5ad(sample_path())
    order = np.random.default_rng(0).permutation(sample.n_vars)
    mixed = sample[:, order].copy()
    extra = ad.AnnData(np.ones((sample.n_obs, 1), np.float32), obs=sample.obs)
    extra.var_names = ["unknown"]
    both = ad.concat([extra, mixed], axis=1, merge="same")
    both.X = both.X.tocsr() if hasattr(both.X, "tocsr") else both.X
    both.X[::5] = 0
    both.write_h5ad(tmp_path / "in.h5ad")
    given = Input(str(tmp_path / "in.h5ad"), drop_empty=True)
    denoiser = Denoiser.load(bundled_model())
    cells = given.open(lambda _: None)
    assert len(cells) < sample.n_obs
    alone = denoiser.write(cells, tmp_path / "alone.zarr", Output())
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=None
    ) as cluster:
        workers = Workers(scheduler=cluster.scheduler_address)
        shared = denoiser.write(cells, tmp_path / "shared.zarr", Output(), workers=workers)
    assert files(shared) == files(alone)
    read = ad.read_zarr(shared)
    assert (read.layers["denoised"][:, 0] == 1).all()
    assert read.n_obs == len(cells)


def test_what_workers_cannot_do_is_refused_before_the_work(cells, tmp_path):
    workers, said = Workers(2), []
    with pytest.raises(AleatorError, match=r"name the output \.zarr"):
        denoise(cells, tmp_path / "out.h5ad", workers, said=said)
    with pytest.raises(AleatorError, match=r"name the output \.zarr"):
        denoise(cells, tmp_path / "out.zarr", workers, Output(sparse=0.1), said=said)
    with pytest.raises(AleatorError, match="workers=0"):
        Workers(0)
    assert not said
    adata = ad.read_h5ad(sample_path())
    adata.X = adata.X.tocsc()
    adata.write_zarr(tmp_path / "csc.zarr")
    with pytest.raises(AleatorError, match="stored by genes"):
        denoise(tmp_path / "csc.zarr", tmp_path / "out.zarr", workers)
    with pytest.raises(AleatorError, match=r"scheduler tcp://127.0.0.1:1: no answer"):
        denoise(cells, tmp_path / "out.zarr", Workers(scheduler="tcp://127.0.0.1:1"))
    assert open_cells(cells).shape[0] == 2 * adata.n_obs
