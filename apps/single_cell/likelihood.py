r"""The law of all counts of a cell, fast where most counts are zero.

    μ = n softmax(h),   x_g ~ Poisson(λ_g),   λ_g ~ Gamma(θ_g, mean μ_g)     (negative binomial)

n is the library of the cell. The log-likelihood is that of `core.distributions`, summed over
genes: what is special at x > 0 is evaluated there only, so that a step costs a few passes over
(B, G) instead of dozens of Γ functions. θ = ∞ is the Poisson law.

The gamma law of the rate is what makes the count itself evidence about its own gene:

    λ | x, z ~ Gamma(θ + x, mean μ (θ + x) / (θ + μ))

`posterior` gives the two moments of it. A denoiser that returns μ alone throws that away.

References: Lopez et al. (2018) doi:10.1038/s41592-018-0229-2 (the model); Loader (2000) (the
saddle-point form of the mass).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.distributions import NegativeBinomial, Poisson, ZeroInflated
from core.errors import AleatorError
from core.random import Generators, gamma, poisson, rand
from core.vae import Likelihood

Kind = Literal["nb", "poisson", "zinb"]
KINDS: tuple[Kind, ...] = ("nb", "poisson", "zinb")

TARGET = 1e4
"""Molecules per cell to which the encoder's input is scaled."""
SPEED = 5.0
"""Dispersions learn so much faster than other weights: Adam moves each by its learning rate."""


@dataclass(frozen=True, eq=False)
class CellLaw:
    """Counts of N cells and G genes, given their latents.

    Attributes:
        logits: h (N, G).
        library: n (N,).
        log_dispersion: ln θ, (1, G) or (N, G); None for Poisson.
        zero_logits: logits (1, G) of the share of counts replaced by zero; None for none.
    """

    logits: Tensor
    library: Tensor
    log_dispersion: Tensor | None = None
    zero_logits: Tensor | None = None

    @property
    def rate(self) -> Tensor:
        """μ (N, G), before zeros are put in."""
        return self.library[:, None] * self.logits.softmax(1)

    @property
    def dispersion(self) -> Tensor:
        """θ (1, G) or (N, G)."""
        assert self.log_dispersion is not None
        return self.log_dispersion.exp()

    @property
    def keep(self) -> Tensor | float:
        """Share of counts that are not replaced by zero."""
        return 1.0 if self.zero_logits is None else (-self.zero_logits).sigmoid()

    @property
    def mean(self) -> Tensor:
        """Expected counts (N, G)."""
        return self.keep * self.rate

    @property
    def variance(self) -> Tensor:
        """Variance of the counts (N, G)."""
        return self._elementwise().variance

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-mass of all counts (N, G) of each cell, (N,) nats."""
        if self.zero_logits is not None:
            return self._elementwise().log_prob(x).sum(1)
        constant = -torch.lgamma(x[x > 0] + 1)
        constant = x.new_zeros(len(x)).index_add(0, (x > 0).nonzero()[:, 0], constant)
        if self.log_dispersion is None:
            return constant + _PoissonMass.apply(self.logits, self.library, x)
        return _NegativeBinomialMass.apply(self.logits, self.log_dispersion, self.library, x)

    def bound(self, seen: Seen) -> Tensor:
        """`log_prob` (N,) of counts that were prepared for these dispersions; no gradient.

            ln p(x) = Σ_{x > 0} (c(x, θ) + x ln μ / (μ + θ)) - Σ θ ln(1 + μ / θ)

        Where the law is another than negative binomial it is `log_prob`.
        """
        if seen.constant is None:
            return self.log_prob(seen.x)
        mu, theta = self.rate, self.dispersion
        at, own = (values[seen.row, seen.column] for values in (mu, theta.expand_as(mu)))
        special = seen.count * (at / (at + own)).clamp(min=1e-30).log() + seen.constant
        total = -(theta * torch.log1p(mu / theta)).sum(1)
        return total.index_add(0, seen.row, special)

    def sample(self, generator: Generators | None = None) -> Tensor:
        """Counts (N, G)."""
        rate = self.rate
        if self.log_dispersion is not None:
            theta = self.dispersion.expand_as(rate).contiguous()
            rate = gamma(theta, generator) * (rate / theta)
        drawn = poisson(rate, generator)
        if self.zero_logits is None:
            return drawn
        u = rand(drawn.shape, generator, device=drawn.device, dtype=drawn.dtype)
        return torch.where(u < self.keep, drawn, torch.zeros_like(drawn))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Mean and variance (N, G) of the rates given the latents *and* the counts (N, G).

        With inserted zeros, a zero count leaves both explanations open; the rate is that of
        observable counts, which is zero where a zero was inserted.
        """
        mu = self.rate
        if self.log_dispersion is None:
            return mu, torch.zeros_like(mu)
        theta = self.dispersion
        share = mu / (theta + mu)
        mean = share * (theta + x)
        variance = share * mean
        if self.zero_logits is None:
            return mean, variance
        zero = -theta * torch.log1p(mu / theta)
        real = torch.where(x > 0, torch.ones_like(mu), (zero - self.zero_logits).sigmoid())
        return real * mean, real * (variance + (1 - real) * mean.square())

    def _elementwise(self) -> Any:
        """The same law, gene by gene, in core's terms."""
        rate = self.rate.clamp(min=1e-30)
        if self.log_dispersion is None:
            return Poisson(rate)
        law = NegativeBinomial(rate, self.dispersion.expand_as(rate))
        if self.zero_logits is None:
            return law
        return ZeroInflated(law, self.zero_logits.expand_as(rate))


