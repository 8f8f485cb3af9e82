"""`python -m pipelines.climate`: coarse climate fields in, calibrated fine-scale ensembles out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._door import Scheduler, Workers, door, fail, friendly, numbers, overrides, say

app = door(
    "Downscale coarse climate fields (NetCDF, Zarr, GRIB) to calibrated fine-scale ensembles.\n\n"
    "Try it: `python -m pipelines.climate downscale` runs on a bundled ERA5 sample with bundled "
    "weights. Your own region: `train FINE.nc --variables tas --factor 4 -o my_model`, then "
    "`downscale COARSE.nc --model my_model -o fine.nc`, then "
    "`evaluate fine.nc TRUTH.nc -o report`."
)

Model = Annotated[
    Path | None,
    typer.Option("--model", help="Folder of a trained model; the bundled one if not given."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers, however the work is split.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
TimeRange = Annotated[
    str | None,
    typer.Option(
        metavar="A:B", help="Only times from A to B inclusive, e.g. 2019-03-25:2019-03-31."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override one value of the config; repeatable."),
]

Region = Annotated[
    str | None,
    typer.Option(metavar="LAT0:LAT1,LON0:LON1", help="Only this part of DATA, e.g. 36:44,-10:4."),
]
Predictors = Annotated[
    list[str] | None,
    typer.Option(
        "--predictors",
        metavar="FILE",
        help="Learn from this file (say, a reanalysis) instead of block means of DATA; "
        "repeat for several files. Grids may differ; the first one's is used.",
    ),
]
Factor = Annotated[int | None, typer.Option(help="Fine cells per side of a coarse cell.")]

Stations = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Stations (CSV or NetCDF) that members are to agree with."),
]
StationError = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=SD", help="Standard deviation of an observation, e.g. tas=0.5."),
]
Means = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Known means over time, of cells or stations (NetCDF, CSV), that members are to "
        "agree with; of the time bounds' periods, or of months.",
    ),
]
MeanError = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=SD", help="Standard deviation of a known mean, e.g. tas=0.1."),
]


@app.command()
@friendly
def downscale(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...",
            help="Coarse NetCDF, Zarr or GRIB; the sample if none. Several are parts of a series, "
            "or, for a model trained with --predictors, files of different predictors.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="OUT.nc or OUT.zarr; OUT.png goes beside it.")
    ] = Path("downscaled.nc"),
    model: Model = None,
    members: Annotated[int, typer.Option(help="Ensemble members.")] = 16,
    steps: Annotated[
        int | None, typer.Option(help="Network evaluations a sample; the model's own if none.")
    ] = None,
    seed: Seed = 0,
    time_range: TimeRange = None,
    regrid: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="bilinear, conservative or nearest: remap input that is on another grid than "
            "the model's, which is refused otherwise.",
        ),
    ] = None,
    conserve: Annotated[
        bool,
        typer.Option(help="Make every member's coarse-cell means equal the input exactly."),
    ] = True,
    coherent: Annotated[
        bool,
        typer.Option(help="Let neighbouring times of a member go together as they do in nature."),
    ] = False,
    observations: Stations = None,
    observation_error: StationError = None,
    time_means: Means = None,
    time_mean_error: MeanError = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    chunk: Annotated[
        int | None, typer.Option(help="Time steps per task; memory follows it.")
    ] = None,
    device: Device = "auto",
    truth: Annotated[
        str | None, typer.Option(help="Fine truth to score against and to draw, if you have it.")
    ] = None,
    figure: Annotated[bool, typer.Option(help="Draw OUT.png.")] = True,
    overwrite: Overwrite = False,
) -> None:
    """Downscale coarse fields to an ensemble of fine ones, with a figure and, given truth, scores.

    A run that is stopped continues where it was when the same command is given again.
    """
    from apps.climate_downscaling.run import Request, run

    request = Request(
        sources=tuple(sources or ()),
        output=output,
        model=model,
        members=members,
        steps=steps,
        seed=seed,
        time_range=time_range,
        regrid=regrid,
        conserve=conserve,
        coherent=coherent,
        observations=observations,
        observation_error=numbers(observation_error or [], "--observation-error"),
        time_means=time_means,
        time_mean_error=numbers(time_mean_error or [], "--time-mean-error"),
        workers=workers,
        scheduler=scheduler,
        chunk=chunk,
        device=device,
        truth=truth,
        figure=figure,
        overwrite=overwrite,
    )
    run(request, say=say)


@app.command()
@friendly
def adapt(
    sources: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Series of a driving model to adjust.")
    ],
    history: Annotated[
        list[str],
        typer.Option("--history", metavar="FILE", help="The same model in the reference's years."),
    ],
    reference: Annotated[
        list[str],
        typer.Option("--reference", metavar="FILE", help="The reanalysis; repeat for several."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="OUT.nc.")],
    variables: Annotated[
        str | None, typer.Option(help="Comma-separated CF names; all of the reference if none.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="qdm keeps the change of every quantile; qm maps quantiles; bridge keeps changes "
            "and also adjusts how cells and variables go together."
        ),
    ] = "qdm",
    window: Annotated[
        float, typer.Option(help="Share of the year, centred, that quantiles are taken from.")
    ] = 0.25,
    settings: Settings = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Adjust a driving model to the climate of a reanalysis, before downscaling it."""
    from apps.climate_downscaling.adapt import Request, bridge_of, checked_method
    from apps.climate_downscaling.adapt import adapt as run

    names = tuple(name.strip() for name in (variables or "").split(",") if name.strip())
    request = Request(
        sources=tuple(sources),
        history=tuple(history),
        reference=tuple(reference),
        output=output,
        variables=names,
        method=checked_method(method),
        window=window,
        bridge=bridge_of(overrides(settings or [])),
        seed=seed,
        overwrite=overwrite,
    )
    run(request, say=say).print()


