"""`python -m pipelines.single_cell`: noisy counts in, denoised AnnData with uncertainty out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import _single_cell_options as options
from pipelines._door import Scheduler, Workers, door, friendly, say
from pipelines._single_cell_options import (
    BatchKey,
    Candidates,
    Categorical,
    Continuous,
    Device,
    Devices,
    Dispersion,
    DropEmpty,
    Estimate,
    HowMany,
    LabelKey,
    Latent,
    Layer,
    Like,
    Likelihood,
    MakeUnique,
    OutputFile,
    Overwrite,
    Prior,
    Search,
    Seed,
    Source,
    Steps,
    Strength,
    TrainedModel,
)

app = door(
    "Denoise single-cell counts (h5ad, Zarr, 10x, Loom), with intervals and an honest verdict.\n\n"
    "Try it: `python -m pipelines.single_cell denoise` runs on a bundled sample with bundled "
    "weights. Your own data: `denoise IN.h5ad -o OUT.h5ad` fits on IN itself and says whether "
    "denoising helps there."
)


@app.command()
@friendly
def denoise(
    source: Source = None,
    output: OutputFile = Path("denoised.h5ad"),
    model: options.Model = None,
    layer: Layer = None,
    batch_key: BatchKey = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    target_sum: options.TargetSum = None,
    level: Annotated[float, typer.Option(help="Of the credible interval.")] = 0.9,
    log: options.Log = False,
    draws: Annotated[int, typer.Option(help="Of the latents; memory does not grow.")] = 8,
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    to_batch: options.ToBatch = None,
    samples: Annotated[int, typer.Option(help="Posterior draws, a layer each.")] = 0,
    sparse: Annotated[
        float | None, typer.Option(help="Write CSR, rates below this as zero.")
    ] = None,
    estimate: Estimate = "balanced",
    latent: Latent = None,
    likelihood: Likelihood = None,
    strength: Strength = None,
    shrink: options.Shrink = None,
    steps: Steps = None,
    dispersion: Dispersion = "gene",
    search: Search = True,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = None,
    scheduler: Scheduler = None,
    drop_empty: DropEmpty = False,
    make_unique: MakeUnique = False,
    overwrite: Overwrite = False,
) -> None:
    """Write IN with layers `denoised` and its interval, latents, scores and a verdict.

    To OUT.zarr, a run that is stopped continues where it was when the same command is given again.
    """
    from apps.single_cell import run
    from apps.single_cell.layers import Output

    written: Any = {"samples": samples, "sparse": sparse, "estimate": estimate}
    run.denoise(
        run.Input(source, layer, drop_empty, make_unique),
        output,
        Output(target_sum, level, log, draws, dtype, to_batch, seed, **written),
        model=model,
        covariates=options.covariates(batch_key, categorical, continuous),
        config=options.config(latent, likelihood, strength, steps, dispersion, shrink),
        seed=seed,
        search=search,
        device=device,
        workers=options.workers(workers, scheduler),
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def train(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="h5ad, Zarr, 10x or Loom.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model.")],
    layer: Layer = None,
    batch_key: BatchKey = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    latent: Latent = None,
    likelihood: Likelihood = None,
    strength: Strength = None,
    shrink: options.Shrink = None,
    steps: Steps = None,
    dispersion: Dispersion = "gene",
    search: Search = True,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Devices = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped training.")] = False,
    like: Like = None,
    prior: Prior = None,
    drop_empty: DropEmpty = False,
    make_unique: MakeUnique = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit a model to cells and keep it, to be used on others.

    With --like or --prior also a prior, to generate new cells from the folder alone.
    """
    from apps.single_cell import run
    from apps.single_cell.generating import Wanted

    run.train(
        run.Input(source, layer, drop_empty, make_unique),
        output,
        options.covariates(batch_key, categorical, continuous),
        options.config(latent, likelihood, strength, steps, dispersion, shrink),
        seed=seed,
        search=search,
        resume=resume,
        device=device,
        devices=devices,
        overwrite=overwrite,
        prior=Wanted(tuple(like or ()), options.prior(prior)) if like or prior else None,
        say=say,
    )


