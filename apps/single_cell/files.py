"""Files to AnnData parts: what a path holds is told from its content, not from its name.

`.h5ad` and AnnData-Zarr are opened lazily: only the tables of cells and genes are read, and the
counts where they lie. 10x Genomics `.h5` and `matrix.mtx` folders and Loom files come into memory
as sparse matrices. Nothing is ever opened for writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from apps.single_cell.checks import duplicates, some
from core.errors import AleatorError

HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Opened:
    """A file, looked into but not read.

    Attributes:
        where: path, or what to call it.
        kind: "h5ad", "zarr", "10x h5", "10x mtx", "loom" or "AnnData".
        path: the store, if counts may be read from it lazily; None if `adata` is all there is.
        adata: the whole object, if it is in memory.
        notes: what was done on the way.
    """

    where: str
    kind: str
    path: Path | None = None
    adata: ad.AnnData | None = None
    notes: tuple[str, ...] = ()


def open_path(source: str | Path) -> Opened:
    """Find out what a file or folder is, and open it.

    Args:
        source: `.h5ad`, AnnData-Zarr, 10x `.h5`, a folder with `matrix.mtx(.gz)` or that file
            itself, or Loom.

    Returns:
        an h5ad or Zarr store by its path alone; everything else in memory.

    Raises:
        AleatorError: missing, empty, damaged, cut short, or of another kind.
    """
    path = Path(source)
    if not path.exists():
        raise AleatorError(f"{path}: no such file")
    if path.is_dir():
        return _open_folder(path)
    if ".mtx" in path.suffixes:
        return _read_mtx(path)
    if not path.stat().st_size:
        raise AleatorError(f"{path}: the file is empty")
    with path.open("rb") as file:
        start = file.read(512)
    if not start.startswith(HDF5):
        raise AleatorError(f"{path}: {_what_else(start)}")
    return _open_hdf5(path)


def read_whole(path: Path) -> ad.AnnData:
    """An h5ad or Zarr store with all that is in it, in memory.

    Raises:
        AleatorError: damaged, cut short or not an AnnData.
    """
    with damaged(path):
        return ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)


@contextmanager
def damaged(path: Path | str) -> Iterator[None]:
    """Turn what libraries raise on a bad file into one line."""
    try:
        yield
    except (AleatorError, PermissionError, MemoryError):
        raise
    except Exception as error:  # h5py, zarr, anndata and scipy each raise their own kinds
        text = " ".join(str(error).split())[:160]
        raise AleatorError(
            f"{path}: cannot be read, it is damaged or was cut short ({text}); copy it again"
        ) from error


def _open_folder(path: Path) -> Opened:
    if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
        import zarr

        with damaged(path):
            names = set(zarr.open_group(path, mode="r").keys())
        _refuse_not_anndata(path, names)
        return Opened(str(path), "zarr", path)
    found = sorted(path.glob("*matrix.mtx*"))
    if len(found) == 1:
        return _read_mtx(found[0])
    if found:
        several = some([file.name for file in found])
        raise AleatorError(f"{path}: several matrices ({several}); name the one wanted")
    raise AleatorError(
        f"{path}: neither an AnnData-Zarr store nor a 10x folder (it has no matrix.mtx)"
    )


def _open_hdf5(path: Path) -> Opened:
    import h5py

    with damaged(path), h5py.File(path, "r") as file:
        names = set(file)
        ten_x = "barcodes" in _children(file, "matrix") or any(
            {"barcodes", "indptr"} <= _children(file, name) for name in names
        )
        loom = "matrix" in names and isinstance(file["matrix"], h5py.Dataset)
        legacy = "encoding-type" not in file.attrs and {"X", "obs", "var"} <= names
    if ten_x:
        return _read_10x(path)
    if loom and {"row_attrs", "col_attrs"} <= names:
        return Opened(str(path), "loom", adata=read_loom(path))
    if "mod" in names:
        raise AleatorError(
            f"{path}: a MuData file of several modalities; write the one with the counts, "
            'e.g. mdata["rna"].write_h5ad("rna.h5ad")'
        )
    if "barcode_idx" in names:
        raise AleatorError(
            f"{path}: a 10x molecule file; give filtered_feature_bc_matrix.h5 instead"
        )
    _refuse_not_anndata(path, names)
    if legacy:
        note = "an h5ad of before anndata 0.7, read whole"
        return Opened(str(path), "h5ad", adata=read_whole(path), notes=(note,))
    return Opened(str(path), "h5ad", path)


def _children(file: Any, name: str) -> set[str]:
    return set(file[name]) if name in file and hasattr(file[name], "keys") else set()


def _refuse_not_anndata(path: Path, names: set[str]) -> None:
    if not {"obs", "var"} <= names:
        have = some(sorted(names)) or "nothing"
        raise AleatorError(
            f"{path}: not an AnnData, it has no tables obs and var (it holds {have})"
        )


def _read_10x(path: Path) -> Opened:
    import scanpy as sc

    with damaged(path), _quiet():
        adata = sc.read_10x_h5(path)
    return Opened(str(path), "10x h5", adata=adata, notes=_symbols(adata))


def _read_mtx(path: Path) -> Opened:
    import scanpy as sc

    folder, prefix = path.parent, path.name.split("matrix.mtx")[0]
    parts = [("barcodes.tsv",), ("features.tsv", "genes.tsv")]
    for part in parts:
        candidates = [folder / f"{prefix}{name}{end}" for name in part for end in ("", ".gz")]
        if not any(file.exists() for file in candidates):
            raise AleatorError(
                f"{path}: {prefix}{' or '.join(part)}(.gz) is not beside it; "
                "a 10x folder has matrix, barcodes and features (or genes)"
            )
    with damaged(path), _quiet():
        adata = sc.read_10x_mtx(folder, prefix=prefix or None, make_unique=False)
    adata.X = sp.csr_matrix(adata.X)
    return Opened(str(path), "10x mtx", adata=adata, notes=_symbols(adata))


def _symbols(adata: ad.AnnData) -> tuple[str, ...]:
    """10x matrices are by gene id; symbols that occur twice are made unique, as all tools do."""
    twice = duplicates(adata.var_names)
    if not twice:
        return ()
    adata.var_names_make_unique()
    named = some([name for name, _ in twice])
    return (f"{len(twice)} gene symbols stand for several gene ids, numbered apart: {named}",)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning of names that are not unique, which `_symbols` settles."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        yield


LOOM_CELLS = ("CellID", "obs_names", "cell_names", "Barcode", "barcode")
LOOM_GENES = ("Gene", "var_names", "gene_names", "GeneName", "Accession")


def read_loom(path: Path | str) -> ad.AnnData:
    """A Loom file as AnnData, sparse: genes x cells on disk, read by blocks of cells.

    Args:
        path: Loom file; attributes of rows and columns become var and obs, or varm and obsm where
            they have several columns.

    Returns:
        X and layers as CSR.

    Raises:
        AleatorError: damaged, or attributes that do not fit the matrix.

    Reference: https://linnarssonlab.org/loompy/format
    """
    import h5py

    with damaged(path), h5py.File(path, "r") as file:
        tables = {}
        for axis, group, keys in (
            ("obs", "col_attrs", LOOM_CELLS),
            ("var", "row_attrs", LOOM_GENES),
        ):
            columns = {name: _decoded(file[group][name][...]) for name in file[group]}
            size = file["matrix"].shape[1 if axis == "obs" else 0]
            tables[axis] = _loom_table(path, columns, keys, size)
        (obs, obsm), (var, varm) = tables["obs"], tables["var"]
        layers = {name: _transposed(data) for name, data in file.get("layers", {}).items()}
        x = _transposed(file["matrix"])
        return ad.AnnData(x, obs=obs, var=var, obsm=obsm, varm=varm, layers=layers)


def _transposed(data: Any) -> sp.csr_matrix:
    step = max(1, data.chunks[1] if data.chunks else 64) * 8
    cuts = range(0, data.shape[1], step)
    return sp.vstack([sp.csr_matrix(data[:, a : a + step].T) for a in cuts], format="csr")


def _decoded(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "OS":
        return np.array(
            [
                v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)
                for v in values.flat
            ],
            dtype=object,
        ).reshape(values.shape)
    return values


def _loom_table(
    path: Path | str, columns: dict[str, np.ndarray], keys: tuple[str, ...], size: int
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """One axis: a table with names, and what has several columns."""
    for name, values in columns.items():
        if len(values) != size:
            raise AleatorError(f"{path}: attribute {name} has {len(values)} values, not {size}")
    named = next((key for key in keys if key in columns), None)
    index = (columns.pop(named) if named else np.arange(size)).astype(str)
    flat = {key: values for key, values in columns.items() if values.ndim == 1}
    wide = {key: values for key, values in columns.items() if values.ndim > 1}
    return pd.DataFrame(flat, index=pd.Index(index)), wide


def _what_else(start: bytes) -> str:
    """What a file that is not HDF5 may be."""
    if start[:2] == b"\x1f\x8b":
        return "compressed with gzip; gunzip it first"
    if start[:2] == b"PK":
        return "a zip archive; unpack it first"
    if start[:5] in (b"RDX2\n", b"RDX3\n", b"RDA2\n", b"RDA3\n"):
        return "an R object; convert it, e.g. with zellkonverter::writeH5AD"
    if start.startswith(b"%%MatrixMarket"):
        return "a MatrixMarket matrix; give the 10x folder that holds it, as matrix.mtx"
    try:
        start.decode()
    except UnicodeDecodeError:
        return "not an AnnData (.h5ad, .zarr), 10x (.h5, matrix.mtx) or Loom file"
    return (
        "text, not an AnnData; convert it, e.g. "
        'anndata.io.read_csv("counts.csv").write_h5ad("counts.h5ad")'
    )
