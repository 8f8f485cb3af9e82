"""Differential expression against molecules that no method has seen, and on splits without any.

    python benchmarks/single_cell_de.py [--splits 20] [--name single_cell_de] [--out FOLDER]

The bundled sample: five cell lines, one tenth of the molecules; its layer `truth` is the other
nine tenths. Each line against the rest: a call is false if the change in the truth is below
δ = 0.25 (log2) or goes the other way; changes beyond δ that are not called are missed. Null splits
are random halves of one line: every call is false. Ours uses the bundled weights, learned from the
tenth alone; Wilcoxon's and Welch's tests are scanpy's on log-normalised counts, called where the
Benjamini-Hochberg rate is at most 5 %, and also where the estimated change is beyond δ.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

from apps.single_cell import Denoiser
from apps.single_cell.data import sample_path
from apps.single_cell.de import Test, differential
from apps.single_cell.inputs import bundled_model
from apps.single_cell.mcv import TARGET
from core.report import Table, report, write_results, write_text

HERE = Path(__file__).parent
TEST = Test()
SCANPY = {"Wilcoxon": "wilcoxon", "Welch": "t-test"}
METHODS = ["ours", *(name + end for name in SCANPY for end in ("", ", beyond δ"))]


def calls(adata: ad.AnnData, denoiser: Denoiser, column: str, group: str) -> dict[str, tuple]:
    """Method -> (called (G,), estimated changes (G,)) of a group against all others."""
    found = differential(denoiser, adata, column, test=TEST)[group]
    result = {"ours": (found.called(TEST.fdr), found.lfc)}
    plain = adata.copy()
    sc.pp.normalize_total(plain, target_sum=TARGET)
    sc.pp.log1p(plain)
    for name, method in SCANPY.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sc.tl.rank_genes_groups(plain, column, groups=[group], method=method)
        frame = sc.get.rank_genes_groups_df(plain, group).set_index("names")
        frame = frame.loc[adata.var_names]
        called = frame["pvals_adj"].to_numpy() <= TEST.fdr
        change = frame["logfoldchanges"].to_numpy()
        result[name] = (called, change)
        result[name + ", beyond δ"] = (called & (np.abs(change) > TEST.delta), change)
    return result


def against_truth(adata: ad.AnnData, denoiser: Denoiser) -> Table:
    """Each line against the rest."""
    truth = adata.layers["truth"].toarray().astype(float)
    share = truth / truth.sum(1, keepdims=True) * TARGET
    found: dict[str, list[dict]] = {name: [] for name in METHODS}
    for line in adata.obs["cell_line"].cat.categories:
        own = (adata.obs["cell_line"] == line).to_numpy()
        known = np.log2(share[own].mean(0) + TEST.pseudo)
        known -= np.log2(share[~own].mean(0) + TEST.pseudo)
        real = np.abs(known) > TEST.delta
        for name, (called, change) in calls(adata, denoiser, "cell_line", line).items():
            right = called & real & (np.sign(known) == np.sign(change))
            found[name].append(
                {
                    "called": int(called.sum()),
                    "false": 1 - right.sum() / max(1, called.sum()),
                    "found": right.sum() / real.sum(),
                    "error": float(np.sqrt(np.square(change - known)[np.isfinite(change)].mean())),
                }
            )
    rows = [{"method": name, **pd.DataFrame(f).mean().to_dict()} for name, f in found.items()]
    columns = {
        "method": "method",
        "called": "genes called",
        "false": "false among them",
        "found": "share of changes found",
        "error": "error of log2 change",
    }
    formats = {"called": ".0f", "false": ".3f", "found": ".3f", "error": ".3f"}
    title = "five cell lines against the rest, nominal 5 %; mean of the lines"
    return Table(rows, columns, formats, {}, title)


def null_splits(adata: ad.AnnData, denoiser: Denoiser, splits: int) -> Table:
    """Random halves of one line; the false-discovery rate is the share of splits with a call."""
    found: dict[str, list[int]] = {name: [] for name in METHODS}
    lines = list(adata.obs["cell_line"].cat.categories)
    for seed in range(splits):
        one = adata[adata.obs["cell_line"] == lines[seed % len(lines)]].copy()
        half = np.random.default_rng(seed).permutation(one.n_obs) % 2
        one.obs["half"] = pd.Categorical(np.where(half, "a", "b"))
        for name, (called, _) in calls(one, denoiser, "half", "a").items():
            found[name].append(int(called.sum()))
    rows = [
        {"method": name, "rate": float(np.mean(np.array(f) > 0)), "most": max(f)}
        for name, f in found.items()
    ]
    columns = {"method": "method", "rate": "false-discovery rate", "most": "most genes called"}
    return Table(rows, columns, {"rate": ".2f"}, {}, f"{splits} null splits, nominal 5 %")


def main(arguments: list[str] | None = None) -> None:
    """Run and write single_cell_de.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--splits", type=int, default=20, help="0 leaves them out")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="single_cell_de", help="of the files in FOLDER")
    options = parser.parse_args(arguments)
    adata, denoiser = ad.read_h5ad(sample_path()), Denoiser.load(bundled_model())
    tables = [against_truth(adata, denoiser)]
    tables[0].print()
    print("null splits …", file=sys.stderr, flush=True)
    if options.splits:
        tables.append(null_splits(adata, denoiser, options.splits))
        tables[1].print()
    results = write_results(options.out / f"{options.name}.json", tables)
    write_text(options.out / f"{options.name}.md", report(results, "Differential expression"))


if __name__ == "__main__":
    main()
