"""`python -m pipelines.hep`: showers, jets and theory parameters, learned from simulations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines import hep_infer
from pipelines._door import adopt, door, friendly, overrides, say

app = door(
    "Learned calorimeter showers in CaloChallenge's layout: train on Geant4 showers, simulate "
    "tens of times faster than it on one core, judge as the challenge judges. Reconstructed jets "
    "from generator-level ones, and theory parameters inferred from sets of events.\n\n"
    "Try it: `python -m pipelines.hep simulate` runs bundled weights. Your own detector: "
    "`train SHOWERS.hdf5 --geometry BINNING.xml -o my_model`, then "
    "`simulate --model my_model --energies 1:64:log -n 10000 -o out.hdf5`, then "
    "`evaluate out.hdf5 TEST.hdf5 --geometry BINNING.xml -o report`."
)

Geometry = Annotated[
    Path,
    typer.Option("--geometry", metavar="BINNING.xml", help="Binning file of the showers."),
]
Maybe = Annotated[
    Path | None,
    typer.Option(
        "--geometry", metavar="BINNING.xml", help="Binning of showers; clouds need none."
    ),
]
Binning = Annotated[
    str | None, typer.Option("--binning", help="Name of the binning, where the file has several.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Seed = Annotated[int, typer.Option(help="Same seed, same showers, however the work is split.")]


@app.command()
@friendly
def train(
    showers: Annotated[
        list[Path],
        typer.Argument(metavar="FILES.hdf5...", help="Showers in MeV, or jets as clouds."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the trained model.")],
    geometry: Maybe = None,
    binning: Binning = None,
    family: Annotated[
        str | None,
        typer.Option(help="cascade, flow, flow_matching, diffusion, vae or consistency."),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Diffusion model that --family consistency distils."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with the configuration.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Override one value; repeatable."),
    ] = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped training.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model on showers of any geometry, or on jets as clouds of particles."""
    from pipelines import hep_clouds

    chosen = overrides(settings or []) | ({"family": family} if family else {})
    if hep_clouds.is_clouds(showers[0], geometry):
        hep_clouds.train(showers, output, config, chosen, seed, resume, overwrite)
        return
    from apps.hep_simulation.config import read_config
    from apps.hep_simulation.geometry import read_geometry
    from apps.hep_simulation.train import train as run

    run(
        showers,
        read_geometry(hep_clouds.needed(geometry, showers[0]), binning),
        output,
        read_config(config, chosen),
        teacher=teacher,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def simulate(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="OUT.hdf5, or OUT.root of pythia-jets.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Folder of a trained model; the bundled one if not given."),
    ] = None,
    oracle: Annotated[
        str | None,
        typer.Option(
            metavar="DETECTOR.json|par04|pythia-clouds|pythia-jets|pythia-lep",
            help="The real simulation instead of a model: to train on, and to see what is gained. "
            "pythia-clouds:ttbar, pythia-jets:zjets choose the process (else qcd).",
        ),
    ] = None,
    geometry: Annotated[
        Path | None,
        typer.Option(metavar="BINNING.xml", help="How the oracle is read out; else as `par04`."),
    ] = None,
    energies: Annotated[
        str | None,
        typer.Option(metavar="LOW:HIGH:log", help="GeV; without `log`, uniform; or one energy."),
    ] = None,
    count: Annotated[
        int, typer.Option("-n", "--count", help="Showers, jets, ... to draw.")
    ] = 1000,
    particle: Annotated[
        str | None,
        typer.Option(help="PDG numbers or names, comma-separated; all of the model if none."),
    ] = None,
    conditions: Annotated[
        Path | None, typer.Option(metavar="FILE.hdf5", help="Take incident energies from a file.")
    ] = None,
    seed: Seed = 0,
    steps: Annotated[
        int | None, typer.Option(help="Evaluations a shower, of families that have steps.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Showers computed together.")] = 100,
    theta: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Parameters of pythia-lep; else drawn from the prior."),
    ] = None,
    events: Annotated[int, typer.Option(help="Events a set of pythia-lep.")] = 50,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse conditions outside of training.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Simulate showers to a file that CaloChallenge's own scripts read, or jets and events.

    A run that is stopped continues where it was when the same command is given again.
    """
    from core.errors import AleatorError
    from pipelines import hep_clouds

    if hep_clouds.simulate(
        output=output, model=model, oracle=oracle, conditions=conditions, energies=energies,
        particle=particle, count=count, seed=seed, steps=steps, strict=strict,
        overwrite=overwrite, theta=theta, events=events,
    ):  # fmt: skip
        return

    if conditions is not None and energies is not None:
        raise AleatorError("give --energies or --conditions, not both")
    from apps.hep_simulation.conditions import Conditions, listed, parse_spectrum
    from apps.hep_simulation.geometry import read_geometry
    from apps.hep_simulation.simulate import Request, run

    wanted: Conditions
    if conditions is not None:
        wanted = listed(conditions, particle)
    else:
        wanted = parse_spectrum(energies or "1:64:log", particle, count)
    request = Request(
        conditions=wanted, output=output or Path("showers.hdf5"), model=model, oracle=oracle,
        geometry=None if geometry is None else read_geometry(geometry), seed=seed, steps=steps,
        batch=batch, strict=strict, overwrite=overwrite,
    )  # fmt: skip
    run(request, say=say)


@app.command()
@friendly
def evaluate(
    generated: Annotated[Path, typer.Argument(metavar="GENERATED.hdf5")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE.hdf5")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report.")],
    geometry: Maybe = None,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train", metavar="TRAIN.hdf5", help="Training showers: the floor, and memorisation."
        ),
    ] = None,
    binning: Binning = None,
    figures: Annotated[bool, typer.Option(help="Draw figures.")] = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Judge generated showers, or clouds: results.json, report.md and figures."""
    from pipelines import hep_clouds

    if hep_clouds.is_clouds(generated, geometry):
        hep_clouds.evaluate(
            generated, reference, output, train, figures=figures, seed=seed, overwrite=overwrite
        )
        return
    from apps.hep_simulation.evaluate import evaluate as run
    from apps.hep_simulation.geometry import read_geometry

    run(
        generated,
        reference,
        read_geometry(hep_clouds.needed(geometry, generated), binning),
        output,
        train=train,
        figures=figures,
        seed=seed,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def prepare(
    showers: Annotated[list[Path], typer.Argument(metavar="SHOWERS.hdf5...")],
    geometry: Geometry,
    output: Annotated[Path, typer.Option("-o", "--output", help="OUT.hdf5.")],
    binning: Binning = None,
    overwrite: Overwrite = False,
) -> None:
    """Check every value of shower files and join them into one."""
    from apps.hep_simulation.geometry import read_geometry
    from apps.hep_simulation.prepare import prepare as run

    say(run(showers, read_geometry(geometry, binning), output, overwrite=overwrite))


@app.command()
@friendly
def info(
    thing: Annotated[
        Path, typer.Argument(metavar="MODEL|FILE", help="A model, showers or a binning.")
    ],
) -> None:
    """Say in words what is in a model folder, a shower file or a binning file."""
    from apps.hep_simulation.describe import describe

    print(describe(thing))


adopt(app, hep_infer.app)

if __name__ == "__main__":
    app()
