"""Showers: ours, the baselines and core's families, judged alike, with floor and power checks.

python benchmarks/hep_showers.py DATA [--families FOLDER] [--shifted FILE...] [--cache FILE]

DATA holds g4_showers/{train,test}.hdf5. FOLDER holds models by family, trained by
`python -m pipelines.hep train ... --family NAME -o FOLDER/NAME`. FILEs are showers of other
detectors or energies (gen_showers.py ... Pb), for the detection rates. All rows are judged on the
same test showers; generated ones are of freshly drawn energies of the same spectrum.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from apps.hep_simulation.baselines import FrozenLibrary, Parametrised
from apps.hep_simulation.certificate import certify
from apps.hep_simulation.conditions import parse_spectrum
from apps.hep_simulation.data import Chunk, open_showers
from apps.hep_simulation.evaluation import COLUMNS, FORMATS, Sample, memorised, scores
from apps.hep_simulation.geometry import Geometry, read_geometry
from apps.hep_simulation.observables import response_bins
from apps.hep_simulation.simulate import SHOWER, Simulator, bundled
from core.random import keyed_generator
from core.report import Table, report, write_results, write_text

RESULTS = Path(__file__).parent / "results"
COUNT = 2400
SEEDS = (0, 1, 2)
FILE = 50
"""Showers of a file whose detector is to be recognised."""

Draw = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Showers for energies, particles and a seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=None, help="ours; the bundled one if none")
    parser.add_argument("--families", type=Path, default=None)
    parser.add_argument("--shifted", type=Path, nargs="*", default=[])
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
    ours = _sample(_ours(simulator), geometry, 0)
    tables = [
        Table(rows, _used(rows), FORMATS | {"ms_100": ".2f", "ms_1": ".1f"}, title="Showers"),
        _bins(ours, truth),
        _certificate(ours, truth),
    ]
    if options.shifted:
        tables.append(_detection(simulator, test, options.shifted, geometry))
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
    for (name, part), make in _tasks(simulator, options.families, truth, known, train).items():
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
    simulator: Simulator, folder: Path | None, truth: Sample, known: Sample, train: Chunk
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
    for path in sorted(folder.iterdir()) if folder else []:
        other = Simulator.load(path)
        family = other.model.config.family
        steps = (8, 4, 2, 1) if family in ("flow_matching", "diffusion") else (None,)
        for count in steps:
            said = f"{family}, {count} steps" if count else family
            draws[f"{said} @{other.model.fingerprint}"] = _ours(other, count)
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


def _bins(ours: Sample, truth: Sample) -> Table:
    rows = [
        {
            "energy": f"{b.low / 1000:.3g}–{b.high / 1000:.3g}",
            "linearity": 100 * b.linearity,
            "linearity_error": 100 * b.linearity_error,
            "resolution": 100 * b.resolution,
            "resolution_error": 100 * b.resolution_error,
        }
        for b in response_bins(ours.features, truth.features)
    ]
    columns = {
        "energy": "E_inc, GeV",
        "linearity": "linearity %",
        "linearity_error": "±",
        "resolution": "resolution %",
        "resolution_error": " ±",
    }
    return Table(rows, columns, dict.fromkeys(columns, ".2f"), title="Response of ours")


def _certificate(ours: Sample, truth: Sample) -> Table:
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
    return Table(rows, columns, {"bias": "+.3f", "bias_error": ".3f"}, title="Certificate of ours")


def _detection(simulator: Simulator, test: Chunk, paths: list[Path], geometry: Geometry) -> Table:
    """Showers of other detectors and energies: how many are found, and how many files."""
    model = simulator.model
    assert model.validity is not None
    rows = []
    parts = {"test (false alarms)": test}
    parts |= {path.stem: open_showers(path, geometry).read() for path in paths}
    energies, particles = parse_spectrum("1:64:log", "11,22", COUNT).read(0, 0, COUNT)
    drawn = _ours(simulator)(energies, particles, 0)
    parts["ours"] = Chunk(0, energies, particles, drawn)
    random = np.random.default_rng(0)
    for name, part in parts.items():
        away = model.validity.deviations(part.showers, part.energies, part.particles, geometry)
        files = [
            model.validity.p_value(away[random.permutation(len(away))[:FILE]]) < 0.01
            for _ in range(400)
        ]
        rows.append(
            {
                "sample": name,
                "conditions": 100 * model.outside(part.energies, part.particles).mean(),
                "showers": 100 * model.validity.flags(away).mean(),
                "files": 100 * float(np.mean(files)),
            }
        )
    columns = {
        "sample": "",
        "conditions": "conditions outside training %",
        "showers": "single showers flagged %",
        "files": f"files of {FILE} showers flagged at p < .01 %",
    }
    return Table(rows, columns, dict.fromkeys(columns, ".1f"), title="Detection")


if __name__ == "__main__":
    main()
