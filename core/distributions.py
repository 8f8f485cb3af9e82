r"""Laws of data given their parameters: what a decoder puts out, with every constant kept.

Each law has `log_prob(x)` elementwise in nats, `sample(generator)`, `mean` and `variance`. Counts
are evaluated in the saddle-point form of Loader (2000), "Fast and accurate computation of binomial
probabilities": Γ functions of large arguments, which cancel, are replaced by the small remainder
of Stirling's formula, so that float32 is good to about 1e-6 of the *result*, not of lnΓ.
Parameters broadcast against x; a list of generators gives each first-axis row its own stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import AleatorError
from core.random import Generators, gamma, poisson, rand, randn


class Law(Protocol):
    """A distribution of one tensor of independent elements."""

    @property
    def mean(self) -> Tensor:
        """Expected value, elementwise."""

    @property
    def variance(self) -> Tensor:
        """Variance, elementwise."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density or log-mass of each element, in nats."""

    def sample(self, generator: Generators | None = None) -> Tensor:
        """One draw, of the parameters' shape."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, scale²); `scale` > 0."""

    mean: Tensor
    scale: Tensor

    @property
    def variance(self) -> Tensor:
        """scale²."""
        return self.scale.square().expand_as(self.mean)

    def log_prob(self, x: Tensor) -> Tensor:
        """-½ ((x - mean) / scale)² - ln scale - ½ ln 2π."""
        z = (x - self.mean) / self.scale
        return -0.5 * z.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)

    def sample(self, generator: Generators | None = None) -> Tensor:
        """Draw mean + scale ε."""
        m = self.mean
        return m + self.scale * randn(m.shape, generator, device=m.device, dtype=m.dtype)


@dataclass(frozen=True, eq=False)
class Bernoulli:
    """0 or 1; `logits` = ln p(1) / p(0)."""

    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """p(1)."""
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        """p(1) p(0)."""
        return self.logits.sigmoid() * (-self.logits).sigmoid()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-mass.

        Raises:
            AleatorError: a value is neither 0 nor 1.
        """
        if not ((x == 0) | (x == 1)).all():
            raise AleatorError("Bernoulli likelihood: values other than 0 and 1; binarise them")
        return F.logsigmoid(torch.where(x > 0, self.logits, -self.logits))

    def sample(self, generator: Generators | None = None) -> Tensor:
        """Zeros and ones in the parameters' type."""
        p = self.mean
        return (rand(p.shape, generator, device=p.device, dtype=p.dtype) < p).to(p.dtype)


