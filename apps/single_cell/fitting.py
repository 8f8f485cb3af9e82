"""Training on sparse blocks: batches that are a function of the step alone, wherever counts lie.

One epoch is a permutation made of sorted runs of rows (`counts.shuffled`), mixed within each set
of runs. It depends on the seed and the number of cells only, so that a backed file, a Zarr store
and a matrix in memory give the same batches, and a resumed run the same as one that was not
stopped.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from apps.single_cell.config import Config
from apps.single_cell.counts import Counts, shuffled
from apps.single_cell.covariates import Design
from apps.single_cell.model import CellVAE, log_profile, make_context
from core.random import keyed_generator
from core.training import FitConfig, Fitted, fit

EPOCHS, LEAST_STEPS, MOST_STEPS = 20, 400, 20_000
CHECKS = 10
"""Validations in a training run."""


@dataclass
class Stream:
    """Random batches of cells for `core.training.fit`.

    Attributes:
        counts: (N, G).
        library: (N,) molecules of each cell.
        design: covariates of each cell.
        batch: cells a step.
        seed: of the order.
    """

    counts: Counts
    library: np.ndarray
    design: Design
    batch: int
    seed: int
    _epoch: int = -1
    _order: list[np.ndarray] = field(default_factory=list)
    _kept: tuple[int, sp.csr_matrix | None] = (-1, None)

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Counts (B, G) and context of a step; `generator` is not needed."""
        rows, index = self.rows(step)
        x = torch.from_numpy(rows.toarray())
        return x, make_context(self.library, self.design, index)

    def rows(self, step: int) -> tuple[sp.csr_matrix, np.ndarray]:
        """Counts (B, G) and the cells' places (B,)."""
        size = min(self.batch, len(self.counts))
        each = max(1, len(self.counts) // size)
        epoch, first = step // each, (step % each) * size
        if epoch != self._epoch:
            self._epoch, self._kept = epoch, (-1, None)
            self._order = list(mixed(len(self.counts), self.seed, epoch))
        parts, places, start = [], [], 0
        for number, order in enumerate(self._order):
            low, high = max(first - start, 0), min(first + size - start, len(order))
            if low < high:
                parts.append(self._take(number, order, low, high))
                places.append(order[low:high])
            start += len(order)
        return sp.vstack(parts, format="csr"), np.concatenate(places)

    def _take(self, number: int, order: np.ndarray, low: int, high: int) -> sp.csr_matrix:
        """Part of one set of rows; sets on disk are read once, in order of place."""
        if self.counts.in_memory:
            return self.counts.take(order[low:high])
        if self._kept[0] != number:
            self._kept = (number, self.counts.take(order))
        assert self._kept[1] is not None
        return self._kept[1][low:high]


def mixed(cells: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The order of one epoch: the sets of `shuffled`, each permuted."""
    sets = []
    for number, index in enumerate(shuffled(cells, seed, epoch)):
        order = torch.randperm(len(index), generator=keyed_generator(seed, epoch, number))
        sets.append(index[order.numpy()])
    return sets


def default_steps(cells: int, batch: int) -> int:
    """Some epochs, within limits."""
    return int(np.clip(EPOCHS * math.ceil(cells / batch), LEAST_STEPS, MOST_STEPS))


def fit_model(
    counts: Counts,
    library: np.ndarray,
    design: Design,
    config: Config,
    *,
    seed: int = 0,
    score: Callable[[Any], float] | None = None,
    checks: int = CHECKS,
    patience: int = 3,
    folder: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    job: dict[str, str] | None = None,
    progress: str | None = "steps",
) -> Fitted:
    """Train a model.

    Args:
        counts: (N, G) whole numbers.
        library: (N,) their sums.
        design: covariates.
        config: with everything chosen but perhaps the number of steps.
        seed: of weights, order and noise.
        score: validation score, by which training stops early.
        checks: validations in a whole run.
        patience: of them without improvement before the end.
        folder: for the log and the state of the run; a temporary one if None.
        resume: continue what the folder holds.
        device: where.
        devices: how many.
        job: what else must be the same to resume.
        progress: unit shown on stderr; None for silence.

    Returns:
        the model with averaged weights, in evaluation mode on the CPU.
    """
    steps = config.steps or default_steps(len(counts), config.batch_size)
    groups = design.sizes[0] if design.sizes else 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CellVAE(
            log_profile(counts),
            len(counts),
            config,
            covariates=sum(design.sizes) + design.values.shape[1],
            batches=groups,
        )
    options = FitConfig(
        steps=steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup=30,
        weight_decay=0.0,
        clip=0.0,
        ema=0.99,
        validate_every=max(1, steps // checks) if score else 0,
        patience=patience if score else 0,
        save_every=steps if folder is None else max(200, steps // 10),
        devices=devices,
        seed=seed,
    )
    trained = {k: v for k, v in config.to_dict().items() if k != "shrinkage"}
    stream = Stream(counts, library, design, config.batch_size, seed)
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = fit(
            model,
            stream,
            options,
            folder=folder,
            score=score,
            resume=resume,
            device=device,
            job={"model": trained, **(job or {})},
            progress=progress,
        )
    found.model.eval()
    return found
