"""Figures: embeddings before and after, markers, calibration, molecular cross-validation.

Each takes what the commands write and gives a matplotlib figure, or saves it. Colours of types are
those of every panel; before and after are laid out by the same method with the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from apps.single_cell.denoise import LATENT
from apps.single_cell.realism import Components, log_normalised_sparse
from core.errors import AleatorError
from core.report import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 5000
"""Cells that are drawn, at most."""


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure without a window, and its axes in a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def save(figure: Figure, path: Path | str) -> Path:
    """Write a figure, whole or not at all."""
    path = Path(path)
    with replacing(path) as draft:
        figure.savefig(draft, format=path.suffix.lstrip(".") or "png")
    return path


def umap(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """UMAP of points (N, D), (N, 2)."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore")
        from umap import UMAP

        fitted = UMAP(n_neighbors=min(15, len(points) - 1), min_dist=0.3, random_state=seed)
        return np.asarray(fitted.fit_transform(np.asarray(points, np.float32)))


def embeddings(
    adata: ad.AnnData, colour: str | None = None, *, latent: str = LATENT, seed: int = 0
) -> Figure:
    """UMAP of principal components of the counts beside that of the latent space.

    Args:
        adata: with counts in X and `latent` in obsm.
        colour: column of obs; one colour if None.
        latent: what "after" is.
        seed: of sample and layout.

    Raises:
        AleatorError: no such column or embedding.
    """
    if latent not in adata.obsm:
        raise AleatorError(f"obsm has no {latent}: denoise, score or integrate these cells first")
    if colour is not None and colour not in adata.obs:
        raise AleatorError(f"obs has no column {colour} to colour cells by")
    chosen = np.sort(np.random.default_rng(seed).permutation(adata.n_obs)[:MOST])
    counts = sp.csr_matrix(adata.X[chosen])
    before = Components.fit(counts, seed)(counts)[:, :30]
    after = np.asarray(adata.obsm[latent])[chosen]
    figure, axes = new_figure(9.5, 4.2, 2)
    panels = (("counts, principal components", before), (f"obsm {latent}", after))
    for place, (title, points) in zip(axes, panels, strict=True):
        _scatter(place, umap(points, seed), None if colour is None else adata.obs[colour], chosen)
        place.set_title(title, fontsize=10)
    if colour is not None and axes[-1].get_legend_handles_labels()[1]:
        axes[-1].legend(title=colour, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _scatter(axes: Axes, points: np.ndarray, column: Any, chosen: np.ndarray) -> None:
    import pandas as pd

    options: dict[str, Any] = {"s": 4, "linewidths": 0, "rasterized": True}
    if column is None:
        axes.scatter(points[:, 0], points[:, 1], color="#0073a8", **options)
    elif pd.api.types.is_numeric_dtype(column) and column.nunique() > 20:
        values = column.to_numpy()[chosen]
        axes.scatter(points[:, 0], points[:, 1], c=values, cmap="viridis", **options)
    else:
        from matplotlib import colormaps

        text = column.astype(str).to_numpy()[chosen]
        names = sorted(set(column.astype(str)))
        palette = colormaps["tab20" if len(names) > 10 else "tab10"]
        for k, name in enumerate(names):
            own = text == name
            x, y = points[own].T
            axes.scatter(x, y, color=palette(k % palette.N), label=name, **options)
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")


def markers(
    adata: ad.AnnData, genes: Sequence[str], groupby: str, layer: str = "denoised"
) -> Figure:
    """Dot plots of markers before and after: colour is the mean level, size the share above zero.

    Args:
        adata: with counts in X and the layer.
        genes: names.
        groupby: column of obs.
        layer: denoised rates; its dots have the size of the share of cells with a rate above that
            of the median cell, for no rate is zero.

    Raises:
        AleatorError: a gene, column or layer that is not there.
    """
    missing = [gene for gene in genes if gene not in adata.var_names]
    if missing or not len(genes):
        raise AleatorError(f"no such gene: {', '.join(missing) or 'none was named'}")
    if groupby not in adata.obs:
        raise AleatorError(f"obs has no column {groupby}")
    if layer not in adata.layers:
        raise AleatorError(f"no layer {layer}: denoise these cells first")
    groups = adata.obs[groupby].astype(str).to_numpy()
    names = sorted(set(groups))
    place = [adata.var_names.get_loc(gene) for gene in genes]
    width = 2 * (1.2 + 0.32 * len(genes)) + 1.5
    figure, axes = new_figure(width, 1.4 + 0.3 * len(names), 2)
    for ax, (title, matrix) in zip(
        axes, (("counts", adata.X), (layer, adata.layers[layer])), strict=True
    ):
        values = log_normalised_sparse(sp.csr_matrix(matrix))[:, place].toarray()
        floor = np.median(values, 0) if title == layer else 0.0
        level = np.stack([values[groups == name].mean(0) for name in names])
        share = np.stack([(values[groups == name] > floor).mean(0) for name in names])
        level = (level - level.min(0)) / np.maximum(np.ptp(level, 0), 1e-9)
        x, y = np.meshgrid(np.arange(len(genes)), np.arange(len(names)))
        dots = ax.scatter(x, y, s=4 + 120 * share, c=level, cmap="Reds", edgecolors="0.6", lw=0.4)
        ax.set_xticks(range(len(genes)), list(genes), rotation=90, fontsize=8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set(title=title, xlim=(-0.6, len(genes) - 0.4), ylim=(len(names) - 0.4, -0.6))
    bar = figure.colorbar(dots, ax=axes, shrink=0.8)
    bar.set_label("mean log level,\nof its range", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def calibration(curve: Sequence[tuple[float, float]]) -> Figure:
    """Share of held-out molecules inside their central intervals, against the interval's level.

    Args:
        curve: (level, share), as in a verdict.
    """
    if not curve:
        raise AleatorError("no calibration curve: this verdict is of an older version, fit again")
    levels, shares = zip(*curve, strict=True)
    figure, (axes,) = new_figure(4.2, 4.0)
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, label="exact")
    axes.plot(levels, shares, "o-", color="#c44601", ms=3.5, label="held-out molecules")
    axes.set(xlabel="level of the interval", ylabel="share inside", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8)
    return figure


def cross_validation(losses: Mapping[str, float], tried: Mapping[str, float]) -> Figure:
    """Losses of held-out molecules: what was tried in short runs, and the verdict.

    Args:
        losses: method -> corrected Poisson loss, "ours" among them.
        tried: candidate -> loss after a short run, in the order of the search.
    """
    figure, axes = new_figure(9.5 if tried else 5.0, 3.6, 2 if tried else 1)
    names = sorted(losses, key=lambda name: losses[name])
    colours = ["#c44601" if name == "ours" else "#0073a8" for name in names]
    axes[0].scatter([losses[name] for name in names], range(len(names)), c=colours, s=40)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_xscale("log")
    axes[0].xaxis.set_minor_formatter(_short)
    axes[0].xaxis.set_major_formatter(_short)
    axes[0].tick_params(axis="x", which="both", labelsize=7, rotation=45)
    axes[0].grid(axis="y", color="0.9")
    axes[0].set_axisbelow(True)
    axes[0].invert_yaxis()
    axes[0].set_xlabel("corrected Poisson loss")
    axes[0].set_title("held-out molecules", fontsize=10)
    if tried:
        axes[1].plot(list(tried.values()), range(len(tried)), "o-", color="#0073a8", ms=4)
        axes[1].set_yticks(range(len(tried)), list(tried), fontsize=7)
        axes[1].locator_params(axis="x", nbins=4)
        axes[1].invert_yaxis()
        axes[1].set_title("options tried, short runs", fontsize=10)
    return figure


def _short(value: float, place: float) -> str:
    """Two digits of a tick of a logarithmic axis; `place` is not needed."""
    return f"{value:.2g}"


def draw(
    adata: ad.AnnData, folder: Path | str, colour: str | None = None, genes: Sequence[str] = ()
) -> list[Path]:
    """All figures that an output of `denoise` or `integrate` has the data for.

    Args:
        adata: with counts in X.
        folder: for PNG files.
        colour: column of obs, for embeddings and markers.
        genes: markers; none if empty.

    Returns:
        what was written.

    Raises:
        AleatorError: there is nothing to draw, or a column or gene is not there.
    """
    written: list[Path] = []

    def keep(name: str, figure: Figure) -> None:
        written.append(save(figure, Path(folder) / name))

    if genes:
        if colour is None:
            raise AleatorError("markers are drawn by groups: name a column of obs with --colour")
        layer = "integrated" if "denoised" not in adata.layers else "denoised"
        keep("markers.png", markers(adata, genes, colour, layer))
    verdict = adata.uns.get("aleator", {}).get("verdict")
    if verdict:
        curve = {float(level): float(share) for level, share in verdict.get("curve", {}).items()}
        if curve:
            keep("calibration.png", calibration(sorted(curve.items())))
        tried = {name: float(loss) for name, loss in verdict["tried"].items()}
        losses = {name: float(loss) for name, loss in verdict["losses"].items()}
        keep("cross_validation.png", cross_validation(losses, tried))
    keep("embeddings.png", embeddings(adata, colour))  # last: the layout takes longest
    return written
