r"""How counts of new cells scatter around their rates: dispersions once more, and outliers.

    λ_g ~ (1 - ε) Gamma(θ_g, mean m_g) + ε Gamma(1, mean r m_g),    m = μ / (1 + ε (r - 1))

A gamma law whose variance is that of the cells is too wide where most cells are, because a few
counts in a thousand are many times what their cell says: here those few have a law of their own,
and the mean stays μ. What of the latents the encoder did not know in training went to the
dispersions, too, and would be drawn twice; so latents come from all molecules, z ~ q(z | x), and
the most probable ln θ_g under their prior N(centre, 2) is found gene by gene. The share ε and the
size r are the most likely of `OUTLIERS`; no outliers are among them.

Only generation uses it. References: Hilbe (2011) doi:10.1017/CBO9780511973420 (dispersions);
Aitkin and Wilson (1980) doi:10.1080/00401706.1980.10486202 (outliers as a component).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.likelihood import SPEED, CellLaw
from apps.single_cell.model import DISPERSION, CellVAE, make_context
from apps.single_cell.posterior import CELLS, cut
from core.random import Generators, gamma, keyed_generator, rand

OUTLIERS = ((0.0, 1.0), (0.003, 5.0), (0.01, 3.0), (0.01, 5.0), (0.01, 10.0), (0.03, 3.0))
"""Shares ε and sizes r of outliers, from which the likelihood chooses."""
SAMPLE, EVERY = 4000, 4
"""Cells that are looked at, at most; every how many-th cell chooses among `OUTLIERS`."""
GRID = torch.arange(-4.0, 8.01, 0.5, dtype=torch.float64)
"""ln θ between which the most probable one is interpolated."""


@dataclass(frozen=True)
class Scatter:
    """The law of rates around μ.

    Attributes:
        log_dispersion: ln θ, (batches or 1, G).
        share: ε.
        size: r.
    """

    log_dispersion: Tensor
    share: float
    size: float

    @classmethod
    def fit(cls, model: CellVAE, counts: Counts, design: Design, seed: int = 0) -> Scatter | None:
        """The most probable one of cells; None for a law that is not negative binomial.

        Args:
            model: trained.
            counts: (N, G) of cells such as it was trained on; a sample of them is used.
            design: covariates of the cells.
            seed: of the sample and of the latents.
        """
        law = model.likelihood
        if law.spread is None or law.zeros is not None:
            return None
        model.eval()
        centre = float(log_dispersions(model).mean())
        known = (model, counts, design, seed)
        heights = [
            most_probable(_profiles(*known, *outlier, every=EVERY), centre)[1]
            for outlier in OUTLIERS
        ]
        outlier = OUTLIERS[int(np.argmax(heights))]
        return cls(most_probable(_profiles(*known, *outlier), centre)[0].float(), *outlier)

    def rates(self, law: CellLaw, streams: Generators, group: Tensor | None = None) -> Tensor:
        """Draws of λ (N, G).

        Args:
            law: of N cells; its own dispersions are not used.
            streams: one for each cell, or one for all.
            group: (N,) batches of the cells, where each has dispersions.
        """
        mean = law.rate / (1 + self.share * (self.size - 1))
        several = len(self.log_dispersion) > 1 and group is not None
        theta = (self.log_dispersion[group] if several else self.log_dispersion).exp()
        theta = theta.expand_as(mean).contiguous()
        drawn = gamma(theta, streams) * (mean / theta)
        if not self.share:
            return drawn
        # below ε, u / ε is uniform itself, and -ln of it a draw of Gamma(1)
        u = rand(mean.shape, streams, dtype=mean.dtype)
        outlier = -self.size * mean * (u / self.share).clamp(min=1e-7).log()
        return torch.where(u < self.share, outlier, drawn)


def log_dispersions(model: CellVAE) -> Tensor:
    """Ln θ (batches or 1, G) of a model as it was trained."""
    law = model.likelihood
    assert law.spread is not None
    return (SPEED * law.spread).detach().clamp(-9.0, 9.0)


def most_probable(profile: Tensor, centre: float) -> tuple[Tensor, float]:
    """Ln θ (K, G) at the top of log-likelihoods (K, G, `GRID`) with their prior, and its height.

    Between the points of the grid a parabola goes through the highest and its neighbours.
    """
    height = profile - 0.5 * DISPERSION * (GRID - centre).square()
    best = height.argmax(2).clamp(1, len(GRID) - 2)
    low, mid, high = (height.gather(2, (best + i)[..., None])[..., 0] for i in (-1, 0, 1))
    bend = low - 2 * mid + high
    shift = torch.where(bend < 0, 0.5 * (low - high) / bend, torch.zeros_like(bend)).clamp(-1, 1)
    top = mid - 0.25 * (low - high) * shift
    step = float(GRID[1] - GRID[0])
    return GRID[best] + step * shift, float(top.sum())


def _profiles(
    model: CellVAE,
    counts: Counts,
    design: Design,
    seed: int,
    share: float,
    size: float,
    every: int = 1,
) -> Tensor:
    """Log-likelihoods (K, G, `GRID`) of each gene in each batch."""
    several = log_dispersions(model)
    found = torch.zeros(*several.shape, len(GRID), dtype=torch.float64)
    for x, mu, group in _blocks(model, counts, design, seed, every):
        for k in group.unique().tolist():
            rows = group == k
            found[k] += log_likelihood(x[rows], mu[rows], share, size)
    return found


def log_likelihood(x: Tensor, mu: Tensor, share: float, size: float) -> Tensor:
    """Σ_n ln p(x_n; μ_n, θ) for every θ of `GRID`, (G, `GRID`), float64.

    Args:
        x: (B, G) counts.
        mu: (B, G) means.
        share: ε.
        size: r.
    """
    mean = (mu / (1 + share * (size - 1))).clamp(min=1e-9)
    row, column = x.nonzero(as_tuple=True)
    n, m = x[row, column].double(), mean[row, column].double()
    none = -torch.log1p(size * mean)  # ln of the chance that an outlier is 0
    outlier = n * torch.log(size * m) - (n + 1) * torch.log1p(size * m)
    constant = torch.lgamma(n + 1)
    found = torch.zeros(x.shape[1], len(GRID), dtype=torch.float64)
    for k, theta in enumerate(GRID.exp().tolist()):
        zero = _either(-theta * torch.log1p(mean / theta), none, share)
        here = torch.lgamma(n + theta) - math.lgamma(theta) - constant
        here = here + n * torch.log(m / (m + theta)) - theta * torch.log1p(m / theta)
        special = _either(here, outlier, share) - zero[row, column]
        found[:, k] = zero.double().sum(0).index_add(0, column, special)
    return found


def _either(usual: Tensor, outlier: Tensor, share: float) -> Tensor:
    """ln((1 - ε) e^usual + ε e^outlier)."""
    if not share:
        return usual
    return torch.logaddexp(usual + math.log1p(-share), outlier + math.log(share))


@torch.no_grad()
def _blocks(
    model: CellVAE, counts: Counts, design: Design, seed: int, every: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Counts (B, G), rates (B, G) and batches (B,) of a sample of the cells."""
    number = math.ceil(min(len(counts), SAMPLE) / every)
    if number < len(counts):
        order = torch.randperm(len(counts), generator=keyed_generator(seed, 0))[:number]
        chosen = np.sort(order.numpy())
        counts = counts.select(cells=chosen)
        design = Design(design.codes[chosen], design.values[chosen], design.sizes)
    several = len(log_dispersions(model)) > 1
    for start, stop, block in counts.blocks(CELLS):
        x = torch.from_numpy(block.toarray())
        context = make_context(
            x.sum(1).clamp(min=1.0).numpy(), cut(design, slice(start, stop)), slice(None)
        )
        q = model.encode(x, context)
        noise = torch.randn(q.mean.shape, generator=keyed_generator(seed, 1, start))
        mu = model.decode(q.mean + q.stddev * noise, context).rate
        group = context["label"] if several else torch.zeros(len(x), dtype=torch.long)
        yield x, mu, group
