"""The benchmark: two passes over the frames, in memory that does not grow with their number.

The first pass counts pixels at every score (`pixel_metrics`), which gives all pixel metrics and
the thresholds. The second calls pixels at these thresholds and compares components and classes.
Scores in between are kept on disk up to a budget and computed again beyond it. Segment metrics
are at the threshold of the best F1 on the *same* frames, as the benchmark's toolkit defines them;
beside them stands the F1 at a threshold that was frozen on other frames, which is what a user
would have got.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apps.anomaly_driving.bootstrap import Difference, FrameCounts, intervals
from apps.anomaly_driving.class_metrics import ClassMetrics, class_index
from apps.anomaly_driving.data import Driving
from apps.anomaly_driving.files import write_image
from apps.anomaly_driving.network import Network, Scorer
from apps.anomaly_driving.pixel_metrics import TPR, Curve, PixelCounts, frame_counts
from apps.anomaly_driving.plots import worst_frame
from apps.anomaly_driving.score import frames_per_second
from apps.anomaly_driving.segment_metrics import SegmentMetrics, Sizes
from apps.anomaly_driving.sources import Source, Spool
from core.errors import AleatorError
from core.progress import progress_bar
from core.random import keyed_generator

Say = Callable[[str], None]
WORST = 10


@dataclass(frozen=True)
class Options:
    """How to judge.

    Attributes:
        sizes: least components of the segment metrics.
        frozen: score -> threshold that was chosen on other frames.
        against: score that the others are compared with by paired bootstrap; the first if None.
        draws: of the bootstrap; 0 for none.
        level: of its intervals.
        seed: of its draws.
        budget: bytes of scores kept on disk between the passes.
        worst: frames to draw.
    """

    sizes: Sizes = field(default_factory=Sizes)
    frozen: Mapping[str, float] = field(default_factory=dict)
    against: str | None = None
    draws: int = 1000
    level: float = 0.9
    seed: int = 0
    budget: int = 2 << 30
    worst: int = WORST


@dataclass(frozen=True)
class Evaluated:
    """What a benchmark found.

    Attributes:
        rows: one a score: metrics as fractions, None where undefined.
        curves: score -> pooled curve.
        ap: score -> interval of its AP; empty without bootstrap.
        ap_difference: score -> interval of its AP minus that of `against`.
        against: the score compared with.
        worst: keys of the worst frames of the best score, and their errors.
    """

    rows: list[dict[str, Any]]
    curves: dict[str, Curve]
    ap: dict[str, Difference]
    ap_difference: dict[str, Difference]
    against: str
    worst: list[tuple[str, float]]


def evaluate(
    source: Source, data: Driving, options: Options, *, pictures: Path | None = None, say: Say
) -> Evaluated:
    """Judge scores on labelled frames.

    Args:
        source: of scores.
        data: labelled frames.
        options: how.
        pictures: folder for the worst frames; none are drawn if None.
        say: told of warnings.

    Raises:
        AleatorError: no anomalies or no known pixels, constant scores, a bad file.
    """
    data = data.labelled()
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), options.budget)
        first = _first_pass(source, data, spool, say)
        curves = {name: first.pixels[name].curve(data.root) for name in source.names}
        _must_vary(curves, say)
        best = max(curves, key=lambda name: curves[name].average_precision)
        second = _second_pass(source, data, spool, curves, options, best)
        if pictures is not None:
            _draw(source, data, spool, second.worst, best, curves[best].best_f1[1], pictures)
    against = options.against or source.names[0]
    ap, difference = _bootstrap(first.frames, options, against, len(data), say)
    rows = [_row(name, curves[name], first, second, options, ap) for name in source.names]
    return Evaluated(rows, curves, ap, difference, against, second.worst)


@dataclass
class _First:
    pixels: dict[str, PixelCounts]
    frames: dict[str, FrameCounts]
    seconds: dict[str, list[float]]


@dataclass
class _Second:
    oracle: dict[str, SegmentMetrics]
    frozen: dict[str, SegmentMetrics]
    closed: ClassMetrics | None
    opened: dict[str, ClassMetrics]
    worst: list[tuple[str, float]]


def _first_pass(source: Source, data: Driving, spool: Spool, say: Say) -> _First:
    found = _First(
        {name: PixelCounts() for name in source.names},
        {name: FrameCounts() for name in source.names},
        {name: [] for name in source.names},
    )
    with progress_bar(len(data), "frames") as advance:
        for sample in data.samples(say=say):
            assert sample.anomaly is not None
            scored = source(sample)
            spool.put(sample.frame.key, scored)
            for name, score in scored.scores.items():
                counts = frame_counts(score, sample.anomaly)
                found.pixels[name].add(counts)
                found.frames[name].add(counts)
                if name in scored.score_seconds:
                    seconds = scored.network_seconds + scored.score_seconds[name]
                    found.seconds[name].append(seconds)
            advance(1)
    return found


def _must_vary(curves: Mapping[str, Curve], say: Say) -> None:
    for name, curve in curves.items():
        if len(curve.values) < 2:
            raise AleatorError(
                f"score {name} is {curve.values[0]:g} at every pixel: nothing can be told apart"
            )
        if curve.auroc < 0.5:
            say(
                f"warning: {name} has AuROC {100 * curve.auroc:.1f} %, below chance; higher must "
                "mean more unexpected: is its sign reversed?"
            )


def _second_pass(
    source: Source,
    data: Driving,
    spool: Spool,
    curves: Mapping[str, Curve],
    options: Options,
    best: str,
) -> _Second:
    names = source.names
    ours: Sequence[str] = getattr(source, "classes", ())
    table = class_index(ours, data.classes) if ours and data.classes else None
    found = _Second(
        {name: SegmentMetrics(options.sizes) for name in names},
        {name: SegmentMetrics(options.sizes) for name in names if name in options.frozen},
        ClassMetrics(ours) if table is not None else None,
        {name: ClassMetrics(ours) for name in names} if table is not None else {},
        [],
    )
    called = {name: np.float16(curves[name].best_f1[1]) for name in names}
    at_tpr = {name: np.float16(curves[name].threshold_for_tpr(TPR)) for name in names}
    worst: list[tuple[float, str]] = []
    for sample in data.samples():
        assert sample.anomaly is not None
        scored = spool.get(sample.frame.key) or source(sample)
        for name, score in scored.scores.items():
            found.oracle[name].add(score >= called[name], sample.anomaly)
            if name in found.frozen:
                at = np.float16(options.frozen[name])
                found.frozen[name].add(score >= at, sample.anomaly)
            if table is not None and sample.classes is not None:
                found.opened[name].add(
                    scored.classes, table[sample.classes], sample.anomaly, score >= at_tpr[name]
                )
        if found.closed is not None and table is not None and sample.classes is not None:
            found.closed.add(scored.classes, table[sample.classes])
        error = _frame_error(scored.scores[best] >= called[best], sample.anomaly)
        heapq.heappush(worst, (error, sample.frame.key))
        if len(worst) > options.worst:
            heapq.heappop(worst)
    found.worst = [(key, error) for error, key in sorted(worst, reverse=True)]
    return found


def _frame_error(called: np.ndarray, label: np.ndarray) -> float:
    """Share of the anomaly that is missed plus share of the known that is called."""
    anomaly, known = label == 1, label == 0
    missed = float((~called)[anomaly].mean()) if anomaly.any() else 0.0
    false = float(called[known].mean()) if known.any() else 0.0
    return missed + false


def _draw(
    source: Source,
    data: Driving,
    spool: Spool,
    worst: Sequence[tuple[str, float]],
    name: str,
    threshold: float,
    folder: Path,
) -> None:
    wanted = {key: rank for rank, (key, _) in enumerate(worst, 1)}
    errors = dict(worst)
    frames = tuple(frame for frame in data.frames if frame.key in wanted)
    for sample in Driving(data.root, data.layout, frames, data.track).samples():
        assert sample.anomaly is not None
        scored = spool.get(sample.frame.key) or source(sample)
        key = sample.frame.key
        text = f"{wanted[key]}. {key}: {name}, missed + false {errors[key]:.3f}"
        drawn = worst_frame(sample.image, sample.anomaly, scored.scores[name], threshold, text)
        write_image(folder / f"{wanted[key]:02d}_{key.replace('/', '_')}.png", drawn)


def _bootstrap(
    frames: Mapping[str, FrameCounts], options: Options, against: str, count: int, say: Say
) -> tuple[dict[str, Difference], dict[str, Difference]]:
    if not options.draws:
        return {}, {}
    if count < 2:
        say("warning: one frame alone has no image-level interval")
        return {}, {}

    def drawn(compared: str | None) -> dict[str, Difference]:
        return intervals(
            frames,
            against=compared,
            level=options.level,
            draws=options.draws,
            generator=keyed_generator(options.seed, 0),
        )

    return drawn(None), drawn(against) if len(frames) > 1 else {}


def _row(
    name: str,
    curve: Curve,
    first: _First,
    second: _Second,
    options: Options,
    ap: Mapping[str, Difference],
) -> dict[str, Any]:
    row: dict[str, Any] = {"score": name, **curve.metrics(), **second.oracle[name].metrics()}
    if name in ap:
        row |= {"ap_low": ap[name].low, "ap_high": ap[name].high}
    if name in options.frozen:
        at = curve.at(options.frozen[name])
        row |= {f"frozen_{key}": value for key, value in at.items()}
        row["frozen_threshold"] = options.frozen[name]
        row["frozen_mean_f1"] = second.frozen[name].metrics()["mean_f1"]
    row["closed_miou"] = second.closed.mean() if second.closed else None
    row["open_miou"] = second.opened[name].mean() if name in second.opened else None
    row["images_per_second"] = (
        frames_per_second(first.seconds[name]) if first.seconds[name] else None
    )
    return row


def must_know_classes(network: Network, data: Driving) -> np.ndarray:
    """Lookup from the data's classes to the model's, see `class_metrics.class_index`.

    Raises:
        AleatorError: the data has no classes, or fewer than two that the model knows.
    """
    table = class_index(network.model.classes, data.classes)
    if table is None:
        raise AleatorError(
            f"{data.root}: closed mIoU needs labels of the model's classes "
            f"({', '.join(network.model.classes[:4])}, …); it has "
            f"{', '.join(data.classes[:4]) or 'none'}"
        )
    return table


def closed_miou(network: Network, data: Driving, say: Say) -> float:
    """Mean IoU of the known classes of a data set that tells them apart, at its own size.

    Raises:
        AleatorError: it has no classes, or fewer than two that the model knows.
    """
    table = must_know_classes(network, data)
    counted, scorer = ClassMetrics(network.model.classes), Scorer(network, ())
    with progress_bar(len(data), "frames") as advance:
        for sample in data.labelled().samples(say=say):
            assert sample.classes is not None
            counted.add(scorer(sample.image, sample.frame.image).classes, table[sample.classes])
            advance(1)
    found = counted.mean()
    if found is None:
        raise AleatorError(f"{data.root}: no pixel of a class that the model knows")
    return found
