"""The evaluator on 10 000 frames: memory, time, and equality with scikit-learn.

    python benchmarks/driving_evaluator.py [--frames 10000] [--size 360x480] [--out FOLDER]

Frames are made one by one from a seed: noise, more where an object is, two in a hundred pixels
anomalous in half of the frames and none in the others, a border ignored. All that `benchmark` does
with a frame is done with it: histogram, bootstrap's histogram, segments at a threshold, classes.
scikit-learn then judges the first frames (as many as it takes to reach --sklearn pixels), whose
scores have to be in memory for it; ours, streamed over the same frames, is compared with it, from
the float16 scores and from the float32 ones that they were rounded from. Times are of the
processor, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from apps.anomaly_driving.bootstrap import FrameCounts, intervals
from apps.anomaly_driving.pixel_metrics import Curve, PixelCounts, frame_counts
from apps.anomaly_driving.segment_metrics import SegmentMetrics, Sizes
from core.progress import progress_bar
from core.random import keyed_generator
from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent


def frame(index, size):
    """Float32 scores and labels of one frame, a function of its index."""
    rng = np.random.default_rng([7, index])
    height, width = size
    label = np.zeros(size, np.uint8)
    if index % 2:
        h, w = int(0.2 * height), int(0.2 * width)
        top, left = rng.integers(0, height - h), rng.integers(0, width - w)
        label[top : top + h, left : left + w] = 1
    label[-height // 20 :] = 255
    score = rng.standard_normal(size, np.float32) + np.float32(0.3 * rng.standard_normal())
    return score + 1.5 * (label == 1), label


def megabytes():
    """Peak resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def stream(count, size):
    """All that the benchmark does with frames, and what it took."""
    pixels, frames, segments = PixelCounts(), FrameCounts(), SegmentMetrics(Sizes(50, 10))
    began, early, made = time.process_time(), None, 0.0
    with progress_bar(count, "frames") as advance:
        for i in range(count):
            start = time.process_time()
            score, label = frame(i, size)
            made += time.process_time() - start
            counts = frame_counts(score.astype(np.float16), label)
            pixels.add(counts)
            frames.add(counts)
            segments.add(score >= 3.0, label)
            if i == min(499, count - 1):
                early = megabytes()
            advance(1)
    seconds = time.process_time() - began - made
    curve = pixels.curve()
    began = time.process_time()
    interval = intervals({"a": frames}, draws=200, generator=keyed_generator(0))["a"]
    return {
        "frames": count,
        "megapixels": count * size[0] * size[1] / 1e6,
        "seconds": seconds,
        "per_second": count / seconds,
        "early": early,
        "peak": megabytes(),
        "bootstrap": time.process_time() - began,
        "ap": 100 * curve.average_precision,
        "low": 100 * interval.low,
        "high": 100 * interval.high,
        "mean_f1": 100 * segments.metrics()["mean_f1"],
    }


def compared(limit, size):
    """Metrics of the first frames: ours streamed, scikit-learn on the same and on float32."""
    count = max(2, limit // (size[0] * size[1]))
    pixels, scores, labels = PixelCounts(), [], []
    for i in range(count):
        score, label = frame(i, size)
        pixels.add(frame_counts(score.astype(np.float16), label))
        scores.append(score[label < 2])
        labels.append(label[label < 2])
    score, label = np.concatenate(scores), np.concatenate(labels)
    ours = pixels.curve()
    exact = Curve.exact(score, label)
    rows = [
        _row("ours, streamed", ours.average_precision, ours.fpr_at(), ours.auroc),
        _row("scikit-learn, float16 scores", *sklearn(score.astype(np.float16), label)),
        _row("ours, exact, float32 scores", exact.average_precision, exact.fpr_at(), exact.auroc),
        _row("scikit-learn, float32 scores", *sklearn(score, label)),
    ]
    return rows, count


def sklearn(score, label):
    """AP, FPR95 and AuROC as scikit-learn has them."""
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    return (
        average_precision_score(label, score),
        fpr[np.searchsorted(tpr, 0.95)],
        roc_auc_score(label, score),
    )


def _row(who, ap, fpr95, auroc):
    return {"who": who, "ap": 100 * ap, "fpr95": 100 * fpr95, "auroc": 100 * auroc}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--size", default="360x480")
    parser.add_argument("--sklearn", type=int, default=5_000_000)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    height, width = map(int, arguments.size.split("x"))
    found = stream(arguments.frames, (height, width))
    rows, count = compared(arguments.sklearn, (height, width))
    tables = [
        Table(
            [found],
            {
                "frames": "frames",
                "megapixels": "megapixels",
                "seconds": "CPU seconds",
                "per_second": "frames/s",
                "early": "peak MB after 500 frames",
                "peak": "peak MB after all",
                "bootstrap": "bootstrap, CPU s",
                "ap": "AP %",
                "low": "low",
                "high": "high",
            },
            dict.fromkeys(("seconds", "per_second", "bootstrap"), ".1f")
            | dict.fromkeys(("megapixels", "early", "peak"), ".0f")
            | dict.fromkeys(("ap", "low", "high"), ".3f"),
            title=f"{arguments.size}: histograms, bootstrap and segments, without making frames",
        ),
        Table(
            rows,
            {"who": "metric of", "ap": "AP %", "fpr95": "FPR95 %", "auroc": "AuROC %"},
            dict.fromkeys(("ap", "fpr95", "auroc"), ".6f"),
            title=f"The first {count} frames, {count * height * width / 1e6:.1f} megapixels",
        ),
    ]
    for table in tables:
        table.print()
    results = write_results(arguments.out / "driving_evaluator.json", tables)
    title = "The evaluator: flat memory, and scikit-learn's numbers"
    write_text(arguments.out / "driving_evaluator.md", report(results, title))


if __name__ == "__main__":
    main()
