"""`score`, `benchmark`, `calibrate`, `export`: how unexpected is what the camera sees?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines._door import door, fail, friendly, say

if TYPE_CHECKING:
    from apps.anomaly_driving.using import Picking, Using

app = door("Score, benchmark, calibrate and export models of unexpected objects in traffic.")

Model = Annotated[
    Path | None,
    typer.Option("--model", help="Model folder, TorchScript or ONNX; the bundled one if none."),
]
Scores = Annotated[str | None, typer.Option("--scores", help="Names, by commas; a+b: ensemble.")]
LongerSide = Annotated[
    int | None, typer.Option(help="Of the network's input; the model's own if none, 0: image's.")
]
Tile = Annotated[int, typer.Option(help="Cut larger inputs into tiles of so many pixels; 0: no.")]
Overlap = Annotated[int, typer.Option(help="Of tiles, in pixels.")]
Classes = Annotated[Path | None, typer.Option(help="Class names of a network that is not ours.")]
Normalise = Annotated[
    str | None, typer.Option(help="Of the input of such a network: imagenet, half or none.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Layout = Annotated[str | None, typer.Option(help="Folder layout; found out if none.")]
Split = Annotated[str | None, typer.Option(help="train, val, …; all if none.")]
HoldOut = Annotated[
    list[str] | None, typer.Option(help="Known class to be taken as the anomaly; repeatable.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers.")]


@app.command()
@friendly
def score(
    images: Annotated[
        Path | None,
        typer.Argument(metavar="[IMAGES]", help="Folder, image or film; bundled if none."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the maps.")] = Path(
        "scores"
    ),
    model: Model = None,
    scores: Scores = None,
    longer_side: LongerSide = None,
    tile: Tile = 0,
    overlap: Overlap = 256,
    classes: Classes = None,
    normalise: Normalise = None,
    layout: Layout = None,
    split: Split = None,
    overlays: Annotated[bool, typer.Option(help="A picture beside each map.")] = True,
    open_set: Annotated[
        bool, typer.Option("--open-set", help="Also known classes and unknown, as a label PNG.")
    ] = False,
    smooth: Annotated[
        float, typer.Option(help="Of a film: weight of the newest frame, along the motion.")
    ] = 1.0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write NAME.hdf5 (`value`, height × width, float16, higher = unexpected) and an overlay."""
    from apps.anomaly_driving import score_run

    score_run.score(
        images,
        output,
        _using(model, longer_side, tile, overlap, classes, normalise, device),
        scores,
        picking=_picking(layout, split, None),
        overlays=overlays,
        open_set=open_set,
        overwrite=overwrite,
        smooth=smooth,
        say=say,
    )


@app.command()
@friendly
def benchmark(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Data set with labels.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path(
        "benchmark"
    ),
    model: Model = None,
    scores: Scores = None,
    score_files: Annotated[
        Path | None, typer.Option(help="Judge these files (.hdf5, .npy, .npz) instead.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Frames on which thresholds are frozen, by best F1.")
    ] = None,
    closed: Annotated[Path | None, typer.Option(help="Class labels for the closed mIoU.")] = None,
    track: Annotated[
        str | None, typer.Option(help="anomaly or obstacle: sizes of segments; layout's if none.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Score the others are compared with; the first if none.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Of the bootstrap over frames; 0: none.")] = 1000,
    longer_side: LongerSide = None,
    tile: Tile = 0,
    overlap: Overlap = 256,
    classes: Classes = None,
    normalise: Normalise = None,
    layout: Layout = None,
    split: Split = None,
    hold_out: HoldOut = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Print AP, FPR95, AuROC, sIoU, PPV, mean F1, closed mIoU and images/s of scores."""
    from apps.anomaly_driving import score_run

    judging = score_run.Judging(track, score_files, validation, closed, against, draws, seed)
    score_run.benchmark(
        folder,
        output,
        _using(model, longer_side, tile, overlap, classes, normalise, device),
        scores,
        picking=_picking(layout, split, hold_out),
        judging=judging,
        overwrite=overwrite,
        say=say,
    )


@app.command()
@friendly
def calibrate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Frames set aside, labelled.")],
    model: Model = None,
    scores: Scores = None,
    fpr: Annotated[
        float | None, typer.Option(help="Wanted share of known pixels; 0.01 if nothing is said.")
    ] = None,
    tpr: Annotated[float | None, typer.Option(help="Wanted share of anomalies.")] = None,
    best_f1: Annotated[bool, typer.Option("--best-f1", help="The threshold of best F1.")] = False,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.9,
    fit: Annotated[
        Path | None, typer.Option(help="Training images: fit the scores that need it first.")
    ] = None,
    longer_side: LongerSide = None,
    tile: Tile = 0,
    overlap: Overlap = 256,
    layout: Layout = None,
    split: Split = None,
    hold_out: HoldOut = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Choose thresholds at a wanted rate and keep them with the model."""
    if sum((fpr is not None, tpr is not None, best_f1)) > 1:
        fail("--fpr, --tpr and --best-f1 exclude each other; give one")
    from apps.anomaly_driving import score_run

    wanted = 0.01 if fpr is None else fpr
    score_run.calibrate(
        folder,
        _using(model, longer_side, tile, overlap, None, None, device),
        scores,
        target="f1" if best_f1 else "fpr" if tpr is None else "tpr",
        rate=wanted if tpr is None else tpr,
        level=level,
        fit=fit,
        picking=_picking(layout, split, hold_out),
        seed=seed,
        say=say,
    )


@app.command()
@friendly
def export(
    output: Annotated[Path, typer.Option("-o", "--output", help="OUT.onnx.")],
    model: Model = None,
    scores: Scores = None,
    size: Annotated[str, typer.Option(help="Of the input, HEIGHTxWIDTH.")] = "360x480",
    overwrite: Overwrite = False,
) -> None:
    """Write an ONNX file of logits and scores that gives what the model gives, to 1e-4."""
    from apps.anomaly_driving.export import export_onnx
    from apps.anomaly_driving.using import fits_of

    using = _using(model, 0, 0, 256, None, None, "cpu")
    network = using.open(say)
    fits = fits_of(using, network, None)
    written, worst = export_onnx(network, output, scores, size, fits=fits, overwrite=overwrite)
    say(f"{written}: largest difference from the model {worst:.2g}")


def _using(
    model: Path | None,
    longer_side: int | None,
    tile: int,
    overlap: int,
    classes: Path | None,
    normalise: str | None,
    device: str,
) -> Using:
    from apps.anomaly_driving.using import Using

    return Using(model, longer_side, tile, overlap, classes, normalise, device)


def _picking(layout: str | None, split: str | None, hold_out: list[str] | None) -> Picking:
    from apps.anomaly_driving.using import Picking

    return Picking(layout, split, tuple(hold_out or ()))


if __name__ == "__main__":
    app()
