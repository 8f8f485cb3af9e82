"""What comes out: everything that went in, byte for byte where it is a copy, and what is new."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.tests.helpers import assert_equal

from apps.single_cell.data import open_cells
from apps.single_cell.output import Additions, annotate, check_output, write_cells
from core.errors import AleatorError


def additions(n=60, g=40):
    rng = np.random.default_rng(0)
    return Additions(
        layers={"denoised": rng.random((n, g), dtype=np.float32), "sparse": sp.eye(n, g).tocsr()},
        obsm={"X_aleator": rng.random((n, 4), dtype=np.float32)},
        obs={"aleator_elbo": rng.random(n)},
        var={"loss": rng.random(g)},
        uns={"aleator": {"seed": 1}},
    )


def without(adata):
    adata = adata.copy()
    for name in ("denoised", "sparse"):
        del adata.layers[name]
    del adata.obsm["X_aleator"], adata.obs["aleator_elbo"], adata.var["loss"]
    del adata.uns["aleator"]
    return adata


def read(path):
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


@pytest.mark.parametrize("source", ["small.h5ad", "small.zarr"])
@pytest.mark.parametrize("target", [".h5ad", ".zarr"])
@pytest.mark.parametrize("backed", [False, True])
def test_every_slot_survives_and_the_new_ones_are_there(
    cell_files, tmp_path, source, target, backed
):
    cells = open_cells(cell_files / source, backed=backed)
    added = additions()
    out = write_cells(cells, tmp_path / f"out{target}", added)
    written = read(out)
    assert_equal(without(written), read(cell_files / source), exact=True)
    np.testing.assert_array_equal(written.layers["denoised"], added.layers["denoised"])
    assert_equal(written.layers["sparse"], added.layers["sparse"])
    np.testing.assert_array_equal(written.obsm["X_aleator"], added.obsm["X_aleator"])
    np.testing.assert_array_equal(written.obs["aleator_elbo"], added.obs["aleator_elbo"])
    assert list(written.obs)[-1] == "aleator_elbo"
    assert written.uns["aleator"]["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_copy_keeps_what_anndata_does_not_know(cell_files, tmp_path):
    source = tmp_path / "in.h5ad"
    source.write_bytes((cell_files / "small.h5ad").read_bytes())
    with h5py.File(source, "r+") as file:
        file["of_another_tool"] = np.arange(5)
    before = source.read_bytes()
    out = write_cells(open_cells(source), tmp_path / "out.h5ad", additions())
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["of_another_tool"], np.arange(5))
    assert source.read_bytes() == before


def test_an_anndata_in_memory_is_not_changed(small_cells, tmp_path):
    adata = small_cells()
    before = adata.copy()
    annotated = annotate(open_cells(adata), additions())
    assert_equal(adata, before, exact=True)
    assert_equal(without(annotated), before, exact=True)
    out = write_cells(open_cells(adata), tmp_path / "out.h5ad", additions())
    assert_equal(without(read(out)), before, exact=True)


def test_dropped_cells_are_dropped_everywhere(cell_files, tmp_path):
    cells = open_cells(cell_files / "small.h5ad")
    part = cells.select(np.arange(60) % 3 == 0)
    out = write_cells(part, tmp_path / "out.h5ad", additions(20))
    assert_equal(without(read(out)), read(cell_files / "small.h5ad")[::3].copy())


def test_a_column_that_was_there_is_replaced(cell_files, tmp_path):
    first = write_cells(open_cells(cell_files / "small.h5ad"), tmp_path / "1.h5ad", additions())
    again = Additions(obs={"aleator_elbo": np.zeros(60)}, layers={"sparse": np.ones((60, 40))})
    second = read(write_cells(open_cells(first), tmp_path / "2.h5ad", again))
    assert list(second.obs).count("aleator_elbo") == 1
    assert (second.obs["aleator_elbo"] == 0).all()
    assert (second.layers["sparse"] == 1).all()


def test_outputs_that_are_refused(cell_files, tmp_path):
    cells = open_cells(cell_files / "small.h5ad")
    (tmp_path / "there.h5ad").write_text("precious")
    for output, message in (
        (tmp_path / "there.h5ad", "exists"),
        (tmp_path / "out.csv", "name it .h5ad or .zarr"),
        (tmp_path / "no" / "out.h5ad", "no folder"),
        (cell_files / "small.h5ad", "never written to"),
    ):
        with pytest.raises(AleatorError, match=message):
            write_cells(cells, output, additions())
    with pytest.raises(AleatorError, match="never written to"):
        check_output(cell_files / "small.h5ad", cells.path, overwrite=True)
    assert (tmp_path / "there.h5ad").read_text() == "precious"
    write_cells(cells, tmp_path / "there.h5ad", additions(), overwrite=True)
    assert read(tmp_path / "there.h5ad").n_obs == 60


def test_a_failure_leaves_nothing_behind(cell_files, tmp_path):
    cells = open_cells(cell_files / "small.h5ad")
    with pytest.raises(AleatorError, match=r"layers\['x'\] is \(3, 40\), expected \(60, 40\)"):
        write_cells(cells, tmp_path / "o.h5ad", Additions(layers={"x": np.ones((3, 40))}))
    with pytest.raises(AleatorError, match="expected"):
        annotate(cells, Additions(obs={"x": pd.Series([1.0])}))
    assert list(tmp_path.iterdir()) == []
