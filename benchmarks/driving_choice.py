"""Which weights to bundle: models side by side on parts of the validation sets.

    python benchmarks/driving_choice.py DATA VALIDATION MODEL [MODEL ...] [--add] [--out FOLDER]

DATA and VALIDATION are those of `driving_bundled.py`. Every model looks at the bundled model's
scales; the score is energy. Frames are taken in steps that meet all objects: every seventh of
`static_val` and `static_shift`, every second of `foreign_roads`, every third of `foreign_small`.
With --add, rows of other models that are in the results already stay. The benchmarks themselves
choose nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from driving_bundled import VAL_EVERY, VAL_ROWS, at_bundled_scales, tallied

from apps.anomaly_driving.closed import frames_miou
from apps.anomaly_driving.data import open_data
from apps.anomaly_driving.frames import Frames, read_frames
from apps.anomaly_driving.model import CAMVID, AnomalyModel
from core.report import Row, Table, read_results, report, write_results, write_text

HERE = Path(__file__).parent
EVERY = {"static_val": 7, "static_shift": 7, "foreign_roads": 2, "foreign_small": 3}
SCORE = "energy"


def main(arguments: list[str] | None = None) -> None:
    """Score every model, and write driving_choice.md and .json after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("validation", type=Path, help="what driving_shift.py wrote")
    parser.add_argument("models", type=Path, nargs="+", help="model folders")
    parser.add_argument("--add", action="store_true", help="to the results that are there")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    known = read_frames(options.data / "camvid" / "val", CAMVID, 11, height=VAL_ROWS)
    folders = [
        next(f / name for f in (options.data, options.validation) if (f / name).is_dir())
        for name in EVERY
    ]
    kept = options.out / "driving_choice.json"
    lines = earlier(kept, options.models) if options.add else []
    for model in options.models:
        lines.append(line(model, folders, known.every(VAL_EVERY)))
        table = table_of(lines)
        results = write_results(kept, [table])
        write_text(kept.with_suffix(".md"), report(results, "Which weights to bundle"))
    table.print()


def earlier(path: Path, models: Sequence[Path]) -> list[Row]:
    """Rows of other models that an earlier run wrote; none if there are none."""
    if not path.exists():
        return []
    names = {model.name for model in models}
    return [
        row for table in read_results(path)[1] for row in table.rows if row["model"] not in names
    ]


def line(path: Path, folders: list[Path], known: Frames) -> Row:
    """One model: closed mIoU, and AP / FPR95 in % on each set, and their means."""
    network = at_bundled_scales(path)
    assert isinstance(network.model, AnomalyModel)
    found: Row = {"model": path.name, "miou": 100 * (frames_miou(network.model, known) or 0.0)}
    pairs = []
    for folder in folders:
        data = open_data(folder).labelled()
        part = dataclasses.replace(data, frames=data.frames[:: EVERY[folder.name]])
        metrics = tallied(network, part, (SCORE,))[SCORE][0].curve().metrics()
        pairs.append((100 * metrics["ap"], 100 * metrics["fpr95"]))
        found[folder.name] = pair(*pairs[-1])
    return found | {"mean": pair(*(mean(values) for values in zip(*pairs, strict=True)))}


def pair(ap: float, fpr95: float) -> str:
    return f"{ap:.1f} / {fpr95:.1f}"


def table_of(lines: list[Row]) -> Table:
    heads = {"model": "model", "miou": "closed mIoU, %", **{name: name for name in EVERY}}
    title = f"{SCORE}, AP / FPR95 in %, on parts of the validation sets"
    return Table(lines, heads | {"mean": "mean"}, {"miou": ".1f"}, {}, title)


if __name__ == "__main__":
    main()
