r"""How counts of new cells scatter around their rates: dispersions once more, and bursts.

    λ_g ~ (1 - ε) Gamma(θ_g, mean m) + ε Gamma(2, mean m + b),
    ε = 1 - exp(-q μ_g),   m = μ_g - ε b

A gamma law whose variance is that of the cells is too wide where most cells are. In pbmc3k two
molecules in a thousand count some twenty times, as one does whose copies are taken for
molecules: a count of twenty where its cell says 0.3, and the more often the higher μ. Such bursts
have a law of their own here, and the mean stays μ. What of the latents the encoder did not know in
training went to the dispersions, too, and would be drawn twice; so latents come from all
molecules, z ~ q(z | x), and the most probable ln θ_g under their prior N(centre, 2) is found gene
by gene. The chance q of a burst and its size b are the most likely of `BURSTS`; none at all is
among them.

Only generation uses it. References: Hilbe (2011) doi:10.1017/CBO9780511973420 (dispersions);
Aitkin and Wilson (1980) doi:10.1080/00401706.1980.10486202 (outliers as a component); Smith, Heger
and Sudbery (2017) doi:10.1101/gr.209601.116 (copies that are counted as molecules).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.likelihood import SPEED, CellLaw
from apps.single_cell.model import DISPERSION, CellVAE, make_context
from apps.single_cell.posterior import CELLS
from core.progress import progress_bar
from core.random import Generators, gamma, keyed_generator, rand

BURSTS = ((0.0, 0.0), *itertools.product((5e-4, 1e-3, 1.5e-3, 2e-3, 3e-3), (10.0, 20.0, 40.0)))
"""Chances q and sizes b of bursts, from which the likelihood chooses."""
SHAPE = 2.0
"""Of the gamma law with a burst."""
MOST = 0.5
"""Share of μ that is left for usual counts at least, however large bursts get."""
SAMPLE, EVERY = 4000, 8
"""Cells that are looked at, at most; every how many-th cell chooses among `BURSTS`."""
GRID = torch.arange(-4.0, 8.01, 0.5, dtype=torch.float64)
"""ln θ between which the most probable one is interpolated."""


@dataclass(frozen=True)
class Scatter:
    """The law of rates around μ.

    Attributes:
        log_dispersion: ln θ, (batches or 1, G).
        chance: q, of a molecule to burst.
        size: b, counts of a burst.
    """

    log_dispersion: Tensor
    chance: float
    size: float

    @classmethod
    def fit(
        cls,
        model: CellVAE,
        counts: Counts,
        design: Design,
        seed: int = 0,
        *,
        progress: str | None = None,
    ) -> Scatter | None:
        """The most probable one of cells; None for a law that is not negative binomial.

        Args:
            model: trained.
            counts: (N, G) of cells such as it was trained on; a sample of them is used.
            design: covariates of the cells.
            seed: of the sample and of the latents.
            progress: unit shown on stderr; None for silence.
        """
        law = model.likelihood
        if law.spread is None or law.zeros is not None:
            return None
        model.eval()
        centre = float(log_dispersions(model).mean())
        known = (model, counts, design, seed)
        few, heights = list(_blocks(*known, every=EVERY)), []
        with progress_bar(len(BURSTS) + 1, progress) as advance:
            for burst in BURSTS:
                heights.append(most_probable(profiles(model, few, *burst), centre)[1])
                advance(1)
            burst = BURSTS[int(np.argmax(heights))]
            log_theta, _ = most_probable(profiles(model, _blocks(*known), *burst), centre)
            advance(1)
        return cls(log_theta.float(), *burst)

    def rates(self, law: CellLaw, streams: Generators, group: Tensor | None = None) -> Tensor:
        """Draws of λ (N, G).

        Args:
            law: of N cells; its own dispersions are not used.
            streams: one for each cell, or one for all.
            group: (N,) batches of the cells, where each has dispersions.
        """
        share, usual, burst = parts(law.rate, self.chance, self.size)
        several = len(self.log_dispersion) > 1 and group is not None
        theta = (self.log_dispersion[group] if several else self.log_dispersion).exp()
        theta = theta.expand_as(usual).contiguous()
        drawn = gamma(theta, streams) * (usual / theta)
        if not self.chance:
            return drawn
        # a uniform number below ε is, divided by it, uniform again; two of them make a Gamma(2)
        u = rand(usual.shape, streams, dtype=usual.dtype)
        w = rand(usual.shape, streams, dtype=usual.dtype)
        large = -burst / SHAPE * (u / share * (1 - w)).clamp(min=1e-30).log()
        return torch.where(u < share, large, drawn)


def parts(mu: Tensor, chance: float, size: float) -> tuple[Tensor, Tensor, Tensor]:
    """The share ε of bursts, and the mean rates m without and m + b with one, of rates μ."""
    share = -torch.expm1(-chance * mu)
    extra = (MOST * mu / share.clamp(min=1e-30)).clamp(max=size)
    usual = mu - share * extra
    return share, usual, usual + extra


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


def profiles(
    model: CellVAE, blocks: Iterable[tuple[Tensor, Tensor, Tensor]], chance: float, size: float
) -> Tensor:
    """Log-likelihoods (K, G, `GRID`) of each gene in each batch, of `_blocks` of cells."""
    shape = log_dispersions(model).shape
    found = torch.zeros(*shape, len(GRID), dtype=torch.float64)
    for x, mu, group in blocks:
        for k in group.unique().tolist():
            rows = group == k
            found[k] += log_likelihood(x[rows], mu[rows], chance, size)
    return found


def log_likelihood(x: Tensor, mu: Tensor, chance: float, size: float) -> Tensor:
    """Σ_n ln p(x_n; μ_n, θ) for every θ of `GRID`, (G, `GRID`), float64.

    Args:
        x: (B, G) counts.
        mu: (B, G) means.
        chance: q.
        size: b.
    """
    share, mean, burst = parts(mu.clamp(min=1e-9), chance, size)
    row, column = x.nonzero(as_tuple=True)
    n, m, v, e = (t[row, column].double() for t in (x, mean, burst, share))
    none = -SHAPE * torch.log1p(burst / SHAPE)  # ln of the chance that a burst leaves no count
    large = torch.log1p(n) + n * torch.log(v / (v + SHAPE)) - SHAPE * torch.log1p(v / SHAPE)
    constant = torch.lgamma(n + 1)
    found = torch.zeros(x.shape[1], len(GRID), dtype=torch.float64)
    for k, theta in enumerate(GRID.exp().tolist()):
        zero = _either(-theta * torch.log1p(mean / theta), none, share)
        here = torch.lgamma(n + theta) - math.lgamma(theta) - constant
        here = here + n * torch.log(m / (m + theta)) - theta * torch.log1p(m / theta)
        special = _either(here, large, e) - zero[row, column]
        found[:, k] = zero.double().sum(0).index_add(0, column, special)
    return found


def _either(usual: Tensor, burst: Tensor, share: Tensor) -> Tensor:
    """ln((1 - ε) e^usual + ε e^burst)."""
    return torch.logaddexp(usual + torch.log1p(-share), burst + share.log())


@torch.no_grad()
def _blocks(
    model: CellVAE, counts: Counts, design: Design, seed: int, every: int = 1
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Counts (B, G), rates (B, G) and batches (B,) of a sample of the cells."""
    number = math.ceil(min(len(counts), SAMPLE) / every)
    if number < len(counts):
        order = torch.randperm(len(counts), generator=keyed_generator(seed, 0))[:number]
        chosen = np.sort(order.numpy())
        counts = counts.select(cells=chosen)
        design = design.take(chosen)
    several = len(log_dispersions(model)) > 1
    for start, stop, block in counts.blocks(CELLS):
        x = torch.from_numpy(block.toarray())
        context = make_context(
            x.sum(1).clamp(min=1.0).numpy(), design.take(slice(start, stop)), slice(None)
        )
        q = model.encode(x, context)
        noise = torch.randn(q.mean.shape, generator=keyed_generator(seed, 1, start))
        mu = model.decode(q.mean + q.stddev * noise, context).rate
        group = context["label"] if several else torch.zeros(len(x), dtype=torch.long)
        yield x, mu, group


