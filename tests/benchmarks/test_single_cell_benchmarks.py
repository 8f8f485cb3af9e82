"""What the benchmarks of single cells compute themselves."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bench(monkeypatch):
    """Import a module of the benchmarks by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.exact
def test_mixtures_are_shares_of_the_molecules_of_pure_wells(bench):
    rest = np.array([[6, 2, 0], [2, 2, 4], [1, 1, 0], [9, 9, 9]], np.float32)
    shares = np.array([[1, 0], [0, 1], [1, 0], [0.25, 0.75]])
    found = bench("single_cell_truth").known_mixtures(sp.csr_matrix(rest), shares).toarray()
    first, second = np.array([7, 3, 0]) / 10, np.array([2, 2, 4]) / 8
    known = 1e4 * np.stack([first, second, first, 0.25 * first + 0.75 * second])
    assert found == pytest.approx(known)


def test_a_run_of_scvi_that_is_kept_is_not_run_again(bench, tmp_path):
    kept = tmp_path / "scvi0.npz"
    python = tmp_path / "python"
    numbers = {"trained": 2.0, "seconds": 3.0, "peak": 4.0, "cpu": 5.0}
    np.savez(kept, out=np.eye(2), **numbers, version="1", torch="2")
    run_scvi = bench("single_cell_scvi").run_scvi
    found = run_scvi(python, sp.csr_matrix(np.eye(2)), 0, keep=kept)
    assert (found.out == np.eye(2)).all()
    assert (found.trained, found.peak, found.cpu) == (2.0, 4.0, 5.0)
    assert found.version == "scvi-tools 1, torch 2"


def test_a_kept_run_without_all_that_is_asked_is_run_again(bench, tmp_path):
    kept = tmp_path / "scvi0.npz"
    np.savez(kept, out=np.eye(2), trained=1.0)
    run_scvi = bench("single_cell_scvi").run_scvi
    with pytest.raises(FileNotFoundError, match="python"):
        run_scvi(tmp_path / "python", sp.csr_matrix(np.eye(2)), 0, keep=kept)
