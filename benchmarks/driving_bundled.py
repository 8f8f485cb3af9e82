"""The bundled weights on every set, beside a model without negatives or earlier weights.

    python benchmarks/driving_bundled.py DATA VALIDATION --beside MODELS/none_wide
                                         [--called "no negatives"] [--model MODELS/both]
                                         [--sets NAME,...] [--add] [--name driving_bundled]
                                         [--out FOLDER]

DATA is that of `driving.py`; VALIDATION what `driving_shift.py` wrote. The rows are scores of the
bundled model; the row of the model beside it has the score of the highest AP of those that need no
outlier head. A model fresh from training looks at the scales and colours of the bundled one; one
that says how it looks does so. Ensembles have their scales as in `driving.py`. With --add, tables
of other sets that are in the results already stay, if they are of the same two models.
Intervals (90 %) are of a paired bootstrap over frames.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from driving import ensembles

from apps.anomaly_driving.bootstrap import FrameCounts, intervals
from apps.anomaly_driving.closed import frames_miou
from apps.anomaly_driving.data import Driving, open_data
from apps.anomaly_driving.frames import read_frames
from apps.anomaly_driving.model import CAMVID, AnomalyModel, load
from apps.anomaly_driving.network import Network, Scorer, open_network
from apps.anomaly_driving.pixel_metrics import PixelCounts, frame_counts
from apps.anomaly_driving.using import BUNDLED_MODEL, default_scores
from core.errors import AleatorError
from core.progress import progress_bar
from core.random import keyed_generator
from core.report import Row, Table, read_results, report, write_results, write_text

HERE = Path(__file__).parent
SETS = (
    *("static_val", "static_shift", "foreign_roads", "foreign_small"),
    *("road_anomaly21_val", "road_obstacle21_val", "fishyscapes_static_val"),
)
PLAIN = (
    *("msp", "max_logit", "entropy", "jsd", "jsd@smooth", "energy", "energy@smooth"),
    *("energy+jsd", "energy+jsd@smooth"),
)
SCORES = (*PLAIN, "d_out", "hybrid")
VAL_ROWS, VAL_EVERY = 240, 3
"""Height at which, and which of the frames on which, the known classes are judged."""


def main(arguments: list[str] | None = None) -> None:
    """Score every set with both models, and write driving_bundled.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("validation", type=Path, help="what driving_shift.py wrote")
    parser.add_argument("--beside", type=Path, required=True, help="model to compare with")
    parser.add_argument("--called", default="no negatives", help="what it is")
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL, help="instead of the bundled")
    parser.add_argument("--name", default="driving_bundled", help="of the tables")
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated; default: all")
    parser.add_argument("--add", action="store_true", help="to the results that are there")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    ours, beside = (looking_alike(path) for path in (options.model, options.beside))
    kept, models = (
        options.out / f"{options.name}.json",
        [m.model.fingerprint for m in (ours, beside)],
    )
    fits = [ensembles(network, options.data, SCORES) for network in (ours, beside)]
    tables = earlier(kept, models) if options.add else []
    if not tables:
        tables = [closed_table(ours, beside, options.data / "camvid" / "val", options.called)]
    for name in options.sets.split(","):
        folder = next(f / name for f in (options.data, options.validation) if (f / name).is_dir())
        table = set_table(folder, (ours, beside), fits, options.called)
        table.print()
        tables = [other for other in tables if other.title != table.title] + [table]
        results = write_results(kept, tables, models=models)
        write_text(kept.with_suffix(".md"), report(results, "The bundled weights"))


def earlier(path: Path, models: list[str]) -> list[Table]:
    """Tables of these models that an earlier run wrote; none if there are none.

    Raises:
        AleatorError: they are of other models.
    """
    if not path.exists():
        return []
    results, tables = read_results(path)
    if results.get("models") != models:
        raise AleatorError(f"{path}: of other models than {', '.join(models)}; leave --add out")
    return tables


def looking_alike(path: Path) -> Network:
    """A model that looks at the bundled model's scales and colours, if it does not say its own."""
    network, bundled = open_network(path), load(BUNDLED_MODEL).config
    assert isinstance(network.model, AnomalyModel)
    if network.model.config.scales == (1.0,):
        looks = {"scales": bundled.scales, "colours": bundled.colours}
        network.model.config = dataclasses.replace(network.model.config, **looks)
    return network


def closed_table(ours: Network, beside: Network, folder: Path, called: str) -> Table:
    """Closed mIoU."""
    frames = read_frames(folder, CAMVID, 11, height=VAL_ROWS).every(VAL_EVERY)
    lines: list[Row] = []
    for title, network in ((called, beside), ("bundled", ours)):
        assert isinstance(network.model, AnomalyModel)
        miou = frames_miou(network.model, frames) or 0.0
        lines.append({"model": title, "miou": 100 * miou})
    title = f"camvid/val, every {VAL_EVERY}rd frame at {VAL_ROWS} rows: known classes"
    return Table(lines, {"model": "model", "miou": "closed mIoU, %"}, {"miou": ".1f"}, {}, title)


def set_table(
    folder: Path,
    networks: tuple[Network, Network],
    fits: Sequence[Mapping[str, Any]],
    called: str,
) -> Table:
    """One set: every score of the bundled model, and the best of the other."""
    ours, beside = networks
    data = open_data(folder).labelled()
    found = tallied(ours, data, SCORES, fits[0])
    other = tallied(beside, data, PLAIN, fits[1])
    best = max(PLAIN, key=lambda score: other[score][0].curve().metrics()["ap"])
    lines: list[Row] = [row(f"{called}, {best}", other[best], None)]
    for score in SCORES:
        title = f"**{score}**" if score == default_scores(ours)[0] else score
        lines.append(row(title, found[score], other.get(score)))
    heads = {"score": "score", "ap": "AP %", "fpr95": "FPR95 %", "auroc": "AuROC %"}
    heads["gain"] = f"AP over {called}, the same score"
    title = f"{folder.name}, trained on camvid/train alone; in bold the default score"
    return Table(lines, heads, dict.fromkeys(("ap", "fpr95", "auroc"), ".1f"), {}, title)


Counted = tuple[PixelCounts, FrameCounts]


def tallied(
    network: Network, data: Driving, names: tuple[str, ...], fits: Mapping[str, Any]
) -> Mapping[str, Counted]:
    """One pass over labelled frames."""
    scorer = Scorer(network, names, fits)
    found = {name: (PixelCounts(), FrameCounts()) for name in names}
    with progress_bar(len(data), f"frames of {data.root.name}") as advance:
        for sample in data.samples():
            assert sample.anomaly is not None
            for name, score in scorer(sample.image, sample.frame.image).scores.items():
                counted = frame_counts(score, sample.anomaly)
                for part in found[name]:
                    part.add(counted)
            advance(1)
    return found


def row(title: str, counted: Counted, without: Counted | None) -> Row:
    """Metrics of a score, and its gain with an interval."""
    metrics = counted[0].curve().metrics()
    line: Row = {"score": title} | {k: 100 * metrics[k] for k in ("ap", "fpr95", "auroc")}
    if without is not None:
        pair = {"none": without[1], "ours": counted[1]}
        gain = intervals(pair, "ap", against="none", generator=keyed_generator(0, 0))["ours"]
        values = 100 * np.array([gain.value, gain.low, gain.high])
        line["gain"] = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values)
    return line


if __name__ == "__main__":
    main()
