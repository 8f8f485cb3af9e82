"""Tables of `driving.py`: what every kind of negatives brings, over frames and over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from apps.anomaly_driving.bootstrap import Difference, intervals
from apps.anomaly_driving.pixel_metrics import PixelCounts
from apps.anomaly_driving.scores import SCORES, parts
from core.random import keyed_generator
from core.report import Best, Row, Table

ROWS = {
    "none": "no negatives",
    "textures": "paste: noise textures",
    "vae": "VAE",
    "flow": "flow, joint",
    "diffusion": "diffusion",
    "light": "diffusion, lighter loss",
    "flow_matching": "flow matching",
    "cutouts": "paste: real objects",
}
GENERATED = ("vae", "flow", "diffusion", "light", "flow_matching")


@dataclass(frozen=True)
class Counts:
    """What one score says of a set: enough for every pixel metric and for the bootstrap.

    Attributes:
        pooled: (2, bins) pixels at every float16 score.
        frames: (N, 2, cells) the same by frame, coarser.
    """

    pooled: np.ndarray
    frames: np.ndarray

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """As of `FrameCounts`: sums of the frames (2, D, M) with weights (D, N)."""
        return np.stack([weights @ self.frames[:, k] for k in (0, 1)])

    def __len__(self) -> int:
        return len(self.frames)

    def metrics(self) -> dict[str, float]:
        pixels = PixelCounts()
        pixels.counts = self.pooled
        return pixels.curve().metrics()


def seeds_of(found: Iterable[tuple[str, int]], row: str) -> list[int]:
    """Seeds of a row of which something is known."""
    return sorted(seed for name, seed in found if name == row)


def span(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"


def over_seeds(changes: Sequence[float]) -> str:
    """Mean of what changed, and its range where there are several seeds."""
    text = f"{np.mean(changes):+.1f}"
    return text + (f" ({min(changes):+.1f} to {max(changes):+.1f})" if len(changes) > 1 else "")


Found = Mapping[tuple[str, int], Mapping[str, Counts]]


def scores_of(found: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    """Names of all scores, in order."""
    return list(dict.fromkeys(name for scores in found.values() for name in scores))


def is_plain(score: str) -> bool:
    """Whether it makes sense without an outlier head that was trained."""
    return not any(SCORES[part].head for part in parts(score))


def set_tables(folder: str, rows: dict[str, str], found: Found) -> list[Table]:
    """AP, FPR95 and AuROC of every row and score; gains over no negatives and real ones."""
    names = scores_of(found)
    rows = {name: title for name, title in rows.items() if seeds_of(found, name)}
    measured = {
        key: {score: counted.metrics() for score, counted in scores.items() if fit_for(key, score)}
        for key, scores in found.items()
    }
    heads = {"negatives": "negatives", **{name: name for name in names}}
    alike = len({tuple(seeds_of(found, name)) for name in rows}) == 1
    tables = []
    shown: tuple[tuple[str, str, Best], ...] = (
        ("ap", "AP", "max"),
        ("fpr95", "FPR95", "min"),
        ("auroc", "AuROC", "max"),
    )
    for metric, heading, best in shown:
        lines: list[Row] = []
        for name, title in rows.items():
            each = [measured[name, seed] for seed in seeds_of(found, name)]
            line = {s: 100 * float(np.mean([m[s][metric] for m in each])) for s in each[0]}
            lines.append({"negatives": seeded(name, title, found)} | line)
        formats = dict.fromkeys(names, ".1f")
        title = f"{folder}: {heading} in %, trained on camvid/train alone"
        # a lucky seed is not better than the mean of three: no row is bold then
        bold: dict[str, Best] = {}
        if alike:
            bold = dict.fromkeys(names, best)
        tables.append(Table(lines, heads, formats, bold, title))
    if "none" in rows and len(rows) > 1:
        tables.append(gain_table(folder, rows, found, "none"))
    generated = {name: title for name, title in rows.items() if name in GENERATED}
    if "cutouts" in rows and generated:
        tables.append(gain_table(folder, generated, found, "cutouts"))
    return tables + seed_tables(folder, rows, measured)


def fit_for(model: tuple[str, int], score: str) -> bool:
    return model[0] != "none" or is_plain(score)


def seeded(name: str, title: str, found: Iterable[tuple[str, int]]) -> str:
    """Title of a row with its seeds, if they are not the first one alone."""
    seeds = seeds_of(found, name)
    return title if seeds == [0] else f"{title} (seeds {', '.join(map(str, seeds))})"


def seed_tables(
    folder: str,
    rows: dict[str, str],
    measured: Mapping[tuple[str, int], Mapping[str, Mapping[str, float]]],
) -> list[Table]:
    """Ranges over the seeds: AP, FPR95, and the AP gained over no negatives by seed."""
    several = {n: title for n, title in rows.items() if len(seeds_of(measured, n)) > 1}
    if not several:
        return []
    heads = {"negatives": "negatives", **{name: name for name in scores_of(measured)}}
    tables = []
    for metric, heading in (("ap", "AP"), ("fpr95", "FPR95")):
        lines: list[Row] = []
        for name, title in several.items():
            each = [measured[name, seed] for seed in seeds_of(measured, name)]
            line = {s: span([100 * m[s][metric] for m in each]) for s in each[0]}
            lines.append({"negatives": seeded(name, title, measured)} | line)
        tables.append(Table(lines, heads, {}, {}, f"{folder}: {heading} in %, range over seeds"))
    lines, plain = [], [name for name in scores_of(measured) if is_plain(name)]
    for name, title in several.items():
        both = [s for s in seeds_of(measured, name) if ("none", s) in measured]
        if name != "none" and len(both) > 1:
            aps = {
                score: [
                    100 * (measured[name, s][score]["ap"] - measured["none", s][score]["ap"])
                    for s in both
                ]
                for score in plain
            }
            gains = {score: over_seeds(values) for score, values in aps.items()}
            lines.append({"negatives": f"{title} (seeds {', '.join(map(str, both))})"} | gains)
    if lines:
        heads = {"negatives": "negatives", **{name: name for name in plain}}
        title = (
            f"{folder}: AP gained over no negatives of the same seed, percentage points, "
            "mean and range over seeds"
        )
        tables.append(Table(lines, heads, {}, {}, title))
    return tables


def gain_table(
    folder: str,
    rows: dict[str, str],
    found: Found,
    against: str,
) -> Table:
    """AP less that of another row, the same score, frames drawn in pairs."""
    seed = seeds_of(found, against)[0]
    lines: list[Row] = []
    plain = [name for name in scores_of(found) if is_plain(name)]
    for name, title in rows.items():
        if name == against or (name, seed) not in found:
            continue
        line: dict[str, Any] = {"negatives": title}
        for score in plain:
            pair = {row: found[row, seed][score] for row in (against, name)}
            line[score] = interval(
                intervals(
                    pair,  # type: ignore[arg-type]
                    "ap",
                    against=against,
                    generator=keyed_generator(0, 0),
                )[name]
            )
        lines.append(line)
    heads = {"negatives": "negatives", **{name: name for name in plain}}
    title = (
        f"{folder}: AP gained over {ROWS[against]}, percentage points, with 90 % intervals of a "
        f"paired bootstrap over frames; seed {seed}"
    )
    return Table(lines, heads, {}, {}, title)


def interval(found: Difference) -> str:
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
