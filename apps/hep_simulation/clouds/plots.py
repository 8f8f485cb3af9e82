"""Pictures of clouds: spectra of jets and of their constituents, with a ratio panel each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.clouds.evaluation import Sample
from apps.hep_simulation.clouds.observables import NAMES
from apps.hep_simulation.observables import separation
from apps.hep_simulation.plots import draw, histogram

SUBSTRUCTURE = ("girth", "pTD", "tau1", "tau21", "tau32", "leading ptrel")
BINS = 40
Panel = tuple[str, np.ndarray, np.ndarray]
"""Label, generated and reference values."""


def draw_all(folder: Path, generated: Sample, reference: Sample) -> list[Path]:
    """Draw every figure into a folder; returns the files."""
    pictures = {
        "spectra": spectra(generated, reference),
        "substructure": substructure(generated, reference),
    }
    return [
        draw(folder / f"{name}.png", partial(_panels, panels=panels))
        for name, panels in pictures.items()
    ]


def spectra(generated: Sample, reference: Sample) -> list[Panel]:
    """What W1 of the table is of: multiplicity, mass, and the constituents' angles and momenta."""

    def panel(label: str, values: Callable[[Sample], np.ndarray]) -> Panel:
        return label, values(generated), values(reference)

    def of_points(column: int) -> Callable[[Sample], np.ndarray]:
        def values(sample: Sample) -> np.ndarray:
            clouds = sample.clouds
            scale = clouds.pt if column == 2 else np.ones(len(clouds))
            return (clouds.points[:, :, column] * scale[:, None])[clouds.mask]

        return values

    mass = NAMES.index("mass")
    return [
        panel("constituents", lambda s: s.clouds.counts.astype(np.float64)),
        panel("mass, GeV", lambda s: s.features[:, mass] * s.clouds.pt),
        panel("pT, GeV", lambda s: s.clouds.pt),
        panel("constituents' Δη", of_points(0)),
        panel("constituents' Δφ", of_points(1)),
        panel("constituents' pT, GeV", of_points(2)),
    ]


def substructure(generated: Sample, reference: Sample) -> list[Panel]:
    """How the momentum of a jet is spread."""
    columns = [NAMES.index(name) for name in SUBSTRUCTURE]
    return [
        (name, generated.features[:, column], reference.features[:, column])
        for name, column in zip(SUBSTRUCTURE, columns, strict=True)
    ]


def edges_of(label: str, reference: np.ndarray) -> np.ndarray:
    """Bins of a panel: whole numbers, logarithmic for momenta, else even between quantiles."""
    low, high = np.quantile(reference, [0.001, 0.999])
    if label == "constituents":
        step = max(1, round((high - low) / BINS))
        return np.arange(np.floor(low), high + step + 1, step) - 0.5
    if "pT, GeV" in label and low > 0:
        return np.geomspace(low, max(high, 1.001 * low), BINS + 1)
    return np.linspace(low, max(high, low + 1e-6), BINS + 1)


def _panels(figure: Any, panels: list[Panel]) -> None:
    axes = figure.subplots(4, 3, height_ratios=[3, 1, 3, 1])
    for index, (label, x, y) in enumerate(panels):
        row, column = 2 * (index // 3), index % 3
        top, below = axes[row, column], axes[row + 1, column]
        edges = edges_of(label, y)
        histogram(top, below, x, y, edges)
        below.set_xlabel(label)
        top.set_title(f"separation power {separation(x, y, edges):.4f}", size=9)
        if "pT, GeV" in label:
            top.set_xscale("log")
            below.set_xscale("log")
    axes[0, 0].legend(frameon=False)
