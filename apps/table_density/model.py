"""A flow of a table's rows, with all that reads rows into it; a folder on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from apps.table_density.preprocessing import Cells, Preprocessor
from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import AleatorError
from core.flows import Flow
from core.model import Density
from core.random import keyed_generator, rand
from core.registry import build

APP = "table_density"
CHUNK = 8192
"""Rows an evaluation; results do not depend on it."""


@dataclass(frozen=True)
class TableDensity:
    """A fitted density.

    Attributes:
        flow: of standardised rows.
        preprocessor: from rows to boxes.
        config: of the flow.
        levels: (Q,) sorted log-densities of held-out rows, by which others are ranked.
        card: what made it.
    """

    flow: Flow
    preprocessor: Preprocessor
    config: dict[str, Any]
    levels: Tensor
    card: dict[str, Any]

    @torch.no_grad()
    def log_prob(self, frame: pd.DataFrame, *, draws: int = 16, seed: int = 0) -> Density:
        """Log-density of rows in nats, in the units of the table.

        Args:
            frame: N rows.
            draws: points of every cell, where columns are discrete or jittered.
            seed: of these points.

        Returns:
            "exact", or a "lower_bound" with its standard error where there are cells: then a
            discrete column counts with the probability of its value.

        Raises:
            AleatorError: columns are missing, with holes, of other kinds, or draws < 2.
        """
        if draws < 2:
            raise AleatorError(f"draws={draws}: a standard error needs at least two")
        cells = self.preprocessor.cells(frame)
        context = self.preprocessor.context(frame)
        if cells.exact:
            return Density(self._of(cells.low, context) + cells.log_unit, "exact")
        found = torch.stack([self._of(z, context) for z in points(cells, draws, seed)])
        stderr = found.std(0) / draws**0.5
        return Density(found.mean(0) + cells.log_unit, "lower_bound", stderr)

    def _of(self, z: Tensor, context: Tensor | None) -> Tensor:
        parts = [None] * len(z.split(CHUNK)) if context is None else context.split(CHUNK)
        rows = zip(z.split(CHUNK), parts, strict=True)
        return torch.cat([self.flow.log_prob(row, c).value for row, c in rows])

    def rank(self, log_prob: Tensor) -> Tensor:
        """Share of held-out rows that are less likely, (N,): small for an outlier."""
        return torch.searchsorted(self.levels, log_prob) / len(self.levels)

    def sample(
        self, count: int, *, given: pd.DataFrame | None = None, seed: int = 0
    ) -> pd.DataFrame:
        """Draw rows.

        Args:
            count: how many; for each row of `given`, if there is one.
            given: context, M rows.
            seed: of the draws; a row depends on it and on its number alone.

        Returns:
            `count` rows, or M * count, those of the first context first; the context beside.

        Raises:
            AleatorError: the context is missing, or there should be none.
        """
        if (given is None) == bool(self.preprocessor.given):
            wanted = ", ".join(g.name for g in self.preprocessor.given)
            raise AleatorError(
                f"this density is conditional: give {wanted}" if wanted else
                "this density has no context: leave --given out"
            )  # fmt: skip
        if count < 1:
            raise AleatorError(f"{count} rows: at least one is needed")
        rows_of = np.repeat(np.arange(0 if given is None else len(given)), count)
        repeated = None if given is None else given.iloc[rows_of]
        context = None if repeated is None else self.preprocessor.context(repeated)
        total = count if context is None else len(context)
        drawn = []
        for start in range(0, total, CHUNK):
            rows = range(start, min(start + CHUNK, total))
            streams = [keyed_generator(seed, row) for row in rows]
            if context is None:
                drawn.append(_unconditional(self.flow, streams))
            else:
                part = context[start : start + CHUNK]
                drawn.append(self.flow.sample((), part, generator=streams))
        out = self.preprocessor.decode(torch.cat(drawn))
        if repeated is None:
            return out
        names = [g.name for g in self.preprocessor.given]
        return pd.concat([repeated[names].reset_index(drop=True), out], axis=1)

    def save(self, folder: Path, data_fingerprint: str = "") -> None:
        """Write `model.safetensors` and `model.json`."""
        tensors = {f"flow.{name}": value for name, value in self.flow.state_dict().items()}
        save_checkpoint(
            folder,
            app=APP,
            config={"flow": self.config, "preprocessor": self.preprocessor.config()},
            tensors=tensors | {"levels": self.levels},
            card=self.card,
            data_fingerprint=data_fingerprint,
        )

    @classmethod
    def load(cls, folder: Path | str) -> TableDensity:
        """Read what `save` wrote.

        Raises:
            CheckpointError: not a model of a table.
        """
        found = load_checkpoint(folder, app=APP)
        flow = build(found.config["flow"])
        assert isinstance(flow, Flow)
        weights = {
            name.removeprefix("flow."): value
            for name, value in found.tensors.items()
            if name.startswith("flow.")
        }
        flow.load_state_dict(weights)
        preprocessor = Preprocessor.from_config(found.config["preprocessor"])
        levels = found.tensors["levels"]
        return cls(flow.eval(), preprocessor, found.config["flow"], levels, found.card)


def points(cells: Cells, draws: int, seed: int) -> list[Tensor]:
    """Uniform points of the cells, `draws` times (N, D); row by row a function of the seed."""
    shape = cells.low.shape
    return [cells.at(rand(shape, keyed_generator(seed, draw))) for draw in range(draws)]


def _unconditional(flow: Flow, streams: list[torch.Generator]) -> Tensor:
    return flow.sample((len(streams),), generator=streams)


def fingerprint_of(x: np.ndarray) -> str:
    """16 hexadecimal digits of a table."""
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]
