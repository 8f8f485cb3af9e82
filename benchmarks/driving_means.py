"""Means of models that grew from one base: negatives of two kinds together, and none at all.

    python benchmarks/driving_means.py DATA --models FOLDER [--steps 400] [--light] [--set A.B=C]
                                       [--rows none,simulated] [--sets NAME,...]
                                       [--scores energy,energy+jsd,...] [--train-only]
                                       [--name driving_means] [--out FOLDER]

DATA, FOLDER and the options are those of `driving.py`, whose models are taken and, if they are not
there, trained. Every row is the mean of the weights of six models (Wortsman et al. 2022,
arXiv:2203.05482): six without negatives, three with the joint flow and three with diffusion, or
six with real objects. All are of one base, as many steps and the same recipe.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import driving
from driving_tables import ROWS, set_tables

from apps.anomaly_driving.average import average
from apps.anomaly_driving.frames import read_frames
from apps.anomaly_driving.model import CAMVID
from apps.anomaly_driving.scores import DEFAULT
from core.report import Row, Table, report, write_results, write_text

Members = Sequence[tuple[str, int]]
MEANS: Mapping[str, Members] = {
    "none": [("none", seed) for seed in range(6)],
    "simulated": [(kind, seed) for kind in ("flow", "diffusion") for seed in range(3)],
    "cutouts": [("cutouts", seed) for seed in range(6)],
}
"""Row and seed of the members of each mean."""
TITLES = {
    "none": ROWS["none"],
    "simulated": "flow, joint, and diffusion",
    "cutouts": ROWS["cutouts"],
}
SCORES = ",".join((*DEFAULT[:5], "energy+jsd", "max_logit+jsd", *DEFAULT[5:]))


def main(arguments: list[str] | None = None) -> None:
    """Train and average what is missing, score, and write driving_means.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained or to train")
    parser.add_argument("--rows", default="none,simulated", help=f"of {', '.join(MEANS)}")
    parser.add_argument("--sets", default=",".join(driving.SETS), help="comma-separated")
    parser.add_argument("--steps", type=int, default=400, help="of every model, after the base")
    driving.add_changes(parser)
    parser.add_argument("--scores", default=SCORES, help="comma-separated")
    parser.add_argument("--longer-side", type=int, default=None, help="pixels that are scored")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--name", default="driving_means", help="of the tables")
    parser.add_argument("--out", type=Path, default=driving.HERE / "results")
    options = parser.parse_args(arguments)
    rows = {name: TITLES[name] for name in options.rows.split(",")}
    of_means = argparse.Namespace(**vars(options) | {"models": options.models / "means"})
    for name in rows:
        members = [
            driving.train_row(
                *(row, seed, options.data, options.models, options.steps),
                driving.changes(options),
            )
            for row, seed in MEANS[name]
        ]
        mean_of(driving.model_folder(of_means.models, name, 0, options.steps), members)
    if options.train_only:
        return
    tables = [closed_table(rows, of_means)]
    for name in options.sets.split(","):
        folder = driving.SETS[name]
        found = {(row, 0): driving.counts(row, 0, folder, of_means) for row in rows}
        tables += set_tables(folder, rows, found)
    results = write_results(options.out / f"{options.name}.json", tables)
    text = report(results, "Simulated anomalies: means of six models")
    write_text(options.out / f"{options.name}.md", text)
    for table in tables:
        table.print()


def mean_of(folder: Path, members: Sequence[Path]) -> None:
    """Average the members, if that has not been done."""
    if not (folder / "model.json").exists():
        average(folder, members)


def closed_table(rows: Mapping[str, str], options: argparse.Namespace) -> Table:
    """Closed mIoU on camvid/val of each mean, and the seam test."""
    frames = read_frames(options.data / "camvid" / "val", CAMVID, 11, height=driving.VAL_ROWS)
    frames = frames.every(driving.VAL_EVERY)
    lines: list[Row] = []
    for name, title in rows.items():
        folder = driving.model_folder(options.models, name, 0, options.steps)
        line: Row = {"negatives": title, "members": told(MEANS[name])}
        lines.append({**line, **driving.known_quality(folder, frames)})
    heads = {"negatives": "negatives", "members": "its six models: row and seeds"}
    heads |= {"miou": "closed mIoU, %", **driving.SEAM_HEADS}
    title = (
        f"{driving.JUDGED}; means of the weights of six models, {options.steps} steps after the "
        f"base{driving.told(options)}"
    )
    return Table(lines, heads, driving.KNOWN_FORMATS, {}, title)


def told(members: Members) -> str:
    """Members in words: "flow 0 1 2, diffusion 0 1 2"."""
    kinds = dict.fromkeys(kind for kind, _ in members)
    return ", ".join(
        " ".join([kind, *(str(seed) for row, seed in members if row == kind)]) for kind in kinds
    )


if __name__ == "__main__":
    main()
