"""Generated showers on disk against real ones on disk: results.json, report and figures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.certificate import Closure, certify
from apps.hep_simulation.data import ShowerFile, open_showers
from apps.hep_simulation.evaluation import COLUMNS, FORMATS, Sample, memorised, scores
from apps.hep_simulation.geometry import Geometry
from apps.hep_simulation.observables import ResponseBin, response_bins
from apps.hep_simulation.validity import fit_validity
from core.errors import AleatorError
from core.report import Table, report, write_results, write_text

MOST = 20_000
"""Showers of a file that are looked at, so that memory does not follow its length."""
LEAST = 200
Say = Callable[[object], None]


def evaluate(
    generated: Path,
    reference: Path,
    geometry: Geometry,
    output: Path,
    *,
    train: Path | None = None,
    figures: bool = True,
    seed: int = 0,
    overwrite: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Judge a file and write a folder with what was found.

    Args:
        generated: showers of a simulator, of the same spectrum as the reference's.
        reference: real showers that the simulator was not trained on.
        geometry: of both.
        output: folder for results.json, report.md and figures.
        train: its training showers: they give the floor, and what memorisation is told by.
        figures: draw them.
        seed: of the classifiers.
        overwrite: replace a report that is there.
        say: for the log.

    Returns:
        what is in results.json.

    Raises:
        AleatorError: the output exists, a file is bad, or has too few showers.
    """
    if (output / "results.json").exists() and not overwrite:
        raise AleatorError(f"{output} holds a report; choose another folder or --overwrite")
    sample, file = _read(generated, geometry)
    truth, known_file = _read(reference, geometry)
    for warning in _warnings(sample, truth, file, known_file):
        say(f"warning: {warning}")
    seeds = (seed, seed + 1, seed + 2)
    say(f"{len(sample)} generated against {len(truth)} reference showers")
    rows = [{"sample": generated.name, **scores(sample, truth, seeds=seeds)}]
    extra: dict[str, Any] = {"flagged": int(file.attributes.get("flagged", 0))}
    if train is not None:
        known, _ = _read(train, geometry)
        found = memorised(sample, known, truth)
        rows[0]["nn_ratio"] = found.ratio
        extra |= {"neighbours": asdict(found)}
        extra |= _shift(sample, known, truth, geometry)
        floor = scores(known, truth, seeds=seeds)
        rows.append({"sample": f"{train.name} (floor)", **floor})
    bins = response_bins(sample.features, truth.features)
    certificate = certify(sample.features, truth.features)
    tables = [_scores(rows), _separations(rows), _bins(bins), _certificate(certificate)]
    output.mkdir(parents=True, exist_ok=True)
    results = write_results(output / "results.json", tables, scores=rows, **extra)
    write_text(output / "report.md", report(results, f"{generated.name} against {reference.name}"))
    if figures:
        from apps.hep_simulation.plots import draw_all

        if (output / "figures").exists():
            shutil.rmtree(output / "figures")
        draw_all(output / "figures", sample, truth)
    for shown in tables:
        shown.print()
    say(f"wrote {output}: results.json, report.md" + (", figures" if figures else ""))
    return results


def _read(path: Path, geometry: Geometry) -> tuple[Sample, ShowerFile]:
    """Showers of a file, and the file."""
    file = open_showers(path, geometry)
    if file.count < LEAST:
        raise AleatorError(f"{path}: {file.count} showers; at least {LEAST} are needed to judge")
    found = file.read(MOST)
    return Sample(found.showers, found.energies, geometry), file


def _warnings(sample: Sample, truth: Sample, file: ShowerFile, known: ShowerFile) -> list[str]:
    """What makes a comparison unfair."""
    from scipy.stats import ks_2samp

    found = []
    if known.fingerprint() in str(file.attributes.get("trained_on", "")).split("-"):
        found.append(
            f"{known.path} is what the model of {file.path} was trained on; judge it against "
            "showers that it has not seen"
        )
    if ks_2samp(sample.energies, truth.energies).pvalue < 1e-4:
        found.append(
            "the incident energies of the two files are distributed differently; every score "
            "sees that, too: simulate with --conditions of the reference"
        )
    return found


def _shift(sample: Sample, known: Sample, truth: Sample, geometry: Geometry) -> dict[str, Any]:
    """Are the generated showers like the training showers, as a whole and one by one?"""
    nobody = [np.zeros(len(part), int) for part in (known, truth, sample)]
    fitted = fit_validity(
        (known.showers, known.energies, nobody[0]),
        (truth.showers, truth.energies, nobody[1]),
        geometry,
    )
    away = fitted.deviations(sample.showers, sample.energies, nobody[2], geometry)
    return {
        "unlike": float(fitted.flags(away).mean()),
        "unlike_p_value": fitted.p_value(away),
    }


def _scores(rows: list[dict[str, Any]]) -> Table:
    columns = {key: head for key, head in COLUMNS.items() if any(key in row for row in rows)}
    return Table(rows, columns, FORMATS, title="Scores")


def _separations(rows: list[dict[str, Any]]) -> Table:
    names = [key for key in rows[0] if key.startswith("sep_")]
    lines = [
        {"observable": name.removeprefix("sep_"), **{str(i): r[name] for i, r in enumerate(rows)}}
        for name in names
    ]
    heads = {str(i): str(row["sample"]) for i, row in enumerate(rows)}
    formats = dict.fromkeys(heads, ".4f")
    return Table(lines, {"observable": "", **heads}, formats, title="Separation power")


def _bins(bins: list[ResponseBin]) -> Table:
    lines = [
        {
            "energy": f"{b.low / 1000:.3g}–{b.high / 1000:.3g}",
            "mean": b.mean,
            "linearity": 100 * b.linearity,
            "linearity_error": 100 * b.linearity_error,
            "spread": 100 * b.spread,
            "resolution": 100 * b.resolution,
            "resolution_error": 100 * b.resolution_error,
        }
        for b in bins
    ]
    columns = {
        "energy": "E_inc, GeV",
        "mean": "reference response",
        "linearity": "linearity %",
        "linearity_error": "±",
        "spread": "reference σ/mean %",
        "resolution": "resolution %",
        "resolution_error": " ±",
    }
    return Table(lines, columns, dict.fromkeys(columns, ".2f") | {"mean": ".4f"}, title="Response")


def _certificate(found: dict[str, Closure]) -> Table:
    lines = [
        {
            "observable": name,
            "bias": c.bias,
            "bias_error": c.bias_error,
            "worth": f"{'≥ ' if c.at_least else ''}{c.worth:.0f}",
        }
        for name, c in found.items()
    ]
    columns = {
        "observable": "",
        "bias": "bias, sd",
        "bias_error": "±",
        "worth": "worth in oracle events",
    }
    return Table(lines, columns, {"bias": "+.3f", "bias_error": ".3f"}, title="Certificate")
