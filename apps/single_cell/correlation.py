r"""How genes vary together, from the posterior: correlations of draws, not of means.

    C = E_posterior corr(log λ_i, log λ_j) ≈ (1/S) Σ_s corr of draw s

A denoised value is an expectation: what it does not know of a gene it leaves out, and two genes
whose own variation is left out correlate too much. A draw of the rates has that variation again,
so that correlations over cells are those that the rates themselves would have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from apps.single_cell.cells import Cells
from apps.single_cell.data import Source, open_cells
from apps.single_cell.denoise import Denoiser
from apps.single_cell.mcv import TARGET
from apps.single_cell.model import make_context
from apps.single_cell.posterior import sample_rates
from core.errors import AleatorError

BLOCK = 256


def gene_correlations(
    denoiser: Denoiser,
    source: Source | Cells,
    genes: Sequence[str],
    layer: str | None = None,
    *,
    draws: int = 8,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlations over cells of log(1 + 10 000 · share), averaged over draws of the posterior.

    Args:
        denoiser: trained on these cells or on such.
        source: AnnData, file, or opened `Cells`.
        genes: whose correlations are wanted.
        layer: where the counts are.
        draws: S.
        seed: of the draws.

    Returns:
        (genes, genes) table; a gene that is constant has 0.

    Raises:
        AleatorError: a gene that the model does not know, or fewer than two of them.
    """
    place = pd.Index(denoiser.genes).get_indexer(pd.Index(list(genes)))
    if (place < 0).any() or len(place) < 2 or draws < 1:
        unknown = [gene for gene, at in zip(genes, place, strict=True) if at < 0]
        raise AleatorError(
            f"correlations of {len(genes)} genes in {draws} draws: at least two genes and one draw"
            + (f"; the model does not know {', '.join(unknown[:5])}" if unknown else "")
        )
    cells = source if isinstance(source, Cells) else open_cells(source, layer)
    known = cells.aligned(denoiser.genes)
    design = denoiser.covariates.encode(cells.obs, cells.source)
    values = np.empty((draws, len(cells), len(place)), np.float32)
    for start, stop, block in known.counts.blocks(BLOCK):
        x = torch.from_numpy(block.toarray())
        part = design.take(slice(start, stop))
        context = make_context(x.sum(1).numpy(), part, slice(None))
        keys = [int(k) for k in cells.index[start:stop]]
        drawn = sample_rates(denoiser.model, x, context, draws, seed, keys)
        share = drawn[:, :, place] / drawn.sum(2, keepdim=True)
        values[:, start:stop] = np.log1p(TARGET * share.numpy())
    mean = np.mean([_correlation(drawn.astype(np.float64)) for drawn in values], 0)
    return pd.DataFrame(mean, index=list(genes), columns=list(genes))


def _correlation(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(0)
    deviation = x.std(0)
    x = np.divide(x, deviation, out=np.zeros_like(x), where=deviation > 1e-9)
    found = x.T @ x / len(x)
    np.fill_diagonal(found, 1.0)
    return found
