"""A class that was never seen as the anomaly: bicyclists, with simulated negatives and without.

    python benchmarks/driving_held_out.py DATA [--models FOLDER] [--rows none,diffusion]
                                          [--base-steps 240] [--steps 120] [--light]
                                          [--set A.B=C] [--out FOLDER]

DATA holds `camvid/`. A base is trained from scratch on those frames of camvid/train in which no
bicyclist is seen at all (to ignore their pixels would show their surroundings); every row goes on
from it for the same number of steps, as in `driving.py`. On camvid/val bicyclists are then the
anomaly, and the other ten classes the known.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import driving
from driving_tables import ROWS, set_tables

from apps.anomaly_driving.closed import frames_miou
from apps.anomaly_driving.config import Config, read_config
from apps.anomaly_driving.data import open_data
from apps.anomaly_driving.frames import read_frames
from apps.anomaly_driving.model import CAMVID, load
from apps.anomaly_driving.network import open_network
from apps.anomaly_driving.train import train
from core.report import Row, Table, report, write_results, write_text

HELD_OUT = "bicyclist"
TITLE = f"camvid/val, {HELD_OUT} as the anomaly"


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, score, and write driving_held_out.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained or to train")
    parser.add_argument("--rows", default="none,diffusion", help="comma-separated")
    parser.add_argument("--base-steps", type=int, default=240, help="of the base, from scratch")
    parser.add_argument("--steps", type=int, default=120, help="of every row, after the base")
    driving.add_changes(parser)
    parser.add_argument("--out", type=Path, default=driving.HERE / "results")
    options = parser.parse_args(arguments)
    rows = options.rows.split(",")
    folders = {name: train_row(name, options) for name in rows}
    what = f"base {options.base_steps} steps, rows {options.steps} more{driving.told(options)}"
    tables = [closed_table(folders, options.data, what)]
    data = open_data(options.data / "camvid" / "val", hold_out=(HELD_OUT,))
    found = {
        (name, 0): driving.score_set(open_network(folder), data)
        for name, folder in folders.items()
    }
    titles = {name: ROWS[name] for name in rows}
    tables += set_tables(TITLE, titles, found)
    results = write_results(options.out / "driving_held_out.json", tables)
    write_text(options.out / "driving_held_out.md", report(results, "A class held out"))
    for table in tables:
        table.print()


def train_row(name: str, options: argparse.Namespace) -> Path:
    """The model of a row, and the base that it goes on from, trained if they are not there."""
    frames, more = options.data / "camvid" / "train", driving.changes(options)
    base = options.models / f"base_{options.base_steps}_without_{HELD_OUT}"
    folder = options.models / f"{name}_{options.steps}_without_{HELD_OUT}"
    if not (base / "model.json").exists():
        config = held_out(base_config(options.base_steps, driving.precision_of(more)))
        train(frames, base, config, resume=True, say=driving.say)
    if not (folder / "model.json").exists():
        driving.say(f"{ROWS[name]}, {options.steps} steps")
        row = driving.row_config(name, options.data, options.models, options.steps, more)
        train(frames, folder, held_out(row), start=base, resume=True, say=driving.say)
    return folder


def base_config(steps: int, more: Mapping[str, Any] = driving.NOTHING) -> Config:
    """The recipe of the base, with the smaller crops of the rows and a schedule of its own."""
    recipe = driving.HERE / "recipes" / "driving.json"
    fit = {"steps": steps, "stop_at": 0, "ema": 0.98} | dict(more)
    return read_config(recipe, {"augment": {"height": 144, "width": 192}, "fit": fit})


def held_out(config: Config) -> Config:
    return dataclasses.replace(config, held_out=HELD_OUT)


def closed_table(folders: dict[str, Path], data: Path, what: str) -> Table:
    """Closed mIoU, of models trained as `what` says, of the ten classes that are known."""
    frames = read_frames(data / "camvid" / "val", CAMVID, 11, height=driving.VAL_ROWS)
    frames = frames.every(driving.VAL_EVERY).without_ids(HELD_OUT)
    lines: list[Row] = [
        {
            "negatives": ROWS[name],
            "miou": 100 * (frames_miou(load(folder), frames) or 0.0),
        }
        for name, folder in folders.items()
    ]
    heads = {"negatives": "negatives", "miou": "closed mIoU, %"}
    title = (
        f"camvid/val, every {driving.VAL_EVERY}rd frame at {driving.VAL_ROWS} rows: "
        f"the ten classes without {HELD_OUT}; {what}"
    )
    return Table(lines, heads, {"miou": ".1f"}, {}, title)


if __name__ == "__main__":
    main()
