r"""What a column is, and what a density can be of.

A column that repeats its values has no bounded density: a flow that puts ever narrower spikes on
them gains without end. Three cases are told apart on the training rows:

    constant     one value, or (almost) nothing else: there is nothing to model
    discrete     few distinct values: each is spread over its cell, and ln P(v) is bounded by
                 E_u ln p(u) + ln(width of the cell), u uniform in it
    mixed        mostly distinct values, but one that many rows share: neither of the two

Reference: Theis et al. (2016) arXiv:1511.01844.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import AleatorError

Kind = Literal["continuous", "discrete", "mixed", "constant"]
Values = NDArray[np.float64]

FEW = 0.05
"""Distinct values per row below which a column counts as discrete."""

SHARED = 0.05
"""Share of the rows on one value above which an otherwise continuous column counts as mixed."""

SAME = 0.995
"""Share of the rows on one value above which a column counts as constant."""


@dataclass(frozen=True)
class Column:
    """A column as the model sees it.

    Attributes:
        name: of the column.
        kind: "continuous", "discrete" or "jittered" (continuous after noise was added).
        values: of a discrete column, in order.
        edges: of their cells, one more than the values.
        width: of the noise of a jittered column.
    """

    name: str
    kind: Literal["continuous", "discrete", "jittered"] = "continuous"
    values: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    width: float = 0.0

    def spread(self, x: Values, u: Values) -> tuple[Values, Values]:
        """Make a column continuous.

        Args:
            x: (N,) its values.
            u: (N,) uniform draws on [0, 1).

        Returns:
            (N,) values, and the logarithm of the cell's width that the density is multiplied by
            to bound a probability: 0 but for discrete columns.

        Raises:
            AleatorError: a discrete column has a value that the training rows had not.
        """
        if self.kind == "continuous":
            return x, np.zeros_like(x)
        if self.kind == "jittered":
            return x + self.width * (u - 0.5), np.zeros_like(x)
        place = self._place(x)
        edges = np.asarray(self.edges)
        width = edges[place + 1] - edges[place]
        return edges[place] + u * width, np.log(width)

    def gather(self, x: Values) -> Values:
        """Undo `spread`: every value of a discrete column back to that of its cell."""
        if self.kind != "discrete":
            return x
        inner = np.asarray(self.edges[1:-1])
        return np.asarray(self.values)[np.searchsorted(inner, x, side="right")]

    def _place(self, x: Values) -> NDArray[np.intp]:
        values = np.asarray(self.values)
        place = np.searchsorted(np.asarray(self.edges[1:-1]), x, side="right")
        gap = np.diff(self.edges).min()
        strange = np.abs(values[place] - x) > 1e-3 * gap
        if strange.any():
            raise AleatorError(
                f"column {self.name!r} has the value {x[strange][0]:g}, which no training row "
                f"has ({len(values)} distinct values): its probability is not modelled"
            )
        return place


def kind_of(x: Values) -> Kind:
    """What a column (N,) is, by how its values repeat."""
    values, counts = _distinct(x)
    top = counts.max() / len(x)
    if len(values) < 2 or top > SAME:
        return "constant"
    if len(values) <= max(2, FEW * len(x)):
        return "discrete"
    return "mixed" if top > SHARED else "continuous"


def discrete(name: str, x: Values) -> Column:
    """Cells of a discrete column: they meet half-way between neighbouring values."""
    values = _distinct(x)[0]
    middle = (values[1:] + values[:-1]) / 2
    first, last = 2 * values[0] - middle[0], 2 * values[-1] - middle[-1]
    edges = np.concatenate([[first], middle, [last]])
    return Column(name, "discrete", tuple(values.tolist()), tuple(edges.tolist()))


def _distinct(x: Values) -> tuple[Values, NDArray[np.int64]]:
    """Values and counts; those that differ by rounding alone are one."""
    values, counts = np.unique(x, return_counts=True)
    apart = np.diff(values) > 1e-9 * max(float(np.ptp(x)), 1e-300)
    group = np.concatenate([[0], np.cumsum(apart)])
    first = np.concatenate([[True], apart])
    return values[first], np.bincount(group, counts).astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """The columns of the model and what was said about them.

    Attributes:
        columns: in order.
        remarks: lines for the user.
    """

    columns: tuple[Column, ...]
    remarks: tuple[str, ...] = field(default=())


def plan(names: list[str], x: Values, jitter: dict[str, float], keep: set[str]) -> Plan:
    """Decide on every column of the training rows.

    Args:
        names: of the columns.
        x: (N, D) training rows.
        jitter: width of uniform noise by name, for columns that the user wants so.
        keep: names of columns to take as continuous whatever they look like.

    Raises:
        AleatorError: a column is constant or mixed, and nothing was said about it.
    """
    for name in (*jitter, *keep):
        if name not in names:
            raise AleatorError(f"there is no column {name!r}; known: {', '.join(names)}")
    columns, remarks = [], []
    for name, values in zip(names, x.T, strict=True):
        kind = kind_of(values)
        if kind == "constant":
            raise AleatorError(
                f"column {name!r} is (almost) constant, {np.median(values):g}: it has no density; "
                f"leave it out with --drop {name}"
            )
        if name in jitter:
            columns.append(Column(name, "jittered", width=jitter[name]))
        elif kind == "continuous" or name in keep:
            columns.append(Column(name))
        elif kind == "discrete":
            columns.append(discrete(name, values))
            count = len(columns[-1].values)
            remarks.append(f"{name}: {count} distinct values, dequantised within their cells")
        else:
            raise AleatorError(_mixed(name, values))
    return Plan(tuple(columns), tuple(remarks))


def _mixed(name: str, x: Values) -> str:
    values, counts = _distinct(x)
    share, value = counts.max() / len(x), values[counts.argmax()]
    return (
        f"column {name!r}: {share:.0%} of the rows have the same value {value:g}, the others do "
        f"not repeat: its density is unbounded there. Add noise with --jitter "
        f"{name}={0.05 * float(x.std()):.2g} (its width), condition on it with --context {name}, "
        f"leave it out with --drop {name}, or take it as it is with --keep {name}"
    )


def as_config(columns: tuple[Column, ...]) -> list[dict[str, Any]]:
    """JSON of the columns."""
    return [
        {k: list(v) if isinstance(v, tuple) else v for k, v in vars(column).items() if v}
        for column in columns
    ]


def from_config(config: list[dict[str, Any]]) -> tuple[Column, ...]:
    """Columns of `as_config`."""
    columns = []
    for entry in config:
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()
        }
        columns.append(Column(**fields))
    return tuple(columns)
