"""Core's families on showers, side by side with the cascade: equal budget, and with few steps.

Imported by `hep_showers.py --families FOLDER`, which trains what FOLDER lacks and judges all.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from apps.hep_simulation.config import read_config
from apps.hep_simulation.evaluation import FORMATS, Sample, memorised, scores
from apps.hep_simulation.geometry import Geometry
from apps.hep_simulation.observables import following
from apps.hep_simulation.simulate import Simulator
from apps.hep_simulation.train import train
from core.report import Table

RECIPE = Path(__file__).parent / "recipes" / "hep_families.json"
STEPS = {
    "flow_matching": 1400,
    "diffusion": 1400,
    "consistency": 700,
    "vae": 1400,
    "flow": 1400,
    "cascade": 1900,
}
"""Training steps of each family at about the same processor time, two minutes.

A consistency model has its teacher's, the diffusion model, before that.
"""
TEACHER = {"consistency": "diffusion"}
CPU = "cpu_minutes.txt"
BUNDLED = "cascade, the bundled one"
EVALUATIONS: dict[str, tuple[int | None, ...]] = {
    "flow_matching": (16, 4, 2, 1),
    "diffusion": (16, 4, 2, 1),
    "consistency": (2, 1),
}
"""How often the network is asked for a shower; the first is what fewer are compared with."""
COUNT = 1600
"""Showers of either side: all families, and their floor, on as many."""
COLUMNS = {
    "sample": "",
    "evaluations": "evaluations",
    "auc_high": "AUC high-level",
    "auc_high_stderr": "±",
    "auc_low": "AUC voxels 15×4×3",
    "auc_low_stderr": "±",
    "sep_response": "sep. E_tot/E_inc",
    "sep_layers": "sep. E_layer",
    "sep_voxels": "sep. voxels",
    "sep_sparsity": "sep. sparsity",
    "sep_width_r": "sep. width r",
    "correlation": "max Δcorr(E_l)",
    "following": "corr. of centres, next layers",
    "nn_ratio": "NN ratio",
    "ms_100": "ms/shower, batch 100",
    "parameters": "parameters",
    "cpu": "CPU min. to train",
}
SHOWN = {
    **FORMATS,
    **dict.fromkeys(("auc_high_stderr", "auc_low_stderr"), ".3f"),
    "ms_100": ".2f",
    "following": ".3f",
    "cpu": ".1f",
    "parameters": ",.0f",
    "evaluations": ".0f",
}


def train_missing(folder: Path, showers: Path, geometry: Geometry) -> None:
    """Train each family that the folder has no model of, and note the processor time."""
    for family, steps in STEPS.items():
        output = folder / family
        if (output / "model.json").exists():
            continue
        shutil.rmtree(output, ignore_errors=True)
        started = time.process_time()
        config = read_config(RECIPE, {"family": family, "fit": {"steps": steps}})
        teacher = folder / TEACHER[family] if family in TEACHER else None
        train([showers], geometry, output, config, teacher=teacher, say=lambda _: None)
        spent = (time.process_time() - started) / 60
        if teacher is not None:
            spent += float((teacher / CPU).read_text())
        (output / CPU).write_text(f"{spent:.2f}\n")


def tasks(
    folder: Path, truth: Sample, known: Sample, draw: Callable, speed: Callable
) -> dict[str, Callable[[], dict]]:
    """What makes each row, by its name.

    Args:
        folder: a model a family.
        truth: test showers.
        known: training showers.
        draw: (simulator, evaluations) to what draws showers.
        speed: what draws showers to milliseconds a shower.
    """
    few, seen = first(truth), first(known)
    found: dict[str, Callable[[], dict]] = {"families: floor": lambda: _floor(seen, few)}
    models = {family: folder / family for family in STEPS} | {BUNDLED: None}
    for family, path in models.items():
        if path is not None and not (path / "model.json").exists():
            continue
        simulator = Simulator.load(path)
        spent = folder / family / CPU
        facts = {"parameters": sum(p.numel() for p in simulator.model.generator.parameters())}
        if spent.exists():
            facts["cpu"] = float(spent.read_text())
        for steps in EVALUATIONS.get(family, (None,)):
            row = {"sample": family, **facts} | ({"evaluations": steps} if steps else {})
            name = f"families: {family} {steps or ''} @{simulator.model.fingerprint}"
            found[name] = partial(_judged, row, draw(simulator, steps), few, known, speed)
    return found


def _floor(seen: Sample, few: Sample) -> dict:
    row = {"sample": "floor: Geant4, training showers", **scores(seen, few, distances=False)}
    return row | {"following": following(seen.features)}


def _judged(row: dict, draw: Callable, few: Sample, known: Sample, speed: Callable) -> dict:
    from apps.hep_simulation.conditions import parse_spectrum

    energies, particles = parse_spectrum("1:64:log", "11,22", COUNT).read(0, 0, COUNT)
    sample = Sample(draw(energies, particles, 0), energies, few.geometry)
    row |= scores(sample, few, distances=False)
    row |= {"following": following(sample.features)}
    return row | {"nn_ratio": memorised(sample, known, few).ratio, "ms_100": speed(draw, 100, 1)}


def first(sample: Sample, count: int = COUNT) -> Sample:
    """The first showers of a sample."""
    return Sample(sample.showers[:count], sample.energies[:count], sample.geometry)


def table(rows: list[dict]) -> Table:
    """All families; what fewer evaluations lose is the difference between rows."""
    used = {key: head for key, head in COLUMNS.items() if any(key in row for row in rows)}
    title = f"Families at about equal processor time (but for the bundled one), {COUNT} showers"
    return Table(rows, used, SHOWN, title=title)
