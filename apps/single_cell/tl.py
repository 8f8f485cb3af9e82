"""Scanpy-style doors, e.g. `tl.denoise(adata, layer="counts")`: the same code, in place."""

from __future__ import annotations

from typing import Any

import anndata as ad

from apps.single_cell.config import Config
from apps.single_cell.denoise import Denoiser
from apps.single_cell.layers import Output


def denoise(
    adata: ad.AnnData,
    layer: str | None = None,
    *,
    batch_key: str | None = None,
    model: Denoiser | None = None,
    config: Config | None = None,
    seed: int = 0,
    copy: bool = False,
    **options: Any,
) -> ad.AnnData | None:
    """Add denoised layers, their interval, latents, scores and the verdict.

    Args:
        adata: cells; changed in place unless `copy`.
        layer: where the raw counts are; X if None.
        batch_key: column of obs with the technical batch, where a model is fitted here.
        model: trained before; fitted on these cells if None.
        config: of the fit.
        seed: of fit and draws.
        copy: return a new AnnData and leave the given one as it is.
        **options: of `Output`, e.g. target_sum=1e4, log=True.

    Returns:
        the copy, or None.

    Raises:
        AleatorError: as for `Denoiser.fit` and `Denoiser.denoise`.
    """
    model = model or Denoiser.fit(adata, layer, batch_key=batch_key, config=config, seed=seed)
    found = model.denoise(adata, layer, Output(**options, seed=seed))
    if copy:
        return found
    for name in Output(**options, seed=seed).layers:
        adata.layers[name] = found.layers[name]
    adata.obsm["X_aleator"] = found.obsm["X_aleator"]
    for name in ("aleator_elbo", "aleator_ood"):
        adata.obs[name] = found.obs[name]
    adata.uns["aleator"] = found.uns["aleator"]
    return None
