"""The methods of the benchmarks of denoising, on one interface: ours, scvi-tools, baselines."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from single_cell_scvi import run_scvi

from apps.single_cell.baselines import baselines
from apps.single_cell.config import Config
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.expressed import learn_levels
from apps.single_cell.fitting import fit_model
from apps.single_cell.layers import point
from apps.single_cell.posterior import rates, sample_rates
from apps.single_cell.selection import BASE, choose
from apps.single_cell.shrinkage import Shrinkage, shrink

OURS, SCVI = "ours", "scvi"
DRAW, EXPRESSED = "ours, one draw of the posterior", "ours, expressed or zero"
SHOWN = {
    OURS: "ours",
    SCVI: "scVI, NB, 100 epochs",
    "diffusion (MAGIC)": "diffusion over neighbours (after MAGIC)",
    "low rank with zeros (ALRA)": "low rank with zeros (after ALRA)",
}


@dataclass(frozen=True)
class Run:
    """How things are run: see the options of the command line."""

    nested: str = "none"
    folder: Path | None = None
    scvi: Path | None = None
    estimate: str = "balanced"


class Ours:
    """Our model on one interface with the baselines."""

    def __init__(self, seed: int, run: Run, folder: Path | None = None) -> None:
        self.seed, self.nested, self.folder = seed, run.nested, folder
        self.estimate = run.estimate

    def fit(self, counts: sp.csr_matrix):
        n = counts.shape[0]
        self.design = Design(np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32), ())
        config, shrinkage = Config(**BASE), Shrinkage()
        if self.nested != "none":
            given = (Counts(counts), self.design, Config())
            search = self.nested == "search"
            config, shrinkage = choose(*given, seed=self.seed, search=search)
        library = np.asarray(counts.sum(1, dtype=np.float64)).ravel()
        fitted = fit_model(
            Counts(counts),
            library,
            self.design,
            config,
            seed=self.seed,
            folder=self.folder,
            resume=True,
            progress=None,
        )
        self.model = shrink(fitted.model, shrinkage, Counts(counts), self.design, seed=self.seed)
        return self

    def parts(self, counts: sp.csr_matrix):
        n = counts.shape[0]
        design = Design(np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32), ())
        return rates(self.model, Counts(counts), design, seed=self.seed)

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        return np.concatenate([point(part, self.estimate) for part in self.parts(counts)])

    def expressed(self, counts: sp.csr_matrix) -> np.ndarray:
        """Rates that are zero where a cell does not express a gene."""
        n = counts.shape[0]
        design = Design(np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32), ())
        levels = learn_levels(self.model, Counts(counts), design, seed=self.seed)
        return np.concatenate([levels.estimate(part) for part in self.parts(counts)])

    def draw(self, counts: sp.csr_matrix) -> np.ndarray:
        """One draw of the rates from their posterior, instead of their mean."""
        found = []
        for start in range(0, counts.shape[0], 256):
            x = torch.from_numpy(counts[start : start + 256].toarray()).float()
            keys = range(start, start + len(x))
            drawn = sample_rates(self.model, x, {"library": x.sum(1)}, 1, self.seed, keys)
            found.append(drawn[0].numpy())
        return np.concatenate(found)


class ScVI:
    """scvi-tools with a negative binomial, as its guide says, from the training counts."""

    def __init__(self, python: Path | None, seed: int, keep: Path | None) -> None:
        self.python, self.seed, self.keep, self._next = python, seed, keep, 0

    def fit(self, counts: sp.csr_matrix):
        if self.python is None:
            sys.exit("--methods scvi needs --scvi PYTHON, an interpreter that has scvi-tools")
        self.ran = run_scvi(self.python, counts, self.seed, keep=self.keep)
        self.cpu = self.ran.cpu
        say(f"{self.ran.version}: {self.ran.seconds:.0f} s, {self.ran.peak:.0f} MB")
        return self

    def predict(self, counts: sp.csr_matrix) -> np.ndarray:
        """Rates of the cells that it was fitted on; blocks are asked for in order."""
        start = self._next
        self._next = (start + counts.shape[0]) % len(self.ran.out)
        return self.ran.out[start : start + counts.shape[0]]


def methods(names: list[str], seed: int, run: Run, rank: int) -> dict:
    """Fresh methods by name; the state of our training goes into the folder."""
    own = None if run.folder is None else run.folder / f"seed{seed}"
    keep = None if run.folder is None else run.folder / f"scvi{seed}.npz"
    known = {OURS: Ours(seed, run, own), **baselines(seed=seed)}
    known[SCVI] = ScVI(run.scvi, seed, keep)
    known["Poisson NMF"].rank = rank
    return {name: known[name] for name in names}


def more_of_ours(method: Ours, counts: sp.csr_matrix) -> dict[str, np.ndarray]:
    """What else our model can put out, by name."""
    return {EXPRESSED: method.expressed(counts), DRAW: method.draw(counts)}


def listed(seeds: list[int]) -> str:
    """Seeds as a title says them."""
    return ", ".join(map(str, seeds))


def say(line: object) -> None:
    """To the log."""
    print(line, file=sys.stderr, flush=True)
