r"""Densities of seven tables: a Gaussian, a mixture of 20, zuko's spline flow, and ours.

Rows are split 80 / 10 / 10 with seed 0 and standardised on the training part; what is printed
is ln p of the test rows in nats, in standardised units. Both flows get the same seconds of one
thread, as the process counts them, the same optimiser, batches and schedule, and the weights of
their best validation score. They train in turns of two seconds, so that whatever else runs on the
machine slows both.
Ours are three candidates: a plain flow; one with a linear layer that starts as the whitening of
the data; and one that is whitened in every direction, however thin, and whose noise is a mixture
of 20 Gaussians that starts from expectation-maximisation. The best on validation after a share of
the budget goes on: no test row chooses anything. Rows of other tables that are in the results
are kept, with the number of candidates that they had.

    python benchmarks/density.py [--data FOLDER] [--seconds 120] [--tables a,b] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from density_tables import TABLES, Split, load
from torch import Tensor, nn

from core.flows import NSF
from core.report import (
    Table,
    hardware,
    provenance,
    read_results,
    report,
    versions,
    write_results,
    write_text,
)
from core.transforms import compile_splines

LAYERS, HIDDEN, BINS, BATCH, RATE = 5, (64, 64), 8, 512, 2e-3
TURN = 2.0
SHRINK = {"whitened": 0.05, "mixture": 1e-6}
CANDIDATES = ("plain", *SHRINK)
FEW_ROWS = 5000
NOTES = (
    "Ours and zuko's: 5 autoregressive spline layers of 8 bins, hidden 64 x 64, AdamW at 2e-3 "
    "with cosine decay over the budget, batches of 512, averaged weights, best validation score; "
    "below 5000 training rows the whitened candidates have 2 layers of one hidden layer of 32.",
    "The column 'of' says among how many candidates validation chose: 2 are without the mixture. "
    "Expectation-maximisation counts towards the budget. Rows of 2 candidates are of an earlier "
    "run, by the wall clock of a machine that was less busy.",
    "Near-discrete columns have no bounded density: in the rows 'as it is' a spike gains without "
    "end, for every method. In 'spread' such columns got uniform noise: in the cells of few "
    "distinct values, or 5 % of the standard deviation where one value is shared by many rows.",
    "The mixture: scikit-learn's GaussianMixture, 20 full covariances, k-means start, its "
    "default regularisation, without limit of time.",
)

LogProb = Callable[[nn.Module, Tensor], Tensor]


@dataclass
class Fit:
    """A training that can be interrupted at any step; it counts its own seconds only."""

    model: nn.Module
    log_prob: LogProb
    split: Split
    seconds: float
    spent: float = 0.0
    steps: int = 0
    best: float = -math.inf
    best_step: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, RATE, weight_decay=1e-4)
        self.average = copy.deepcopy(self.model).eval()
        self.generator = torch.Generator().manual_seed(1)
        self.order, self.position = torch.empty(0, dtype=torch.long), 0
        self.next_score, self.kept = 0.0, copy.deepcopy(self.model.state_dict())

    def run(self, until: float) -> None:
        """Train until so many of the seconds are spent; the last of them ends with a score."""
        begun = time.process_time() - self.spent
        while self.spent < until:
            if self.spent >= self.next_score:
                self._score()
                self.next_score = self.spent + 0.03 * self.seconds
            self._step()
            self.spent = time.process_time() - begun
        if until >= self.seconds:
            self._score()
        self.spent = time.process_time() - begun

    def _step(self) -> None:
        rows = self.split.train
        size = min(BATCH, len(rows))
        if self.position + size > len(self.order):
            self.order = torch.randperm(len(rows), generator=self.generator)
            self.position = 0
        batch = rows[self.order[self.position : self.position + size]]
        self.position += size
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, self.spent / self.seconds)))
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (self.steps + 1) / 50) * decay
        self.optimizer.zero_grad()
        (-self.log_prob(self.model, batch).mean()).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.steps += 1
        rest = 1 - min(0.995, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            averaged, new = list(self.average.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(averaged, new, rest)

    @torch.no_grad()
    def _score(self) -> None:
        score = self.log_prob(self.average, self.split.valid).mean().item()
        if score > self.best:
            self.best, self.best_step = score, self.steps
            self.kept = copy.deepcopy(self.average.state_dict())

    @torch.no_grad()
    def test(self) -> Tensor:
        self.average.load_state_dict(self.kept)
        return self.log_prob(self.average, self.split.test)


def zuko_fit(split: Split, seconds: float) -> Fit:
    import zuko

    torch.manual_seed(0)
    flow = zuko.flows.NSF(split.dims, transforms=LAYERS, hidden_features=HIDDEN, bins=BINS)
    return Fit(flow, lambda m, x: m().log_prob(x), split, seconds)


def our_fit(split: Split, seconds: float, candidate: str) -> Fit:
    torch.manual_seed(0)
    size: dict[str, Any] = {"layers": LAYERS, "hidden": HIDDEN}
    if candidate != "plain" and len(split.train) < FEW_ROWS:
        size = {"layers": 2, "hidden": (32,)}
    components = 20 if candidate == "mixture" and len(split.train) >= 100 * 20 else 0
    flow = NSF(
        (split.dims,), bins=BINS, linear=candidate != "plain", components=components, **size
    )
    begun = time.process_time()
    if candidate != "plain":
        flow.whiten(split.train, shrink=SHRINK[candidate])
    if components:
        flow.fit_noise(split.train)
    compile_splines(flow)
    spent = time.process_time() - begun  # expectation-maximisation is of the budget too
    fit = Fit(flow, lambda m, x: m.log_prob(x).value, split, seconds, spent)
    fit.name = candidate
    return fit


def our_turns(split: Split, seconds: float) -> Iterator[Fit]:
    """Turns of the candidates, then of the best: their shares of the seconds go into choosing."""
    candidates = [our_fit(split, seconds, name) for name in CANDIDATES]
    share = 0.1 * seconds
    for turn in range(1, math.ceil(share / TURN) + 1):
        for fit in candidates:
            fit.run(min(turn * TURN, share))
            yield fit
    for fit in candidates:
        fit._score()
    chosen = max(candidates, key=lambda fit: fit.best)
    chosen.spent = sum(max(fit.spent, share) for fit in candidates)  # the others' count
    while chosen.spent < seconds:
        chosen.run(min(chosen.spent + TURN, seconds))
        yield chosen


def race(split: Split, seconds: float, peer: bool) -> dict[str, Any]:
    """Both flows in turns."""
    theirs = zuko_fit(split, seconds) if peer else None
    turns, ours, going = our_turns(split, seconds), None, True
    while going or (theirs is not None and theirs.spent < seconds):
        fit = next(turns, None)
        going, ours = fit is not None, fit or ours
        if theirs is not None and theirs.spent < seconds:
            theirs.run(min(theirs.spent + TURN, seconds))
    assert ours is not None
    found: dict[str, Any] = {}
    for name, fit in (("ours", ours), ("zuko", theirs)):
        if fit is not None:
            value = fit.test()
            found |= {
                name: value.mean().item(),
                f"{name}_error": value.std().item() / math.sqrt(len(value)),
                f"{name}_steps": fit.steps,
                f"{name}_best": fit.best_step,
                f"{name}_valid": fit.best,
            }
    found |= {"candidate": ours.name, "candidates": len(CANDIDATES)}
    return found


def classical(split: Split) -> dict[str, float]:
    """The Gaussian of the training rows, and a mixture of 20."""
    from sklearn.mixture import GaussianMixture

    train, test = split.train.double(), split.test.double()
    gaussian = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
    begun = time.process_time()
    mixture = GaussianMixture(20, random_state=0).fit(train.numpy())
    return {
        "gaussian": gaussian.log_prob(test).mean().item(),
        "gmm": mixture.score(test.numpy()),
        "gmm_seconds": time.process_time() - begun,
    }


def warm_up() -> float:
    """Seconds to compile the splines' kernels in this process; torch keeps them on disk."""
    begun = time.process_time()
    rows = torch.randn(64, 3)
    fit = our_fit(Split(rows, rows, rows, 0), 1.0, "plain")
    fit._step()
    fit._score()
    return time.process_time() - begun


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the tables")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--version", choices=("both", "spread"), default="both")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    notes = [*NOTES, f"Compiling took {warm_up():.0f} s before the clocks started."]
    rows = kept(options.out / "density.json")
    for name in options.tables.split(","):
        for spread in (False, True) if options.version == "both" else (True,):
            split = load(name, options.data, spread)
            if spread and (name == "digits" or not split.spread):
                continue  # the same as without
            row = {
                "table": name,
                "version": "spread" if split.spread else "as it is",
                "rows": sum(len(part) for part in (split.train, split.valid, split.test)),
                "dims": split.dims,
                **classical(split),
                **race(split, options.seconds, peer=not spread),
            }
            rows = [other for other in rows if _key(other) != _key(row)] + [row]
            print(json.dumps(row), flush=True)
            table = write(rows, options, notes)
    table.print()


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["table"], row["version"]