@dataclass(frozen=True, eq=False)
class DiscretisedLogistic:
    r"""A logistic on a grid of values; the outermost bins hold the tails.

        P(x) = s((x + w/2 - loc) / scale) - s((x - w/2 - loc) / scale),   s(a) = 1 / (1 + e^-a)

    evaluated as ln s(b) + ln s(-a) + ln(1 - e^(a-b)), which nowhere cancels. Reference: Salimans
    et al. (2017) arXiv:1701.05517.

    Attributes:
        loc: location.
        scale: > 0.
        low: the least value.
        high: the greatest.
        bins: how many equidistant values there are, both ends included.
    """

    loc: Tensor
    scale: Tensor
    low: float = -1.0
    high: float = 1.0
    bins: int = 256

    @property
    def width(self) -> float:
        """w, the distance between values."""
        return (self.high - self.low) / (self.bins - 1)

    def _upper_tails(self) -> Tensor:
        """P(X > value k), (bins - 1, ...)."""
        k = torch.arange(self.bins - 1, dtype=self.loc.dtype, device=self.loc.device)
        edges = self.low + self.width * (k + 0.5)
        return ((self.loc - edges.reshape(-1, *[1] * self.loc.dim())) / self.scale).sigmoid()

    @property
    def mean(self) -> Tensor:
        """Exact, over all bins: low + w Σ_k P(X > value k)."""
        return self.low + self.width * self._upper_tails().sum(0)

    @property
    def variance(self) -> Tensor:
        """Exact, over all bins."""
        tails = self._upper_tails()
        k = torch.arange(self.bins - 1, dtype=tails.dtype, device=tails.device)
        first = tails.sum(0)
        second = (tails * (2 * k + 1).reshape(-1, *[1] * self.loc.dim())).sum(0)
        return self.width**2 * (second - first.square()).clamp(min=0)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-mass of the bin.

        Raises:
            AleatorError: a value is off the grid by more than a thousandth of a bin.
        """
        index = (x - self.low) / self.width
        nearest = index.round()
        if not ((index - nearest).abs() < 1e-3 + 1e-6 * self.bins).all():
            raise AleatorError(
                f"discretised logistic: values off the grid of {self.bins} values from {self.low} "
                f"to {self.high}; round them"
            )
        if not ((nearest >= 0) & (nearest < self.bins)).all():
            raise AleatorError(f"discretised logistic: values outside [{self.low}, {self.high}]")
        offset = self.low + self.width * nearest - self.loc
        above = (offset + 0.5 * self.width) / self.scale
        below = (offset - 0.5 * self.width) / self.scale
        first, last = nearest == 0, nearest == self.bins - 1
        log_p = F.logsigmoid(above).masked_fill(last, 0.0)
        log_p = log_p + F.logsigmoid(-below).masked_fill(first, 0.0)
        inside = torch.log(-torch.expm1(-self.width / self.scale))
        return log_p + torch.where(first | last, torch.zeros_like(inside), inside)

    def sample(self, generator: Generators | None = None) -> Tensor:
        """A logistic draw, rounded to the grid."""
        loc = self.loc
        u = rand(loc.shape, generator, device=loc.device, dtype=loc.dtype)
        tiny = torch.finfo(loc.dtype).eps / 4
        drawn = loc + self.scale * torch.logit(u.clamp(tiny, 1 - 2 * tiny))
        k = ((drawn - self.low) / self.width).round().clamp(0, self.bins - 1)
        return self.low + self.width * k


@dataclass(frozen=True, eq=False)
class Poisson:
    """Counts of the given mean; `mean` > 0."""

    mean: Tensor

    @property
    def variance(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-mass x ln mean - mean - ln x!; raises AleatorError where x is no count."""
        check_counts(x)
        n = torch.where(x > 0, x, torch.ones_like(x))
        gap = n - self.mean
        log_p = gap - n * _log_ratio(n, self.mean, gap) - _factorial_rest(n)
        return torch.where(x > 0, log_p, -self.mean)

    def sample(self, generator: Generators | None = None) -> Tensor:
        """Counts in the parameters' type."""
        return poisson(self.mean, generator)


@dataclass(frozen=True, eq=False)
class NegativeBinomial:
    r"""Counts of mean μ and variance μ + μ² / θ: a Poisson whose rate is Gamma(θ, θ / μ).

        p(x) = Γ(x + θ) / (Γ(θ) x!) (θ / (θ + μ))^θ (μ / (θ + μ))^x

    Attributes:
        mean: μ > 0.
        dispersion: θ > 0; the law is Poisson's for θ → ∞.
    """

    mean: Tensor
    dispersion: Tensor

    @property
    def variance(self) -> Tensor:
        """μ + μ² / θ."""
        return self.mean + self.mean.square() / self.dispersion

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-mass; raises AleatorError where x is no count."""
        check_counts(x)
        mu, theta = self.mean, self.dispersion
        n = torch.where(x > 0, x, torch.ones_like(x))
        gap = n - mu
        log_p = (
            theta * _log_ratio(theta + n, theta + mu, gap)
            - n * _log_odds_ratio(n, mu, theta, gap)
            - 0.5 * torch.log1p(n / theta)
            + stirling_error(theta + n)
            - stirling_error(theta)
            - _factorial_rest(n)
        )
        return torch.where(x > 0, log_p, -theta * torch.log1p(mu / theta))

    def sample(self, generator: Generators | None = None) -> Tensor:
        """Counts in the parameters' type: a gamma draw, then a Poisson draw, of each stream."""
        mu, theta = torch.broadcast_tensors(self.mean, self.dispersion)
        return poisson(gamma(theta, generator) * (mu / theta), generator)


