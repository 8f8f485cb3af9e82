"""Covariates as a typed design: which columns of obs, in which categories and units.

`Covariates` is fitted once, on the cells that a model is trained on, and stored with the model;
`encode` then turns any table of cells into codes and standardised values, or says what does not
fit: a category that was never seen, a missing value, a column of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from apps.single_cell.checks import some
from core.errors import AleatorError


@dataclass(frozen=True)
class Categorical:
    """A column of categories.

    Attributes:
        key: name in obs.
        categories: all that were seen, as text, sorted (or in the column's own order).
    """

    key: str
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Continuous:
    """A column of numbers, standardised as (x - mean) / std.

    Attributes:
        key: name in obs.
        mean: in the unit of the column.
        std: likewise; 1 for a constant.
    """

    key: str
    mean: float
    std: float


@dataclass(frozen=True)
class Design:
    """Covariates of some cells.

    Attributes:
        codes: (N, K) int64, the category of each categorical covariate, the batch first.
        values: (N, C) float32, standardised continuous covariates.
        sizes: K numbers of categories.
    """

    codes: np.ndarray
    values: np.ndarray
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, index: np.ndarray | slice) -> Design:
        """Covariates of some of the cells."""
        return Design(self.codes[index], self.values[index], self.sizes)

    def matrix(self) -> np.ndarray:
        """(N, sum of sizes + C) float32: one-hot codes, then values."""
        hot = [
            np.eye(n, dtype=np.float32)[c] for n, c in zip(self.sizes, self.codes.T, strict=True)
        ]
        return np.concatenate([*hot, self.values], axis=1)


@dataclass(frozen=True)
class Covariates:
    """What a model is conditioned on, as fitted.

    Attributes:
        batch: technical batch, to be integrated over; None if there is none.
        categorical: further ones, e.g. donor or condition.
        continuous: numbers, e.g. age or percentage of mitochondrial molecules.
    """

    batch: Categorical | None = None
    categorical: tuple[Categorical, ...] = ()
    continuous: tuple[Continuous, ...] = ()

    @classmethod
    def fit(
        cls,
        obs: pd.DataFrame,
        where: str,
        *,
        batch_key: str | None = None,
        categorical: Sequence[str] = (),
        continuous: Sequence[str] = (),
    ) -> Covariates:
        """Find categories, means and standard deviations.

        Args:
            obs: table of the training cells.
            where: their file, for messages.
            batch_key: column of the batch.
            categorical: columns of categories.
            continuous: columns of numbers.

        Raises:
            AleatorError: a column that is missing, given twice, of the wrong kind, or with missing
                values (naming the first cell).
        """
        keys = [*([batch_key] if batch_key else []), *categorical, *continuous]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise AleatorError(f"{where}: covariate {twice[0]} is given twice")
        found = [
            Categorical(key, _categories(obs, key, where))
            for key in keys[: len(keys) - len(continuous)]
        ]
        batch = found.pop(0) if batch_key else None
        numbers = []
        for key in continuous:
            values = _numbers(obs, key, where)
            std = float(values.std())
            numbers.append(Continuous(key, float(values.mean()), std if std > 1e-12 else 1.0))
        return cls(batch, tuple(found), tuple(numbers))

    @property
    def groups(self) -> tuple[Categorical, ...]:
        """All that are categorical, the batch first."""
        return (*([self.batch] if self.batch else []), *self.categorical)

    @property
    def width(self) -> int:
        """Columns of `Design.matrix`."""
        return sum(len(group.categories) for group in self.groups) + len(self.continuous)

    def encode(self, obs: pd.DataFrame, where: str) -> Design:
        """The design of other cells.

        Args:
            obs: their table, with the same columns.
            where: their file, for messages.

        Raises:
            AleatorError: a column is missing or has missing values, or holds a category that was
                not there when the covariates were fitted.
        """
        codes = np.zeros((len(obs), len(self.groups)), np.int64)
        for column, group in enumerate(self.groups):
            text = _text(obs, group.key, where)
            place = pd.Index(group.categories).get_indexer(pd.Index(text))
            if (place < 0).any():
                first = int(np.argmax(place < 0))
                raise AleatorError(
                    f"{where}: {group.key} {text[first]!r} of cell {obs.index[first]} was not "
                    f"seen in training (known: {some(group.categories)}); map it to one of "
                    "these or train with it"
                )
            codes[:, column] = place
        values = np.zeros((len(obs), len(self.continuous)), np.float32)
        for column, number in enumerate(self.continuous):
            values[:, column] = (_numbers(obs, number.key, where) - number.mean) / number.std
        return Design(codes, values, tuple(len(group.categories) for group in self.groups))

    def notes(self) -> tuple[str, ...]:
        """What a user may want to know: covariates that cannot tell cells apart."""
        return tuple(
            f"all cells have the same {group.key} ({group.categories[0]})"
            for group in self.groups
            if len(group.categories) == 1
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Covariates:
        """Undo `to_dict`, also after a round trip through JSON."""
        groups = [
            Categorical(group["key"], tuple(group["categories"]))
            for group in [*([state["batch"]] if state["batch"] else []), *state["categorical"]]
        ]
        batch = groups.pop(0) if state["batch"] else None
        return cls(batch, tuple(groups), tuple(Continuous(**c) for c in state["continuous"]))


def _column(obs: pd.DataFrame, key: str, where: str) -> pd.Series:
    if key not in obs:
        have = some(list(obs.columns), 12) or "none"
        raise AleatorError(f"{where}: obs has no column {key} (its columns: {have})")
    column = obs[key]
    missing = column.isna().to_numpy()
    if missing.any():
        raise AleatorError(
            f"{where}: {key} is missing in {missing.sum()} cells, the first is "
            f"{obs.index[int(np.argmax(missing))]}; fill it in or drop these cells"
        )
    return column


def _text(obs: pd.DataFrame, key: str, where: str) -> np.ndarray:
    """Categories as text; 1 and 1.0 are the same."""
    column = _column(obs, key, where)
    if isinstance(column.dtype, pd.CategoricalDtype):
        names = np.array([_word(v) for v in column.cat.categories], dtype=object)
        return names[column.cat.codes.to_numpy()] if len(names) else np.empty(0, object)
    return np.array([_word(v) for v in column], dtype=object)


def _word(value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _categories(obs: pd.DataFrame, key: str, where: str) -> tuple[str, ...]:
    text = _text(obs, key, where)
    column = obs[key]
    kept = set(text)
    if isinstance(column.dtype, pd.CategoricalDtype):
        ordered = [_word(v) for v in column.cat.categories if _word(v) in kept]
    else:
        ordered = sorted(kept)
    if len(text) > 2 and len(ordered) == len(text):
        raise AleatorError(
            f"{where}: {key} differs in every cell, it cannot be a category; "
            "if it is a number, give it as continuous"
        )
    return tuple(dict.fromkeys(ordered))


def _numbers(obs: pd.DataFrame, key: str, where: str) -> np.ndarray:
    column = _column(obs, key, where)
    if not pd.api.types.is_numeric_dtype(column.dtype) or column.dtype.kind == "c":
        raise AleatorError(f"{where}: {key} does not hold numbers; give it as categorical")
    values = column.to_numpy(np.float64)
    if not np.isfinite(values).all():
        first = int(np.argmax(~np.isfinite(values)))
        raise AleatorError(f"{where}: {key} is infinite in cell {obs.index[first]}")
    return values
