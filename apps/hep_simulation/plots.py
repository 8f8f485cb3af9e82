"""Pictures as the community draws them: spectra with a ratio panel, profiles, showers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.evaluation import Sample
from apps.hep_simulation.features import padded
from apps.hep_simulation.observables import edges_of, response_bins, separation
from core.report import replacing

GREY, BLUE = "0.55", "C0"


def draw_all(folder: Path, generated: Sample, reference: Sample) -> list[Path]:
    """Draw every figure into a folder; returns the files."""
    pictures: dict[str, Callable[[Any], None]] = {
        "spectra": lambda figure: _spectra(figure, generated, reference),
        "profiles": lambda figure: _profiles(figure, generated, reference),
        "response": lambda figure: _response(figure, generated, reference),
        "correlations": lambda figure: _correlations(figure, generated, reference),
        "showers": lambda figure: _showers(figure, generated, reference),
    }
    return [draw(folder / f"{name}.png", picture) for name, picture in pictures.items()]


def draw(path: Path, picture: Callable[[Any], None]) -> Path:
    """Make a figure, let `picture` fill it, and write it to a temporary name first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    picture(figure)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=110, format="png")
    return path


def _spectra(figure: Any, generated: Sample, reference: Sample) -> None:
    """Histograms of the reference (grey) and the generated showers, and their ratio."""
    g, r = generated.features, reference.features
    middle = r.layers.mean(0).argmax()
    panels = [
        ("E_tot / E_inc", "response", g.response, r.response),
        (f"E of layer {middle}, MeV", "layers", g.layers[:, middle], r.layers[:, middle]),
        ("voxel energy, MeV", "voxels", generated.voxels, reference.voxels),
        ("sparsity of that layer", "sparsity", g.sparsity[:, middle], r.sparsity[:, middle]),
        ("centre in r, mm", "centre_r", g.centre_r[:, middle], r.centre_r[:, middle]),
        ("width in r, mm", "width_r", g.width_r[:, middle], r.width_r[:, middle]),
    ]
    axes = figure.subplots(4, 3, height_ratios=[3, 1, 3, 1])
    for index, (label, name, x, y) in enumerate(panels):
        row, column = 2 * (index // 3), index % 3
        edges = edges_of(name, y)
        histogram(axes[row, column], axes[row + 1, column], x, y, edges)
        axes[row + 1, column].set_xlabel(label)
        axes[row, column].set_title(f"separation power {separation(x, y, edges):.4f}", size=9)
        if name in ("layers", "voxels"):
            axes[row, column].set_xscale("log")
            axes[row + 1, column].set_xscale("log")
    axes[0, 0].legend(frameon=False)


def histogram(top: Any, below: Any, x: np.ndarray, y: np.ndarray, edges: np.ndarray) -> None:
    """Shares of x (generated) and y (reference) in bins, and their ratio with y's error below."""
    counts = [np.histogram(sample, edges)[0] for sample in (y, x)]
    p, q = (found / max(found.sum(), 1) for found in counts)
    top.stairs(p, edges, fill=True, color="0.85", label="reference")
    top.stairs(q, edges, color=BLUE, label="generated")
    top.set_yscale("log")
    top.set_xticklabels([])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(counts[0] > 0, q / p, np.nan)
        error = np.where(counts[0] > 0, 1 / np.sqrt(counts[0]), np.nan)
    below.stairs(1 + error, edges, baseline=1 - error, fill=True, color="0.9")
    below.stairs(ratio, edges, color=BLUE)
    below.axhline(1, color=GREY, lw=0.8)
    below.set_ylim(0.5, 1.5)


def _profiles(figure: Any, generated: Sample, reference: Sample) -> None:
    """Mean energy by layer and by ring, in three parts of the spectrum."""
    axes = figure.subplots(1, 2)
    cuts = np.quantile(reference.energies, [0, 1 / 3, 2 / 3, 1])
    for index, (low, high) in enumerate(itertools.pairwise(cuts)):
        for sample, style in ((reference, "o"), (generated, "-")):
            mine = (sample.energies >= low) & (sample.energies <= high)
            if not mine.any():
                continue
            full = padded(sample.showers[mine], sample.geometry)
            label = f"{low / 1000:.3g}–{high / 1000:.3g} GeV" if style == "o" else None
            options = {"color": f"C{index}", "ms": 4, "label": label}
            axes[0].plot(full.sum((2, 3)).mean(0), style, **options)
            axes[1].plot(full.sum((1, 2)).mean(0), style, **options)
    axes[0].set(xlabel="layer", ylabel="mean energy, MeV", yscale="log")
    axes[1].set(xlabel="ring", ylabel="mean energy, MeV", yscale="log")
    axes[0].set_title("points: reference; lines: generated", size=9)
    axes[0].legend(frameon=False)


def _response(figure: Any, generated: Sample, reference: Sample) -> None:
    """Linearity and resolution against the incident energy."""
    from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

    axes = figure.subplots(1, 2)
    bins = response_bins(generated.features, reference.features)
    energy = [np.sqrt(b.low * b.high) / 1000 for b in bins]
    for axis, name, limit in ((axes[0], "linearity", 1), (axes[1], "resolution", 5)):
        values = [100 * getattr(b, name) for b in bins]
        errors = [100 * getattr(b, f"{name}_error") for b in bins]
        axis.axhspan(-limit, limit, color="0.93")
        axis.errorbar(energy, values, errors, fmt="o", color=BLUE)
        axis.set(xscale="log", xlabel="E_inc, GeV", ylabel=f"{name}, % from the reference")
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_locator(NullLocator())


def _correlations(figure: Any, generated: Sample, reference: Sample) -> None:
    """Correlation matrices of the layer energies, and their difference."""
    axes = figure.subplots(1, 3)
    busy = (reference.features.layers.std(0) > 0) & (generated.features.layers.std(0) > 0)
    found = [np.corrcoef(s.features.layers[:, busy].T) for s in (reference, generated)]
    titles = ("reference", "generated", "difference")
    shown = zip(axes, [*found, found[1] - found[0]], titles, (1, 1, 0.2), strict=True)
    for axis, matrix, title, limit in shown:
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(title, size=9)
        figure.colorbar(image, ax=axis, shrink=0.6)


def _showers(figure: Any, generated: Sample, reference: Sample) -> None:
    """Layers against rings of a few showers of the same energies, summed over the sectors."""
    from matplotlib.colors import LogNorm

    axes = figure.subplots(2, 4)
    for column, wanted in enumerate(np.quantile(reference.energies, [0.1, 0.4, 0.7, 0.95])):
        for row, sample in enumerate((reference, generated)):
            index = int(np.abs(sample.energies - wanted).argmin())
            image = padded(sample.showers[index : index + 1], sample.geometry)[0].sum(1).T
            norm = LogNorm(0.1, max(1.0, float(image.max())))
            axes[row, column].imshow(image + 1e-9, norm=norm, aspect="auto", origin="lower")
            name = "reference" if row == 0 else "generated"
            axes[row, column].set_title(f"{name}, {sample.energies[index] / 1000:.3g} GeV", size=9)
            axes[row, column].set(xlabel="layer", ylabel="ring")