@dataclass(frozen=True, eq=False)
class ZeroInflated:
    """A law of counts, replaced by zero with a probability π.

    Attributes:
        law: of the counts that are not replaced.
        logits: ln π / (1 - π).
    """

    law: Poisson | NegativeBinomial
    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """(1 - π) times the law's."""
        return (-self.logits).sigmoid() * self.law.mean

    @property
    def variance(self) -> Tensor:
        """(1 - π) (variance + π mean²)."""
        keep = (-self.logits).sigmoid()
        return keep * (self.law.variance + self.logits.sigmoid() * self.law.mean.square())

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-mass; raises AleatorError where x is no count."""
        kept = F.logsigmoid(-self.logits) + self.law.log_prob(x)
        return torch.where(x > 0, kept, torch.logaddexp(F.logsigmoid(self.logits), kept))

    def sample(self, generator: Generators | None = None) -> Tensor:
        """Counts in the parameters' type."""
        drawn = self.law.sample(generator)
        p = self.logits.sigmoid().expand_as(drawn)
        u = rand(drawn.shape, generator, device=drawn.device, dtype=drawn.dtype)
        return torch.where(u < p, torch.zeros_like(drawn), drawn)


def stirling_error(z: Tensor) -> Tensor:
    """lnΓ(z) - (z - ½) ln z + z - ½ ln 2π for z > 0: at most 1 / 12z for large z."""
    few, many = z.clamp(max=10.0), z.clamp(min=10.0)
    direct = torch.lgamma(few) - (few - 0.5) * few.log() + few - 0.5 * math.log(2 * math.pi)
    r = 1 / many
    s = r * r
    series = r * (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - s / 1188))))
    return torch.where(z < 10, direct, series)


def _factorial_rest(n: Tensor) -> Tensor:
    """Log of n! / (n^n e^-n) for n ≥ 1."""
    return stirling_error(n) + 0.5 * torch.log(2 * math.pi * n)


def _log_ratio(a: Tensor, b: Tensor, difference: Tensor) -> Tensor:
    """Log of a / b, exact to rounding where they are near; `difference` = a - b."""
    near = difference.abs() < 0.5 * b
    relative = torch.where(near, difference, torch.zeros_like(difference)) / b
    return torch.where(near, torch.log1p(relative), (a / b).log())


def _log_odds_ratio(n: Tensor, mu: Tensor, theta: Tensor, gap: Tensor) -> Tensor:
    """Log of n (μ + θ) / (μ (n + θ)), exact to rounding where n, μ « θ and where n, μ » θ."""
    excess = theta / (n + theta) * (gap / mu)
    near = excess > -0.5
    far = n.log() - mu.log() + (mu + theta).log() - (n + theta).log()
    return torch.where(near, torch.log1p(torch.where(near, excess, torch.zeros_like(excess))), far)


def check_counts(x: Tensor) -> None:
    """Raise AleatorError unless every value is a non-negative integer that its type holds."""
    if ((x >= 0) & (x == x.floor()) & x.isfinite()).all():
        if x.is_floating_point() and (x > 2 / torch.finfo(x.dtype).eps).any():
            raise AleatorError(
                f"counts of {x.max().item():.0f} are not exact in {x.dtype}; use float64"
            )
        return
    if not x.isfinite().all():
        raise AleatorError("counts: some are NaN or infinite; repair or drop these examples")
    if (x < 0).any():
        raise AleatorError(
            f"counts: the least is {x.min().item():g}; raw counts are never negative"
        )
    worst = x[x != x.floor()].flatten()[0].item()
    raise AleatorError(
        f"counts: {worst:g} is not an integer; give raw counts, not normalised or log values"
    )
