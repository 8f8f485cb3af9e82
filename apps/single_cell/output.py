"""Results back to AnnData: everything that was there stays, what is new is added.

A store that is copied keeps every slot byte for byte, whatever wrote it; new layers, columns and
embeddings are then added to the copy, which gets its name when it is complete. The input is never
written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from apps.single_cell.cells import Cells
from apps.single_cell.data import read_anndata
from core.errors import AleatorError

SUFFIXES = (".h5ad", ".zarr")


@dataclass(frozen=True)
class Additions:
    """What a command adds to an AnnData of N cells and G genes.

    Attributes:
        layers: name -> (N, G), sparse or dense.
        obsm: name -> (N, D).
        obs: name -> (N,) column.
        var: name -> (G,) column.
        uns: name -> anything that AnnData can write.
    """

    layers: Mapping[str, Any] = field(default_factory=dict)
    obsm: Mapping[str, np.ndarray] = field(default_factory=dict)
    obs: Mapping[str, np.ndarray] = field(default_factory=dict)
    var: Mapping[str, np.ndarray] = field(default_factory=dict)
    uns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Blocks:
    """Layers that are too big to hold, and what is known when they are written.

    Attributes:
        names: of the layers.
        dtype: of their values, e.g. "float32".
        parts: (start, stop, one array (stop - start, G) for each name), first cell to last.
        finish: called after the last part; gives the other additions.
        sparse: whether to write CSR, without the zeros.
    """

    names: Sequence[str]
    dtype: str
    parts: Iterable[tuple[int, int, Sequence[np.ndarray]]]
    finish: Callable[[], Additions]
    sparse: bool = False


def check_output(
    output: Path | str, source: Path | str | None = None, *, overwrite: bool = False
) -> Path:
    """Refuse an output that cannot be written, before any work is done.

    Args:
        output: `.h5ad` or `.zarr`.
        source: the input, if it is a path.
        overwrite: whether an existing output may be replaced (never the input).

    Returns:
        the path.

    Raises:
        AleatorError: it exists, is the input, has another suffix, or its folder does not exist.
    """
    path = Path(output)
    if path.suffix not in SUFFIXES:
        raise AleatorError(f"{path}: the output is AnnData, name it .h5ad or .zarr")
    if not path.parent.is_dir():
        raise AleatorError(f"{path}: there is no folder {path.parent}")
    if path.exists():
        if source is not None and Path(source).exists() and path.samefile(source):
            raise AleatorError(f"{path} is the input, which is never written to; choose another")
        if not overwrite:
            raise AleatorError(f"{path} exists; choose another name or allow overwriting")
    return path


def annotate(cells: Cells, added: Additions) -> ad.AnnData:
    """A copy in memory of all that the source holds about these cells, with the additions.

    Args:
        cells: N cells.
        added: of these cells and all genes of the source.

    Raises:
        AleatorError: shapes that do not fit.
    """
    adata = read_anndata(cells)
    _check_shapes(added, (adata.n_obs, adata.n_vars))
    for name, values in added.layers.items():
        adata.layers[name] = values
    for name, values in added.obsm.items():
        adata.obsm[name] = values
    for name, values in added.obs.items():
        adata.obs[name] = values
    for name, values in added.var.items():
        adata.var[name] = values
    for name, values in added.uns.items():
        adata.uns[name] = values
    return adata


def write_cells(
    cells: Cells, output: Path | str, added: Additions | Blocks, *, overwrite: bool = False
) -> Path:
    """Write the source of these cells with additions.

    Args:
        cells: N cells.
        output: `.h5ad` or `.zarr`.
        added: of these cells and all genes of the source; `Blocks` are written as they come.
        overwrite: whether an existing output may be replaced.

    Returns:
        the output.

    Raises:
        AleatorError: as for `check_output`; shapes that do not fit; the disk is full.
    """
    path = check_output(output, cells.path, overwrite=overwrite)
    partial = path.with_name(f"{path.name}.partial")
    _remove(partial)
    with _complete_or_gone(path, partial):
        copy_cells(cells, partial, path.suffix)
        if isinstance(added, Blocks):
            _stream(partial, added)
            added = added.finish()
        _add(partial, added)
    _rename(partial, path)
    return path


def copy_cells(cells: Cells, target: Path, suffix: str = ".zarr") -> None:
    """Everything that the source holds about these cells, in a file or a folder of a new name.

    Args:
        cells: N cells.
        target: not there yet.
        suffix: format, `.h5ad` or `.zarr`.
    """
    if _same_store(cells, suffix):
        assert cells.path is not None
        copy = shutil.copytree if cells.path.is_dir() else shutil.copyfile
        copy(cells.path, target)
    else:
        _write(annotate(cells, Additions()), target, suffix)


def make_room(
    path: Path,
    arrays: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], str]],
    uns: Mapping[str, Any],
) -> None:
    """Empty arrays in a Zarr store, to be written piece by piece.

    Args:
        path: the store.
        arrays: place, e.g. "layers/denoised" -> shape, chunks and type; what was there of that
            name is replaced. Columns of obs are listed as such.
        uns: name -> what goes there.
    """
    from anndata.io import write_elem

    _add(path, Additions(uns=uns))
    with _writable(path) as store:
        for place, (shape, chunks, dtype) in arrays.items():
            slot, name = place.split("/", 1)
            if slot not in store:
                write_elem(store, slot, {})
            _empty(store[slot], name, shape, chunks, dtype)
            if slot == "obs":
                _list_column(store[slot], name)


def write_anndata(adata: ad.AnnData, output: Path | str, *, overwrite: bool = False) -> Path:
    """Write an AnnData that is in memory, whole or not at all.

    Raises:
        AleatorError: as for `check_output`; the disk is full.
    """
    path = check_output(output, overwrite=overwrite)
    partial = path.with_name(f"{path.name}.partial")
    _remove(partial)
    with _complete_or_gone(path, partial):
        _write(adata, partial, path.suffix)
    _rename(partial, path)
    return path


@contextlib.contextmanager
def _complete_or_gone(path: Path, partial: Path) -> Iterator[None]:
    """What fails on the way leaves nothing behind."""
    try:
        yield
    except OSError as error:
        _remove(partial)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AleatorError(f"{path}: the disk is full; free some space") from error
        raise
    except BaseException:
        _remove(partial)
        raise


def _rename(partial: Path, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(partial, path)


def _same_store(cells: Cells, suffix: str) -> bool:
    """Whether the output can be a copy of the input: one format, all cells."""
    if cells.path is None or cells.path.is_dir() != (suffix == ".zarr"):
        return False
    whole = cells.counts.matrix.shape[0]
    return len(cells) == whole


def _write(adata: ad.AnnData, path: Path, suffix: str) -> None:
    if suffix == ".h5ad":
        adata.write_h5ad(path, compression="gzip")
        return
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*zarr v2.*")
        adata.write_zarr(path)


def _stream(path: Path, blocks: Blocks) -> None:
    """Write layers part by part into a store."""
    from anndata.io import write_elem

    with _writable(path) as store:
        shape = _shape(store)
        if "layers" not in store:
            write_elem(store, "layers", {})
        if blocks.sparse:
            _stream_sparse(store["layers"], blocks)
            return
        chunks, layers = (min(shape[0], 256), shape[1]), store["layers"]
        targets = [_empty(layers, name, shape, chunks, blocks.dtype) for name in blocks.names]
        for start, stop, arrays in blocks.parts:
            for target, values in zip(targets, arrays, strict=True):
                target[start:stop] = values.astype(blocks.dtype)


def _stream_sparse(layers: Any, blocks: Blocks) -> None:
    """Layers as CSR, each part appended to what is there."""
    from anndata.io import sparse_dataset, write_elem

    for start, _, arrays in blocks.parts:
        for name, values in zip(blocks.names, arrays, strict=True):
            rows = sp.csr_matrix(values.astype(blocks.dtype))
            if start == 0:
                write_elem(layers, name, rows)
            else:
                sparse_dataset(layers[name]).append(rows)


def _empty(
    group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str
) -> Any:
    """An empty dense array, as AnnData stores it; one of that name is replaced."""
    if name in group:
        del group[name]
    chunks = tuple(map(min, chunks, shape))
    create = getattr(group, "create_array", None) or group.create_dataset
    target = create(name, shape=shape, dtype=dtype, chunks=chunks)
    target.attrs["encoding-type"] = "array"
    target.attrs["encoding-version"] = "0.2.0"
    return target


def _add(path: Path, added: Additions) -> None:
    """Into a store, without touching what is there."""
    from anndata.io import write_elem

    with _writable(path) as store:
        _check_shapes(added, _shape(store))
        for slot in ("layers", "obsm", "uns"):
            values = getattr(added, slot)
            if values and slot not in store:
                write_elem(store, slot, {})
            for name, value in values.items():
                options = {"compression": "gzip"} if path.is_file() and slot == "layers" else {}
                write_elem(store, f"{slot}/{name}", value, dataset_kwargs=options)
        for slot in ("obs", "var"):
            table = store[slot]
            for name, value in getattr(added, slot).items():
                write_elem(table, name, value)
                _list_column(table, name)


def _list_column(table: Any, name: str) -> None:
    """Among the columns of a table, once."""
    order = [str(column) for column in table.attrs["column-order"]]
    if name not in order:
        _set_order(table, [*order, name])


def _set_order(table: Any, order: list[str]) -> None:
    import h5py

    if isinstance(table, h5py.Group):
        table.attrs.create("column-order", order, dtype=h5py.string_dtype())
    else:
        table.attrs["column-order"] = order


def _writable(path: Path) -> Any:
    if path.is_dir():
        import contextlib

        import zarr

        # a copied .zmetadata would hide what is added
        (path / ".zmetadata").unlink(missing_ok=True)
        return contextlib.nullcontext(zarr.open_group(path, mode="r+", use_consolidated=False))
    import h5py

    return h5py.File(path, "r+")


def _shape(store: Any) -> tuple[int, int]:
    sizes = []
    for slot in ("obs", "var"):
        table = store[slot]
        index = table[table.attrs["_index"]]
        values = index["values"] if hasattr(index, "keys") and "values" in index else index
        sizes.append(int(values.shape[0]))
    return sizes[0], sizes[1]


def _check_shapes(added: Additions, shape: tuple[int, int]) -> None:
    n, g = shape
    wanted = {"layers": (n, g), "obsm": (n,), "obs": (n,), "var": (g,)}
    for slot, expected in wanted.items():
        for name, value in getattr(added, slot).items():
            found = tuple(value.shape)[: len(expected)]
            if found != expected:
                raise AleatorError(f"{slot}[{name!r}] is {found}, expected {expected}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
