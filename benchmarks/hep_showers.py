"""Showers: ours, the baselines and core's families, judged alike, with floor and power checks.

python benchmarks/hep_showers.py DATA [--families FOLDER] [--shifted FILE...] [--cache FILE]
    [--more-test FILE...]

DATA holds g4_showers/{train,test}.hdf5. With FOLDER, every family is trained into it (what is
there is kept) and gets a row in a table of their own. The FILEs of --shifted are showers of other
detectors or energies (gen_showers.py ... Pb), for the detection rates; those of --more-test join
the test showers for response and certificate (`simulate --oracle par04 --seed ...`). All rows are
judged on the same test showers; generated ones are of freshly drawn energies of their spectrum.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hep_families
import numpy as np
import torch
from hep_shower_tables import certificate, detection, responses

from apps.hep_simulation.baselines import FrozenLibrary, Parametrised
from apps.hep_simulation.conditions import parse_spectrum
from apps.hep_simulation.data import Chunk, open_showers
from apps.hep_simulation.evaluation import COLUMNS, FORMATS, Sample, memorised, scores
from apps.hep_simulation.geometry import Geometry, read_geometry
from apps.hep_simulation.simulate import SHOWER, Simulator, bundled
from core.random import keyed_generator
from core.report import Table, report, write_results, write_text

RESULTS = Path(__file__).parent / "results"
COUNT = 2400
SEEDS = (0, 1, 2)

Draw = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Showers for energies, particles and a seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=None, help="ours; the bundled one if none")
    parser.add_argument("--families", type=Path, default=None)
    parser.add_argument("--shifted", type=Path, nargs="*", default=[])
    parser.add_argument("--more-test", type=Path, nargs="*", default=[])
    parser.add_argument(
        "--many", type=int, default=9600, help="ours for response, certificate and detection"
    )
    parser.add_argument("--cache", type=Path, help="JSON that keeps the rows made so far")
    parser.add_argument("--only", help="make only the rows whose name has this, into the cache")
    parser.add_argument("--cached", action="store_true", help="report what the cache holds")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    geometry = read_geometry(bundled("binning.xml"))
    train, test = (
        open_showers(options.data / "g4_showers" / f"{name}.hdf5", geometry).read()
        for name in ("train", "test")
    )
    truth, known = (Sample(part.showers, part.energies, geometry) for part in (test, train))
    simulator = Simulator.load(options.model)
    rows = _rows(simulator, options, truth, known, train)
    if options.only:
        return
    tables = [
        Table(rows, _used(rows), FORMATS | {"ms_100": ".2f", "ms_1": ".1f"}, title="Showers")
    ]
    if options.families:
        hep_families.train_missing(
            options.families, options.data / "g4_showers" / "train.hdf5", geometry
        )
        tables.append(hep_families.table(_families(options, truth, known)))
    energies, particles = parse_spectrum("1:64:log", "11,22", options.many).read(
        0, 0, options.many
    )
    drawn = Chunk(0, energies, particles, _ours(simulator)(energies, particles, 0))
    ours, all_test = Sample(drawn.showers, energies, geometry), _joined(truth, options.more_test)
    tables += [responses(ours, known, all_test), certificate(ours, all_test)]
    if options.shifted:
        tables.append(detection(simulator.model, test, drawn, options.shifted, geometry))
    options.output.mkdir(parents=True, exist_ok=True)
    results = write_results(
        options.output / "hep_showers.json",
        tables,
        model=simulator.model.fingerprint,
        training=dict(simulator.model.card),
    )
    write_text(options.output / "hep_showers.md", report(results, "Showers"))
    for table in tables:
        table.print()


def _families(options: argparse.Namespace, truth: Sample, known: Sample) -> list[dict]:
    """Rows of the families; those in the cache are not made again."""
    cached = options.cache and options.cache.exists()
    made = json.loads(options.cache.read_text()) if cached else {}
    rows = []
    for name, make in hep_families.tasks(options.families, truth, known, _ours, _cost).items():
        if name not in made:
            made[name] = make()
            print(name, made[name].get("auc_high"), file=sys.stderr, flush=True)
            if options.cache:
                write_text(options.cache, json.dumps(made))
        rows.append(made[name])
    return rows


def _joined(truth: Sample, paths: list[Path]) -> Sample:
    """Test showers with those of more files."""
    parts = [open_showers(path, truth.geometry).read() for path in paths]
    return Sample(
        np.concatenate([truth.showers, *(part.showers for part in parts)]),
        np.concatenate([truth.energies, *(part.energies for part in parts)]),
        truth.geometry,
    )


def _used(rows: list[dict]) -> dict[str, str]:
    used = {key: head for key, head in COLUMNS.items() if any(key in row for row in rows)}
    return {**used, "samples": "seeds"}


def _rows(
    simulator: Simulator, options: argparse.Namespace, truth: Sample, known: Sample, train: Chunk
) -> list[dict]:
    """All rows; the parts that an earlier run has left in the cache are not made again."""
    made = {}
    if options.cache and options.cache.exists():
        made = json.loads(options.cache.read_text())
    rows: dict[str, list[dict]] = {}
    for (name, part), make in _tasks(simulator, truth, known, train).items():
        key = f"{name} #{part}"
        if key not in made:
            if options.cached or (options.only and options.only not in key):
                continue
            made[key] = make()
            print(key, made[key].get("auc_high"), file=sys.stderr, flush=True)
            if options.cache:
                write_text(options.cache, json.dumps(made))
        rows.setdefault(name, []).append(made[key])
    judged = {name: parts for name, parts in rows.items() if any("auc_high" in p for p in parts)}
    return [{"sample": name.partition(" @")[0], **_mean(parts)} for name, parts in judged.items()]


def _mean(parts: list[dict]) -> dict:
    """Means over seeds; the spread of the AUC where there are several."""
    keys = dict.fromkeys(key for part in parts for key in part)
    values = {key: [part[key] for part in parts if key in part] for key in keys}
    mean = {key: float(np.mean(found)) for key, found in values.items()}
    mean["samples"] = sum("auc_high" in part for part in parts)
    for key in ("auc_high", "auc_low"):
        if len(values.get(key, ())) > 1:
            mean[f"{key}_std"] = float(np.std(values[key]))
    return mean


def _tasks(
    simulator: Simulator, truth: Sample, known: Sample, train: Chunk
) -> dict[tuple[str, str], Callable[[], dict]]:
    """What makes each part of a row, by the row's name (and model's fingerprint) and the part."""
    geometry = truth.geometry
    parts = (train.showers, train.energies, train.particles)
    tasks: dict[tuple[str, str], Callable[[], dict]] = {
        ("floor: Geant4, training showers", "all"): lambda: scores(known, truth)
    }
    for name, broken in _broken(known).items():
        tasks[f"power check: {name}", "all"] = partial(scores, broken, truth)
    mark = simulator.model.fingerprint
    draws = {
        "frozen library": _seeded(FrozenLibrary(*parts, geometry, turns=False).sample),
        "frozen library, turned": _seeded(FrozenLibrary(*parts, geometry).sample),
        "GFlash-like": _seeded(Parametrised.fit(*parts, geometry).sample),
        f"ours: cascade @{mark}": _ours(simulator),
    }
    for name, draw in draws.items():
        for seed in SEEDS:
            tasks[name, f"seed {seed}"] = partial(_judged, draw, truth, known, seed)
        tasks[name, "speed"] = partial(_speed, draw)
    return tasks


def _broken(known: Sample) -> dict[str, Sample]:
    """Oracles with a known fault, which the scores have to see."""
    geometry = known.geometry
    layers = known.showers.reshape(len(known), len(geometry.active), -1)
    leaked = 0.97 * layers
    leaked[:, 1:] += 0.03 * layers[:, :-1]
    leaked[:, 0] += 0.03 * layers[:, -1]
    return {
        "voxels × 1.02": Sample(known.showers * np.float32(1.02), known.energies, geometry),
        "3 % leak to the next layer": Sample(
            leaked.reshape(len(known), -1), known.energies, geometry
        ),
    }


def _seeded(sample: Callable) -> Draw:
    def draw(energies: np.ndarray, particles: np.ndarray, seed: int) -> np.ndarray:
        streams = [keyed_generator(seed, i, SHOWER) for i in range(len(energies))]
        return sample(energies, particles, streams)

    return draw


def _ours(simulator: Simulator, steps: int | None = None) -> Draw:
    def draw(energies: np.ndarray, particles: np.ndarray, seed: int) -> np.ndarray:
        parts = []
        for start in range(0, len(energies), 100):
            rows = range(start, min(start + 100, len(energies)))
            streams = [keyed_generator(seed, i, SHOWER) for i in rows]
            chosen = slice(rows.start, rows.stop)
            parts.append(
                simulator.model.sample(energies[chosen], particles[chosen], streams, steps)
            )
        return np.concatenate(parts)

    return draw


def _sample(draw: Draw, geometry: Geometry, seed: int) -> Sample:
    energies, particles = parse_spectrum("1:64:log", "11,22", COUNT).read(seed, 0, COUNT)
    return Sample(draw(energies, particles, seed), energies, geometry)


def _judged(draw: Draw, truth: Sample, known: Sample, seed: int) -> dict:
    """Scores of a sample of one seed; what costs much of the first one only."""
    sample = _sample(draw, truth.geometry, seed)
    first = seed == SEEDS[0]
    row = scores(sample, truth, seeds=(seed,), distances=first)
    if first:
        row["nn_ratio"] = memorised(sample, known, truth).ratio
    return row


def _speed(draw: Draw) -> dict:
    return {"ms_100": _cost(draw, 100), "ms_1": _cost(draw, 1)}


def _cost(draw: Draw, batch: int, repeats: int = 5) -> float:
    """CPU milliseconds a shower, batches of one size; the best of several, after a first one."""
    energies, particles = parse_spectrum("1:64:log", "11,22", 1000).read(9, 0, 1000)
    best = np.inf
    for repeat in range(repeats + 1):
        spent = 0.0
        parts = 20 if batch == 1 else 2
        for part in range(parts):
            rows = slice((repeat * parts + part) * batch % 900, None)
            e, p = energies[rows][:batch], particles[rows][:batch]
            started = time.process_time()
            draw(e, p, repeat)
            spent += time.process_time() - started
        best = min(best, spent / (parts * batch)) if repeat else best
    return 1e3 * best


if __name__ == "__main__":
    main()
