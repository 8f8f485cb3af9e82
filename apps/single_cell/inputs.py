"""What a command works on: cells from a file, and a model of a folder or of these very cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from apps.single_cell.cells import Cells
from apps.single_cell.config import Config
from apps.single_cell.data import open_cells, sample_path
from apps.single_cell.denoise import Denoiser
from apps.single_cell.filters import Filters
from core.errors import AleatorError

Say = Callable[[object], None]
SAMPLE_MODEL = "five_lines_model"


@dataclass(frozen=True)
class Input:
    """What to read, and how; see `python -m pipelines.single_cell denoise --help`."""

    source: str | None = None
    layer: str | None = None
    drop_empty: bool = False
    make_unique: bool = False
    allow_noninteger: bool = False
    filters: Filters = field(default_factory=Filters)

    def open(self, say: Say) -> Cells:
        """The cells, after the filters; says what was found and left out."""
        cells = open_cells(
            self.source if self.source is not None else sample_path(),
            self.layer,
            drop_empty=self.drop_empty,
            make_unique=self.make_unique,
            allow_noninteger=self.allow_noninteger,
        )
        cells = self.filters(cells)
        n, g = cells.shape
        middle = float(np.median(cells.summary.totals))
        say(
            f"{cells.source}: {cells.slot}, {n} cells x {g} genes, "
            f"{cells.summary.density:.1%} not zero, median {middle:g} molecules"
        )
        for note in cells.notes:
            say(f"  {note}")
        return cells


@dataclass(frozen=True)
class Covariate:
    """Columns of obs that the model is conditioned on."""

    batch_key: str | None = None
    categorical: tuple[str, ...] = ()
    continuous: tuple[str, ...] = ()


def bundled_model() -> Path:
    """Folder of the bundled weights, of the bundled sample."""
    return sample_path().parent / SAMPLE_MODEL


def model_of(
    cells: Cells,
    model: Path | None,
    covariates: Covariate,
    config: Config | None,
    *,
    seed: int,
    search: bool,
    device: str,
    say: Say,
) -> Denoiser:
    """The model of a folder, or one that is fitted to these cells.

    Raises:
        AleatorError: covariates beside a model that has its own; bad cells.
    """
    if model is not None:
        if covariates != Covariate():
            raise AleatorError("covariates belong to training: a trained model knows its own")
        return Denoiser.load(model)
    return Denoiser.fit(
        cells,
        batch_key=covariates.batch_key,
        categorical=covariates.categorical,
        continuous=covariates.continuous,
        config=config,
        seed=seed,
        search=search,
        device=device,
        say=say,
        progress=True,
    )
