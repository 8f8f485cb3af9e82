"""Rows of what `denoise` writes: the same numbers whoever computes them, and in which order.

A row depends on the model, the cell's counts and covariates, and its place in the file, which keys
its draws. `Rows` computes any run of them; a denoiser goes over all of them in one process, and
`store` hands runs to workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Covariates, Design
from apps.single_cell.expressed import Levels
from apps.single_cell.layers import AVERAGE, Output, among_all, layer_values
from apps.single_cell.model import CellVAE, make_context
from apps.single_cell.ood import Surprise
from apps.single_cell.posterior import CELLS, Rates, rates, sample_rates
from core.errors import AleatorError

READ = 16 * CELLS
"""Cells read from disk at once; a multiple of what is computed at once."""


@dataclass(frozen=True)
class Part:
    """What is written of some cells.

    Attributes:
        start: of the cells.
        stop: of the cells.
        layers: one (B, G) for each name of the output.
        latent: (B, D).
        elbo: (B,) nats.
        ood: (B,).
    """

    start: int
    stop: int
    layers: list[np.ndarray]
    latent: np.ndarray
    elbo: np.ndarray
    ood: np.ndarray


@dataclass(frozen=True)
class Rows:
    """All that rows of an output are computed from.

    Attributes:
        model: trained.
        surprise: to score unusual cells by.
        counts: (N, G) of all genes of the file.
        genes: the model's genes among them, in its order.
        design: covariates of the cells.
        index: (N,) places of the cells in their file.
        output: what to write.
        targets: covariates to decode with instead of their own, see `targets_of`.
        levels: of the genes, where the estimate needs them.
    """

    model: CellVAE
    surprise: Surprise
    counts: Counts
    genes: np.ndarray
    design: Design
    index: np.ndarray
    output: Output
    targets: tuple[Design, ...] = ()
    levels: Levels | None = None

    def __call__(self, start: int, stop: int) -> Iterator[Part]:
        """Cells start:stop, block by block; start is a multiple of `posterior.CELLS`."""
        for first in range(start, stop, READ):
            yield from self._read(first, min(first + READ, stop))

    def _read(self, first: int, last: int) -> Iterator[Part]:
        raw = Counts(self.counts.read(first, last))
        known = raw
        if len(self.genes) != raw.shape[1] or (np.diff(self.genes) < 0).any():
            known = Counts(raw.select(genes=self.genes).read())
        whole = known is raw
        library = np.asarray(known.matrix.sum(1), np.float32).ravel()
        here, keys = slice(first, last), self.index[first:last]
        design = self.design.take(here)
        found = rates(
            self.model,
            known,
            design,
            draws=self.output.draws,
            seed=self.output.seed,
            first=keys,
            target=[target.take(here) for target in self.targets] or None,
        )
        for part in found:
            rows = slice(part.start, part.stop)
            arrays = self._layers(part, known, library[rows], design.take(rows), keys[rows])
            if not whole:
                counts = raw.read(part.start, part.stop).toarray()
                arrays = [among_all(counts, values, self.genes) for values in arrays]
            yield Part(
                first + part.start,
                first + part.stop,
                arrays,
                part.latent,
                part.elbo,
                self.surprise.score(part.elbo, library[rows]),
            )

    def _layers(
        self, part: Rates, known: Counts, library: np.ndarray, design: Design, keys: np.ndarray
    ) -> list[np.ndarray]:
        """Values (B, G) of the model's genes, for each layer; none where only latents are wanted.

        Draws of the rates are made here, where they are asked for.
        """
        if not self.output.rates:
            return []
        drawn: list[np.ndarray] = []
        if self.output.samples:
            x = torch.from_numpy(known.read(part.start, part.stop).toarray())
            context = make_context(library, design, slice(None))
            options = (self.output.samples, self.output.seed, keys)
            drawn = list(sample_rates(self.model, x, context, *options).numpy())
        return layer_values(part, library, self.output, drawn, self.levels)


def targets_of(covariates: Covariates, design: Design, batch: str | None) -> tuple[Design, ...]:
    """The design as if all cells were of one batch; of each, if the average is wanted.

    Args:
        covariates: of the model.
        design: of the cells.
        batch: category of the batch key, or `AVERAGE`; none for the cells' own.

    Raises:
        AleatorError: the model knows no such batch.
    """
    if batch is None:
        return ()
    group = covariates.batch
    if group is None:
        raise AleatorError(f"batch {batch!r}: the model was trained without a batch key")
    wanted = group.categories if batch == AVERAGE else (batch,)
    if wanted[0] not in group.categories:
        raise AleatorError(
            f"batch {batch!r} is none of {group.key}: {', '.join(group.categories)}"
        )
    designs = []
    for name in wanted:
        codes = design.codes.copy()
        codes[:, 0] = group.categories.index(name)
        designs.append(replace(design, codes=codes))
    return tuple(designs)
