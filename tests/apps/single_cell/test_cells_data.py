"""Reading files of every kind, and what is refused and how."""

import gzip
import pickle

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from apps.single_cell.counts import Counts, Stored, batches, shuffled
from apps.single_cell.data import open_cells, read_anndata
from core.errors import AleatorError


def assert_refused(source, *words, **options):
    with pytest.raises(AleatorError) as caught:
        open_cells(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def dense(cells):
    return cells.counts.read().toarray()


@pytest.mark.parametrize("name", ["small.h5ad", "small.zarr", "csc.h5ad"])
@pytest.mark.parametrize("backed", [False, True, None])
@pytest.mark.parametrize("layer", [None, "counts", "raw"])
def test_all_stores_give_the_same_counts(cell_files, small_cells, name, backed, layer):
    adata = small_cells()
    cells = open_cells(cell_files / name, layer, backed=backed)
    np.testing.assert_array_equal(dense(cells), adata.X.toarray())
    assert cells.counts.read().dtype == np.float32
    assert cells.cell_names == tuple(adata.obs_names)
    assert cells.genes == tuple(adata.var_names)
    assert isinstance(cells.counts.matrix, Stored) == (
        backed is True and not (name == "csc.h5ad" and layer is None)
    )
    assert any("converted to CSR" in n for n in cells.notes) == (
        name == "csc.h5ad" and layer is None
    )


def test_summary_is_the_sums_of_the_whole(cell_files, small_cells):
    x = small_cells().X.toarray()
    found = open_cells(cell_files / "small.h5ad").summary
    np.testing.assert_array_equal(found.totals, x.sum(1))
    np.testing.assert_array_equal(found.detected, (x > 0).sum(1))
    np.testing.assert_array_equal(found.gene_totals, x.sum(0))
    np.testing.assert_array_equal(found.gene_cells, (x > 0).sum(0))
    assert found.largest == x.max()
    assert found.density == pytest.approx((x > 0).mean())


def test_an_anndata_in_memory_backed_or_lazy_is_read_and_not_changed(cell_files, small_cells):
    import dask.array as da

    adata = small_cells()
    before = adata.copy()
    expected = adata.X.toarray()
    np.testing.assert_array_equal(dense(open_cells(adata)), expected)
    np.testing.assert_array_equal(dense(open_cells(adata[5:20])), expected[5:20])
    backed = ad.read_h5ad(cell_files / "small.h5ad", backed="r")
    cells = open_cells(backed)
    assert isinstance(cells.counts.matrix, Stored)
    np.testing.assert_array_equal(dense(cells), expected)
    np.testing.assert_array_equal(dense(open_cells(backed[3:9])), expected[3:9])
    adata.X = da.from_array(expected, chunks=(16, 40)).map_blocks(sp.csr_matrix)
    np.testing.assert_array_equal(dense(open_cells(adata)), expected)
    adata.X = expected.astype(np.int64)
    np.testing.assert_array_equal(dense(open_cells(adata)), expected)
    assert list(before.obs) == list(adata.obs)


def test_cells_can_be_sent_to_workers(cell_files):
    cells = open_cells(cell_files / "small.h5ad", backed=True)
    again = pickle.loads(pickle.dumps(cells))
    np.testing.assert_array_equal(dense(again), dense(cells))


@pytest.mark.parametrize("version", [2, 3])
def test_a_10x_folder(tmp_path, small_cells, version):
    adata = small_cells()
    zipped = version == 3
    write = gzip.open if zipped else open
    end = ".gz" if zipped else ""
    with write(tmp_path / f"S1_matrix.mtx{end}", "wb") as file:
        scipy.io.mmwrite(file, adata.X.T.astype(int))
    symbols = ["TWICE", "TWICE", *adata.var_names[2:]]
    columns = [adata.var["gene_ids"], symbols] + ([["Gene Expression"] * 40] if zipped else [])
    for name, rows in (
        ("features.tsv" if zipped else "genes.tsv", zip(*columns, strict=True)),
        ("barcodes.tsv", ((name,) for name in adata.obs_names)),
    ):
        with write(tmp_path / f"S1_{name}{end}", "wt") as file:
            file.writelines("\t".join(row) + "\n" for row in rows)
    for source in (tmp_path, tmp_path / f"S1_matrix.mtx{end}"):
        cells = open_cells(source)
        np.testing.assert_array_equal(dense(cells), adata.X.toarray())
        assert cells.genes[:2] == ("TWICE", "TWICE-1")
        assert "numbered apart: TWICE" in cells.notes[0]
        assert list(cells.var["gene_ids"]) == list(adata.var["gene_ids"])
    (tmp_path / f"S1_barcodes.tsv{end}").unlink()
    assert_refused(tmp_path, "S1_barcodes.tsv(.gz) is not beside it")


def test_a_10x_h5(tmp_path, small_cells):
    adata = small_cells()
    x = adata.X.tocsr()
    with h5py.File(tmp_path / "f.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(list(adata.obs_names), "S")
        group["data"], group["indices"] = x.data.astype("i4"), x.indices.astype("i8")
        group["indptr"], group["shape"] = x.indptr.astype("i8"), np.array([40, 60], "i4")
        features = group.create_group("features")
        features["id"] = np.array(list(adata.var["gene_ids"]), "S")
        features["name"] = np.array(list(adata.var_names), "S")
        features["feature_type"] = np.array(["Gene Expression"] * 40, "S")
        features["genome"] = np.array(["GRCh38"] * 40, "S")
    cells = open_cells(tmp_path / "f.h5")
    np.testing.assert_array_equal(dense(cells), x.toarray())
    assert cells.genes == tuple(adata.var_names)


def test_loom(tmp_path, small_cells):
    adata = small_cells()
    path = tmp_path / "f.loom"
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", data=adata.X.toarray().T, chunks=(8, 8))
        file["layers/spliced"] = 2 * adata.X.toarray().T
        file["col_attrs/CellID"] = np.array(list(adata.obs_names), "S")
        file["col_attrs/age"] = adata.obs["age"].to_numpy()
        file["col_attrs/pca"] = adata.obsm["X_pca"]
        file["row_attrs/Gene"] = np.array(list(adata.var_names), "S")
    cells = open_cells(path)
    np.testing.assert_array_equal(dense(cells), adata.X.toarray())
    np.testing.assert_array_equal(dense(open_cells(path, "spliced")), 2 * adata.X.toarray())
    assert cells.cell_names == tuple(adata.obs_names)
    np.testing.assert_array_equal(cells.obs["age"], adata.obs["age"])
    np.testing.assert_array_equal(read_anndata(cells).obsm["pca"], adata.obsm["X_pca"])
    with h5py.File(path, "r+") as file:
        del file["col_attrs/age"]
        file["col_attrs/age"] = np.arange(3)
    assert_refused(path, "attribute age has 3 values, not 60")


def with_value(adata, value, dtype=np.float64, row=7, column=5):
    x = adata.X.toarray().astype(dtype)
    x[row, column] = value
    adata.X = sp.csr_matrix(x)
    return adata


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.5, ["1.5 for gene GENE5 in cell cell7", "is not whole", "allow_noninteger"]),
        (np.nan, ["nan for gene GENE5 in cell cell7", "is not a number"]),
        (np.inf, ["inf for gene GENE5 in cell cell7", "is not a number"]),
        (-2.0, ["-2 for gene GENE5 in cell cell7", "is negative"]),
        (2**24 + 2, ["16777218 for gene GENE5 in cell cell7", "beyond 16777216"]),
    ],
)
def test_one_bad_value_is_found_and_named(small_cells, value, words):
    assert_refused(with_value(small_cells(), value), *words)


