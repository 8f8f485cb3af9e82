"""Tables of `hep_showers.py` about one model: response, certificate, and what the guards see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from apps.hep_simulation.certificate import certify
from apps.hep_simulation.data import Chunk, open_showers
from apps.hep_simulation.evaluation import Sample
from apps.hep_simulation.geometry import Geometry
from apps.hep_simulation.model import ShowerModel
from apps.hep_simulation.observables import response_bins
from core.report import Table

FILES = (5, 20, 50)
"""Showers of a file whose detector is to be recognised."""
BANDS = ((1e3, 4e3), (4e3, 16e3), (16e3, 64e3))
"""MeV; what a single shower gives away depends on its energy."""
TRIES = 400


def responses(ours: Sample, known: Sample, truth: Sample) -> Table:
    """Linearity and resolution against test showers; of ours, and of training showers."""
    pairs = zip(
        response_bins(ours.features, truth.features),
        response_bins(known.features, truth.features),
        strict=True,
    )
    rows = []
    for found, floor in pairs:
        row: dict[str, object] = {"energy": f"{found.low / 1000:.3g}–{found.high / 1000:.3g}"}
        for start, part in (("", found), ("floor_", floor)):
            for name in ("linearity", "linearity_error", "resolution", "resolution_error"):
                row[start + name] = 100 * getattr(part, name)
        rows.append(row)
    columns = {
        "energy": "E_inc, GeV",
        "linearity": "linearity %",
        "linearity_error": "±",
        "resolution": "resolution %",
        "resolution_error": "±",
        "floor_linearity": "floor: linearity %",
        "floor_linearity_error": "±",
        "floor_resolution": "floor: resolution %",
        "floor_resolution_error": "±",
    }
    title = f"Response: {len(ours)} of ours, {len(known)} training and {len(truth)} test showers"
    return Table(rows, columns, dict.fromkeys(columns, ".2f"), title=title)


def certificate(ours: Sample, truth: Sample) -> Table:
    """Closure, and worth in events of the full simulation."""
    rows = [
        {
            "observable": name,
            "bias": found.bias,
            "bias_error": found.bias_error,
            "worth": f"{'≥ ' if found.at_least else ''}{found.worth:.0f}",
        }
        for name, found in certify(ours.features, truth.features).items()
    ]
    columns = {
        "observable": "",
        "bias": "bias, sd",
        "bias_error": "±",
        "worth": "worth in oracle events",
    }
    title = f"Certificate: {len(ours)} of ours, {len(truth)} test showers"
    return Table(rows, columns, {"bias": "+.3f", "bias_error": ".3f"}, title=title)


def detection(
    model: ShowerModel, test: Chunk, drawn: Chunk, paths: list[Path], geometry: Geometry
) -> Table:
    """Showers of other detectors and energies: how many are found, and how many files.

    The last column is a test that no guard can have: the direction, in the same summaries, that
    tells these very showers from the test ones best (Fisher's), at one per cent false alarms.
    """
    assert model.validity is not None
    parts = {"test (false alarms)": test}
    parts |= {path.stem: open_showers(path, geometry).read() for path in paths}
    parts["ours"] = drawn
    random, rows = np.random.default_rng(0), []
    usual = model.validity.deviations(test.showers, test.energies, test.particles, geometry)
    for name, part in parts.items():
        away = model.validity.deviations(part.showers, part.energies, part.particles, geometry)
        flagged = model.validity.flags(away)
        row: dict[str, object] = {
            "sample": name,
            "conditions": 100 * model.outside(part.energies, part.particles).mean(),
            "showers": 100 * flagged.mean(),
        }
        for index, (low, high) in enumerate(BANDS):
            inside = (part.energies >= low) & (part.energies < high)
            if inside.any():
                row[f"band_{index}"] = 100 * flagged[inside].mean()
        for size in FILES:
            found = [
                model.validity.p_value(away[random.permutation(len(away))[:size]]) < 0.01
                for _ in range(TRIES)
            ]
            row[f"files_{size}"] = 100 * float(np.mean(found))
        if part is not test:
            best = model.validity.precision @ (away.mean(0) - usual.mean(0))
            row["informed"] = 100 * float((away @ best > np.quantile(usual @ best, 0.99)).mean())
        rows.append(row)
    bands = {
        f"band_{i}": f"{low / 1e3:.0f}–{high / 1e3:.0f} GeV" for i, (low, high) in enumerate(BANDS)
    }
    columns = {
        "sample": "",
        "conditions": "conditions outside training %",
        "showers": "single showers flagged %",
        **bands,
        **{f"files_{size}": f"files of {size} flagged at p < .01 %" for size in FILES},
        "informed": "single showers, by a test that knows them %",
    }
    return Table(rows, columns, dict.fromkeys(columns, ".1f"), title="Detection")
