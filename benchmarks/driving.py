"""Does training on simulated anomalies help? One network, equal steps, every kind of negatives.

    python benchmarks/driving.py DATA [--models FOLDER] [--rows none,flow,...] [--sets NAME,...]
                                 [--steps 120] [--light] [--seeds 0] [--train-only]
                                 [--scores energy,energy+jsd,...] [--set A.B=C]
                                 [--name driving] [--out FOLDER]

DATA holds `camvid/`, `static_val/`, `road_anomaly21_val/`, `road_obstacle21_val/`,
`fishyscapes_static_val/` and `coco_cutouts/` (docs/driving.md says where they come from). A base
model is trained from scratch on camvid/train without negatives (recipes/driving.json); every row
then goes on from it for the same number of steps, the row without negatives, too. Whatever is in
FOLDER already is not made again: a run that was stopped goes on where it was. Everything but the
training uses the sets for nothing but scoring. With --light all rows have the loss that `light`
alone has otherwise, with --set another value of the config (of the base, fit.precision alone: on a
CPU without bfloat16 32-true is much faster); their FOLDER should be one of its own. Ensembles of
scores have their scales from every twelfth frame of camvid/train.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from driving_tables import ROWS, Counts, over_seeds, seeds_of, set_tables, span

from apps.anomaly_driving.bootstrap import FrameCounts
from apps.anomaly_driving.closed import frames_miou
from apps.anomaly_driving.config import Config, read_config
from apps.anomaly_driving.data import Driving, open_data
from apps.anomaly_driving.fits import fit_scores
from apps.anomaly_driving.frames import Frames, read_frames
from apps.anomaly_driving.model import CAMVID, load
from apps.anomaly_driving.network import Network, Scorer, open_network
from apps.anomaly_driving.pixel_metrics import PixelCounts, frame_counts
from apps.anomaly_driving.scores import DEFAULT, is_fitted, parse, resolve
from apps.anomaly_driving.seam import seam_auroc
from apps.anomaly_driving.textures import write_textures
from apps.anomaly_driving.train import train
from core.progress import progress_bar
from core.report import Row, Table, replacing, report, write_results, write_text
from core.settings import merge
from pipelines._door import overrides

HERE = Path(__file__).parent
SETS = {
    "static_val": "static_val",
    "ra21": "road_anomaly21_val",
    "ro21": "road_obstacle21_val",
    "fs_static": "fishyscapes_static_val",
}
LIGHT = {"uniform": 0.1, "d_out": 0.25}
"""A lighter loss: a fifth and a half of the usual weights, to spare the classes."""
NOTHING: Mapping[str, Any] = MappingProxyType({})
SEAM = ("max_logit", "jsd", "d_out")
VAL_ROWS, VAL_EVERY = 240, 3
"""Height at which, and which of the frames on which, the known classes are judged."""
KNOWN = f"known_{VAL_ROWS}.json"
JUDGED = (
    f"camvid/val, every {VAL_EVERY}rd frame at {VAL_ROWS} rows: known classes, and known parts "
    "pasted as negatives are (0.5: not noticed)"
)
SEAM_HEADS = {f"seam_{score}": f"seam AuROC, {score}" for score in SEAM}
KNOWN_FORMATS = {"miou": ".1f", **dict.fromkeys(SEAM_HEADS, ".2f")}
FIT_EVERY = 12
"""Which of the training frames give ensembles their scales."""


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, score, and write driving.md and driving.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained or to train")
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated; default: all")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated; default: all")
    parser.add_argument("--steps", type=int, default=120, help="of every row, after the base")
    add_changes(parser)
    parser.add_argument("--seeds", default="0", help="comma-separated, of every row")
    parser.add_argument("--longer-side", type=int, default=None, help="pixels that are scored")
    parser.add_argument("--scores", default=",".join(DEFAULT), help="comma-separated")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--as-is", action="store_true", help="tables of what is there already")
    parser.add_argument("--name", default="driving", help="of the tables")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    rows = {name: ROWS[name] for name in options.rows.split(",")}
    seeds = [int(seed) for seed in options.seeds.split(",")]
    more = changes(options)
    for seed in [] if options.as_is else seeds:
        for name in rows:
            train_row(name, seed, options.data, options.models, options.steps, more)
    if options.train_only:
        return
    models = [
        (row, seed)
        for row in rows
        for seed in seeds
        if not options.as_is or known_file(row, seed, options).exists()
    ]
    tables: list[Table] = [closed_table(rows, models, options)]
    for name in options.sets.split(","):
        found = {
            (row, seed): counts(row, seed, SETS[name], options)
            for row, seed in models
            if not options.as_is or counts_file(row, seed, SETS[name], options).exists()
        }
        tables += set_tables(SETS[name], rows, found)
    results = write_results(options.out / f"{options.name}.json", tables)
    text = report(results, "Simulated anomalies: does it help?")
    write_text(options.out / f"{options.name}.md", text)
    for table in tables:
        table.print()


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Options for what differs from the recipe in all rows."""
    parser.add_argument("--light", action="store_true", help="the lighter loss for all rows")
    parser.add_argument("--set", action="append", default=[], help="A.B=C, for all rows")


