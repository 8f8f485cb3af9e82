"""What the commands do: everything that can be refused is refused before anything is computed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.single_cell.config import Config
from apps.single_cell.denoise import Denoiser
from apps.single_cell.generate import varied
from apps.single_cell.generating import Wanted
from apps.single_cell.inputs import Covariate, Input, bundled_model, model_of
from apps.single_cell.layers import Output
from apps.single_cell.output import Additions, check_output, write_cells
from apps.single_cell.selection import select
from apps.single_cell.store import Workers, by_runs
from apps.single_cell.verdict import Verdict
from core.cards import write_card
from core.errors import AleatorError
from core.report import Table, command_line, hardware, report, write_results, write_text

Say = Callable[[object], None]


def train(
    given: Input,
    folder: Path,
    covariates: Covariate,
    config: Config,
    *,
    seed: int = 0,
    search: bool = True,
    resume: bool = False,
    device: str = "auto",
    devices: int = 1,
    overwrite: bool = False,
    prior: Wanted | None = None,
    say: Say = print,
) -> Denoiser:
    """Fit a model and save it with its card, and with a prior to generate from if that is wanted.

    With several devices the command is started once for each, and the first of them writes.

    Raises:
        AleatorError: bad data or options, or a model is there already.
    """
    if (folder / "model.json").exists() and not overwrite:
        raise AleatorError(f"{folder} holds a model; choose another folder or --overwrite")
    if devices < 1:
        raise AleatorError(f"devices={devices}: at least 1 is needed")
    cells = given.open(say)
    if prior:
        prior.check(cells)
        config = varied(config)
    work, started = folder / "training", time.monotonic()
    denoiser = Denoiser.fit(
        cells,
        batch_key=covariates.batch_key,
        categorical=covariates.categorical,
        continuous=covariates.continuous,
        config=config,
        seed=seed,
        search=search,
        device=device,
        devices=devices,
        folder=work,
        resume=resume,
        say=say,
        progress=True,
    )
    if denoiser.rank:
        return denoiser  # the first process writes
    denoiser = denoiser.save(folder, _card(denoiser, time.monotonic() - started))
    write_card(folder / "card.md", denoiser.card)
    shutil.rmtree(folder / "prior", ignore_errors=True)  # of a model that was there before
    if prior:
        prior.fit(denoiser, cells, seed, device, say).save(folder)
    shutil.rmtree(work, ignore_errors=True)
    say(f"{folder}: model {denoiser.fingerprint}")
    return denoiser


def denoise(
    given: Input,
    path: Path,
    output: Output,
    *,
    model: Path | None = None,
    covariates: Covariate | None = None,
    config: Config | None = None,
    seed: int = 0,
    search: bool = True,
    device: str = "auto",
    workers: Workers | None = None,
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Fit on the input itself unless a model is given, denoise, and say how far to trust it.

    A run to a Zarr store that was stopped continues; what was fitted here is fitted once more.

    Raises:
        AleatorError: anything wrong with the input, the model, the options or the disk.
    """
    check_output(path, given.source, overwrite=overwrite)
    workers = workers or Workers()
    by_runs(path, output, workers)
    if given.source is None and model is None:
        model = bundled_model()
    cells = given.open(say)
    known: Any = {"seed": seed, "search": search, "device": device, "say": say}
    denoiser = model_of(cells, model, covariates or Covariate(), config, **known)
    written = denoiser.write(cells, path, output, overwrite=overwrite, workers=workers)
    for line in denoiser.warnings(_column(written, "aleator_ood")):
        say(line)
    if model is not None and denoiser.verdict:
        generates = bool(denoiser.config.thinned)
        say(f"in training: {denoiser.verdict.sentence(generates=generates)}")
    say(f"wrote {written}: layers {', '.join(output.layers)}")
    return written


