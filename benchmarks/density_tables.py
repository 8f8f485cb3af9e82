"""The seven tables of `density.py`: read, split, standardised; near-discrete columns spread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apps.table_density.columns import Column, discrete, kind_of

TABLES = ("breast_cancer", "digits", "parkinsons", "elevators", "keggundirected", "kin40k",
          "protein")  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Standardised rows (N, D) in single precision, and what was done to the columns."""

    train: Tensor
    valid: Tensor
    test: Tensor
    spread: int

    @property
    def dims(self) -> int:
        return self.train.shape[1]


def rows_of(name: str, folder: Path) -> np.ndarray:
    if name in ("digits", "breast_cancer"):
        from sklearn import datasets

        return getattr(datasets, f"load_{name}")().data.astype(np.float64)
    x = np.genfromtxt(folder / f"{name}.csv.gz", delimiter=",")
    if name == "keggundirected":  # many rows are there more than once
        x = np.unique(x[np.isfinite(x).all(1)], axis=0)
    return x


def load(name: str, folder: Path, spread: bool) -> Split:
    """80 / 10 / 10 with seed 0; constants of the training part are left out.

    Digits are integers 0..16 and always spread, x + u; `spread` does the like to the
    near-discrete columns of the others: uniform in the cells of few distinct values, and a noise
    of 5 % of the standard deviation where one value is shared by many rows.
    """
    x, rng = rows_of(name, folder), np.random.default_rng(0)
    x = x[rng.permutation(len(x))]
    first, second = int(0.8 * len(x)), int(0.9 * len(x))
    touched = 0
    if name == "digits":
        x = x + rng.random(x.shape)
        touched = x.shape[1]
    train = x[:first]
    x = x[:, [kind_of(column) != "constant" for column in train.T]]
    if spread and name != "digits":
        for i, column in enumerate(x[:first].T):
            kind = kind_of(column)
            if kind == "continuous":
                continue
            touched += 1
            how = discrete(str(i), x[:, i]) if kind == "discrete" else Column(
                str(i), "jittered", width=0.05 * float(column.std())
            )  # fmt: skip
            x[:, i] = how.spread(x[:, i], rng.random(len(x)))[0]
    train = x[:first]
    x = torch.as_tensor((x - train.mean(0)) / train.std(0)).float()
    return Split(x[:first], x[first:second], x[second:], touched)
