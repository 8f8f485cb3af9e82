"""A split of the molecules of some cells, and how models of it are fitted and scored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from apps.single_cell.config import Config
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.fitting import fit_model
from apps.single_cell.layers import point
from apps.single_cell.mcv import Split, Tally, split
from apps.single_cell.model import CellVAE
from apps.single_cell.posterior import rates
from apps.single_cell.shrinkage import Shrinkage, learn_shrinkage
from core.errors import AleatorError

SHARE = 0.9
"""Of the molecules that train."""
SCORED = 500
"""Cells on which candidates are compared."""
FEW = 30
"""Cells below which nothing can be told."""


@dataclass
class Trial:
    """A split of some cells, and what is needed to fit to it.

    Attributes:
        molecules: what trains and what judges.
        design: covariates of these cells.
        seed: of weights and draws.
        device: where to train.
    """

    molecules: Split
    design: Design
    seed: int
    device: str
    library: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.library = sums(self.molecules.train)

    @classmethod
    def of(
        cls, counts: Counts, design: Design, index: np.ndarray, seed: int, device: str
    ) -> Trial:
        """A trial on some of the cells: those in which a molecule is left to learn from.

        Args:
            counts: of all cells.
            design: of all cells.
            index: which.
            seed: of the split, too.
            device: where to train.

        Raises:
            AleatorError: too few cells have such a molecule.
        """
        molecules = split(counts.take(index), SHARE, seed)
        kept = np.flatnonzero(sums(molecules.train) > 0)
        if len(kept) < FEW:
            raise AleatorError(
                f"only {len(kept)} of {len(index)} cells have molecules left to learn from when a "
                f"tenth is held out; {FEW} are needed: leave out cells of a few molecules "
                "(pp.filter_cells, min_counts), or keep more genes"
            )
        if len(kept) < len(index):
            train, test = molecules.train[kept], molecules.test[kept]
            molecules = replace(molecules, train=train, test=test)
        return cls(molecules, design.take(index[kept]), seed, device)

    def fit(self, config: Config, *, checks: int = 0) -> tuple[CellVAE, int]:
        """A model of the training molecules, and the step of its weights."""
        found = fit_model(
            Counts(self.molecules.train),
            self.library,
            self.design,
            config,
            seed=self.seed,
            score=self.score if checks else None,
            checks=checks,
            patience=2,
            device=self.device,
            progress=None,
        )
        assert isinstance(found.model, CellVAE)
        return found.model, found.best_step

    def score(self, model: CellVAE) -> float:
        """Corrected loss of the first cells."""
        return float(self.tally(model, SCORED, draws=2).per_cell().mean())

    def shrinkage(self, model: CellVAE, config: Config) -> Shrinkage:
        """How far to draw the model in: as given, or as the held-out molecules want it."""
        if config.shrinkage is not None:
            return Shrinkage(rest=config.shrinkage)
        return learn_shrinkage(model, self.molecules, self.design, seed=self.seed)

    def tally(
        self,
        model: CellVAE,
        cells: int | None = None,
        draws: int = 8,
        estimate: str = "mean",
    ) -> Tally:
        """All scores of some cells; models are chosen by their means, and judged as written."""
        train, test = self.molecules.train[:cells], self.molecules.test[:cells]
        tally = Tally(self.molecules.ratio)
        for part in rates(model, Counts(train), self.design, draws=draws, seed=self.seed):
            tally.add(point(part, estimate), test[part.start : part.stop])
        return tally


def sums(counts: Any) -> np.ndarray:
    """Molecules (N,) of each cell."""
    return np.asarray(counts.sum(1, dtype=np.float64)).ravel()
