r"""From a model and counts to rates: mean, variance and intervals, flat in memory.

    λ | x = ∫ Gamma(θ + x, mean μ_z (θ + x) / (θ + μ_z)) q(z | x) dz

The mixture is summed up by its first two moments over draws of z, one draw at a time, and read as
a gamma law of the same moments. Held-out molecules at `ratio` times the depth are then negative
binomial, of the same shape. Draws of a cell come from its own stream: blocks do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from apps.single_cell.counts import Counts
from apps.single_cell.covariates import Design
from apps.single_cell.likelihood import CellLaw, Seen
from apps.single_cell.model import CellVAE, make_context
from core.random import keyed_generator
from core.vae.base import repeat_context, repeat_rows

CELLS = 256
"""Cells at once: what is dense is no larger than so many times G."""
DRAWS = 8
"""Draws of the latents that a mean is taken over."""


@dataclass
class Rates:
    """What is known of the rates of some cells, at their own depth.

    Attributes:
        start: of the cells.
        stop: of the cells.
        mean: E[λ | x] (B, G).
        variance: Var[λ | x] (B, G).
        latent: posterior mean of z (B, D).
        elbo: ln p(x) from below, (B,) nats.
        balanced: between the mean and an estimate that varies as the rates do, see `balanced`;
            (B, G), None where counts say nothing (rates under other covariates).
        counts: x (B, G), likewise.
        dispersion: θ (1, G) or (B, G); None for Poisson.
    """

    start: int
    stop: int
    mean: np.ndarray
    variance: np.ndarray
    latent: np.ndarray
    elbo: np.ndarray
    balanced: np.ndarray | None = None
    counts: np.ndarray | None = None
    dispersion: np.ndarray | None = None

    @property
    def shape(self) -> np.ndarray:
        """Shape of the gamma law of these moments (B, G)."""
        return self.mean**2 / np.maximum(self.variance, 1e-30)

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Central credible interval of the rates, two of (B, G)."""
        place = Place.of(self.shape)
        low, high = (self.mean * place.read(p) for p in (0.5 - level / 2, 0.5 + level / 2))
        return low, high


def balanced(mean: Tensor, counts: Tensor, dispersion: Tensor) -> Tensor:
    r"""Rates that weigh the error of each value and that of their spread over cells alike.

    Of all λ̂ = μ + a (x - μ), the posterior mean has a = w = μ / (μ + θ) and the least error of
    each value, but varies less over cells than the rates do; a = √w varies just as much (the
    constrained Bayes estimate). Least of the sum of both errors is halfway:

        argmin_a E(λ̂ - λ)² + (sd λ̂ - sd λ)² = (w + √w) / 2

    What two genes share is in μ, and what they do not is in x - μ: means of it alone correlate too
    much. Within a cell's posterior, μ is taken to be what has the given mean.

    Args:
        mean: E[λ | x] (B, G).
        counts: x (B, G).
        dispersion: θ (1, G) or (B, G).

    Returns:
        (B, G), not negative.

    References: Louis (1984) doi:10.1080/01621459.1984.10478062; Ghosh (1992)
    doi:10.1080/01621459.1992.10475236.
    """
    mu = before_count(mean, counts, dispersion)
    w = mu / (mu + dispersion)
    return (mean + 0.5 * (w.sqrt() - w) * (counts - mu)).clamp_(min=0)


def before_count(mean: Tensor, counts: Tensor, dispersion: Tensor) -> Tensor:
    """The μ (B, G) whose posterior mean, with counts x and dispersion θ, is the given one."""
    return mean * dispersion / (dispersion + (counts - mean)).clamp(min=1e-6)


def rates(
    model: CellVAE,
    counts: Counts,
    design: Design,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    first: np.ndarray | None = None,
    cells: int = CELLS,
    target: Design | Sequence[Design] | None = None,
) -> Iterator[Rates]:
    """Rates of all cells, block by block.

    Args:
        model: trained.
        counts: (N, G), whole numbers.
        design: covariates of the cells.
        draws: of the latents; memory does not grow with them.
        seed: of the draws.
        first: (N,) places of the cells that key their draws; 0 to N - 1 if None.
        cells: of a block.
        target: covariates to decode with instead, for counterfactuals; the rates are then μ, since
            a count was not seen under other covariates. With several, their mean.

    Yields:
        one for each block.
    """
    keys = np.arange(len(counts)) if first is None else first
    targets = [] if target is None else [target] if isinstance(target, Design) else list(target)
    for start, stop, block in counts.blocks(cells):
        x = torch.from_numpy(block.toarray())
        library = x.sum(1).numpy()
        part = slice(start, stop)
        context = make_context(library, design.take(part), slice(None))
        others = [make_context(library, t.take(part), slice(None)) for t in targets]
        streams = [keyed_generator(seed, int(key)) for key in keys[part]]
        yield _block(model, x, context, others, streams, draws, start)


