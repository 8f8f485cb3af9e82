"""`python -m pipelines.single_cell`: noisy counts in, denoised AnnData with uncertainty out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines._door import door, friendly, say

app = door(
    "Denoise single-cell counts (h5ad, Zarr, 10x, Loom), with intervals and an honest verdict.\n\n"
    "Try it: `python -m pipelines.single_cell denoise` runs on a bundled sample with bundled "
    "weights. Your own data: `denoise IN.h5ad -o OUT.h5ad` fits on IN itself and says whether "
    "denoising helps there."
)

Source = Annotated[
    str | None,
    typer.Argument(metavar="[INPUT]", help="h5ad, Zarr, 10x or Loom; the sample if none."),
]
Layer = Annotated[str | None, typer.Option(help="Layer with raw counts; X if none.")]
BatchKey = Annotated[str | None, typer.Option(help="Column of obs with the technical batch.")]
Categorical = Annotated[
    list[str] | None, typer.Option(help="Further column of categories; repeatable.")
]
Continuous = Annotated[list[str] | None, typer.Option(help="Column of numbers; repeatable.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
DropEmpty = Annotated[bool, typer.Option("--drop-empty", help="Leave empty cells out.")]
MakeUnique = Annotated[bool, typer.Option("--make-unique", help="Number equal names apart.")]
Search = Annotated[
    bool, typer.Option(help="Choose hyper-parameters by molecular cross-validation.")
]
Latent = Annotated[int | None, typer.Option(help="Latent dimensions; chosen if none.")]
Likelihood = Annotated[str | None, typer.Option(help="nb, poisson or zinb; chosen if none.")]
Strength = Annotated[float | None, typer.Option(help="Of the prior; chosen if none.")]
Steps = Annotated[int | None, typer.Option(help="Training steps; chosen if none.")]
Dispersion = Annotated[str, typer.Option(help="gene or gene-batch.")]


@app.command()
@friendly
def denoise(
    source: Source = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="OUT.h5ad or OUT.zarr.")] = Path(
        "denoised.h5ad"
    ),
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of a trained model; fits if none.")
    ] = None,
    layer: Layer = None,
    batch_key: BatchKey = None,
    categorical: Categorical = None,
    continuous: Continuous = None,
    target_sum: Annotated[
        float | None, typer.Option(help="Depth of the output; each cell's own if none.")
    ] = None,
    level: Annotated[float, typer.Option(help="Of the credible interval.")] = 0.9,
    log: Annotated[
        bool, typer.Option("--log", help="Also expected log-normalised expression.")
    ] = False,
    draws: Annotated[int, typer.Option(help="Of the latents; memory does not grow.")] = 8,
    dtype: Annotated[str, typer.Option(help="float32 or float16.")] = "float32",
    to_batch: Annotated[
        str | None, typer.Option(help="Decode as if all cells were of this batch.")
    ] = None,
    latent: Latent = None,
    likelihood: Likelihood = None,
    strength: Strength = None,
    steps: Steps = None,
    dispersion: Dispersion = "gene",
    search: Search = True,
    seed: Seed = 0,
    device: Device = "auto",
    drop_empty: DropEmpty = False,
    make_unique: MakeUnique = False,
    overwrite: Overwrite = False,
) -> None:
    """Write IN with layers `denoised` and its interval, latents, scores and a verdict."""
    from apps.single_cell import run
    from apps.single_cell.layers import Output

    run.denoise(
        run.Input(source, layer, drop_empty, make_unique),
        output,
        Output(target_sum, level, log, draws, dtype, to_batch, seed),
        model=model,
        covariates=_covariates(batch_key, categorical, continuous),
        config=_config(latent, likelihood, strength, steps, dispersion),
        seed=seed,
        search=search,
        device=device,
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
    steps: Steps = None,
    dispersion: Dispersion = "gene",
    search: Search = True,
    seed: Seed = 0,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped training.")] = False,
    drop_empty: DropEmpty = False,
    make_unique: MakeUnique = False,
    overwrite: Overwrite = False,
) -> None:
    """Fit a model to cells and keep it, to be used on others."""
    from apps.single_cell import run

    run.train(
        run.Input(source, layer, drop_empty, make_unique),
        output,
        _covariates(batch_key, categorical, continuous),
        _config(latent, likelihood, strength, steps, dispersion),
        seed=seed,
        search=search,
        resume=resume,
        device=device,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def score(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="h5ad, Zarr, 10x or Loom.")],
    model: Annotated[Path, typer.Option("--model", help="Folder of a trained model.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="OUT.h5ad or OUT.zarr.")],
    layer: Layer = None,
    seed: Seed = 0,
    drop_empty: DropEmpty = False,
    make_unique: MakeUnique = False,
    overwrite: Overwrite = False,
) -> None:
    """Map cells into a model's latent space and say which are unlike its training cells."""
    from apps.single_cell import run
    from apps.single_cell.layers import Output

    run.denoise(
        run.Input(source, layer, drop_empty, make_unique),
        output,
        Output(rates=False, seed=seed),
        model=model,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def evaluate(
    source: Source = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report.")] = Path(
        "report"
    ),
    layer: Layer = None,
    batch_key: BatchKey = None,
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
        covariates=_covariates(batch_key, categorical, continuous),
        seed=seed,
        search=search,
        device=device,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def info(
    thing: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="A model folder or a file.")],
    layer: Layer = None,
) -> None:
    """Say in words what is in a model folder or a file of cells."""
    from apps.single_cell.describe import describe

    print(describe(thing, layer))


def _covariates(
    batch_key: str | None, categorical: list[str] | None, continuous: list[str] | None
) -> Any:
    from apps.single_cell.run import Covariate

    return Covariate(batch_key, tuple(categorical or ()), tuple(continuous or ()))


def _config(
    latent: int | None,
    likelihood: Any,
    strength: float | None,
    steps: int | None,
    dispersion: Any,
) -> Any:
    from apps.single_cell.config import Config

    return Config(
        latent=latent,
        likelihood=likelihood,
        strength=strength,
        steps=steps,
        dispersion=dispersion,
    )


if __name__ == "__main__":
    app()
