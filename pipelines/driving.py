"""`python -m pipelines.driving`: unexpected objects in road images, simulated and found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import driving_score
from pipelines._door import adopt, door, friendly, overrides, say

app = door(
    "Simulate unexpected objects in road images, train with them, and score every pixel.\n\n"
    "Try it: `score` writes heat maps of bundled photographs with bundled weights.\n\n"
    "Your own data: `train FRAMES -o my_model --negatives flow` (FRAMES/images, FRAMES/labels), "
    "then `score IMAGES -o scores --model my_model`. Look at what is simulated: "
    "`synthesize FRAMES -o pictures --negatives diffusion`."
)

Seed = Annotated[int, typer.Option(help="Same seed, same numbers.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override one value of the config; repeatable."),
]
ConfigFile = Annotated[Path | None, typer.Option(help="JSON file with the configuration.")]
Negatives = Annotated[
    str | None,
    typer.Option(help="none, paste, vae, flow (trained jointly), diffusion or flow_matching."),
]
Cutouts = Annotated[
    Path | None,
    typer.Option(help="Folder of PNG cut-outs or of textures, for --negatives paste."),
]


@app.command()
@friendly
def train(
    data: Annotated[
        Path, typer.Argument(metavar="FRAMES", help="Folder with images/ and labels/, or train/.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the trained model.")],
    arch: Annotated[
        str | None, typer.Option(help="Architecture: unet, fpn, deeplabv3plus, ...")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder, e.g. resnet18 or tu-resnet18 (timm).")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Your weights of network or encoder (.safetensors) to start from."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Go on from this trained model.")
    ] = None,
    negatives: Negatives = None,
    cutouts: Cutouts = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    hold_out: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Leave out all frames with this class.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Labelled frames for the closed mIoU; FRAMES/val if there.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped training.")] = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Train a segmenter from scratch, with simulated anomalies or without.

    A run that was stopped continues where it was with --resume.
    """
    from apps.anomaly_driving.config import read_config
    from apps.anomaly_driving.train import train as run

    chosen = read_config(
        config,
        _given(
            {
                "segmenter": {"arch": arch, "encoder": encoder},
                "negatives": {"kind": negatives, "folder": cutouts and str(cutouts)},
                "fit": {"steps": steps},
                "held_out": hold_out,
            }
        ),
        overrides(settings or []),
    )
    run(
        *(data, output, chosen),
        seed=seed,
        start=start,
        weights=weights,
        validation=validation,
        resume=resume,
        device=device,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def synthesize(
    source: Annotated[
        Path, typer.Argument(metavar="FRAMES", help="Labelled frames, or a folder of images.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    negatives: Negatives = None,
    cutouts: Cutouts = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Use the generator of this trained model.")
    ] = None,
    count: Annotated[int, typer.Option(help="Pictures to make.")] = 24,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Paste simulated objects into pictures: images, masks (0, 1, 255) and a contact sheet."""
    from apps.anomaly_driving.config import read_config
    from apps.anomaly_driving.synthesize import synthesize as run

    chosen = read_config(
        config,
        _given({"negatives": {"kind": negatives, "folder": cutouts and str(cutouts)}}),
        overrides(settings or []),
    )
    run(
        *(source, output, chosen),
        model=model,
        count=count,
        seed=seed,
        device=device,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def info(
    thing: Annotated[
        Path, typer.Argument(metavar="MODEL|FRAMES", help="A model folder or labelled frames.")
    ],
) -> None:
    """Say in words what is in a model folder or a folder of labelled frames."""
    from apps.anomaly_driving.config import Config
    from apps.anomaly_driving.describe import describe

    print(describe(thing, Config()))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given: no None, no empty mapping."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        value = _given(value) if isinstance(value, dict) else value
        if value is not None and value != {}:
            kept[key] = value
    return kept


adopt(app, driving_score.app)

if __name__ == "__main__":
    app()