@dataclass(frozen=True, eq=False)
class Seen:
    """Counts of some cells, with what of their log-mass is the same for all latents.

    Attributes:
        x: (N, G).
        row: (K,) cells of the counts above zero.
        column: (K,) their genes.
        count: (K,) themselves.
        constant: (K,) ln Γ(x + θ) - ln Γ(θ) - ln x!; None unless negative binomial.
    """

    x: Tensor
    row: Tensor
    column: Tensor
    count: Tensor
    constant: Tensor | None

    @classmethod
    def of(cls, x: Tensor, law: CellLaw) -> Seen:
        """Counts (N, G) under the dispersions of a law, in double precision where it cancels."""
        row, column = x.nonzero(as_tuple=True)
        count = x[row, column]
        if law.log_dispersion is None or law.zero_logits is not None:
            return cls(x, row, column, count, None)
        theta, n = law.dispersion.expand_as(x)[row, column].double(), count.double()
        constant = torch.lgamma(n + theta) - torch.lgamma(theta) - torch.lgamma(n + 1)
        return cls(x, row, column, count, constant.to(x.dtype))


class CellLikelihood(Likelihood):
    """From the decoder's logits to the law of a cell."""

    counts = True
    library = True

    def __init__(self, genes: int, kind: Kind = "nb", groups: int = 1) -> None:
        """Assemble.

        Args:
            genes: G.
            kind: "nb", "poisson" or "zinb" (with one share of inserted zeros for each gene).
            groups: batches, each with dispersions of its own; 1 for one of each gene.

        Raises:
            AleatorError: an unknown kind.
        """
        super().__init__()
        if kind not in KINDS:
            raise AleatorError(f"likelihood={kind!r}; known: {', '.join(KINDS)}")
        self.kind = kind
        start = math.log(7.0) / SPEED
        own = kind != "poisson"
        self.centre = nn.Parameter(torch.full((1,), start)) if own else None
        self.spread = nn.Parameter(torch.full((groups, genes), start)) if own else None
        zero = torch.full((1, genes), -3.0 / SPEED)
        self.zeros = nn.Parameter(zero) if kind == "zinb" else None

    def features(self, x: Tensor) -> Tensor:
        """ln(1 + counts per ten thousand), and the logarithm of the library; (N, G + 1)."""
        total = x.sum(1, keepdim=True).clamp(min=1.0)
        return torch.cat([torch.log1p(x * (TARGET / total)), total.log()], 1)

    def forward(
        self, output: Tensor, library: Tensor | None = None, group: Tensor | None = None
    ) -> CellLaw:
        """The law, for logits (N, G), libraries (N,) and the cells' batches (N,)."""
        assert library is not None
        log_theta = zero = None
        if self.spread is not None:
            spread = self.spread if len(self.spread) == 1 or group is None else self.spread[group]
            log_theta = (SPEED * spread).clamp(-9.0, 9.0)
        if self.zeros is not None:
            zero = SPEED * self.zeros
        return CellLaw(output, library, log_theta, zero)

    def penalty(self, precision: float) -> Tensor:
        """-ln of the prior of the dispersions, ln θ_g ~ N(centre, 1 / precision), in nats."""
        if self.spread is None or self.centre is None:
            return torch.zeros(())
        apart = SPEED * (self.spread - self.centre)
        return 0.5 * precision * apart.square().sum()


class _PoissonMass(torch.autograd.Function):
    """Σ_g x ln μ - μ of each row; Σ μ = n, so that only counts above zero need a logarithm."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, library: Tensor, x: Tensor) -> Tensor:
        total = x.sum(1)
        ctx.save_for_backward(h.softmax(1), total, x)
        return (x * h).sum(1) + total * (library.log() - h.logsumexp(1)) - library

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        p, total, x = ctx.saved_tensors
        return (x - p * total[:, None]) * g[:, None], None, None


class _NegativeBinomialMass(torch.autograd.Function):
    """Σ_g of the log-mass of each row, with its gradient in h and ln θ."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, log_theta: Tensor, library: Tensor, x: Tensor) -> Tensor:
        p = h.softmax(1)
        mu, theta = p * library[:, None], log_theta.exp()
        zero = theta * torch.log1p(mu / theta)
        row, column = x.nonzero(as_tuple=True)
        count, rate = x[row, column], mu[row, column].clamp(min=1e-30)
        own = theta.expand_as(x)[row, column]
        special = NegativeBinomial(rate, own).log_prob(count) + zero[row, column]
        ctx.save_for_backward(p, mu, log_theta, x, row, column, own)
        return (-zero.sum(1)).index_add(0, row, special)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
        p, mu, log_theta, x, row, column, own = ctx.saved_tensors
        theta = log_theta.exp()
        ratio = (x + theta).div_(mu + theta)
        slope = x - mu * ratio  # d / d ln μ
        in_h = slope.sub_(p * slope.sum(1, keepdim=True)).mul_(g[:, None])
        in_theta = (1 - ratio).sub_(torch.log1p(mu / theta)).mul_(g[:, None])
        if len(log_theta) == 1:
            in_theta = in_theta.sum(0, keepdim=True)
        special = torch.digamma(x[row, column] + own) - torch.digamma(own)
        place = torch.zeros_like(row) if len(log_theta) == 1 else row
        in_theta.index_put_((place, column), special * g[row], accumulate=True)
        return in_h, in_theta * theta, None, None
