"""Generated cells against real ones that no method has seen: pbmc3k, by type.

    python benchmarks/single_cell_generate.py DATA [--seeds 1,2,3] [--methods ...] [--folder RUNS]
                                              [--scvi PYTHON] [--name single_cell_generate]
                                              [--out FOLDER]

DATA is the folder with `pbmc3k` (where it comes from: docs/single_cell.md). Two thirds of the
labelled cells train, a third is held out; each method makes one cell for each held-out cell, of
its type. The options of the model were chosen on the split of seed 0, those of the critic on the
splits of seeds 10 and 11, which are not shown; "one candidate" is without a critic.
"latents of training cells" is not a generator: counts drawn anew from the latents of real training
cells, the best that any prior over these latents could do. RUNS keeps the state of trainings, so
that a stopped benchmark goes on. With --scvi PYTHON, an interpreter that has scvi-tools, its prior
sampling is beside ours.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from single_cell_scvi import run_scvi

from apps.single_cell import Denoiser
from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Covariates
from apps.single_cell.fitting import fit_model
from apps.single_cell.generate import Generator, generating
from apps.single_cell.ood import Surprise
from apps.single_cell.prior import PriorConfig, latents
from apps.single_cell.realism import Components, moment_gaps, realism
from apps.single_cell.scatter import Scatter, draw_counts
from core.random import keyed_generator
from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent
LABEL = "cell_type"
COMPONENTS = 3
"""Of a Gaussian mixture of each type, in 50 principal components."""


class Split:
    """Training and held-out cells of one seed, and our model of the former."""

    def __init__(self, data: Path, seed: int, runs: Path | None, scvi: Path | None = None) -> None:
        adata = ad.read_h5ad(data / "pbmc3k" / "pbmc3k.h5ad")
        adata = adata[adata.obs[LABEL].notna().to_numpy()].copy()
        adata.obs = pd.DataFrame({LABEL: adata.obs[LABEL].astype(str)})
        order = np.random.default_rng(seed).permutation(adata.n_obs)
        cut = 2 * adata.n_obs // 3
        self.train, self.real = adata[order[:cut]].copy(), adata[order[cut:]].copy()
        self.train.X, self.real.X = sp.csr_matrix(self.train.X), sp.csr_matrix(self.real.X)
        self.seed, self.components = seed, Components.fit(self.train.X)
        self.folder = runs / f"seed{seed}" if runs else None
        self.scvi = scvi
        self._denoiser: Denoiser | None = None
        self._generators: dict[str, Generator] = {}

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Of training and of held-out cells."""
        return tuple(part.obs[LABEL].to_numpy() for part in (self.train, self.real))

    @property
    def denoiser(self) -> Denoiser:
        """Ours, as `generate IN` fits it, without a verdict."""
        if self._denoiser is None:
            covariates = Covariates.fit(self.train.obs, "pbmc3k")
            config = generating(None, self.train.n_obs)
            fitted = fit_model(
                Counts(self.train.X),
                np.asarray(self.train.X.sum(1, dtype=np.float64)).ravel(),
                covariates.encode(self.train.obs, "pbmc3k"),
                config,
                seed=self.seed,
                folder=self.folder,
                resume=True,
                progress=None,
            )
            unused = Surprise((0.0, 0.0, 0.0), 0.0, 1.0)
            genes = tuple(map(str, self.train.var_names))
            self._denoiser = Denoiser(fitted.model, genes, covariates, config, unused, None)
        return self._denoiser

    def generator(self, family: str) -> Generator:
        """Ours, with a prior of a family, as `generate IN` fits it."""
        if family not in self._generators:
            config = PriorConfig(family)
            self._generators[family] = Generator.fit(
                self.denoiser, self.train, like=[LABEL], config=config, seed=self.seed
            )
        return self._generators[family]

    @functools.cached_property
    def scatter(self) -> Scatter | None:
        """The law of counts around our rates, as `generate` fits it."""
        design = self.denoiser.covariates.encode(self.train.obs, "pbmc3k")
        return Scatter.fit(self.denoiser.model, Counts(self.train.X), design, self.seed)


