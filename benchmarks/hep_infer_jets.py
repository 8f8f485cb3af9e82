"""Reconstructed jets: ours beside smearing and kNN, with the floor and a power check."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from apps.hep_simulation.jets import simulate as whole_events
from apps.hep_simulation.jets.baselines import NearestNeighbours, Smearing
from apps.hep_simulation.jets.data import EventFile
from apps.hep_simulation.jets.evaluation import joint, scores
from apps.hep_simulation.jets.model import ObjectSimulator
from apps.hep_simulation.jets.pairs import Pairs, hard, pairs_of
from apps.hep_simulation.jets.train import Request, run
from core.report import Table

Jets = dict[str, np.ndarray]
COLUMNS = {
    "method": "jets", "auc": "AUC joint", "spread": "± seeds", "w1": "mean W1 / σ",
    "correlation": "max Δ corr.", "bias": "worst bias", "resolution": "worst width",
    "zeros": "Δ share of zeros", "integers": "off integers", "us": "µs / jet",
}  # fmt: skip
FORMATS = {
    "auc": ".3f", "spread": ".3f", "w1": ".4f", "correlation": ".3f", "bias": ".4f",
    "resolution": ".3f", "zeros": ".4f", "integers": ".2f", "us": ".1f",
}  # fmt: skip


def tables(folder: Path, models: Path, seeds: int) -> list[Table]:
    """Pythia test jets, real CMS jets, and whole events."""
    train_file, test_file = (folder / "pythia_jets" / f"qcd_{n}.root" for n in ("train", "test"))
    train, test = _pairs(train_file), _pairs(test_file)
    model = _trained(train_file, models)
    rows = hard(train)
    gen_train, reco_train = _rows(train.gen, rows), _rows(train.reco, rows)
    smear, near = (kind.fit(gen_train, reco_train) for kind in (Smearing, NearestNeighbours))
    makers: dict[str, Callable[[Jets, int], Jets]] = {
        "ours": lambda gen, seed: model.reconstructed(
            gen, np.arange(len(gen["pt"])), np.zeros(len(gen["pt"]), dtype=int), seed
        ),
        "smearing in (pT, η) bins": lambda gen, seed: smear.sample(gen, _rng(seed)),
        "kNN resampling, k = 10": lambda gen, seed: near.sample(gen, _rng(seed)),
    }
    rows = hard(test)
    gen, truth = _rows(test.gen, rows), _rows(test.reco, rows)
    found = [_floor((gen_train, reco_train), (gen, truth), seeds)]
    shifted = {**truth, "pt": truth["pt"] * 1.02}
    found.append({"method": "power: test, pT × 1.02", **_judged(gen, shifted, truth, seeds)})
    for name, make in makers.items():
        found.append(_row(name, make, gen, truth, seeds))
    title = f"Pythia test jets ({len(gen['pt'])}; trained on {len(train.event)} pairs)"
    first = Table(found, COLUMNS, FORMATS, title=title)
    likely = model.log_prob(gen, truth)
    density = Table(
        [{"what": "mean ln p(reco | gen) of test jets, nats", "value": float(likely.mean())},
         {"what": "± s.e.", "value": float(likely.std() / len(likely) ** 0.5)}],
        {"what": "density", "value": "value"}, {"value": ".3f"},
    )  # fmt: skip
    real = _pairs(folder / "cms_nanoaod" / "nano_tt_v12.root")
    rows = hard(real)
    gen, truth = _rows(real.gen, rows), _rows(real.reco, rows)
    cms = [_row(name, make, gen, truth, seeds) for name, make in makers.items()]
    title = f"Real CMS full simulation ({len(gen['pt'])} jets of tt̄), same weights: the domain gap"
    second = Table(cms, COLUMNS, FORMATS, title=title)
    return [first, density, second, _events(model, models, test_file, test)]


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _pairs(path: Path) -> Pairs:
    return pairs_of(EventFile(path, reconstructed=True).chunks(5000))


def _rows(columns: Jets, rows: np.ndarray) -> Jets:
    return {name: value[rows] for name, value in columns.items()}


def _trained(source: Path, folder: Path) -> ObjectSimulator:
    if not (folder / "model.json").exists():
        run(Request(source, folder, resume=True), say=lambda line: print(line, file=sys.stderr))
    return ObjectSimulator.load(folder)


def auc(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """Gradient-boosted trees on 60 %, judged on 40 %."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    x = np.concatenate([a, b])
    y = np.concatenate([np.zeros(len(a)), np.ones(len(b))])
    order = _rng(seed).permutation(len(y))
    cut = int(0.6 * len(y))
    fitted = HistGradientBoostingClassifier(random_state=seed).fit(x[order[:cut]], y[order[:cut]])
    return float(roc_auc_score(y[order[cut:]], fitted.predict_proba(x[order[cut:]])[:, 1]))