def kept(path: Path) -> list[dict[str, Any]]:
    """Rows of earlier runs."""
    rows = read_results(path)[1][0].rows if path.exists() else []
    return [{"candidates": 2} | dict(row) for row in rows]


def write(rows: list[dict[str, Any]], options: argparse.Namespace, notes: list[str]) -> Table:
    numbers = ("gaussian", "gmm", "zuko", "ours")
    columns = {"table": "table", "version": "version", "rows": "rows", "dims": "D"}
    columns |= {"gaussian": "Gaussian", "gmm": "GMM-20", "zuko": "zuko NSF", "ours": "aleator NSF"}
    columns |= {"ours_error": "± s.e.", "zuko_steps": "steps zuko", "ours_steps": "steps aleator"}
    columns |= {"candidate": "candidate", "candidates": "of"}
    order = list(TABLES)
    rows = sorted(rows, key=lambda row: (order.index(row["table"]), row["version"]))
    table = Table(
        rows,
        columns,
        dict.fromkeys(numbers, ".2f") | {"ours_error": ".2f"},
        title=f"Test ln p in nats after {options.seconds:.0f} s of one thread",
    )
    made_by = provenance()
    made_by["hardware"] = f"{hardware()}, 1 thread used, other work on the machine"
    made_by["versions"] = versions() | peers()
    results = write_results(options.out / "density.json", [table], made_by=made_by, notes=notes)
    page = report(results, "Densities of tables")
    page += "".join(f"\nNote: {line}\n" for line in notes)
    write_text(options.out / "density.md", page)
    return table


def peers() -> dict[str, str]:
    """Versions of the libraries compared with."""
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("zuko", "scikit-learn")}


if __name__ == "__main__":
    main()