def changes(options: argparse.Namespace) -> dict[str, Any]:
    """What they ask for, as of a config file."""
    return merge({"loss": LIGHT} if options.light else {}, overrides(options.set))


def told(options: argparse.Namespace) -> str:
    """The same in words, for titles."""
    light = ", lighter loss" if options.light else ""
    return light + "".join(f", {value}" for value in options.set)


def precision_of(more: Mapping[str, Any]) -> dict[str, Any]:
    """The one change that a base is trained with, too."""
    return {key: value for key, value in more.get("fit", {}).items() if key == "precision"}


def train_row(
    name: str,
    seed: int,
    data: Path,
    models: Path,
    steps: int,
    more: Mapping[str, Any] = NOTHING,
) -> Path:
    """The model of a row, trained if it is not there."""
    base, folder = models / "base", model_folder(models, name, seed, steps)
    if not (base / "model.json").exists():
        config = read_config(HERE / "recipes" / "driving.json", {"fit": precision_of(more)})
        train(data / "camvid" / "train", base, config, resume=True, say=say)
    if not (folder / "model.json").exists():
        say(f"{ROWS[name]}, seed {seed}, {steps} steps")
        config = row_config(name, data, models, steps, more)
        train(
            data / "camvid" / "train", folder, config, seed=seed, start=base, resume=True, say=say
        )
    return folder


def row_config(
    name: str,
    data: Path,
    models: Path,
    steps: int,
    more: Mapping[str, Any] = NOTHING,
) -> Config:
    """The recipe of a row: everything but the negatives is the same in all but `light`."""
    negatives: dict[str, Any] = {"kind": "diffusion" if name == "light" else name}
    if name == "textures":
        negatives = {"kind": "paste", "folder": str(write_textures(models / "textures"))}
    if name == "cutouts":
        negatives = {"kind": "paste", "folder": str(data / "coco_cutouts" / "nc")}
    recipe = json.loads((HERE / "recipes" / "driving_rows.json").read_text())
    return read_config(
        HERE / "recipes" / "driving.json",
        recipe,
        {"negatives": negatives, "fit": {"steps": steps}},
        {"loss": LIGHT} if name == "light" else {},
        more,
    )


def model_folder(models: Path, name: str, seed: int, steps: int) -> Path:
    return models / f"{name}_{steps}_{seed}"


def counts(row: str, seed: int, folder: str, options: argparse.Namespace) -> dict[str, Counts]:
    """Every score of a model on a set, from the cache beside the model if it is there."""
    model = model_folder(options.models, row, seed, options.steps)
    kept = counts_file(row, seed, folder, options)
    wanted = parse(options.scores)
    if not holds(kept, wanted):
        network = open_network(model, longer_side=options.longer_side)
        fits = ensembles(network, options.data, wanted)
        found = score_set(network, open_data(options.data / folder), wanted, fits)
        arrays = {f"{n}/{part}": v for n, c in found.items() for part, v in vars(c).items()}
        with replacing(kept) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)
    with np.load(kept) as stored:
        return {n: Counts(stored[f"{n}/pooled"], stored[f"{n}/frames"]) for n in wanted}