def test_allowed_fractions_and_the_largest_exact_count(small_cells):
    assert (
        open_cells(with_value(small_cells(), 1.5), allow_noninteger=True).summary.fractional == 1
    )
    assert open_cells(with_value(small_cells(), 2**24)).summary.largest == 2**24
    assert_refused(with_value(small_cells(), 2**31, np.int64), "2147483648 for gene GENE5")


def scaled(x, total):
    return sp.csr_matrix(sp.diags(total / np.asarray(x.sum(1)).ravel()) @ x)


@pytest.mark.parametrize(
    ("change", "looks"),
    [
        (lambda x: scaled(x, 1e4).log1p(), "log1p of counts normalised to 10000 per cell"),
        (lambda x: scaled(x, 1e6).log1p(), "log1p of counts normalised to 1e+06 per cell"),
        (
            lambda x: scaled(x, 1e4).log1p() / np.log(2),
            "log2(1 + x) of counts normalised to 10000 per cell",
        ),
        (lambda x: scaled(x, 1e4), "counts normalised to 10000 per cell, without a logarithm"),
        (lambda x: scaled(x, 1e4).log1p()[:, 3:30], "log1p of counts divided by a factor"),
        (lambda x: scaled(x, 1e4)[:, 3:30], "counts divided by a factor of each cell"),
        (lambda x: x.log1p(), "log1p of counts divided by a factor"),
        (lambda x: x.sqrt(), "square roots of counts"),
        (
            lambda x: sp.csr_matrix((x.toarray() - x.mean(0)) / x.toarray().std(0).clip(0.1)),
            "z-scores",
        ),
    ],
)
def test_what_is_not_counts_is_recognised(small_cells, change, looks):
    counts = small_cells(depth=400).X.astype(np.float64)
    changed = sp.csr_matrix(change(counts))
    adata = ad.AnnData(changed)
    adata.layers["umi"] = counts[:, : changed.shape[1]]
    assert_refused(adata, "looks like", looks, "others here: umi", " in cell 0")


