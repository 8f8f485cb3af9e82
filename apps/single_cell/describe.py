"""`info`: what is in a model folder or a file of cells, in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apps.single_cell.checks import some
from apps.single_cell.data import open_cells
from apps.single_cell.denoise import Denoiser
from apps.single_cell.generate import Generator, has_prior
from core.checkpoint import META


def describe(thing: str, layer: str | None = None) -> str:
    """Describe a model folder or a file.

    Args:
        thing: its path.
        layer: where the counts are, of a file.

    Raises:
        AleatorError: it is neither, or not of counts.
    """
    path = Path(thing)
    return describe_model(path) if (path / META).exists() else describe_cells(thing, layer)


def describe_model(folder: Path) -> str:
    """What a model is, what it was trained on and how well it does."""
    model = Denoiser.load(folder)
    config, covariates = model.config, model.covariates
    known = [f"{g.key} ({len(g.categories)})" for g in covariates.groups]
    known += [number.key for number in covariates.continuous]
    lines = [
        f"{folder}: denoiser of single cells {model.fingerprint}",
        f"  trained on: {model.card.get('data', 'unknown')}",
        f"  genes: {len(model.genes)} ({some(model.genes)})",
        f"  covariates: {', '.join(known) or 'none'}",
        f"  likelihood {config.likelihood}, latent {config.latent}, strength "
        f"{config.strength:g}, {config.steps} steps, seed {model.seed}",
    ]
    lines.append(f"  {model.shrinkage}")
    if model.verdict:
        lines.append(f"  {model.verdict.sentence()}")
    if has_prior(folder):
        lines.append(f"  {generator_sentence(Generator.load(folder))}")
    return "\n".join(lines)


def generator_sentence(generator: Generator) -> str:
    """What new cells can be asked for, and how their counts scatter."""
    prior, scatter = generator.prior, generator.scatter
    columns = [group.key for group in prior.conditions.groups]
    told = f"generates cells ({prior.config.family}) by {', '.join(columns) or 'no column'}"
    if scatter is not None and scatter.chance:
        often = f"{1e3 * scatter.chance:g} molecules in 1000"
        told += f"; {often} are counted about {scatter.size:g} times"
    return told if generator.critic is None else f"{told}; a critic chooses among candidates"


def describe_cells(thing: str, layer: str | None = None) -> str:
    """Counts, library sizes and tables of a file; every count is checked."""
    cells = open_cells(thing, layer, drop_empty=True)
    found = cells.summary
    low, middle, high = np.quantile(found.totals, [0, 0.5, 1])
    lines = [
        f"{cells.source}: {cells.slot}, {len(cells)} cells x {cells.shape[1]} genes, raw counts",
        f"  molecules a cell: median {middle:g}, {low:g} to {high:g}; "
        f"median {np.median(found.detected):g} genes detected",
        f"  {found.density:.1%} of the values are not zero, the largest is {found.largest:g}",
        f"  obs: {', '.join(map(str, cells.obs.columns)) or 'no columns'}",
        *(f"  {note}" for note in cells.notes),
    ]
    return "\n".join(lines)
