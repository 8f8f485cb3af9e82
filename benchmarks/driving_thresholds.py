"""Do thresholds keep their rate on other frames, as often as their intervals say?

    python benchmarks/driving_thresholds.py FOLDER [--model MODEL] [--scores energy,hybrid]
                                            [--fpr 0.01] [--tpr 0.95] [--splits 20] [--out FOLDER]

FOLDER has labelled frames in the order of the drive. Each split calibrates on one half and looks
at the other: halves drawn at random, where frames are exchangeable, and the drive cut in two at a
random place (going round), where they are not. Shown: how often the rate of the other half lies in
the interval for as many new frames, how often that of a frame lies in the interval for the next
frame, and the rates.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from apps.anomaly_driving.calibrate import Calibration
from apps.anomaly_driving.data import open_data
from apps.anomaly_driving.network import Scorer
from apps.anomaly_driving.pixel_metrics import bin_of, frame_counts
from apps.anomaly_driving.scores import parse
from apps.anomaly_driving.using import Using, fits_of
from core.progress import progress_bar
from core.random import keyed_generator
from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent
LEVEL = 0.9


def counted(network, data, names, fits):
    """Score -> (ranks, counts) of every frame, sparse."""
    scorer, found = Scorer(network, names, fits), {name: [] for name in names}
    with progress_bar(len(data), "frames") as advance:
        for sample in data.samples():
            for name, score in scorer(sample.image).scores.items():
                counts = frame_counts(score, sample.anomaly)
                ranks = np.flatnonzero(counts.any(0))
                found[name].append((ranks, counts[:, ranks]))
            advance(1)
    return found


def halves(frames, way, split):
    """Indices of the calibration half and of the other."""
    generator = keyed_generator(11, split)
    if way == "random halves":
        order = torch.randperm(frames, generator=generator).numpy()
    else:
        start = int(torch.randint(frames, (1,), generator=generator))
        order = (np.arange(frames) + start) % frames
    return order[: frames // 2], order[frames // 2 :]


def judged(frames, indices, threshold, row):
    """Rate of each frame that has pixels of the kind, and of all of them."""
    least = bin_of(np.float16([threshold]))[0]
    pairs = [
        (frames[i][1][row][frames[i][0] >= least].sum(), frames[i][1][row].sum()) for i in indices
    ]
    called, total = np.array([pair for pair in pairs if pair[1]]).T
    return called / total, called.sum() / total.sum()


def coverage(frames, way, target, wanted, splits):
    """One row of the table."""
    row = 0 if target == "fpr" else 1
    drives, inside, rates = [], [], []
    for split in range(splits):
        chosen, other = halves(len(frames), way, split)
        calibration = Calibration("score")
        for i in chosen:
            counts = np.zeros((2, 1 << 16), np.int64)
            counts[:, frames[i][0]] = frames[i][1]
            calibration.add(counts)
        found = calibration.threshold(target, wanted, level=LEVEL, draws=500, seed=split)
        single, pooled = judged(frames, other, found.value, row)
        rates.append(pooled)
        drives.append(found.drive_low <= pooled <= found.drive_high)
        inside.append(np.mean((single >= found.frame_low) & (single <= found.frame_high)))
    return {
        "drives": 100 * np.mean(drives),
        "frames": 100 * np.mean(inside),
        "mean": 100 * np.mean(rates),
        "range": f"{100 * min(rates):.2f} – {100 * max(rates):.2f}",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--scores", default="energy")
    parser.add_argument("--fpr", type=float, default=0.01)
    parser.add_argument("--tpr", type=float, default=0.95)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    using, names = Using(arguments.model), parse(arguments.scores)
    network = using.open(print)
    data, fits = open_data(arguments.folder).labelled(), fits_of(using, network, names)
    rows = []
    for name, frames in counted(network, data, names, fits).items():
        for target, wanted in (("fpr", arguments.fpr), ("tpr", arguments.tpr)):
            for way in ("random halves", "the drive cut in two"):
                found = coverage(frames, way, target, wanted, arguments.splits)
                rows.append(
                    {"score": name, "wanted": f"{target.upper()} {wanted:g}", "way": way, **found}
                )
    columns = {
        "score": "score",
        "wanted": "wanted",
        "way": "halves",
        "drives": "other halves in the interval %",
        "frames": "frames in the interval %",
        "mean": "mean rate %",
        "range": "range of rates %",
    }
    formats = {"drives": ".0f", "frames": ".1f", "mean": ".3f"}
    title = (
        f"{data.root.resolve().name}, {len(data)} frames, {arguments.splits} splits, nominal 90 %"
    )
    table = Table(rows, columns, formats, title=title)
    table.print()
    model = network.model.fingerprint
    results = write_results(arguments.out / "driving_thresholds.json", [table], model=model)
    write_text(
        arguments.out / "driving_thresholds.md",
        report(results, f"Thresholds on other frames (model {model})"),
    )


if __name__ == "__main__":
    main()
