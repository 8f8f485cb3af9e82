r"""Differential expression from the posterior: how large is a change, and how sure can one be?

    θ_k = mean over the cells i of group k of E[λ_i | x_i] / n_i · 10⁴
    b   = log₂ (θ_a + ε) - log₂ (θ_b + ε),         s² = Var b, from the counts
    b ~ N(β, s²),   β ~ Σ_j π_j N(0, σ_j²),        p = P(|β| > δ | b, s)

The denoised rates give the estimate b, but not its error: that a cell's rate is well known given
the model says nothing of which cells were caught and how the model itself was fitted. s is that of
the mean of the *raw* shares of the same cells, the larger of what they show and what the model
says they should. The law of changes π is learned from all genes by maximum likelihood (adaptive
shrinkage), so that where nothing changes nothing is called. The hypothesis is composite: a change
below δ is no discovery, however certain. Genes are called by decreasing p while the mean of 1 - p
over those called, their expected false-discovery rate, stays below the level.

Groups that were themselves found by clustering these counts differ by construction; no test of
their genes knows that. Cells are taken as independent: replicates are not.

References: Boyeau et al. (2023) doi:10.1073/pnas.2209124120 (lvm-DE: δ, expected FDR); Stephens
(2017) doi:10.1093/biostatistics/kxw041 (adaptive shrinkage).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from apps.single_cell.cells import Cells
from apps.single_cell.checks import some
from apps.single_cell.data import Source, open_cells
from apps.single_cell.denoise import Denoiser
from apps.single_cell.mcv import TARGET
from apps.single_cell.posterior import rates
from core.errors import AleatorError

KEY = "rank_genes_groups"
REST = "rest"
FEWEST = 10
"""Cells below which a group is not compared."""
NULL_WEIGHT = 10.0
"""Genes without any change that are added to the data in learning the law of changes."""


@dataclass(frozen=True)
class Test:
    """What is called a change, and how.

    Attributes:
        delta: least |log₂ fold change| of interest.
        fdr: expected share of false ones among those that are called.
        pseudo: ε, molecules in ten thousand, below which a gene is as good as silent.
        seed: of the draws of the latents.
    """

    __test__ = False  # not one of pytest's

    delta: float = 0.25
    fdr: float = 0.05
    pseudo: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.delta < 0 or self.pseudo <= 0:
            raise AleatorError(
                f"delta={self.delta}, pseudo={self.pseudo}: the least fold change must not be "
                "negative, and some molecules are needed under the logarithm"
            )
        if not 0 < self.fdr < 1:
            raise AleatorError(f"fdr={self.fdr}: a share, between 0 and 1, is expected")


@dataclass(frozen=True)
class Changes:
    """Genes of one group against another.

    Attributes:
        lfc: (G,) posterior mean of the log₂ fold change.
        stderr: (G,) posterior standard deviation.
        probability: (G,) p that it is larger than δ either way.
        false: (G,) expected false-discovery rate if the list is cut at this gene.
        scores: (G,) estimate over its standard error, before shrinkage.
    """

    lfc: np.ndarray
    stderr: np.ndarray
    probability: np.ndarray
    false: np.ndarray
    scores: np.ndarray

    def called(self, fdr: float) -> np.ndarray:
        """(G,) which genes are called at a level."""
        return self.false <= fdr

    def table(self, genes: pd.Index, fdr: float) -> pd.DataFrame:
        """All genes, the most positive first."""
        table = {
            "lfc": self.lfc,
            "stderr": self.stderr,
            "probability": self.probability,
            "fdr": self.false,
            "called": self.called(fdr),
        }
        order = np.argsort(-self.scores, kind="stable")
        return pd.DataFrame(table, index=genes).iloc[order]


def expected_fdr(probability: np.ndarray) -> np.ndarray:
    r"""Mean of 1 - p over the genes at least as probable as each, (G,).

    It grows along the list, so that the genes at or below a level are the longest list whose
    expected false-discovery rate is at most the level.
    """
    order = np.argsort(-probability, kind="stable")
    running = np.cumsum(1 - probability[order]) / np.arange(1, len(order) + 1)
    found = np.empty_like(running)
    found[order] = running
    return found


def shrink(b: np.ndarray, s: np.ndarray, delta: float) -> Changes:
    """Posterior of changes from estimates and their errors, the law of changes learned from all.

    Args:
        b: (G,) estimated log₂ fold changes.
        s: (G,) their standard errors.
        delta: least change of interest.
    """
    from scipy.stats import norm

    s = np.maximum(s, 1e-9)
    scales = np.concatenate([[0.0], np.geomspace(0.02, max(0.1, 2 * np.abs(b).max()), 20)])
    total = np.hypot(s[:, None], scales)
    log_like = norm.logpdf(b[:, None], 0, total)
    likely = np.exp(log_like - log_like.max(1, keepdims=True))
    share = np.full(len(scales), 1 / len(scales))
    extra = np.r_[NULL_WEIGHT, np.zeros(len(scales) - 1)]  # doubt goes to no change
    for _ in range(500):
        each = likely * share
        each /= each.sum(1, keepdims=True)
        new = (each.sum(0) + extra) / (len(b) + NULL_WEIGHT)
        done = np.abs(new - share).max() < 1e-6
        share = new
        if done:
            break
    each = likely * share
    each /= each.sum(1, keepdims=True)
    weight = np.square(scales) / np.square(total)
    mean, deviation = weight * b[:, None], np.sqrt(weight) * s[:, None]
    wide = np.maximum(deviation, 1e-12)
    beyond = norm.sf((delta - mean) / wide) + norm.cdf((-delta - mean) / wide)
    probability = np.clip((each * beyond).sum(1), 0, 1)
    lfc = (each * mean).sum(1)
    variance = (each * (deviation**2 + mean**2)).sum(1) - lfc**2
    stderr = np.sqrt(np.maximum(variance, 0))
    return Changes(lfc, stderr, probability, expected_fdr(probability), b / s)


@dataclass
class _Sums:
    """Of shares in ten thousand over the cells of a group; G numbers each.

    Attributes:
        cells: N.
        rate: Σ of denoised ones.
        raw: Σ of raw ones.
        square: Σ of their squares.
        model: Σ of their variances as the model has them.
    """

    cells: int
    rate: np.ndarray
    raw: np.ndarray
    square: np.ndarray
    model: np.ndarray

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.cells + other.cells,
            self.rate + other.rate,
            self.raw + other.raw,
            self.square + other.square,
            self.model + other.model,
        )

    def logarithm(self, pseudo: float) -> tuple[np.ndarray, np.ndarray]:
        """log₂ (mean + ε) and its variance."""
        n = self.cells
        mean = self.rate / n
        seen = (self.square - self.raw**2 / n) / (n - 1)
        variance = np.maximum(seen, self.model / n) / n
        return np.log2(mean + pseudo), variance / (np.log(2) * (mean + pseudo)) ** 2


def compare(a: _Sums, b: _Sums, test: Test) -> Changes:
    """Changes from group b to group a."""
    (one, error), (other, more) = (group.logarithm(test.pseudo) for group in (a, b))
    return shrink(one - other, np.sqrt(error + more), test.delta)


def differential(
    denoiser: Denoiser,
    source: Source | Cells,
    groupby: str,
    layer: str | None = None,
    *,
    reference: str = REST,
    test: Test | None = None,
) -> dict[str, Changes]:
    """Each group of cells against the others, or against one of them.

    Args:
        denoiser: trained on these cells or on such.
        source: AnnData, file, or opened `Cells`.
        groupby: column of obs; cells without an entry are left out.
        layer: where the counts are.
        reference: a category, or "rest" for all other cells.
        test: what is called.

    Returns:
        group -> changes of the model's genes.

    Raises:
        AleatorError: a column or category that is missing, groups of too few cells.
    """
    test = test or Test()
    cells = source if isinstance(source, Cells) else open_cells(source, layer)
    names, code = groups_of(cells, groupby, reference)
    known = cells.aligned(denoiser.genes)
    design = denoiser.covariates.encode(cells.obs, cells.source)
    genes = len(denoiser.genes)
    sums = [_Sums(0, *np.zeros((4, genes))) for _ in names]
    found = rates(denoiser.model, known.counts, design, seed=test.seed, first=cells.index)
    for part in found:
        x = known.counts.read(part.start, part.stop).toarray()
        unit = TARGET / np.maximum(x.sum(1, keepdims=True), 1)
        raw, share = x * unit, part.mean * unit
        spread = share * unit + part.variance * unit**2  # of molecules, of the rate
        for k in np.unique(code[part.start : part.stop]):
            own = code[part.start : part.stop] == k
            if k >= 0:
                values = (v[own].sum(0, dtype=np.float64) for v in (share, raw, raw**2, spread))
                sums[k] = sums[k] + _Sums(int(own.sum()), *values)
    compared = {}
    for k, name in enumerate(names):
        if name == reference:
            continue
        others = [s for j, s in enumerate(sums) if j != k and reference in (REST, names[j])]
        other = others[0]
        for more in others[1:]:
            other = other + more
        compared[name] = compare(sums[k], other, test)
    return compared


def rank_genes_groups(
    changes: dict[str, Changes], genes: pd.Index, groupby: str, reference: str, test: Test
) -> dict[str, Any]:
    """Changes in scanpy's layout, for `uns["rank_genes_groups"]`.

    Genes by decreasing score (fold change over its standard error). `pvals` are 1 - p, the
    posterior probability that there is no change of at least δ; `pvals_adj` the expected
    false-discovery rate of the list up to that gene: neither is a p-value of a null hypothesis.
    """
    fields: dict[str, list[np.ndarray]] = {
        "names": [],
        "scores": [],
        "pvals": [],
        "pvals_adj": [],
        "logfoldchanges": [],
    }
    for found in changes.values():
        order = np.argsort(-found.scores, kind="stable")
        fields["names"].append(np.asarray(genes, dtype=object)[order])
        fields["scores"].append(found.scores[order].astype(np.float32))
        fields["pvals"].append(1 - found.probability[order].astype(np.float64))
        fields["pvals_adj"].append(found.false[order].astype(np.float64))
        fields["logfoldchanges"].append(found.lfc[order].astype(np.float32))
    layout: dict[str, Any] = {}
    for name, columns in fields.items():
        kinds = [(group, column.dtype) for group, column in zip(changes, columns, strict=True)]
        layout[name] = np.rec.fromarrays(columns, dtype=np.dtype(kinds))
    layout["params"] = {
        "groupby": groupby,
        "reference": reference,
        "method": "aleator",
        "use_raw": False,
        "corr_method": "expected_fdr",
        "delta": test.delta,
        "fdr": test.fdr,
    }
    return layout


def groups_of(cells: Cells, groupby: str, reference: str) -> tuple[list[str], np.ndarray]:
    """Names of the groups, and the number (N,) of each cell's; -1 for none.

    Raises:
        AleatorError: a column or category that is missing, groups of too few cells.
    """
    if groupby not in cells.obs:
        raise AleatorError(
            f"{cells.source}: obs has no column {groupby} (it has "
            f"{some(list(map(str, cells.obs.columns)), 12) or 'none'})"
        )
    column = cells.obs[groupby]
    text = column.astype(str).to_numpy(dtype=object)
    there = column.notna().to_numpy()
    names = sorted(set(text[there]))
    if len(names) < 2:
        raise AleatorError(
            f"{cells.source}: {groupby} has {len(names)} group(s); there is nothing to compare"
        )
    if len(names) > len(cells) // FEWEST:
        raise AleatorError(
            f"{cells.source}: {groupby} has {len(names)} groups of {len(cells)} cells"
        )
    if reference != REST and reference not in names:
        raise AleatorError(f"{groupby} has no {reference} (known: {some(names, 12)})")
    code = np.full(len(text), -1)
    code[there] = np.searchsorted(names, text[there].astype(str))
    for k, name in enumerate(names):
        if (code == k).sum() < FEWEST:
            raise AleatorError(
                f"{cells.source}: {groupby}={name} has {(code == k).sum()} cell(s); at least "
                f"{FEWEST} are needed, leave it out or join it to another group"
            )
    return names, code
