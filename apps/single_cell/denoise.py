r"""The main job: cells in, the same cells with denoised layers, intervals, latents and scores out.

    Denoiser.fit(adata, batch_key="batch").denoise(adata)

What is called denoised is an estimate of the rate of each gene in each cell from its posterior, at
the cell's own depth or at a common one (`posterior.balanced`, or the mean); the interval is of
that rate. The verdict of molecular cross-validation goes with the model and with every output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

from apps.single_cell.cells import Cells
from apps.single_cell.config import Config
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Covariates
from apps.single_cell.data import Source, open_cells
from apps.single_cell.expressed import learn_levels
from apps.single_cell.fitting import fit_model
from apps.single_cell.layers import Output
from apps.single_cell.model import CellVAE
from apps.single_cell.ood import WARN_ABOVE, Surprise
from apps.single_cell.output import Additions, Blocks, annotate, write_cells
from apps.single_cell.rows import Rows, targets_of
from apps.single_cell.selection import Say, select
from apps.single_cell.shrinkage import Shrinkage, shrink
from apps.single_cell.store import Workers, by_runs, write_store
from apps.single_cell.verdict import Verdict
from core.checkpoint import fingerprint, load_checkpoint, save_checkpoint
from core.errors import AleatorError

APP = "single_cell"
LATENT = "X_aleator"


@dataclass
class Denoiser:
    """A trained model with all that using it needs.

    Attributes:
        model: the network.
        genes: G names, in the model's order.
        covariates: as fitted.
        config: with everything chosen.
        surprise: to score unusual cells by.
        verdict: what molecular cross-validation found; None if it was left out.
        seed: of the training.
        allow_noninteger: whether fractional counts were allowed.
        card: facts for a reader.
        fingerprint: the model's name in outputs.
        rank: of this process among those that trained; only the first is to write.
        shrinkage: what was done to the model after training; its weights have it in them.
    """

    model: CellVAE
    genes: tuple[str, ...]
    covariates: Covariates
    config: Config
    surprise: Surprise
    verdict: Verdict | None
    seed: int = 0
    card: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    rank: int = 0
    shrinkage: Shrinkage = field(default_factory=Shrinkage)

    @classmethod
    def fit(
        cls,
        source: Source | Cells,
        layer: str | None = None,
        *,
        batch_key: str | None = None,
        categorical: Sequence[str] = (),
        continuous: Sequence[str] = (),
        config: Config | None = None,
        seed: int = 0,
        search: bool = True,
        device: str = "auto",
        devices: int = 1,
        folder: Path | None = None,
        resume: bool = False,
        say: Say = lambda _: None,
        progress: bool = False,
    ) -> Denoiser:
        """Learn from cells.

        Args:
            source: AnnData, file, or opened `Cells`.
            layer: where the counts are.
            batch_key: column of obs with the technical batch.
            categorical: further columns of categories.
            continuous: columns of numbers.
            config: what is not left to molecular cross-validation.
            seed: of everything random; same seed, same model.
            search: choose hyper-parameters on these cells; False takes the defaults.
            device: "auto", "cpu" or "cuda".
            devices: processes that share every batch, started by the same command; see `rank`.
            folder: keeps the state of the run, to resume it.
            resume: go on from there.
            say: for the log.
            progress: show it.

        Raises:
            AleatorError: anything that is wrong with the counts, the covariates or the options.
        """
        cells = source if isinstance(source, Cells) else open_cells(source, layer)
        where = cells.source
        covariates = Covariates.fit(
            cells.obs, where, batch_key=batch_key, categorical=categorical, continuous=continuous
        )
        config = config or Config()
        if config.dispersion == "gene-batch" and covariates.batch is None:
            raise AleatorError("dispersion of each batch: name the column with batch_key")
        _check_whole(cells)
        for note in covariates.notes():
            say(note)
        design = covariates.encode(cells.obs, where)
        counts = cells.counts
        found = select(counts, design, config, seed=seed, device=device, search=search, say=say)
        say(found.verdict.sentence(generates=bool(found.config.thinned)))
        fitted = fit_model(
            counts,
            _libraries(counts, cells),
            design,
            found.config,
            seed=seed,
            folder=folder,
            resume=resume,
            device=device,
            devices=devices,
            progress="steps" if progress else None,
        )
        assert isinstance(fitted.model, CellVAE)
        return cls(
            shrink(fitted.model, found.shrinkage, counts, design, seed=seed),
            cells.genes,
            covariates,
            found.config,
            found.surprise,
            found.verdict,
            seed,
            {"data": f"{where}: {cells.slot}, {len(cells)} cells x {cells.shape[1]} genes"},
            rank=fitted.rank,
            shrinkage=found.shrinkage,
        )

    def save(self, folder: Path | str, card: dict[str, Any] | None = None) -> Denoiser:
        """Write the model to a folder; returns it with its fingerprint."""
        card = {**self.card, **(card or {})}
        written = save_checkpoint(
            folder, app=APP, config=self._state(), tensors=self.model.state_dict(), card=card
        )
        return replace(self, fingerprint=written.fingerprint, card=card)

    @classmethod
    def load(cls, folder: Path | str) -> Denoiser:
        """Read a model.

        Raises:
            CheckpointError: not a model of this application, damaged, or of a newer version.
        """
        found = load_checkpoint(folder, app=APP)
        state = found.config
        covariates = Covariates.from_dict(state["covariates"])
        config = Config(**state["config"])
        model = CellVAE(
            torch.zeros(len(state["genes"])),
            state["cells"],
            config,
            covariates=covariates.width,
            batches=len(covariates.groups[0].categories) if covariates.groups else 1,
        )
        model.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in found.tensors.items()}
        )
        model.eval()
        verdict = Verdict.from_dict(state["verdict"]) if state["verdict"] else None
        return cls(
            model,
            tuple(state["genes"]),
            covariates,
            config,
            Surprise.from_dict(state["surprise"]),
            verdict,
            state["seed"],
            found.card,
            found.fingerprint,
            shrinkage=Shrinkage.from_dict(state.get("shrinkage", {})),
        )

    def _state(self) -> dict[str, Any]:
        return {
            "genes": list(self.genes),
            "cells": self.model.cells,
            "covariates": self.covariates.to_dict(),
            "config": self.config.to_dict(),
            "surprise": self.surprise.to_dict(),
            "verdict": self.verdict.to_dict() if self.verdict else None,
            "seed": self.seed,
            "shrinkage": self.shrinkage.to_dict(),
        }

    def denoise(
        self, source: Source | Cells, layer: str | None = None, output: Output | None = None
    ) -> ad.AnnData:
        """The same AnnData with denoised layers; a copy, everything else is kept.

        Args:
            source: AnnData, file, or opened `Cells`.
            layer: where the counts are.
            output: what to write.

        Returns:
            layers `denoised`, `denoised_lower`, `denoised_upper`; obsm `X_aleator`; obs
            `aleator_elbo` and `aleator_ood`; uns `aleator` with model, options and verdict.

        Raises:
            AleatorError: counts, genes or covariates that do not fit the model.
        """
        cells = source if isinstance(source, Cells) else open_cells(source, layer)
        output = output or Output()
        blocks = self.blocks(cells, output)
        shape = (len(cells), _all_genes(cells))
        if blocks.sparse:
            kept = [
                [sp.csr_matrix(a.astype(output.dtype)) for a in arrays]
                for *_, arrays in blocks.parts
            ]
            stacked = [sp.vstack(parts, format="csr") for parts in zip(*kept, strict=True)]
            found = dict(zip(output.layers, stacked, strict=True))
            return annotate(cells, replace(blocks.finish(), layers=found))
        layers = {name: np.empty(shape, output.dtype) for name in output.layers}
        for start, stop, arrays in blocks.parts:
            for name, values in zip(output.layers, arrays, strict=True):
                layers[name][start:stop] = values
        return annotate(cells, replace(blocks.finish(), layers=layers))

    def write(
        self,
        cells: Cells,
        path: Path | str,
        output: Output | None = None,
        *,
        overwrite: bool = False,
        workers: Workers | None = None,
    ) -> Path:
        """`denoise` to a file, block by block; memory does not grow with the number of cells.

        A Zarr store with dense layers is also resumable, and can be shared among workers: see
        `store`. The numbers do not depend on that.
        """
        output, workers = output or Output(), workers or Workers()
        if by_runs(path, output, workers):
            return write_store(self, cells, path, output, workers, overwrite=overwrite)
        return write_cells(cells, path, self.blocks(cells, output), overwrite=overwrite)

    def rows(self, cells: Cells, output: Output) -> Rows:
        """What computes the rows of an output.

        Raises:
            AleatorError: cells that do not fit the model.
        """
        if cells.slot == "raw/X":
            raise AleatorError(
                f"{cells.source}: layers cannot be beside raw, which has genes of its own; "
                "take adata.raw.to_adata()"
            )
        known = cells.aligned(self.genes)
        design = self.covariates.encode(cells.obs, cells.source)
        levels = None
        if output.rates and output.estimate == "expressed":
            same: dict[str, Any] = {"draws": output.draws, "seed": output.seed}
            levels = learn_levels(self.model, known.counts, design, **same, first=cells.index)
        return Rows(
            self.model,
            self.surprise,
            cells.counts,
            _place(known.counts, cells.counts),
            design,
            cells.index,
            output,
            targets_of(self.covariates, design, output.batch),
            levels,
        )

    def blocks(self, cells: Cells, output: Output) -> Blocks:
        """All that `denoise` adds, layers block by block."""
        rows = self.rows(cells, output)
        kept: dict[str, list[np.ndarray]] = {"latent": [], "elbo": [], "ood": []}

        def parts() -> Iterator[tuple[int, int, Sequence[np.ndarray]]]:
            for part in rows(0, len(cells)):
                for name, values in kept.items():
                    values.append(getattr(part, name))
                yield part.start, part.stop, part.layers

        def finish() -> Additions:
            latent, elbo, ood = (np.concatenate(values) for values in kept.values())
            return Additions(
                obsm={LATENT: latent},
                obs={"aleator_elbo": elbo, "aleator_ood": ood},
                uns=self.facts(cells, output),
            )

        return Blocks(output.layers, output.dtype, parts(), finish, output.sparse is not None)

    def name(self) -> str:
        """The fingerprint that the model has, or would have if it were saved."""
        return self.fingerprint or fingerprint(self._state(), self.model.state_dict())

    def facts(self, cells: Cells, output: Output) -> dict[str, Any]:
        """What an output says about how it was made: uns."""
        notes = cells.aligned(self.genes).notes
        options = {k: v for k, v in vars(output).items() if v is not None}
        config = {k: v for k, v in self.config.to_dict().items() if v is not None}
        facts: dict[str, Any] = {
            "model": self.fingerprint or "fitted here",
            "seed": self.seed,
            "config": config,
            "shrinkage": str(self.shrinkage),
            "output": options,
            "notes": np.array(notes, dtype=str) if notes else "",
        }
        if self.verdict:
            state = self.verdict.to_dict()
            state["differences"] = {
                name: np.array(pair) for name, pair in state["differences"].items()
            }
            facts["verdict"] = state
        return {"aleator": facts}

    def warnings(self, ood: np.ndarray) -> list[str]:
        """What a user should be told about an output."""
        told = []
        if self.verdict and not self.verdict.helps:
            told.append(f"warning: {self.verdict.sentence(generates=bool(self.config.thinned))}")
        far = int((ood > WARN_ABOVE).sum())
        if far > 0.05 * len(ood):
            told.append(
                f"warning: {far} of {len(ood)} cells are unlike the training cells "
                f"(aleator_ood > {WARN_ABOVE:g}); trust them less"
            )
        return told


def _check_whole(cells: Cells) -> None:
    if cells.summary.fractional:
        raise AleatorError(
            f"{cells.source}: {cells.summary.fractional} counts are not whole; molecules cannot "
            "be held out of them. Give the uncorrected counts"
        )


def _place(known: Counts, whole: Counts) -> np.ndarray:
    """Columns of the file that the model's genes are."""
    if known.genes is None:
        return np.arange(whole.shape[1])
    return known.genes


def _all_genes(cells: Cells) -> int:
    if cells.counts.genes is not None:
        raise AleatorError("genes were selected from these cells: denoise the file as it is")
    return cells.shape[1]


def _libraries(counts: Counts, cells: Cells) -> np.ndarray:
    """Molecules of each cell in the genes that are modelled."""
    if counts.genes is None:
        return cells.summary.totals
    return np.concatenate([np.asarray(b.sum(1)).ravel() for _, _, b in counts.blocks()])
