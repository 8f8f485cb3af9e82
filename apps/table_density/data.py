"""Tables in and out: CSV, Parquet and NumPy files, refused where they have holes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from core.errors import AleatorError
from core.report import replacing

_READERS = (".csv", ".csv.gz", ".tsv", ".parquet", ".npy")


def read_table(path: Path | str) -> pd.DataFrame:
    """Read a table.

    Args:
        path: `.csv`, `.csv.gz`, `.tsv` (with a header, or numbers only: then columns are named
            c0, c1, ...), `.parquet`, or a two-dimensional `.npy`.

    Returns:
        one row an example.

    Raises:
        AleatorError: no such file, not a table, empty, or two columns of one name.
    """
    path = Path(path)
    if not path.is_file():
        raise AleatorError(f"{path}: no such file")
    kind = next((suffix for suffix in _READERS if path.name.lower().endswith(suffix)), None)
    if kind is None:
        raise AleatorError(f"{path}: not one of {', '.join(_READERS)}")
    try:
        frame = _npy(path) if kind == ".npy" else _parquet(path) if kind == ".parquet" else (
            _text(path, "\t" if kind == ".tsv" else ",")
        )  # fmt: skip
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, AleatorError):
            raise
        raise AleatorError(f"{path}: not a readable table ({error})") from None
    if not len(frame) or not frame.shape[1]:
        raise AleatorError(f"{path}: the table is empty")
    frame.columns = [str(name) for name in frame.columns]
    if twice := [n for n, there in zip(frame, frame.columns.duplicated(), strict=True) if there]:
        raise AleatorError(f"{path}: two columns are named {twice[0]!r}; rename one of them")
    return frame


def _npy(path: Path) -> pd.DataFrame:
    array = np.load(path, allow_pickle=False)
    if array.ndim != 2:
        raise AleatorError(f"{path}: an array of shape {array.shape}; (rows, columns) is needed")
    if array.dtype.kind not in "fiub":
        raise AleatorError(f"{path}: an array of {array.dtype}; numbers are needed")
    return pd.DataFrame(array, columns=[f"c{i}" for i in range(array.shape[1])])


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise AleatorError(
            f"{path}: reading Parquet needs pyarrow; pip install 'aleator[parquet]'"
        ) from None


def _text(path: Path, separator: str) -> pd.DataFrame:
    head = pd.read_csv(path, sep=separator, nrows=0)
    if all(_is_number(name) for name in head.columns):  # no header: the first row is data
        frame = pd.read_csv(path, sep=separator, header=None)
        return frame.set_axis([f"c{i}" for i in range(frame.shape[1])], axis=1)
    return pd.read_csv(path, sep=separator)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def choose(
    frame: pd.DataFrame, columns: Sequence[str], context: Sequence[str], drop: Sequence[str]
) -> list[str]:
    """The columns to model: those named, or all but context and dropped ones.

    Raises:
        AleatorError: a name is not in the table, is in two of the lists, or nothing is left.
    """
    for name in (*columns, *context, *drop):
        if name not in frame:
            raise AleatorError(f"there is no column {name!r}; known: {', '.join(frame)}")
    for name in context:
        if name in columns or name in drop:
            raise AleatorError(f"column {name!r} is given as context and as something else")
    left = [n for n in (columns or frame) if n not in drop and n not in context]
    if not left:
        raise AleatorError("no column is left to model")
    return left


def numbers(frame: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """(N, D) finite numbers of these columns.

    Raises:
        AleatorError: a column is missing, holds text, or has holes or infinities.
    """
    out = np.empty((len(frame), len(names)))
    for i, name in enumerate(names):
        values = column(frame, name)
        if not pd.api.types.is_numeric_dtype(values) or values.dtype.kind == "c":
            raise AleatorError(
                f"column {name!r} holds {'text' if values.dtype == object else values.dtype}, not "
                f"numbers: condition on it with --context {name}, or leave it out with "
                f"--drop {name}"
            )
        out[:, i] = values.to_numpy(dtype=np.float64)
        if not (finite := np.isfinite(out[:, i])).all():
            raise AleatorError(f"column {name!r}: infinite in row {int((~finite).argmax())}")
    return out


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """A column without holes.

    Raises:
        AleatorError: it is not there, or values are missing.
    """
    if name not in frame:
        raise AleatorError(f"the table has no column {name!r}; it has {', '.join(frame)}")
    values = frame[name]
    holes = values.isna().to_numpy()
    if holes.any():
        raise AleatorError(
            f"column {name!r}: {holes.sum()} of {len(frame)} values are missing, first in row "
            f"{int(holes.argmax())}; fill them, leave those rows out, or --drop {name}"
        )
    return values


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Write `.csv`, `.parquet` or `.npy`, whole or not at all.

    Raises:
        AleatorError: another suffix.
    """
    check_output(path)
    with replacing(path) as draft:
        if path.suffix == ".parquet":
            frame.to_parquet(draft)
        elif path.suffix == ".npy":
            with draft.open("wb") as file:
                np.save(file, frame.to_numpy(dtype=np.float64))
        else:
            frame.to_csv(draft, index=False)


def check_output(path: Path) -> None:
    """Refuse a name that `write_table` could not write to, before the work is done.

    Raises:
        AleatorError: an unknown suffix, or no such folder.
    """
    if path.suffix not in (".csv", ".parquet", ".npy"):
        raise AleatorError(f"{path}: the output must be .csv, .parquet or .npy")
    if not path.absolute().parent.is_dir():
        raise AleatorError(f"{path}: there is no folder {path.parent}")