@app.command()
@friendly
def prepare(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Fine NetCDF, Zarr (also a URL), GRIB, or stations."),
    ],
    variables: Annotated[str, typer.Option(help="Comma-separated CF names, e.g. tas or tas,pr.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Zarr folder to write.")],
    factor: Factor = None,
    predictors: Predictors = None,
    time_range: TimeRange = None,
    region: Region = None,
    settings: Settings = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring fine data and what they are learnt from together, split and normalised, as one Zarr.

    With --factor the fine data are coarsened conservatively; with --predictors, files on grids of
    their own are brought onto one grid and to the times that all have.
    """
    from apps.climate_downscaling.config import read_config
    from apps.climate_downscaling.prepare import prepare as run

    config = read_config(
        None,
        overrides(settings or []),
        variables=variables,
        factor=factor,
        predictors=predictors or (),
        time_range=time_range,
        region=region,
    )
    say(run(data, output, config, overwrite=overwrite))


@app.command()
@friendly
def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Fine data, stations (CSV, NetCDF), or what prepare wrote, which knows variables "
            "and what it is learnt from.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the trained model.")],
    variables: Annotated[
        str | None, typer.Option(help="Comma-separated CF names, e.g. tas or tas,pr.")
    ] = None,
    factor: Factor = None,
    predictors: Predictors = None,
    time_range: TimeRange = None,
    region: Region = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with the configuration.")] = None,
    settings: Settings = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped training.")] = False,
    device: Device = "auto",
    devices: Annotated[
        int | None, typer.Option(help="Processes that share every batch (DDP); 1 if none.")
    ] = None,
    relevel: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Years have come since MODEL was trained with --predictors: fit its regression, "
            "drift and year effect again, on DATA, and keep its network.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a model on fine data: regress the mean, then learn what is left as a distribution.

    With --factor the model learns to undo averaging over blocks of cells; with --predictors, to
    tell observations from a reanalysis (perfect prognosis), and may then be driven by any model.
    """
    if relevel is not None:
        from apps.climate_downscaling.relevel import relevel as again

        own = {"variables": variables, "factor": factor, "region": region, "config": config}
        own |= {"seed": seed, "resume": resume, "devices": devices}
        if unfit := [name for name, value in own.items() if value]:
            fail(f"--{unfit[0]}: with --relevel it is the model's")
        again(
            *(relevel, data, output, overrides(settings or [])),
            predictors=predictors or (),
            time_range=time_range,
            device=device,
            overwrite=overwrite,
            say=say,
        )
        return
    from apps.climate_downscaling.config import read_config
    from apps.climate_downscaling.prepare import stored_settings
    from apps.climate_downscaling.train import train as run

    shared = [] if devices is None else [f"fit.devices={devices}"]
    chosen = read_config(
        config,
        overrides([*(settings or []), *shared]),
        variables=variables,
        factor=factor,
        predictors=predictors or (),
        time_range=time_range,
        region=region,
        base=stored_settings(data),
    )
    run(
        data, output, chosen, seed=seed, resume=resume, device=device, overwrite=overwrite, say=say
    )


@app.command()
@friendly
def evaluate(
    prediction: Annotated[str, typer.Argument(metavar="PRED", help="What downscale wrote.")],
    truth: Annotated[str, typer.Argument(metavar="TRUTH", help="The fine truth.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report.")],
    time_range: TimeRange = None,
    overwrite: Overwrite = False,
) -> None:
    """Score an ensemble against truth: results.json, tables, figures."""
    from apps.climate_downscaling.verify import verify

    verify(prediction, truth, output, time_range=time_range, overwrite=overwrite)


@app.command()
@friendly
def info(
    thing: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="A model folder or a file.")],
) -> None:
    """Say in words what is in a model folder or a data file."""
    from apps.climate_downscaling.describe import describe

    print(describe(thing))


if __name__ == "__main__":
    app()