@torch.no_grad()
def _block(
    model: CellVAE,
    x: Tensor,
    context: dict[str, Tensor],
    others: list[dict[str, Tensor]],
    streams: list[torch.Generator],
    draws: int,
    start: int,
) -> Rates:
    q = model.encode(x, context)
    mean, second = torch.zeros_like(x), torch.zeros_like(x)
    log_p = x.new_zeros(len(x))
    noise = torch.stack([torch.randn(draws, model.latent_dim, generator=g) for g in streams], 1)
    drawn, seen = q.mean + q.stddev * noise, None
    for z in drawn:
        law = model.decode(z, context)
        seen = seen or Seen.of(x, law)
        log_p += law.bound(seen) / draws
        laws = [model.decode(z, other) for other in others]
        parts = [_prior(other) for other in laws] if laws else [law.posterior(x)]
        for m, v in parts:
            mean += m / (draws * len(parts))
            second += (v + m.square()) / (draws * len(parts))
    kl = model.divergence(q, drawn.transpose(0, 1))
    variance = (second - mean.square()).clamp_(min=0)
    between = mean
    if law.log_dispersion is not None:
        between = balanced(mean, x, law.dispersion)
    return Rates(
        start,
        start + len(x),
        mean.numpy(),
        variance.numpy(),
        q.mean.numpy(),
        (log_p - kl).numpy(),
        None if others else between.numpy(),
        None if others else x.numpy(),
        None if law.log_dispersion is None else law.dispersion.numpy(),
    )


def _prior(law: CellLaw) -> tuple[Tensor, Tensor]:
    """Moments of the rates before any count is seen."""
    if law.log_dispersion is None:
        return law.mean, torch.zeros_like(law.mean)
    return law.mean, law.mean.square() / law.dispersion


SHAPES = (1e-3, 1e6)
"""Between these shapes, quantiles of the gamma law are read from a table."""


KNOTS = 4001


@lru_cache(maxsize=64)
def quantiles(p: float) -> np.ndarray:
    """Quantile over mean of gamma laws, (KNOTS,) at even steps of the logarithm of the shape."""
    shape = np.exp(np.linspace(np.log(SHAPES[0]), np.log(SHAPES[1]), KNOTS))
    return (special.gammaincinv(shape, p) / shape).astype(np.float32)


@dataclass(frozen=True)
class Place:
    """Where shapes of gamma laws are among the knots of `quantiles`, for one look-up each.

    Attributes:
        knot: the one below.
        share: how far from it to the next.
    """

    knot: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, shape: np.ndarray) -> Place:
        """Of shapes, any array; those outside `SHAPES` count as the nearest inside."""
        low, high = np.log(SHAPES)
        at = np.log(np.clip(shape, *SHAPES), dtype=np.float32)
        at = (at - np.float32(low)) * np.float32((KNOTS - 1) / (high - low))
        knot = np.clip(at.astype(np.int32), 0, KNOTS - 2)
        return cls(knot, np.clip(at - knot, 0, 1))

    def read(self, p: float) -> np.ndarray:
        """Quantile p over mean, float32."""
        table = quantiles(p)
        low = table[self.knot]
        return low + self.share * (table[1:][self.knot] - low)


def pit(
    found: Rates, ratio: float, held_out: np.ndarray, uniform: np.ndarray, widen: float = 1.0
) -> np.ndarray:
    r"""Randomised probability integral transform of held-out molecules.

        u = F(x - 1) + v (F(x) - F(x - 1)),   v ~ U(0, 1)

    is uniform if x comes from F, discrete or not.

    Args:
        found: rates at the depth of the training part.
        ratio: depth of the held-out part over that of the training part.
        held_out: (B, G) molecules.
        uniform: v, of the same shape.
        widen: factor on the variance of the rates.

    Returns:
        u (B, G).

    Reference: Czado, Gneiting and Held (2009), doi:10.1111/j.1541-0420.2009.01191.x
    """
    mean = np.maximum(found.mean.astype(np.float64) * ratio, 1e-12)
    shape = np.clip(found.shape / widen, *SHAPES)
    p = shape / (shape + mean)
    upper = stats.nbinom.cdf(held_out, shape, p)
    lower = np.where(held_out > 0, stats.nbinom.cdf(held_out - 1, shape, p), 0.0)
    return lower + uniform * (upper - lower)


def sample_rates(
    model: CellVAE,
    x: Tensor,
    context: dict[str, Tensor],
    draws: int,
    seed: int,
    keys: Sequence[int] | np.ndarray | None = None,
) -> Tensor:
    """Posterior draws of the rates of cells (B, G) at their depth, (draws, B, G).

    Args:
        model: trained.
        x: (B, G) counts.
        context: of the cells.
        draws: of each.
        seed: of the draws.
        keys: (B,) places of the cells, which key their draws; 0 to B - 1 if None.
    """
    places = np.arange(len(x)) if keys is None else keys
    streams = [keyed_generator(seed, int(place)) for place in places]
    with torch.no_grad():
        q = model.encode(x, context)
        noise = torch.stack([torch.randn(draws, model.latent_dim, generator=g) for g in streams])
        z = (q.mean[:, None] + q.stddev[:, None] * noise).flatten(0, 1)
        law = model.decode(z, repeat_context(context, draws))
        counts = repeat_rows(x, draws)
        mean, variance = law.posterior(counts)
        if law.log_dispersion is not None:
            shape = (mean.square() / variance.clamp(min=1e-30)).clamp(*SHAPES)
            each = [g for g in streams for _ in range(draws)]
            unit = torch.stack(
                [torch._standard_gamma(s, generator=g) for s, g in zip(shape, each, strict=True)]
            )
            mean = mean * unit / shape
    return mean.reshape(len(x), draws, -1).transpose(0, 1)