def holds(kept: Path, scores: Sequence[str]) -> bool:
    """Whether the cache has these scores."""
    if not kept.exists():
        return False
    with np.load(kept) as stored:
        return all(f"{name}/pooled" in stored for name in scores)


def counts_file(row: str, seed: int, folder: str, options: argparse.Namespace) -> Path:
    """Where the counts of a model on a set are kept."""
    model = model_folder(options.models, row, seed, options.steps)
    return model / f"counts_{folder}_{options.longer_side or 'own'}.npz"


def known_file(row: str, seed: int, options: argparse.Namespace) -> Path:
    """Where a model's quality on the known is kept."""
    return model_folder(options.models, row, seed, options.steps) / KNOWN


def ensembles(network: Network, data: Path, names: Sequence[str]) -> Mapping[str, Any]:
    """Scales of the ensembles among scores, of every twelfth frame of camvid/train."""
    if not any(is_fitted(name) for name in names):
        return {}
    known = open_data(data / "camvid" / "train")
    part = dataclasses.replace(known, frames=known.frames[::FIT_EVERY])
    return fit_scores(network, part.samples, names)


def score_set(
    network: Network,
    data: Driving,
    names: Sequence[str] = DEFAULT,
    fits: Mapping[str, Any] = NOTHING,
) -> dict[str, Counts]:
    """One pass over a set."""
    scorer = Scorer(network, names, fits)
    pooled = {name: PixelCounts() for name in names}
    frames = {name: FrameCounts() for name in names}
    with progress_bar(len(data), "frames") as advance:
        for sample in data.labelled().samples():
            assert sample.anomaly is not None
            for name, score in scorer(sample.image, sample.frame.image).scores.items():
                found = frame_counts(score, sample.anomaly)
                pooled[name].add(found)
                frames[name].add(found)
            advance(1)
    return {name: Counts(pooled[name].counts, frames[name].array()) for name in names}


def closed_table(
    rows: dict[str, str], models: list[tuple[str, int]], options: argparse.Namespace
) -> Table:
    """Closed mIoU on camvid/val, and the seam test on camvid/val, of every row."""
    frames = read_frames(options.data / "camvid" / "val", CAMVID, 11, height=VAL_ROWS)
    frames = frames.every(VAL_EVERY)
    found = {
        (row, seed): known_quality(model_folder(options.models, row, seed, options.steps), frames)
        for row, seed in models
    }
    base = known_quality(options.models / "base", frames)
    lines: list[Row] = [{"negatives": "base, before the rows", **base}]
    for name, title in rows.items():
        seeds = seeds_of(found, name)
        if not seeds:
            continue
        line: dict[str, Any] = {"negatives": title, "seeds": ", ".join(map(str, seeds))}
        line |= {key: float(np.mean([found[name, s][key] for s in seeds])) for key in base}
        if len(seeds) > 1:
            line["range"] = span([found[name, s]["miou"] for s in seeds])
        pairs = [s for s in seeds if ("none", s) in found and name != "none"]
        change = [found[name, s]["miou"] - found["none", s]["miou"] for s in pairs]
        if change:
            line["change"] = over_seeds(change)
        lines.append(line)
    columns = {
        "negatives": "negatives",
        "seeds": "seeds",
        "miou": "closed mIoU, %",
        "range": "range",
        "change": "against none, the same seeds",
        **SEAM_HEADS,
    }
    title = f"{JUDGED}; {options.steps} steps after the base{told(options)}; means over the seeds"
    return Table(lines, columns, KNOWN_FORMATS, {}, title)


def known_quality(folder: Path, frames: Frames) -> dict[str, float]:
    """What a model makes of the known, from the cache beside it if it is there."""
    kept = folder / KNOWN
    if not kept.exists():
        model = load(folder)
        functions = [resolve(score, {}) for score in SEAM]
        seams = seam_auroc(model, frames, functions)
        found = {"miou": 100 * (frames_miou(model, frames) or 0.0)}
        found |= {f"seam_{score}": value for score, value in zip(SEAM, seams, strict=True)}
        write_text(kept, json.dumps(found))
    return json.loads(kept.read_text())


def say(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