def _judged(gen: Jets, made: Jets, truth: Jets, seeds: int) -> dict[str, Any]:
    areas = [auc(joint(gen, truth), joint(gen, made), seed) for seed in range(seeds)]
    return {
        "auc": float(np.mean(areas)),
        "spread": float(np.std(areas)),
        **scores(gen, made, truth),
    }


def _row(
    name: str, make: Callable[[Jets, int], Jets], gen: Jets, truth: Jets, seeds: int
) -> dict[str, Any]:
    """Scores of a method, each classifier on draws of its own."""
    print(name, file=sys.stderr, flush=True)
    found = []
    for seed in range(seeds):
        made = make(gen, seed)
        found.append((auc(joint(gen, truth), joint(gen, made), seed), scores(gen, made, truth)))
    big = {key: np.resize(value, 60_000) for key, value in gen.items()}
    since = time.process_time()
    make(big, 0)
    seconds = time.process_time() - since
    areas = [area for area, _ in found]
    mean = {
        key: float(np.mean([score[key] for _, score in found]))
        for key in found[0][1] if key != "w1_each"
    }  # fmt: skip
    return {
        "method": name, "auc": float(np.mean(areas)), "spread": float(np.std(areas)), **mean,
        "us": 1e6 * seconds / 60_000,
    }  # fmt: skip


def _floor(train: tuple[Jets, Jets], test: tuple[Jets, Jets], seeds: int) -> dict[str, Any]:
    """Training pairs against test pairs, as many; their generator-level jets differ."""
    n = min(len(test[0]["pt"]), len(train[0]["pt"]))
    some = np.sort(_rng(0).choice(len(train[0]["pt"]), n, replace=False))
    first = joint(_rows(train[0], some), _rows(train[1], some))
    second = joint(_rows(test[0], np.arange(n)), _rows(test[1], np.arange(n)))
    areas = [auc(first, second, seed) for seed in range(seeds)]
    spread = second[:, 6:].std(0)
    w1 = np.abs(np.sort(first[:, 6:], 0) - np.sort(second[:, 6:], 0)).mean(0) / spread
    corr = np.abs(np.corrcoef(first.T) - np.corrcoef(second.T)).max()
    return {
        "method": "floor: independent training pairs", "auc": float(np.mean(areas)),
        "spread": float(np.std(areas)), "w1": float(w1.mean()), "correlation": float(corr),
    }  # fmt: skip


def _events(model: ObjectSimulator, folder: Path, path: Path, test: Pairs) -> Table:
    """Whole test events: efficiency, fakes, multiplicity, speed, and the same with files."""
    file = EventFile(path, reconstructed=False)
    events = file.read(0, file.num_events)
    since = time.process_time()
    reco = model.simulate(events, seed=0)
    inner = time.process_time() - since
    with tempfile.TemporaryDirectory() as temporary:
        since = time.process_time()
        request = whole_events.Request(Path(temporary) / "o.root", path, folder)
        whole_events.run(request, say=lambda line: None)
        outer = time.process_time() - since
    jets = len(events.gen.event)
    matched = reco.columns["genJetIdx"] >= 0
    real_count = np.bincount(test.event, minlength=len(events)) + test.fake_count
    target = events.gen.starts[reco.event] + reco.columns["genJetIdx"]
    found = np.zeros(jets, dtype=bool)
    found[target[matched]] = True
    pt = events.gen.columns["pt"]
    rows: list[dict[str, Any]] = []
    for low, high in ((10, 15), (15, 20), (20, 50), (50, 10_000)):
        inside = (pt >= low) & (pt < high)
        rows.append(
            {"what": f"efficiency, gen pT {low}–{high} GeV", "ours": float(found[inside].mean()),
             "truth": float(test.found[inside].mean())}
        )  # fmt: skip
    rows += [
        {"what": "fakes an event", "ours": float((~matched).sum() / len(events)),
         "truth": float(test.fake_count.mean())},
        {"what": "reconstructed jets an event, mean", "ours": float(reco.counts.mean()),
         "truth": float(real_count.mean())},
        {"what": "reconstructed jets an event, deviation", "ours": float(reco.counts.std()),
         "truth": float(real_count.std())},
        {"what": "median pT of fakes, GeV", "ours": float(np.median(reco.columns["pt"][~matched])),
         "truth": float(np.median(test.fakes["pt"]))},
        {"what": "generator jets / s, one core, model", "ours": jets / inner},
        {"what": "generator jets / s, one core, ROOT to ROOT", "ours": jets / outer},
    ]  # fmt: skip
    columns = {"what": "whole test events", "ours": "ours", "truth": "simulated"}
    return Table(rows, columns, {"ours": ",.3f", "truth": ",.3f"})
