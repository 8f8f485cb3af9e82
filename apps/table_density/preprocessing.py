"""From rows to what a flow is of, and back: cells, standardisation, context.

Fitted on training rows only, and kept in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from apps.table_density.columns import Column, as_config, from_config
from apps.table_density.data import column, numbers
from core.errors import AleatorError


@dataclass(frozen=True)
class Cells:
    """Rows as boxes (N, D): a point where a column is continuous, a cell where it is not.

    Attributes:
        low: (N, D) lower corners, standardised.
        width: (N, D) sizes, standardised.
        log_unit: (N,) what to add to ln p of a standardised row: the logarithms of the cells'
            widths less those of the standard deviations.
    """

    low: Tensor
    width: Tensor
    log_unit: Tensor

    @property
    def exact(self) -> bool:
        """All columns are continuous."""
        return not self.width.any()

    def at(self, u: Tensor) -> Tensor:
        """The points (N, D) at uniform draws u."""
        return torch.addcmul(self.low, u, self.width)


@dataclass(frozen=True)
class Given:
    """A column of the context: levels, or a mean and a standard deviation.

    Attributes:
        name: of the column.
        levels: values of a categorical one, as text.
        mean: of a numeric one.
        std: likewise.
    """

    name: str
    levels: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @property
    def size(self) -> int:
        """Length of its part of the context vector."""
        return len(self.levels) or 1

    def encode(self, values: pd.Series) -> np.ndarray:
        """(N, size).

        Raises:
            AleatorError: a level that the training rows had not, or text for a number.
        """
        if not self.levels:
            if not pd.api.types.is_numeric_dtype(values):
                raise AleatorError(f"context {self.name!r}: text where numbers were in training")
            return ((values.to_numpy(dtype=np.float64) - self.mean) / self.std)[:, None]
        text = values.map(str).to_numpy()
        place = {level: i for i, level in enumerate(self.levels)}
        if unknown := [t for t in text if t not in place]:
            raise AleatorError(
                f"context {self.name!r}: {unknown[0]!r} was not in the training rows; known: "
                f"{', '.join(self.levels)}"
            )
        return np.eye(len(self.levels))[[place[t] for t in text]]


@dataclass(frozen=True)
class Preprocessor:
    """Columns, their standardisation, and the context.

    Attributes:
        columns: that are modelled, in order.
        mean: (D,) of the training rows, spread.
        std: (D,) likewise.
        given: the context.
    """

    columns: tuple[Column, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    given: tuple[Given, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [c.name for c in self.columns]

    @property
    def context_size(self) -> int:
        """Length of the context vector."""
        return sum(g.size for g in self.given)

    @classmethod
    def fit(
        cls, frame: pd.DataFrame, columns: tuple[Column, ...], context: Sequence[str]
    ) -> Preprocessor:
        """From training rows."""
        spread = _corners(numbers(frame, [c.name for c in columns]), columns)
        middle = spread[0] + 0.5 * spread[1]
        # a uniform law adds width² / 12 to the variance
        std = np.sqrt(middle.var(0) + np.square(spread[1]).mean(0) / 12)
        given = tuple(_given(column(frame, name)) for name in context)
        return cls(columns, tuple(middle.mean(0).tolist()), tuple(std.tolist()), given)

    def cells(self, frame: pd.DataFrame) -> Cells:
        """Rows to boxes.

        Raises:
            AleatorError: see `data.numbers`; or a value that a discrete column never had.
        """
        x = numbers(frame, self.names)
        low, width, log_cell = _corners(x, self.columns)
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        log_unit = log_cell.sum(1) - np.log(std).sum()
        scaled = ((low - mean) / std, width / std, log_unit)
        return Cells(*(torch.as_tensor(part).float() for part in scaled))

    def context(self, frame: pd.DataFrame) -> Tensor | None:
        """(N, context_size), or None if there is no context."""
        if not self.given:
            return None
        parts = [g.encode(column(frame, g.name)) for g in self.given]
        return torch.as_tensor(np.concatenate(parts, 1)).float()

    def decode(self, z: Tensor) -> pd.DataFrame:
        """Standardised draws (N, D) to rows; discrete columns take their values."""
        x = z.double().numpy() * np.asarray(self.std) + np.asarray(self.mean)
        frame = pd.DataFrame(dict(zip(self.names, x.T, strict=True)))
        for c in self.columns:
            if c.kind == "discrete":
                whole = all(value.is_integer() for value in c.values)
                frame[c.name] = c.gather(frame[c.name].to_numpy()).astype(int if whole else float)
        return frame

    def config(self) -> dict[str, Any]:
        """JSON."""
        given = [{**vars(g), "levels": list(g.levels)} for g in self.given]
        return {
            "columns": as_config(self.columns),
            "mean": list(self.mean),
            "std": list(self.std),
            "given": given,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Preprocessor:
        """What `config` made."""
        given = tuple(Given(**{**g, "levels": tuple(g["levels"])}) for g in config["given"])
        columns = from_config(config["columns"])
        return cls(columns, tuple(config["mean"]), tuple(config["std"]), given)


def _corners(
    x: np.ndarray, columns: tuple[Column, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower corners, sizes, and logarithms of the cells of discrete columns, each (N, D)."""
    low, width, log_cell = x.copy(), np.zeros_like(x), np.zeros_like(x)
    for i, c in enumerate(columns):
        if c.kind != "continuous":
            low[:, i], log_cell[:, i] = c.spread(x[:, i], np.zeros(len(x)))
            top = c.spread(x[:, i], np.ones(len(x)))[0]
            width[:, i] = top - low[:, i]
    return low, width, log_cell


def _given(values: pd.Series) -> Given:
    name = str(values.name)
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numeric = values.to_numpy(dtype=np.float64)
        return Given(name, mean=float(numeric.mean()), std=float(numeric.std()) or 1.0)
    levels = tuple(sorted({str(v) for v in values}))
    if len(levels) > 100:
        raise AleatorError(
            f"context {name!r} has {len(levels)} levels: too many for a table of "
            f"{len(values)} rows; group them, or leave it out with --drop {name}"
        )
    return Given(name, levels)