def learned(family: str, **options: int):
    """Our generator, with a prior of a family."""

    def make(split: Split) -> sp.csr_matrix:
        made = split.generator(family).generate_for(split.real.obs, seed=split.seed, **options)
        return made.X

    return make


def trained_with(split: Split) -> sp.csr_matrix:
    """The same decoder with the prior that it was trained with; libraries of training cells."""
    prior = split.denoiser.model.prior
    assert prior is not None
    z = prior.sample(split.real.n_obs, keyed_generator(split.seed, 7))
    return _decoded(split, z, _libraries(split))


def of_training_cells(split: Split) -> sp.csr_matrix:
    """Counts drawn anew from the latents of real training cells of the same types."""
    design = split.denoiser.covariates.encode(split.train.obs, "pbmc3k")
    centre, width = latents(split.denoiser.model, Counts(split.train.X), design)
    pick = torch.from_numpy(_matched(split))
    noise = torch.randn(width[pick].shape, generator=keyed_generator(split.seed, 8))
    z = centre[pick, :-1] + width[pick] * noise
    return _decoded(split, z, centre[pick, -1].exp().numpy())


def mixture(split: Split, *, halves: bool = False) -> sp.csr_matrix:
    """Gaussian mixtures of each type in principal components, then Poisson counts.

    Args:
        split: cells.
        halves: one half of the training cells for the components, the other for the mixtures:
            among the cells that components are fitted on, they vary more than among any others.
    """
    from sklearn.mixture import GaussianMixture

    known, wanted = split.labels
    half = len(known) // 2 if halves else 0
    components = Components.fit(split.train.X[:half]) if halves else split.components
    scores, known = components(split.train.X[half:]), known[half:]
    stream = np.random.default_rng(split.seed)
    made = np.empty((len(wanted), scores.shape[1]))
    for kind in np.unique(wanted):
        rows, few = wanted == kind, known == kind
        number = min(COMPONENTS, max(1, few.sum() // 60))
        law = GaussianMixture(number, reg_covar=1e-3, random_state=split.seed)
        made[rows] = stream.permutation(law.fit(scores[few]).sample(int(rows.sum()))[0])
    share = np.expm1(np.clip(components.inverse(made), 0, None))
    share /= share.sum(1, keepdims=True)
    return sp.csr_matrix(stream.poisson(share * _libraries(split)[:, None]).astype(np.float32))


def scvi_prior(split: Split) -> sp.csr_matrix:
    """scvi-tools in its own interpreter: latents from the standard normal, counts from its law."""
    if split.scvi is None:
        raise SystemExit(f"{SCVI!r} needs --scvi PYTHON, an interpreter that has scvi-tools")
    keep = None if split.folder is None else split.folder / "scvi.npz"
    options = {"epochs": 200, "library": _libraries(split), "keep": keep}
    ran = run_scvi(split.scvi, split.train.X, split.seed, **options)
    print(f"seed {split.seed}: {ran.version}, CPU {ran.cpu:.0f} s", file=sys.stderr, flush=True)
    return sp.csr_matrix(ran.out)


MIXTURE = "the mixture prior of the training"
METHODS: dict[str, Callable[[Split], sp.csr_matrix]] = {
    "ours, flow matching": learned("flow_matching"),
    "ours, diffusion": learned("diffusion"),
    "flow matching, one candidate": learned("flow_matching", candidates=1),
    "diffusion, one candidate": learned("diffusion", candidates=1),
    MIXTURE: trained_with,
    "Gaussian mixture of components": mixture,
    "Gaussian mixture, components of other cells": functools.partial(mixture, halves=True),
    "latents of training cells": of_training_cells,
    "training cells (moments: chance)": lambda split: split.train.X,
}
MOMENTS = "training cells (moments: chance)"
"""Shows what gaps of moments two samples of real cells have; components know these cells."""
SCVI = "scVI, standard normal prior"
EXTRA = {SCVI: scvi_prior}
UNCONDITIONAL = (MIXTURE, SCVI)


def score(split: Split, made: sp.csr_matrix, asked: np.ndarray | None) -> dict[str, float]:
    """All metrics of one method."""
    known, real = split.labels
    given = {} if asked is None else {"train_labels": known, "labels": real, "asked": asked}
    x, y = split.train.X, split.real.X
    return realism(x, y, made, components=split.components, seed=split.seed, **given)


def tables(found: dict[str, list[dict]], seeds: list[int]) -> list[Table]:
    """Means over seeds, and the AUC of each."""
    columns = {
        "method": "method",
        **{f"auc_{seed}": f"AUC, seed {seed}" for seed in seeds},
        "mmd_ratio": "MMD / real–real",
        "zeros": "zeros",
        "mean": "gene means",
        "variance": "variances",
        "recognised_ratio": "recognised / real",
        "nearest": "nearest / real",
        "close": "close",
    }
    rows = []
    for name, scores in found.items():
        row: dict = {"method": name}
        row |= {f"auc_{s}": f.get("auc") for s, f in zip(seeds, scores, strict=True)}
        keys = [key for key in scores[0] if key != "auc"]
        row |= {key: float(np.mean([f[key] for f in scores])) for key in keys}
        rows.append(row)
    formats = {"mmd_ratio": ".2f", "zeros": "+.3f", "mean": ".3f", "variance": ".3f"}
    formats |= {"recognised_ratio": ".3f", "nearest": ".3f", "close": ".3f"}
    formats |= {key: ".3f" for key in columns if key.startswith("auc")}
    title = "pbmc3k: generated cells against as many held-out ones, by type; means of the seeds"
    return [Table(rows, columns, formats, {}, title)]


def main(arguments: list[str] | None = None) -> None:
    """Run and write single_cell_generate.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--methods", default=";".join(METHODS), help="separated by semicolons")
    parser.add_argument("--folder", type=Path, help="for the state of trainings")
    parser.add_argument("--scvi", type=Path, help="interpreter with scvi-tools: its prior as well")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="single_cell_generate", help="of the files in FOLDER")
    options = parser.parse_args(arguments)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    known = {**METHODS, **EXTRA}
    chosen = [*options.methods.split(";"), *([SCVI] if options.scvi else [])]
    found: dict[str, list[dict]] = {name: [] for name in chosen}
    for seed in seeds:
        split = Split(options.data, seed, options.folder, options.scvi)
        for name in found:
            started = time.process_time()
            made = known[name](split)
            asked = None if name in UNCONDITIONAL else split.labels[1]
            moments = name == MOMENTS
            found[name].append(
                moment_gaps(split.real.X, made) if moments else score(split, made, asked)
            )
            told = ", ".join(f"{k} {v:.3f}" for k, v in found[name][-1].items())
            print(f"seed {seed}: {name}: {told}", file=sys.stderr, flush=True)
            found[name][-1]["cpu"] = time.process_time() - started
        shown = tables(found, seeds[: seeds.index(seed) + 1])
        results = write_results(options.out / f"{options.name}.json", shown)
        write_text(options.out / f"{options.name}.md", report(results, "Generated cells"))
    for table in shown:
        table.print()


def _matched(split: Split) -> np.ndarray:
    """A training cell of the same type for each held-out one."""
    stream = np.random.default_rng(split.seed)
    known, wanted = split.labels
    return np.array([stream.choice(np.flatnonzero(known == kind)) for kind in wanted])


def _libraries(split: Split) -> np.ndarray:
    return np.asarray(split.train.X[_matched(split)].sum(1, dtype=np.float64)).ravel()


def _decoded(split: Split, z: torch.Tensor, library: np.ndarray) -> sp.csr_matrix:
    blocks = []
    for start in range(0, len(z), 256):
        n = torch.from_numpy(library[start : start + 256]).float().round()
        streams = [keyed_generator(split.seed, 9, start + i) for i in range(len(n))]
        with torch.no_grad():
            law = split.denoiser.model.decode(z[start : start + 256], {"library": n})
        blocks.append(sp.csr_matrix(draw_counts(law, streams, split.scatter).numpy()))
    return sp.vstack(blocks, format="csr")


if __name__ == "__main__":
    main()