@app.command()
@friendly
def generate(
    source: Source = None,
    output: OutputFile = Path("generated.h5ad"),
    n: HowMany = 1000,
    model: TrainedModel = None,
    by: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=CATEGORY", help="What all new cells are; repeatable."),
    ] = None,
    like: Like = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="COLUMN=A", help="Translate these cells of INPUT ..."),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="COLUMN=B", help="... to this condition.")
    ] = None,
    prior: Prior = None,
    layer: Layer = None,
    batch_key: BatchKey = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    latent: Latent = None,
    likelihood: Likelihood = None,
    strength: Strength = None,
    steps: Steps = None,
    dispersion: Dispersion = "gene",
    search: Search = False,
    candidates: Candidates = 10,
    seed: Seed = 0,
    device: Device = "auto",
    drop_empty: DropEmpty = False,
    make_unique: MakeUnique = False,
    overwrite: Overwrite = False,
) -> None:
    """New cells with counts, of a given type, batch or condition; or cells translated to one."""
    from apps.single_cell import generating, run

    generating.generate(
        run.Input(source, layer, drop_empty, make_unique),
        output,
        n,
        model=model,
        where=tuple(by or ()),
        like=tuple(like or ()),
        translation=generating.Translation.parse(start, end),
        prior=options.prior(prior) if prior else None,
        covariates=options.covariates(batch_key, categorical, continuous),
        config=options.config(latent, likelihood, strength, steps, dispersion),
        seed=seed,
        search=search,
        candidates=candidates,
        device=device,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def de(
    source: Source = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="OUT.h5ad or OUT.zarr.")] = Path(
        "de.h5ad"
    ),
    groupby: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of obs with the groups.")
    ] = None,
    reference: Annotated[str, typer.Option(help="A group, or rest: all others.")] = "rest",
    delta: Annotated[float, typer.Option(help="Least log2 fold change of interest.")] = 0.25,
    fdr: Annotated[float, typer.Option(help="Expected share of false discoveries.")] = 0.05,
    table: Annotated[Path | None, typer.Option(help="Also a CSV of all genes.")] = None,
    model: TrainedModel = None,
    layer: Layer = None,
    batch_key: BatchKey = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    latent: Latent = None,
    likelihood: Likelihood = None,
    strength: Strength = None,
    steps: Steps = None,
    search: Search = True,
    seed: Seed = 0,
    device: Device = "auto",
    drop_empty: DropEmpty = False,
    overwrite: Overwrite = False,
) -> None:
    """Genes that differ between groups of cells: fold changes, with probabilities, in uns."""
    from apps.single_cell import analysis, run
    from apps.single_cell.de import Test

    analysis.de(
        run.Input(source, layer, drop_empty),
        output,
        groupby,
        Test(delta, fdr, seed=seed),
        reference=reference,
        table=table,
        model=model,
        covariates=options.covariates(batch_key, categorical, continuous),
        config=options.config(latent, likelihood, strength, steps, "gene"),
        seed=seed,
        search=search,
        device=device,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def integrate(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="h5ad, Zarr, 10x or Loom.")],
    output: OutputFile,
    batch_key: BatchKey = None,
    to_batch: Annotated[
        str | None, typer.Option(help="Decode as if all were of this batch; the mean if none.")
    ] = None,
    label_key: LabelKey = None,
    report: Annotated[Path | None, typer.Option(help="Folder for that table.")] = None,
    model: TrainedModel = None,
    layer: Layer = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    latent: Latent = None,
    likelihood: Likelihood = None,
    strength: Strength = None,
    steps: Steps = None,
    dispersion: Dispersion = "gene",
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    search: Search = True,
    seed: Seed = 0,
    device: Device = "auto",
    drop_empty: DropEmpty = False,
    overwrite: Overwrite = False,
) -> None:
    """Take technical batches out: a common latent space, and expression without the batch."""
    from apps.single_cell import analysis, run

    analysis.integrate(
        run.Input(source, layer, drop_empty),
        output,
        batch=to_batch,
        label_key=label_key,
        report=report,
        model=model,
        covariates=options.covariates(batch_key, categorical, continuous),
        config=options.config(latent, likelihood, strength, steps, dispersion),
        dtype=dtype,
        seed=seed,
        search=search,
        device=device,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def score(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="h5ad, Zarr, 10x or Loom.")],
    model: Annotated[Path, typer.Option("--model", help="Folder of a trained model.")],
    output: OutputFile,
    layer: Layer = None,
    seed: Seed = 0,
    drop_empty: DropEmpty = False,
    make_unique: MakeUnique = False,
    overwrite: Overwrite = False,
) -> None:
    """Map cells into a latent space: which are unlike the training cells, which look like two."""
    from apps.single_cell import run

    given = run.Input(source, layer, drop_empty, make_unique)
    run.score(given, output, model, seed=seed, overwrite=overwrite, say=say)


@app.command()
@friendly
def evaluate(
    source: Source = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report.")] = Path(
        "report"
    ),
    layer: Layer = None,
    batch_key: BatchKey = None,
    label_key: LabelKey = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    search: Search = True,
    seed: Seed = 0,
    device: Device = "auto",
    drop_empty: DropEmpty = False,
    overwrite: Overwrite = False,
) -> None:
    """Hold molecules out: does denoising help on these cells, and are its intervals right?"""
    from apps.single_cell import run

    run.evaluate(
        run.Input(source, layer, drop_empty),
        output,
        covariates=options.covariates(batch_key, categorical, continuous),
        label_key=label_key,
        seed=seed,
        search=search,
        device=device,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def plot(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="What denoise wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the figures.")],
    colour: Annotated[str | None, typer.Option(help="Column of obs.")] = None,
    genes: Annotated[list[str] | None, typer.Option(help="A marker; repeatable.")] = None,
) -> None:
    """Embeddings before and after, markers, calibration and cross-validation, as PNG."""
    from apps.single_cell.data import open_cells, read_anndata
    from apps.single_cell.plots import draw

    for path in draw(read_anndata(open_cells(source)), output, colour, tuple(genes or ())):
        say(f"wrote {path}")


@app.command()
@friendly
def info(
    thing: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="A model folder or a file.")],
    layer: Layer = None,
) -> None:
    """Say in words what is in a model folder or a file of cells."""
    from apps.single_cell.describe import describe

    print(describe(thing, layer))


if __name__ == "__main__":
    app()