def score(
    given: Input,
    path: Path,
    model: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Write IN with latents, and how much each cell is unlike those of training, two, or empty.

    Raises:
        AleatorError: anything wrong with the input, the model or the disk.
    """
    from apps.single_cell.doublets import doublet_scores
    from apps.single_cell.empty import Soup, empty_scores, like_empty

    check_output(path, given.source, overwrite=overwrite)
    denoiser, cells = Denoiser.load(model), given.open(say)
    blocks = denoiser.blocks(cells, Output(rates=False, seed=seed))
    soup = Soup.fit(cells.counts, cells.summary.totals)
    empty = empty_scores(cells.counts, cells.summary.totals, soup=soup, seed=seed)
    found = {
        "aleator_doublet": doublet_scores(denoiser, cells, seed=seed),
        "aleator_empty": empty,
    }

    def finish() -> Additions:
        added = blocks.finish()
        return replace(added, obs={**added.obs, **found})

    written = write_cells(cells, path, replace(blocks, finish=finish), overwrite=overwrite)
    for line in denoiser.warnings(_column(written, "aleator_ood")):
        say(line)
    say(soup.sentence(int(like_empty(empty).sum()), len(cells)))
    say(f"wrote {written}: latents and scores")
    return written


def evaluate(
    given: Input,
    folder: Path,
    *,
    covariates: Covariate | None = None,
    label_key: str | None = None,
    config: Config | None = None,
    seed: int = 0,
    search: bool = True,
    device: str = "auto",
    overwrite: bool = False,
    say: Say = print,
) -> Path:
    """Molecular cross-validation on these cells, ours beside what a user would do without it.

    With a batch key and a column of types (`label_key`) also how far batches mix and types stay
    apart in the latent space.

    Returns:
        `results.json` in the folder; `report.md` and its pictures are beside it.

    Raises:
        AleatorError: a report is there already, no such column, or bad data or options.
    """
    from apps.single_cell import plots
    from apps.single_cell.covariates import Covariates

    target = folder / "results.json"
    if target.exists() and not overwrite:
        raise AleatorError(f"{target} exists; choose another folder or --overwrite")
    cells = given.open(say)
    chosen = covariates or Covariate()
    if label_key is not None and (label_key not in cells.obs or chosen.batch_key is None):
        wrong = "no batch key" if label_key in cells.obs else f"obs has no column {label_key}"
        raise AleatorError(
            f"{cells.source}: {wrong}; mixing of batches and keeping types apart is measured with "
            "--batch-key and --label-key"
        )
    known = Covariates.fit(
        cells.obs,
        cells.source,
        batch_key=chosen.batch_key,
        categorical=chosen.categorical,
        continuous=chosen.continuous,
    )
    design = known.encode(cells.obs, cells.source)
    options: Any = {"seed": seed, "device": device, "search": search, "say": say}
    found = select(cells.counts, design, config or Config(), **options)
    verdict = found.verdict
    tables = _tables(verdict, Path(cells.source).name)
    if label_key is not None and chosen.batch_key is not None:
        from apps.single_cell.analysis import mixing_table
        from apps.single_cell.prior import latents

        with torch.no_grad():
            points = latents(found.model, cells.counts.select(genes=found.genes), design)[0]
        latent = points[:, :-1].numpy()
        tables.append(mixing_table(cells, latent, chosen.batch_key, label_key, seed))
    folder.mkdir(parents=True, exist_ok=True)
    results = write_results(target, tables)
    drawn = {
        "calibration.png": plots.calibration(verdict.curve),
        "cross_validation.png": plots.cross_validation(verdict.losses, dict(verdict.tried)),
    }
    pictures = "".join(f"\n![{name.removesuffix('.png')}]({name})\n" for name in drawn)
    for name, figure in drawn.items():
        plots.save(figure, folder / name)
    write_text(folder / "report.md", report(results, "Does denoising help here?") + pictures)
    for table in tables:
        table.print()
    say(verdict.sentence())
    return target


def _tables(verdict: Verdict, name: str) -> list[Table]:
    """Losses of held-out molecules, and how many are inside their intervals."""
    rows = []
    for method, loss in verdict.losses.items():
        mean, error = verdict.differences.get(method, (None, None))
        rows.append({"method": method, "poisson": loss, "difference": mean, "error": error})
    return [
        Table(
            rows,
            {
                "method": "method",
                "poisson": "corrected Poisson",
                "difference": "ours - it",
                "error": "standard error",
            },
            {"poisson": ".5f", "difference": "+.5f", "error": ".5f"},
            {"poisson": "min"},
            f"{name}: held-out molecules of {verdict.cells} cells",
        ),
        Table(
            [{"what": "90 % intervals cover", "value": verdict.coverage}],
            {"what": "calibration", "value": "share"},
            {"value": ".3f"},
        ),
    ]


def _card(denoiser: Denoiser, seconds: float) -> dict[str, object]:
    verdict, config = denoiser.verdict, denoiser.config
    summary = (
        f"{config.likelihood} variational autoencoder, {config.latent} latent dimensions, "
        f"prior strength {config.strength:g}"
    )
    scores = (
        []
        if verdict is None
        else [{"method": name, "poisson": loss} for name, loss in verdict.losses.items()]
    )
    return {
        "title": "Denoising of single cells",
        "summary": summary,
        "split": "all molecules; options, verdict and stopping by molecular cross-validation, "
        "nine tenths of the molecules to learn from, one to judge by",
        "seed": denoiser.seed,
        "minutes": round(seconds / 60, 1),
        "steps": str(config.steps),
        "parameters": sum(p.numel() for p in denoiser.model.parameters()),
        "hardware": hardware(),
        "scores": scores,
        "limits": "It knows the cells, genes and covariates that it was trained on; scores of "
        "`aleator_ood` above 1 are rare among cells like them. "
        + (verdict.sentence() if verdict else ""),
        "command": command_line(),
    }


def _column(path: Path, name: str) -> np.ndarray:
    """One column of obs of a store."""
    if path.is_dir():
        import zarr

        store: Any = zarr.open_group(path, mode="r")
        return np.asarray(store["obs"][name])
    import h5py

    with h5py.File(path, "r") as file:
        return np.asarray(file["obs"][name])