def test_other_types_of_values(small_cells):
    adata = small_cells()
    adata.X = adata.X.astype(bool)
    assert_refused(adata, "true and false, not counts")
    adata.X = adata.X.astype(np.complex128)
    assert_refused(adata, "complex numbers, not counts")


def test_missing_slots_are_named_with_what_is_there(small_cells, cell_files):
    assert_refused(
        cell_files / "small.h5ad", "no layer umi", "X, counts, lognorm, raw", layer="umi"
    )
    adata = small_cells()
    adata.X = None
    assert_refused(adata, "X is empty", "counts, lognorm, raw")
    assert open_cells(adata, "counts").slot == "layers/counts"
    del adata.raw
    assert_refused(adata, "no layer raw", layer="raw")


def test_empty_cells_are_named_and_dropped_only_when_asked(small_cells):
    adata = small_cells()
    x = adata.X.toarray()
    x[[3, 9]] = 0
    adata.X = sp.csr_matrix(x)
    assert_refused(adata, "2 cells without any molecule: cell3, cell9", "drop_empty")
    cells = open_cells(adata, drop_empty=True)
    assert len(cells) == 58
    assert "2 empty cells left out: cell3, cell9" in cells.notes
    np.testing.assert_array_equal(dense(cells), np.delete(x, [3, 9], 0))
    np.testing.assert_array_equal(cells.summary.totals, cells.counts.read().sum(1).A1)
    assert list(read_anndata(cells).obs_names) == list(cells.cell_names)


def test_genes_without_molecules_are_allowed_and_reported(small_cells):
    adata = small_cells()
    x = adata.X.toarray()
    x[:, 4] = 0
    adata.X = sp.csr_matrix(x)
    assert "1 genes have no molecule in any cell" in open_cells(adata).notes


def test_duplicated_names(small_cells):
    adata = small_cells()
    adata.var_names = ["A", "A", "B", "B", "B", *adata.var_names[5:]]
    assert_refused(adata, "2 gene names", "A (2 times), B (3 times)", "make_unique")
    assert open_cells(adata, make_unique=True).genes[:5] == ("A", "A-1", "B", "B-1", "B-2")
    adata = small_cells()
    adata.obs_names = ["c", "c", *adata.obs_names[2:]]
    assert_refused(adata, "1 cell names", "c (2 times)")


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_cells(small_cells, n):
    assert_refused(small_cells()[:n].copy(), f"has {n} cell(s)", "at least two")


