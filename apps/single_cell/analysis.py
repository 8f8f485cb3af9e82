"""What `de` and `integrate` do with a file: a model of it, the result in its slots, a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from apps.single_cell.cells import Cells
from apps.single_cell.config import Config
from apps.single_cell.de import (
    KEY,
    REST,
    Test,
    differential,
    groups_of,
    rank_genes_groups,
)
from apps.single_cell.denoise import LATENT
from apps.single_cell.inputs import Covariate, Input, bundled_model, model_of
from apps.single_cell.integration import KEPT, MIXED, integration_scores
from apps.single_cell.layers import AVERAGE, Output
from apps.single_cell.output import Additions, check_output, write_cells
from apps.single_cell.realism import Components
from core.errors import AleatorError
from core.report import Table, write_results, write_text

Say = Callable[[object], None]
INTEGRATED = "integrated"


def de(
    given: Input,
    path: Path,
    groupby: str | None,
    test: Test,
    *,
    reference: str = REST,
    table: Path | None = None,
    model: Path | None = None,
    covariates: Covariate | None = None,
    config: Config | None = None,
    seed: int = 0,
    search: bool = True,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Write IN with `uns["rank_genes_groups"]`, and a table of all genes if wanted.

    Raises:
        AleatorError: anything wrong with the input, the groups, the model or the options.
    """
    check_output(path, given.source, overwrite=overwrite)
    if table is not None and table.exists() and not overwrite:
        raise AleatorError(f"{table} exists; choose another name or --overwrite")
    if given.source is None:
        model, groupby = model or bundled_model(), groupby or "cell_line"
    if groupby is None:
        raise AleatorError("name the column of obs with the groups: --groupby COLUMN")
    cells = given.open(say)
    groups_of(cells, groupby, reference)
    known: Any = {"seed": seed, "search": search, "device": device, "say": say}
    denoiser = model_of(cells, model, covariates or Covariate(), config, **known)
    found = differential(denoiser, cells, groupby, reference=reference, test=test)
    genes = pd.Index(denoiser.genes)
    for name, changes in found.items():
        called = changes.called(test.fdr)
        best = genes[np.argsort(-np.where(called, changes.scores, -np.inf))[:5]]
        shown = ", ".join(best[: int((called & (changes.lfc > 0)).sum())])
        more = f", more than in {reference}: {shown}" if shown else ""
        say(f"{groupby}={name}: {called.sum()} genes called at {test.fdr:g}{more}")
    if table is not None:
        parts = [c.table(genes, test.fdr).assign(group=name) for name, c in found.items()]
        whole = pd.concat(parts).rename_axis("gene").reset_index()
        write_text(table, whole.to_csv(index=False, float_format="%.6g"))
    layout = rank_genes_groups(found, genes, groupby, reference, test)
    written = write_cells(cells, path, Additions(uns={KEY: layout}), overwrite=overwrite)
    say(f'wrote {written}: uns["{KEY}"], {len(found)} groups against {reference}')
    return written


def integrate(
    given: Input,
    path: Path,
    *,
    batch: str | None = None,
    label_key: str | None = None,
    report: Path | None = None,
    model: Path | None = None,
    covariates: Covariate | None = None,
    config: Config | None = None,
    dtype: str = "float32",
    seed: int = 0,
    search: bool = True,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Write IN with a latent space and an expression from which batches are taken out.

    Args:
        given: the cells.
        path: of the output.
        batch: decode as if all cells were of this one; the mean over all batches if None.
        label_key: column of types, with which mixing and keeping apart are measured.
        report: folder for that table.
        model: folder; the input is learned from if None.
        covariates: of a model that is fitted here; with a batch key.
        config: likewise.
        dtype: of the layers.
        seed: of everything random.
        search: choose the model's options.
        device: where.
        overwrite: an existing output.
        say: for the log.

    Raises:
        AleatorError: no batch key, or anything wrong with the input or the options.
    """
    check_output(path, given.source, overwrite=overwrite)
    covariates = covariates or Covariate()
    if model is None and covariates.batch_key is None:
        raise AleatorError("name the column with the technical batch: --batch-key COLUMN")
    cells = given.open(say)
    if label_key is not None and label_key not in cells.obs:
        raise AleatorError(f"{cells.source}: obs has no column {label_key}")
    known: Any = {"seed": seed, "search": search, "device": device, "say": say}
    denoiser = model_of(cells, model, covariates, config, **known)
    group = denoiser.covariates.batch
    if group is None:
        raise AleatorError(f"{model}: this model was trained without a batch key")
    if len(group.categories) < 2:
        raise AleatorError(
            f"all cells have {group.key}={group.categories[0]}: nothing to integrate"
        )
    output = Output(1e4, log=True, dtype=dtype, batch=batch or AVERAGE, seed=seed, name=INTEGRATED)
    written = denoiser.write(cells, path, output, overwrite=overwrite)
    if label_key is not None:
        latent = _obsm(written)
        table = mixing_table(cells, latent, group.key, label_key, seed)
        table.print()
        if report is not None:
            write_results(report / "integration.json", [table])
            write_text(report / "integration.md", table.markdown())
    say(f"wrote {written}: layers {', '.join(output.layers)}; obsm {LATENT}")
    return written


def mixing_table(
    cells: Cells, latent: np.ndarray, batch_key: str, label_key: str, seed: int = 0
) -> Table:
    """Metrics of the integrated latent space beside components of log-normalised counts."""
    there = cells.obs[label_key].notna().to_numpy()
    batches, labels = (
        cells.obs[key].astype(str).to_numpy()[there] for key in (batch_key, label_key)
    )
    counts = sp.csr_matrix(cells.counts.load().matrix)[there]
    spaces: dict[str, Any] = {
        "principal components": Components.fit(counts, seed)(counts)[:, :30],
        "integrated": latent[there],
    }
    rows = [
        {"space": name, **integration_scores(points, batches, labels, seed)}
        for name, points in spaces.items()
    ]
    columns = ["total", "mixed", *MIXED, "kept", *KEPT]
    return Table(
        rows,
        {"space": "space", **{name: name for name in columns}},
        dict.fromkeys(columns, ".3f"),
        dict.fromkeys(columns, "max"),
        f"{batch_key} mixed, {label_key} kept apart",
    )


def _obsm(path: Path) -> np.ndarray:
    """The latent space of a store that was just written."""
    if path.is_dir():
        import zarr

        store: Any = zarr.open_group(path, mode="r")
        return np.asarray(store["obsm"][LATENT])
    import h5py

    with h5py.File(path, "r") as file:
        return np.asarray(file["obsm"][LATENT])
