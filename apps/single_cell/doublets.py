r"""How much a cell looks like two: real cells against pairs of them, in the latent space.

    x = x_i + x_j  of random cells i, j of one batch,    score = P(pair | z, ln n)

A forest tells real cells from such pairs by their latents and libraries; each cell is scored by
the trees that have not seen it. Doublets of one type look like deep cells of it, and only the
library speaks against them. The score ranks cells: how many are doublets depends on how they were
loaded.

References: Wolock et al. (2019) doi:10.1016/j.cels.2018.11.005 (simulated doublets); Bernstein et
al. (2020) doi:10.1016/j.cels.2020.05.010 (in a variational autoencoder's latent space).
"""

from __future__ import annotations

import numpy as np
import torch

from apps.single_cell.cells import Cells
from apps.single_cell.covariates import Design
from apps.single_cell.denoise import Denoiser
from apps.single_cell.model import make_context

MOST = 5000
"""Pairs, at most."""
TREES = 200
BLOCK = 256


def doublet_scores(denoiser: Denoiser, cells: Cells, *, seed: int = 0) -> np.ndarray:
    """Score of each cell, (N,) in [0, 1]; half of the cells that are compared are pairs.

    Args:
        denoiser: trained on these cells or on such.
        cells: singlets and doublets alike.
        seed: of pairs and forest.

    Raises:
        AleatorError: genes or covariates that do not fit the model.
    """
    from sklearn.ensemble import RandomForestClassifier

    known = cells.aligned(denoiser.genes)
    design = denoiser.covariates.encode(cells.obs, cells.source)
    one, two = pairs(len(cells), min(len(cells), MOST), design, seed)
    real = _features(denoiser, known, design, np.arange(len(cells)), None)
    made = _features(denoiser, known, design, one, two)
    label = np.r_[np.zeros(len(real)), np.ones(len(made))]
    forest = RandomForestClassifier(
        TREES,
        min_samples_leaf=5,
        oob_score=True,
        class_weight="balanced",
        random_state=seed,
    )
    forest.fit(np.concatenate([real, made]), label)
    return forest.oob_decision_function_[: len(real), 1].astype(np.float32)


def pairs(cells: int, count: int, design: Design, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two different cells of one batch, `count` times; any two where a batch has one cell."""
    stream = np.random.default_rng(seed)
    batch = design.codes[:, 0] if design.sizes else np.zeros(cells, np.int64)
    order = np.argsort(batch, kind="stable")
    start = np.searchsorted(batch[order], np.arange(batch.max() + 2))
    one = stream.integers(0, cells, count)
    size = np.diff(start)[batch[one]]
    place = np.empty(cells, np.int64)
    place[order] = np.arange(cells) - start[batch[order]]
    step = 1 + (stream.random(count) * np.maximum(size - 1, 0)).astype(np.int64)
    two = order[start[batch[one]] + (place[one] + step) % size]
    return one, np.where(size > 1, two, (one + 1) % cells)


def _features(
    denoiser: Denoiser, known: Cells, design: Design, one: np.ndarray, two: np.ndarray | None
) -> np.ndarray:
    """Latents and log-libraries, (M, D + 1), of cells or of pairs of them."""
    found = []
    for start in range(0, len(one), BLOCK):
        rows = slice(start, start + BLOCK)
        x = known.counts.take(one[rows])
        if two is not None:
            x = x + known.counts.take(two[rows])
        counts = torch.from_numpy(x.toarray())
        library = counts.sum(1).clamp(min=1.0)
        part = design.take(one[rows])
        with torch.no_grad():
            q = denoiser.model.encode(counts, make_context(library.numpy(), part, slice(None)))
        found.append(torch.cat([q.mean, library.log()[:, None]], 1).numpy())
    return np.concatenate(found)