def test_what_is_not_an_anndata(tmp_path, cell_files):
    assert_refused(tmp_path / "none.h5ad", "no such file")
    (tmp_path / "empty.h5ad").touch()
    assert_refused(tmp_path / "empty.h5ad", "the file is empty")
    (tmp_path / "a.csv").write_text("gene,cell\n1,2\n")
    assert_refused(tmp_path / "a.csv", "text, not an AnnData")
    (tmp_path / "a.rds").write_bytes(gzip.compress(b"RDX3\n"))
    assert_refused(tmp_path / "a.rds", "gunzip")
    (tmp_path / "a.bin").write_bytes(bytes(range(128, 256)))
    assert_refused(tmp_path / "a.bin", "not an AnnData")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["weights"] = np.zeros(3)
    assert_refused(tmp_path / "a.h5", "no tables obs and var", "weights")
    with h5py.File(tmp_path / "a.h5mu", "w") as file:
        file["mod/rna"] = np.zeros(3)
    assert_refused(tmp_path / "a.h5mu", "MuData")
    (tmp_path / "folder").mkdir()
    assert_refused(tmp_path / "folder", "neither an AnnData-Zarr store nor a 10x folder")
    whole = (cell_files / "small.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    assert_refused(tmp_path / "cut.h5ad", "damaged or was cut short")


def test_a_matrix_that_does_not_fit_its_tables(tmp_path, cell_files):
    path = tmp_path / "bad.h5ad"
    path.write_bytes((cell_files / "small.h5ad").read_bytes())
    with h5py.File(path, "r+") as file:
        file["X"].attrs["shape"] = np.array([60, 41])
    assert_refused(path, "60 x 41", "60 cells and 40 genes")


def test_genes_are_aligned_by_name(cell_files):
    cells = open_cells(cell_files / "small.h5ad", backed=True)
    wanted = list(cells.genes[::-1][3:])
    aligned = cells.aligned(wanted)
    assert aligned.genes == tuple(wanted)
    np.testing.assert_array_equal(dense(aligned), dense(cells)[:, ::-1][:, 3:])
    np.testing.assert_array_equal(aligned.summary.gene_totals, dense(aligned).sum(0))
    np.testing.assert_array_equal(aligned.summary.totals, cells.summary.totals)
    assert any("aligned by name" in note for note in aligned.notes)
    assert any("3 genes that the model does not know" in note for note in aligned.notes)
    assert not cells.aligned(cells.genes).notes


def test_missing_genes_are_an_error_or_zero_when_asked(cell_files, small_cells):
    cells = open_cells(cell_files / "small.h5ad")
    wanted = ["NEW1", *cells.genes, "NEW2"]
    with pytest.raises(AleatorError, match=r"2 of the 42 genes .* missing \(NEW1, NEW2\)"):
        cells.aligned(wanted)
    filled = cells.aligned(wanted, fill_missing=True)
    np.testing.assert_array_equal(dense(filled), np.pad(dense(cells), ((0, 0), (1, 1))))
    np.testing.assert_array_equal(
        filled.counts.take(np.array([5, 2])).toarray(), dense(filled)[[5, 2]]
    )
    for genes, hint in (
        ([g.lower() for g in cells.genes], "upper and lower case"),
        (list(small_cells().var["gene_ids"]), r"var\['gene_ids'\] has them"),
        ([f"{g}.7" for g in cells.genes], "version number"),
        (["Q1", "Q2"], "same species"),
    ):
        with pytest.raises(AleatorError, match=hint):
            cells.aligned(genes, fill_missing=True)


@pytest.mark.parametrize("backed", [False, True])
def test_any_rows_in_any_order_and_any_block_size(cell_files, backed):
    cells = open_cells(cell_files / "small.zarr", backed=backed)
    whole = dense(cells)
    index = np.array([59, 0, 31, 30, 0, 7])
    np.testing.assert_array_equal(cells.counts.take(index).toarray(), whole[index])
    part = cells.counts.select(np.arange(60) % 7 == 1, np.array([5, 2]))
    expected = whole[1::7][:, [5, 2]]
    for size in (1, 3, 100):
        blocks = [block.toarray() for _, _, block in part.blocks(size)]
        np.testing.assert_array_equal(np.concatenate(blocks), expected)
    np.testing.assert_array_equal(part.load().read().toarray(), expected)
    np.testing.assert_array_equal(part.select(np.array([2, 4])).read().toarray(), expected[[2, 4]])


@pytest.mark.property
def test_an_epoch_visits_every_cell_once_in_sorted_blocks():
    for cells, block, blocks in ((1000, 7, 5), (10, 128, 64), (129, 128, 1)):
        sets = list(shuffled(cells, 3, 0, block=block, blocks=blocks))
        assert all((np.diff(rows) > 0).all() for rows in sets)
        np.testing.assert_array_equal(np.sort(np.concatenate(sets)), np.arange(cells))
    first, again, next_epoch = (
        np.concatenate(list(shuffled(1000, 3, epoch, block=7, blocks=5))) for epoch in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != next_epoch).any()


def test_batches_are_the_rows_that_they_say(cell_files):
    counts = open_cells(cell_files / "small.h5ad", backed=True).counts
    whole = counts.read().toarray()
    seen = []
    for index, rows in batches(counts, 8, seed=1, epoch=2, block=4, blocks=5):
        np.testing.assert_array_equal(rows.toarray(), whole[index])
        seen.append(index)
    order = np.concatenate(seen)
    np.testing.assert_array_equal(np.sort(order), np.arange(60))
    assert (np.diff(order) < 0).sum() > 15
    with pytest.raises(AleatorError, match="at least 1"):
        next(batches(counts, 0, 0, 0))


def test_stored_zeros_and_duplicate_entries_are_settled():
    rows, columns = np.array([0, 0, 1]), np.array([1, 1, 0])
    matrix = sp.coo_matrix((np.array([2.0, 3.0, 0.0]), (rows, columns)), shape=(2, 2)).tocsr()
    block = Counts(matrix).read()
    assert block.nnz == 1
    assert block[0, 1] == 5


def test_obs_tables_of_pandas_kinds(small_cells):
    adata = small_cells()
    adata.obs_names = pd.Index(range(60))  # anndata makes text of it
    assert open_cells(adata).cell_names[:2] == ("0", "1")
