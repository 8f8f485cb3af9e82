r"""Which cells express a gene at all: an estimate with zeros that are meant.

Most cells do not express a marker. Their rates differ a little all the same, by the soup around
the cells and by what a model cannot tell, and any order of them costs rank correlation with what
the gene stands for: cells that are off should be ties. For each gene, over cells,

    x ~ NB(μ, θ),   ln θ ~ N(m, s²),                m and s by the marginal likelihood of all genes
    λ̂ = balanced(μ, θ, x),   ln(λ̂ / n) ~ π N(a, u²) + (1 - π) N(b, v²),       a < b

and λ̂ is zero below the share at which the upper component becomes the likelier one. That asks for
two levels that the cells really have (the Bayesian information criterion prefers them to one) and
that are `APART` times from each other; otherwise a gene is on everywhere. μ is the model's, θ is
learned anew: what the counts of a marker say of their own cell hangs on it, and the few steps that
a small data set is trained for hardly move it from where it starts.

The rule has no constant that was fitted to proteins or to labels; docs/single_cell.md says what it
was judged by. A molecule in a cell that is off counts as background: rates at that place are not
zero, and held-out molecules should not be predicted by it.

References: Zilliox and Irizarry (2007) doi:10.1038/nmeth1102 (expressed or not, gene by gene, from
two components over samples); Linderman et al. (2022) doi:10.1038/s41467-021-27729-z (zeros that
are meant among denoised values).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.model import CellVAE
from apps.single_cell.posterior import DRAWS, Rates, balanced, before_count, rates
from core.errors import AleatorError

SAMPLE = 2000
"""Cells that levels are learned from, at most: a seeded sample of larger sets."""
GRID = np.arange(-4.0, 6.01, 0.5)
"""Of ln θ."""
SPREADS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Of ln θ over genes, of which one is chosen."""
REACH, WIDTH = 6.0, 0.15
"""Of the histogram of ln(share / the gene's mean share): its ends, and its bins."""
UPDATES = 40
"""Of the two components."""
APART = 3.0
"""Times by which the level of cells that are on is above that of the others, at least."""


@dataclass(frozen=True)
class Levels:
    """What tells cells that express a gene from the others.

    Attributes:
        dispersion: θ (G,).
        threshold: share (G,) of a cell's molecules below which it is off; 0 where no cell is.
    """

    dispersion: np.ndarray
    threshold: np.ndarray

    def estimate(self, part: Rates) -> np.ndarray:
        """Rates (B, G), zero where a cell does not express a gene."""
        mu, counts = _before(part)
        found = _balanced(mu, counts, self.dispersion)
        library = counts.sum(1, keepdims=True)
        return np.where(found < library * self.threshold, 0, found).astype(np.float32)


def learn_levels(
    model: CellVAE,
    counts: Counts,
    design: Design,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    first: np.ndarray | None = None,
) -> Levels:
    """Learn dispersions and levels from cells and the model's rates of them, in two passes.

    Args:
        model: trained.
        counts: (N, G), whole numbers; at most `SAMPLE` cells of them are used.
        design: covariates of the cells.
        seed: of the sample, and of the draws.
        draws: of the latents.
        first: (N,) places of the cells that key their draws; 0 to N - 1 if None.
    """
    n = len(counts)
    chosen = np.arange(n)
    if n > SAMPLE:
        chosen = np.sort(np.random.default_rng([seed, n]).permutation(n)[:SAMPLE])
    keys = chosen if first is None else np.asarray(first)[chosen]
    some = counts.select(cells=chosen)
    cut = design.take(chosen)

    def parts() -> Iterator[Rates]:
        return rates(model, some, cut, draws=draws, seed=seed, first=keys)

    genes = counts.shape[1]
    curves, total = np.zeros((len(GRID), genes)), np.zeros(genes)
    for part in parts():
        mu, x = _before(part)
        curves += dispersion_curves(mu, x)
        total += x.sum(0, dtype=np.float64)
    dispersion = np.exp(shrunken(curves))
    profile = (total + 0.5) / (total + 0.5).sum()
    histogram = np.zeros((genes, round(2 * REACH / WIDTH)))
    for part in parts():
        mu, x = _before(part)
        _count_shares(histogram, _balanced(mu, x, dispersion), x, profile)
    return Levels(dispersion.astype(np.float32), profile * np.exp(crossings(histogram)))


