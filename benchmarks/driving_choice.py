"""Which weights to bundle: models side by side on parts of the validation sets.

    python benchmarks/driving_choice.py DATA VALIDATION MODEL [MODEL ...] [--scores energy,jsd]
                                        [--colours 0.6] [--add] [--out FOLDER]

DATA and VALIDATION are those of `driving_bundled.py`. Every model looks at the bundled model's
scales, and at the share of the colours that is given, all by default. Frames are taken in steps
that meet all objects: every seventh of `static_val` and `static_shift`, every second of
`foreign_roads`, every third of `foreign_small`. With --add, rows of other models and scores that
are in the results already stay. The benchmarks themselves choose nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from driving import ensembles
from driving_bundled import VAL_EVERY, VAL_ROWS, looking_alike, tallied

from apps.anomaly_driving.closed import frames_miou
from apps.anomaly_driving.data import open_data
from apps.anomaly_driving.frames import Frames, read_frames
from apps.anomaly_driving.model import CAMVID, AnomalyModel
from apps.anomaly_driving.network import Network
from apps.anomaly_driving.scores import parse
from core.report import Row, Table, read_results, report, write_results, write_text

HERE = Path(__file__).parent
EVERY = {"static_val": 7, "static_shift": 7, "foreign_roads": 2, "foreign_small": 3}


def main(arguments: list[str] | None = None) -> None:
    """Score every model, and write driving_choice.md and .json after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("validation", type=Path, help="what driving_shift.py wrote")
    parser.add_argument("models", type=Path, nargs="+", help="model folders")
    parser.add_argument("--scores", default="energy", help="comma-separated")
    parser.add_argument("--colours", type=float, default=1.0, help="share that models see")
    parser.add_argument("--add", action="store_true", help="to the results that are there")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    known = read_frames(options.data / "camvid" / "val", CAMVID, 11, height=VAL_ROWS)
    folders = [
        next(f / name for f in (options.data, options.validation) if (f / name).is_dir())
        for name in EVERY
    ]
    kept = options.out / "driving_choice.json"
    scores = parse(options.scores)
    shown = {model: titled(model, options.colours) for model in options.models}
    lines = earlier(kept, list(shown.values()), scores) if options.add else []
    for model, title in shown.items():
        network = looking_alike(model)
        assert isinstance(network.model, AnomalyModel)
        config = network.model.config
        network.model.config = dataclasses.replace(config, colours=options.colours)
        fits = ensembles(network, options.data, scores)
        lines += model_lines(title, network, scores, fits, folders, known.every(VAL_EVERY))
        table = table_of(lines)
        results = write_results(kept, [table])
        write_text(kept.with_suffix(".md"), report(results, "Which weights to bundle"))
    table.print()


def titled(model: Path, colours: float) -> str:
    """What a row is called."""
    return model.name if colours == 1 else f"{model.name}, {colours:g} of the colours"


def earlier(path: Path, models: Sequence[str], scores: Sequence[str]) -> list[Row]:
    """Rows of other models and scores that an earlier run wrote; none if there are none."""
    if not path.exists():
        return []
    again = {(model, score) for model in models for score in scores}
    tables = read_results(path)[1]  # rows without a score are from when it was energy for all
    rows = [{"score": "energy", **row} for table in tables for row in table.rows]
    return [row for row in rows if (row["model"], row["score"]) not in again]


def model_lines(
    title: str,
    network: Network,
    scores: Sequence[str],
    fits: Mapping[str, Any],
    folders: list[Path],
    known: Frames,
) -> list[Row]:
    """One model: closed mIoU, and AP / FPR95 in % of each score on each set, and their means."""
    assert isinstance(network.model, AnomalyModel)
    miou = 100 * (frames_miou(network.model, known) or 0.0)
    lines: list[Row] = [{"model": title, "score": score, "miou": miou} for score in scores]
    pairs: list[list[tuple[float, float]]] = [[] for _ in scores]
    for folder in folders:
        data = open_data(folder).labelled()
        part = dataclasses.replace(data, frames=data.frames[:: EVERY[folder.name]])
        found = tallied(network, part, tuple(scores), fits)
        for row, own in zip(lines, pairs, strict=True):
            metrics = found[str(row["score"])][0].curve().metrics()
            own.append((100 * metrics["ap"], 100 * metrics["fpr95"]))
            row[folder.name] = pair(*own[-1])
    for row, own in zip(lines, pairs, strict=True):
        row["mean"] = pair(*(mean(values) for values in zip(*own, strict=True)))
    return lines


def pair(ap: float, fpr95: float) -> str:
    return f"{ap:.1f} / {fpr95:.1f}"


def table_of(lines: list[Row]) -> Table:
    heads = {"model": "model", "score": "score", "miou": "closed mIoU, %"}
    heads |= {name: name for name in EVERY} | {"mean": "mean"}
    title = "AP / FPR95 in %, on parts of the validation sets"
    return Table(lines, heads, {"miou": ".1f"}, {}, title)


if __name__ == "__main__":
    main()