def draw_counts(
    law: CellLaw,
    streams: Sequence[torch.Generator],
    scatter: Scatter | None = None,
    group: Tensor | None = None,
) -> Tensor:
    r"""Counts (N, G) whose totals are the libraries.

        λ_g ~ scatter, or Gamma(θ_g, mean μ_g),   x ~ Multinomial(n, λ / Σ λ)

    A negative binomial of each gene by itself would have totals that vary around n, and the prior
    has learned what totals are like: their variance would count twice.

    Args:
        law: of N cells, whose libraries are whole numbers.
        streams: one for each cell.
        scatter: of the rates; the law's own if None.
        group: (N,) batches of the cells, for `scatter`.
    """
    rate = law.rate
    if scatter is not None:
        rate = scatter.rates(law, streams, group)
    elif law.log_dispersion is not None:
        theta = law.dispersion.expand_as(rate).contiguous()
        rate = gamma(theta, streams) * (rate / theta)
    if law.zero_logits is not None:
        kept = rand(rate.shape, streams, dtype=rate.dtype) < law.keep
        rate = torch.where(kept.any(1, keepdim=True), rate * kept, rate)
    rows = [
        torch.bincount(
            torch.multinomial(r, int(n), replacement=True, generator=g), minlength=len(r)
        )
        for r, n, g in zip(rate.clamp(min=1e-30), law.library, streams, strict=True)
    ]
    return torch.stack(rows).float()