def dispersion_curves(mu: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Σ over cells of ln NB(x; μ, θ), up to what does not depend on θ, for θ of `GRID`; (K, G).

    Args:
        mu: (B, G).
        counts: x (B, G).
    """
    rate = torch.from_numpy(mu).clamp(min=1e-30)
    cell, gene = (torch.from_numpy(index) for index in counts.nonzero())
    x, own = torch.from_numpy(counts)[cell, gene].double(), rate[cell, gene].double()
    found = torch.zeros(len(GRID), counts.shape[1], dtype=torch.float64)
    for k, theta in enumerate(torch.from_numpy(np.exp(GRID))):
        seen = torch.lgamma(x + theta) - torch.lgamma(theta) - x * torch.log(own + theta)
        found[k] = -theta * torch.log1p(rate / float(theta)).sum(0, dtype=torch.float64)
        found[k].index_add_(0, gene, seen)
    return found.numpy()


def shrunken(curves: np.ndarray) -> np.ndarray:
    """Posterior mean of ln θ (G,), for log-likelihoods (K, G) on `GRID` and their own prior.

    The prior is normal; its mean and spread have the greatest marginal likelihood of all genes.
    """
    top = curves.max(0)
    likelihood = np.exp(curves - top)
    best, prior = -np.inf, np.zeros(len(GRID))
    for centre in GRID:
        for spread in SPREADS:
            weight = np.exp(-0.5 * np.square((GRID - centre) / spread))
            weight /= weight.sum()
            value = float(np.log(np.maximum(weight @ likelihood, 1e-300)).sum())
            if value > best:
                best, prior = value, weight
    weights = prior[:, None] * likelihood
    return GRID @ weights / weights.sum(0)


def crossings(histogram: np.ndarray) -> np.ndarray:
    """Where the upper of two normal components becomes the likelier one, for each gene.

    Args:
        histogram: (G, bins) of cells by ln(share / mean share), from -`REACH` to `REACH`.

    Returns:
        (G,), -inf where one component is as good, or two are closer than `APART`.
    """
    n = histogram.sum(1, keepdims=True)
    at = (np.arange(histogram.shape[1]) + 0.5) * WIDTH - REACH
    p = histogram / n
    mean = p @ at
    variance = p @ np.square(at) - np.square(mean) + WIDTH**2
    one = -0.5 * n[:, 0] * (np.log(2 * np.pi * variance) + 1)
    lower, upper, low, high = _two(p, at)
    two = n[:, 0] * (p * np.log(lower + upper + 1e-300)).sum(1)
    better = 2 * (two - one) > 3 * np.log(n[:, 0])
    between = (at >= low[:, None]) & (at <= high[:, None]) & (upper >= lower)
    found = np.where(between, at, np.inf).min(1) - WIDTH / 2
    found = np.where(np.isfinite(found), found, high)
    return np.where(better & (high - low > np.log(APART)), found, -np.inf)


def _two(p: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Weighted densities (G, bins) of both components, the lower first, and their means (G,).

    Expectation maximisation from the cut of greatest variance between its sides (Otsu).
    """
    below, moment = p.cumsum(1), (p * at).cumsum(1)
    apart = np.square(moment[:, -1:] * below - moment) / np.maximum(below * (1 - below), 1e-12)
    cut = apart[:, :-1].argmax(1)
    of_first = np.where(np.arange(len(at)) <= cut[:, None], 0.95, 0.05)
    first = _component(p, of_first, at)
    second = _component(p, 1 - of_first, at)
    for _ in range(UPDATES):
        of_first = first[0] / (first[0] + second[0] + 1e-300)
        first, second = _component(p, of_first, at), _component(p, 1 - of_first, at)
    swap = first[1] > second[1]
    a, b = np.where(swap, second[1], first[1]), np.where(swap, first[1], second[1])
    wide = swap[:, None]
    return np.where(wide, second[0], first[0]), np.where(wide, first[0], second[0]), a, b


def _component(p: np.ndarray, share: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted density (G, bins) of a normal law with these shares of the cells, and its mean."""
    own = p * share
    weight = np.maximum(own.sum(1), 1e-12)
    mean = own @ at / weight
    apart = np.square(at - mean[:, None])
    variance = (own * apart).sum(1) / weight + WIDTH**2
    scale = weight / np.sqrt(2 * np.pi * variance)
    return scale[:, None] * np.exp(-0.5 * apart / variance[:, None]), mean


def _before(part: Rates) -> tuple[np.ndarray, np.ndarray]:
    """What the latents alone say of the rates (B, G), and the counts."""
    if part.counts is None:
        raise AleatorError("rates under other covariates than the cells' own have no counts")
    if part.dispersion is None:
        return part.mean, part.counts
    given = (torch.from_numpy(a) for a in (part.mean, part.counts, part.dispersion))
    return before_count(*given).numpy(), part.counts


def _balanced(mu: np.ndarray, counts: np.ndarray, dispersion: np.ndarray) -> np.ndarray:
    """The balanced estimate (B, G) with dispersions (G,)."""
    rate, x = torch.from_numpy(mu), torch.from_numpy(counts)
    theta = torch.from_numpy(dispersion.astype(np.float32))[None]
    return balanced(rate * (theta + x) / (theta + rate), x, theta).numpy()


def _count_shares(
    histogram: np.ndarray, found: np.ndarray, counts: np.ndarray, profile: np.ndarray
) -> None:
    """Add cells to the histogram; those without molecules are left out."""
    library = counts.sum(1, keepdims=True)
    filled = library[:, 0] > 0
    share = found[filled] / (library[filled] * profile)
    place = (np.log(np.maximum(share, 1e-30)) + REACH) / WIDTH
    bins = np.clip(place, 0, histogram.shape[1] - 1).astype(np.int64)
    genes = np.arange(histogram.shape[0])
    for row in bins:
        histogram[genes, row] += 1
