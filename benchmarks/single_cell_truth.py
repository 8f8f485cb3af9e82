"""Denoising against a known truth: the rest of the molecules, mixtures of RNA, proteins."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from single_cell_methods import EXPRESSED, OURS, SHOWN, Run, listed, methods, more_of_ours, say

from apps.single_cell.evaluation import protein_agreement, truth_scores
from apps.single_cell.mcv import thin
from core.report import Table

LINES = ("H2228", "H1975", "HCC827")
PROTOCOL = "RNAmix_celseq2"
PROTEINS = {
    "CD3D": "CD3",
    "CD4": "CD4",
    "CD8A": "CD8a",
    "CD14": "CD14",
    "FCGR3A": "CD16",
    "NCAM1": "CD56",
    "CD19": "CD19",
    "IL2RA": "CD25",
    "PDCD1": "PD-1",
    "TIGIT": "TIGIT",
    "IL7R": "CD127",
}
"""Gene -> protein; without isoforms (CD45RA, CD45RO) and sugars (CD15)."""


def known_truth(data: Path, names: list[str], seeds: list[int], run: Run) -> list[Table]:
    """Five cell lines thinned to a tenth, against the other nine tenths."""
    adata = ad.read_h5ad(data / "sc_mixology_cells" / "sc_mixology_cells.h5ad")
    five = adata.obs["batch"].astype(str).str.contains("5cl").to_numpy()
    kept = five & (adata.obs["demuxlet_cls"] == "SNG").to_numpy()
    counts = sp.csr_matrix(adata.X)[kept]
    scores: dict[str, list[dict]] = {}
    for seed in seeds:
        seen, truth = thin(counts, 0.1, seed)
        genes = np.asarray(seen.sum(0)).ravel() > 0
        every = np.ones(len(truth.indptr) - 1, bool)
        _score(scores, "thin10", names, seed, run, seen[:, genes], truth[:, genes], every)
    title = "five cell lines thinned to 10 %, against the rest; mean of seeds " + listed(seeds)
    return [_table(scores, title)]


def mixtures(data: Path, names: list[str], seeds: list[int], run: Run) -> list[Table]:
    """Wells with the RNA of three lines in known shares, thinned to a tenth.

    Truth is shares x mean profile of each line. Profiles are of the molecules of pure wells that
    no method saw; the wells of mixed RNA are scored.
    """
    adata = ad.read_h5ad(data / "sc_mixology_rnamix" / "sc_mixology_rnamix.h5ad")
    kept = (adata.obs["batch"].astype(str) == PROTOCOL).to_numpy()
    counts = sp.csr_matrix(adata.X)[kept]
    shares = adata.obs[[f"{line}_prop" for line in LINES]].to_numpy(np.float64)[kept]
    shares /= shares.sum(1, keepdims=True)
    scores: dict[str, list[dict]] = {}
    for seed in seeds:
        seen, rest = thin(counts, 0.1, seed)
        genes = np.asarray(seen.sum(0)).ravel() > 0
        seen, rest = seen[:, genes], rest[:, genes]
        truth = known_mixtures(rest, shares)
        _score(scores, "rnamix", names, seed, run, seen, truth, shares.max(1) < 1)
    title = "mixtures of RNA thinned to 10 %, against shares x pure lines; mean of seeds "
    return [_table(scores, title + listed(seeds))]


def known_mixtures(rest: sp.csr_matrix, shares: np.ndarray) -> sp.csr_matrix:
    """Expected molecules per ten thousand (N, G) of wells of known shares (N, lines).

    Args:
        rest: (N, G) molecules, of which those of pure wells give the profiles of the lines.
        shares: of each line's RNA in a well.
    """
    pure = [np.asarray(rest[shares[:, k] == 1].sum(0)).ravel() for k in range(shares.shape[1])]
    profiles = np.stack([total / total.sum() for total in pure])
    return sp.csr_matrix(1e4 * shares @ profiles)


def _score(
    scores: dict[str, list[dict]],
    case: str,
    names: list[str],
    seed: int,
    run: Run,
    seen: sp.csr_matrix,
    truth: sp.csr_matrix,
    judged: np.ndarray,
) -> None:
    """Fit every method to what is seen, and add its scores in the rows that are judged."""
    for name, method in methods(names, seed, run, 15).items():
        outputs = {name: method.fit(seen).predict(seen)}
        if name == OURS:
            outputs |= more_of_ours(method, seen)
        for output, values in outputs.items():
            found = truth_scores(values[judged], truth[judged])
            scores.setdefault(output, []).append(found)
            say(f"{case}, seed {seed}: {output} {found}")


def _table(scores: dict[str, list[dict]], title: str) -> Table:
    columns = {"mse": "MSE", "gene_r": "gene r", "gene_gene": "gene–gene RMSE"}
    rows = [
        {"method": SHOWN.get(n, n), **{k: float(np.mean([f[k] for f in fs])) for k in columns}}
        for n, fs in scores.items()
    ]
    best = {"mse": "min", "gene_r": "max", "gene_gene": "min"}
    return Table(rows, {"method": "method", **columns}, dict.fromkeys(columns, ".3f"), best, title)


def proteins(data: Path, names: list[str], seeds: list[int], run: Run) -> list[Table]:
    """CITE-seq: denoised mRNA against measured protein."""
    adata = ad.read_h5ad(data / "citeseq_pbmc_mini" / "citeseq_pbmc_mini.h5ad")
    counts = sp.csr_matrix(adata.X)
    known = [str(name).split("_")[0] for name in adata.uns["protein_names"]]
    pairs = {gene: known.index(protein) for gene, protein in PROTEINS.items()}
    measured = np.asarray(adata.obsm["protein_counts"])
    scores: dict[str, list[dict]] = {}
    for seed in seeds:
        for name, method in methods(names, seed, run, 15).items():
            outputs = {name: method.fit(counts).predict(counts)}
            if name == OURS:
                outputs[EXPRESSED] = method.expressed(counts)
            for output, values in outputs.items():
                found = protein_agreement(values, list(adata.var_names), measured, pairs)
                scores.setdefault(output, []).append(found)
                say(f"citeseq, seed {seed}: {output} {np.mean(list(found.values())):.3f}")
    rows: list[dict] = []
    genes: list[dict] = [{"gene": gene} for gene in pairs]
    for name, results in scores.items():
        each = [float(np.mean([row[gene] for row in results])) for gene in pairs]
        means = (float(np.mean(list(row.values()))) for row in results)
        by_seed = dict(zip(map(str, seeds), means, strict=True))
        label, mean = SHOWN.get(name, name), float(np.mean(each))
        rows.append({"method": label, "spearman": mean, **by_seed})
        for row, value in zip(genes, each, strict=True):
            row[name] = value
    title = f"CITE-seq, 400 cells: mean Spearman of 11 genes with their protein; {listed(seeds)}"
    columns = {"method": "method", "spearman": "Spearman"}
    columns |= {str(seed): f"seed {seed}" for seed in seeds}
    shown = {name: SHOWN.get(name, name) for name in scores}
    by_gene = Table(
        genes,
        {"gene": "gene", **shown},
        dict.fromkeys(scores, ".3f"),
        {},
        "the same, gene by gene",
    )
    digits = dict.fromkeys(list(columns)[1:], ".3f")
    return [Table(rows, columns, digits, dict.fromkeys(digits, "max"), title), by_gene]
