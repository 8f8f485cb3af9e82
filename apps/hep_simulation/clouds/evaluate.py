"""Generated clouds on disk against simulated ones on disk: results.json, report.md, figures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.hep_simulation.clouds.baselines import independent, replay
from apps.hep_simulation.clouds.data import Clouds, read_clouds
from apps.hep_simulation.clouds.evaluation import COLUMNS, FORMATS, Sample, memorised, scores
from apps.hep_simulation.clouds.features import relative
from core.errors import AleatorError
from core.report import Table, report, write_results, write_text

MOST, LEAST = 20_000, 1200
"""Jets of a file that are looked at, and that are needed (FPD extrapolates from 1 000)."""
Say = Callable[[object], None]


def evaluate(
    generated: Path,
    reference: Path,
    output: Path,
    *,
    train: Path | None = None,
    figures: bool = True,
    seed: int = 0,
    overwrite: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Judge a file of clouds.

    Args:
        generated: of a model, for the conditions of the reference.
        reference: simulated jets that the model was not trained on.
        output: folder for results.json, report.md and figures/.
        train: training jets: they give the floor, the baselines, and what replay is told by.
        figures: draw them.
        seed: of classifiers and baselines.
        overwrite: replace a report.
        say: for the log.

    Raises:
        AleatorError: the output exists, a file is bad or has too few jets.
    """
    if (output / "results.json").exists() and not overwrite:
        raise AleatorError(f"{output} holds a report; choose another folder or --overwrite")
    sample, truth = _read(generated), _read(reference)
    say(f"{len(sample)} generated against {len(truth)} reference jets")
    if unlike(sample, truth):
        say(
            "warning: pT or η of the two files are distributed differently; every score sees "
            "that, too: simulate with --conditions of the reference"
        )
    rows = table_rows(
        {generated.name: sample}, truth, None if train is None else _read(train), seed
    )
    shown = {name: head for name, head in COLUMNS.items() if any(name in row for row in rows)}
    table = Table(rows, shown, FORMATS, title="Scores (W1, FPD and KPD × 10³, W1 n as it is)")
    output.mkdir(parents=True, exist_ok=True)
    results = write_results(output / "results.json", [table], scores=rows)
    write_text(output / "report.md", report(results, f"{generated.name} against {reference.name}"))
    if figures:
        from apps.hep_simulation.clouds.plots import draw_all

        if (output / "figures").exists():
            shutil.rmtree(output / "figures")
        draw_all(output / "figures", Sample(sample), Sample(truth))
    table.print()
    say(f"wrote {output}: results.json, report.md" + (", figures" if figures else ""))
    return results


def table_rows(
    samples: dict[str, Clouds], truth: Clouds, train: Clouds | None, seed: int = 0
) -> list[dict[str, Any]]:
    """A row a sample; with training jets also the floor and the baselines."""
    real, seeds = Sample(truth), (seed, seed + 1, seed + 2)
    named = dict(samples)
    if train is not None:
        named |= {
            "floor: training jets": train,
            "replay of the nearest training jet": replay(train, truth),
            "independent constituents": independent(train, truth, seed),
        }
    rows = []
    for name, clouds in named.items():
        row = {"sample": name, **scores(Sample(clouds), real, seeds=seeds)}
        if train is not None and clouds is not train:
            found = memorised(clouds, train, truth)
            row |= {"nn_ratio": found.ratio, "replayed": found.replayed}
        rows.append(row)
    return rows


def unlike(a: Clouds, b: Clouds) -> bool:
    """Whether pT or η are of other distributions."""
    from scipy.stats import ks_2samp

    return any(ks_2samp(x, y).pvalue < 1e-4 for x, y in ((a.pt, b.pt), (a.eta, b.eta)))


def _read(path: Path) -> Clouds:
    found = relative(read_clouds(path, MOST))
    if len(found) < LEAST:
        raise AleatorError(f"{path}: {len(found)} jets; at least {LEAST} are needed to judge")
    return found
