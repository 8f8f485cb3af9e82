"""`python -m pipelines.hep_infer`: theory parameters from events, and reconstructed jets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines._door import door, friendly, overrides, say

app = door(
    "Infer theory parameters from sets of collider events, and simulate reconstructed jets.\n\n"
    "Try it: `python -m pipelines.hep_infer infer` infers three Pythia parameters from bundled "
    "events with bundled weights."
)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override one option; repeatable."),
]


@app.command()
@friendly
def infer(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[X.hdf5]", help="x (sets, events, observables); the sample if none."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="POSTERIOR.nc.")] = Path(
        "posterior.nc"
    ),
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of train-inference; else bundled.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Draws a set.")] = 1000,
    events: Annotated[
        int | None, typer.Option(help="Use only the first so many events of each set.")
    ] = None,
    seed: Seed = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse sets unlike the training simulations.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Posterior of the parameters given sets of independent events, any number a set."""
    from apps.hep_simulation.inference.infer import Request, run

    request = Request(
        source=source,
        output=output,
        model=model,
        draws=samples,
        events=events,
        seed=seed,
        strict=strict,
        overwrite=overwrite,
    )
    run(request, say=say).print()


@app.command("train-inference")
@friendly
def train_inference(
    source: Annotated[
        Path, typer.Argument(metavar="SIMULATIONS.hdf5", help="theta, x and the prior's bounds.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model.")],
    method: Annotated[
        str, typer.Option(help="npe: posterior of sets; nle: likelihood of events.")
    ] = "npe",
    settings: Settings = None,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Learn to infer from simulations: an ensemble, calibrated on parameters left out."""
    from apps.hep_simulation.inference.train import Request, run
    from core.report import Table

    request = Request(
        source=source,
        output=output,
        method=method,
        settings=overrides(settings or []),
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        device=device,
    )
    rows = run(request, say=say).card["scores"]
    if rows:
        Table(
            rows, {key: key for key in rows[0]}, dict.fromkeys(rows[0], ".3f") | {"events": "d"}
        ).print()


@app.command("train-objects")
@friendly
def train_objects(
    source: Annotated[
        Path, typer.Argument(metavar="EVENTS.root", help="GenJet_* and Jet_* (ROOT or Parquet).")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the model.")],
    cut_genjets: Annotated[
        bool,
        typer.Option("--cut-genjets", help="An index beyond the GenJets is no match (NanoAOD)."),
    ] = False,
    settings: Settings = None,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Learn reconstructed jets given generator-level ones: response, efficiency and fakes."""
    from apps.hep_simulation.jets.train import Request, run

    request = Request(
        source=source,
        output=output,
        cut_genjets=cut_genjets,
        settings=overrides(settings or []),
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        device=device,
    )
    run(request, say=say)


@app.command("simulate-objects")
@friendly
def simulate_objects(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="[GEN.root]", help="Events with GenJet_*; the sample if none."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="OUT.root or OUT.parquet.")
    ] = Path("reconstructed.root"),
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of train-objects; else bundled.")
    ] = None,
    events: Annotated[int | None, typer.Option(help="Only the first so many events.")] = None,
    seed: Seed = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse jets outside the training conditions.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Reconstruct events: same branches out as in, with Jet_* drawn from the model.

    A run that is stopped continues where it was when the same command is given again.
    """
    from apps.hep_simulation.jets.simulate import Request, run

    request = Request(
        source=source,
        output=output,
        model=model,
        seed=seed,
        events=events,
        strict=strict,
        overwrite=overwrite,
    )
    run(request, say=say)


if __name__ == "__main__":
    app()
