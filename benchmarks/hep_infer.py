"""Jets and inference, ours and what users would pick instead.

    python benchmarks/hep_infer.py DATA [--models FOLDER] [--sbi PYTHON] [--seeds 3]
                                        [--only jets|inference|larger] [--out FOLDER]

DATA holds `hep/pythia_jets`, `hep/pythia_lep_theta` and `hep/cms_nanoaod`. Models that FOLDER does
not have are trained there first, on the training files alone. `--sbi` is an interpreter that has
the package sbi; without it those rows are left out. Rows of the inference that are done are kept
in FOLDER/rows, so that a benchmark that was stopped goes on. Writes hep_jets.{md,json} and
hep_inference.{md,json}. `--only larger` needs no data: the chain once more, trained on sets of as
many events as the largest that is judged; hep_chain.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.hep_simulation.inference import train as inference_train
from apps.hep_simulation.inference.data import EventSets, read_sets
from apps.hep_simulation.inference.evaluation import Judged, judge
from apps.hep_simulation.inference.posterior import Inference, load
from core.evaluation import sbc
from core.random import keyed_generator
from core.report import Row, Table, report, write_results, write_text

HERE = Path(__file__).parent
LEVEL = 0.994458
"""Half width of the central 68 % of a standard normal law."""


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with hep/")
    parser.add_argument("--models", type=Path, default=Path("models"), help="trained or to train")
    parser.add_argument("--sbi", type=Path, help="python that has sbi")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("jets", "inference", "larger"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = options.data / "hep"
    if options.only == "larger":
        from hep_infer_toys import larger

        _write(
            options.out, "hep_chain", "The chain, trained on larger sets", larger(options.models)
        )
        return
    if options.only != "inference":
        from hep_infer_jets import tables

        found = tables(folder, options.models / "hep_jets", options.seeds)
        _write(options.out, "hep_jets", "Reconstructed jets from generator-level ones", found)
    if options.only != "jets":
        from hep_infer_toys import toys

        found = [
            *pythia(folder / "pythia_lep_theta", options.models, options.sbi, options.seeds),
            *toys(options.models, options.sbi),
        ]
        _write(options.out, "hep_inference", "Inference from sets of events", found)


def _write(out: Path, name: str, title: str, tables: list[Table]) -> None:
    results = write_results(out / f"{name}.json", tables)
    write_text(out / f"{name}.md", report(results, title))
    for found in tables:
        found.print()


COLUMNS = {
    "method": "posterior", "events": "events", "log_q": "mean ln q", "stderr": "± s.e.",
    "shrink": "std / prior's", "cover_68": "68 %", "cover_95": "95 %", "sbc_p_each": "SBC p",
    "tarp_p": "TARP p", "region_68": "68 % regions", "region_p": "regions p",
}  # fmt: skip
FORMATS = {
    "events": "d", "log_q": ".3f", "stderr": ".3f", "cover_68": ".3f", "cover_95": ".3f",
    "tarp_p": ".2f", "region_68": ".3f", "region_p": ".2f",
}  # fmt: skip


def pythia(folder: Path, models: Path, sbi: Path | None, seeds: int) -> list[Table]:
    """Three Pythia parameters, on parameters never trained on."""
    train, test = (read_sets(folder / f"{n}.hdf5", simulated=True) for n in ("train", "test"))
    rows: list[dict[str, Any]] = [{"method": "prior", "events": 50, "log_q": 0.0}]
    rows.append({"method": "ridge + Gaussian", "events": 50, **_ridge(train, test)})
    ours = [
        trained(folder / "train.hdf5", models / f"hep_npe_{seed}", "npe", seed)
        for seed in range(seeds)
    ]
    for n in (50, 10, 1):
        for seed, model in enumerate(ours):
            name = f"ours, seed {seed}"
            rows.append(kept(models, name, n, lambda m=model, n=n: _judged(m, test.first(n))))
    likelihood = trained(folder / "train.hdf5", models / "hep_nle", "nle", 0)
    name, some = "ours, likelihood (NLE), 40 of them", test.rows(np.arange(40))
    rows.append(kept(models, name, 50, lambda: _judged(likelihood, some, draws=100)))
    if sbi is not None:
        from hep_infer_sbi import npe

        rows.append(kept(models, "sbi NPE", 50, lambda: npe(sbi, train, test, 0)))
    title = (
        f"Pythia parameters, {len(test)} test parameters; ln q in nats over the prior; the same "
        "weights for every number of events"
    )
    return [Table(rows, COLUMNS, FORMATS, title=title)]


def trained(source: Path | EventSets, folder: Path, method: str, seed: int) -> Inference:
    """A model from its folder, or trained there."""
    if (folder / "model.json").exists():
        return load(folder)
    assert isinstance(source, Path)
    return inference_train.run(
        inference_train.Request(source, folder, method, seed=seed, resume=True),
        say=lambda line: print(line, file=sys.stderr),
    )


def kept(models: Path, name: str, events: int, make: Callable[[], Row]) -> Row:
    """A row of an earlier sitting, or made now."""
    path = models / "rows" / f"{name}, {events}.json".replace(" ", "_")
    if not path.exists():
        print(f"{name}, {events} events", file=sys.stderr, flush=True)
        write_text(path, json.dumps(dict(make())))
    return {"method": name, "events": events, **json.loads(path.read_text())}


def _judged(model: Inference, sets: EventSets, draws: int = 500) -> Row:
    return judge(model, sets, draws=draws).row()


def summaries(x: np.ndarray) -> np.ndarray:
    """Means and deviations over events: what baselines see of a set."""
    return np.concatenate([x.mean(1), x.std(1)], 1)


def _ridge(train: EventSets, test: EventSets) -> dict[str, Any]:
    """Linear regression of u on summaries, Gaussian residual from leave-one-out."""
    assert train.theta is not None
    assert train.prior is not None
    assert test.theta is not None
    features = [summaries(sets.x.astype(np.float64)) for sets in (train, test)]
    mean, std = features[0].mean(0), features[0].std(0)
    design = [np.c_[np.ones(len(f)), (f - mean) / std] for f in features]
    u, truth = (train.prior.to_unit(t) for t in (train.theta, test.theta))
    penalty = 10.0 * np.eye(design[0].shape[1])
    penalty[0, 0] = 0
    solve = np.linalg.solve(design[0].T @ design[0] + penalty, design[0].T)
    weight, leverage = solve @ u, np.einsum("ij,ji->i", design[0], solve)
    residual = (u - design[0] @ weight) / (1 - leverage)[:, None]
    covariance = residual.T @ residual / len(u)
    centre = design[1] @ weight
    return gaussian_row(centre, covariance, truth)


def gaussian_row(centre: np.ndarray, covariance: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Scores of N(centre, covariance), as it is: its mass outside the prior is lost."""
    law = torch.distributions.MultivariateNormal(
        torch.as_tensor(centre), torch.as_tensor(covariance)
    )
    log_q = law.log_prob(torch.as_tensor(truth))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = law.sample((500,))
    found = Judged(
        log_q, sbc(draws, torch.as_tensor(truth), keyed_generator(0)), *_unknown(draws, truth)
    )
    return {k: v for k, v in found.row().items() if not k.startswith(("region", "tarp"))}


def _unknown(draws: torch.Tensor, truth: np.ndarray) -> tuple[Any, ...]:
    """Ranks that a row does not show, and what it does."""
    u = torch.as_tensor(truth)
    ranks = sbc(draws[..., :1], u[:, :1]).flat()
    return ranks, ranks, draws, u


if __name__ == "__main__":
    main()
