r"""Normalizing flows: ln p(x) = ln N(f(x); 0, I) + ln|det ∂f/∂x|, with f from data to noise.

The noise may be a mixture of Gaussians instead, see `core.mixture`.

Training minimises the negative log-likelihood per dimension. Where the determinant is estimated,
`log_prob` says "unbiased" and gives its standard error. Where the data are integers in
0..levels-1, uniform noise makes them continuous, and ln P(x) >= E_u ln p(x + u): what is
returned is a lower bound on the log-probability of the integers, so that its bits per dimension
can be compared with those of any discrete model.
References: Papamakarios et al. (2021) arXiv:1912.02762; Theis et al. (2016) arXiv:1511.01844.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from core.errors import AleatorError
from core.mixture import mixture_or_none
from core.model import (
    Context,
    Density,
    GenerativeModel,
    Loss,
    context_batch,
    expand_context,
)
from core.nets.conditions import Conditions
from core.random import Generators, rand, randn
from core.transforms.base import Composition, Flatten, Inverse, Transform
from core.transforms.linear import ActNorm
from core.transforms.logit import Logit


class Flow(GenerativeModel):
    """A transform from data to flat noise; presets are in the other modules."""

    takes_net = False
    settles: ClassVar[frozenset[str]] = frozenset({"transform", "conditions"})
    """Arguments of the base classes that presets give themselves; see `core.registry`."""

    def __init__(
        self,
        transform: Transform,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        conditions: Conditions | None = None,
        levels: int | None = None,
        probes: int = 8,
        logit: float | None = None,
        standardised: bool = False,
        components: int = 0,
    ) -> None:
        """Assemble.

        Args:
            transform: events (B, *E) to noise (B, D).
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            conditions: the parts of the context that the transform takes; contexts are not
                checked if None.
            levels: the data are integers 0..levels-1; None if they are continuous.
            probes: how many estimates `log_prob` averages where the determinant is estimated,
                and how many draws of the noise where the data are integers.
            logit: the flow is of the logit of the integers' cells, with this much left at the
                ends of (0, 1); None if of the cells themselves.
            standardised: every element is first shifted and scaled: as the first batch in
                training says, then as is learned.
            components: the noise is a mixture of so many Gaussians, see `fit_noise`; 0 if
                N(0, I).

        Raises:
            AleatorError: fewer than two levels or probes, a negative number of components, or a
                logit of data that are not integers.
        """
        super().__init__()
        if levels is not None and levels < 2:
            raise AleatorError(f"levels={levels}: integers need at least two values")
        if probes < 2:
            raise AleatorError(f"probes={probes}: a standard error needs at least two")
        if logit is not None and levels is None:
            raise AleatorError("logit is for integers: give their number of levels")
        first: list[Transform] = [] if logit is None else [Logit(logit)]
        if standardised:
            flat = Flatten(event_shape)
            first += [flat, ActNorm(math.prod(event_shape)), Inverse(flat)]
        self.transform = Composition([*first, transform]) if first else transform
        self.event_shape = torch.Size(event_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        self.conditions = conditions
        self.levels, self.probes = levels, probes
        self.dims = math.prod(event_shape)
        self.noise = mixture_or_none(self.dims, components)

    def fit_noise(
        self,
        x: Tensor,
        context: Context = None,
        *,
        seed: int = 0,
        generator: Generators | None = None,
    ) -> None:
        """Fit the mixture that is the noise to training examples (N, *E), before training.

        Args:
            x: training examples.
            context: their condition.
            seed: of k-means.
            generator: stream of dequantisation.

        Raises:
            AleatorError: the noise of this flow is no mixture, or it cannot be fitted.
        """
        if self.noise is None:
            raise AleatorError("the noise of this flow is no mixture: build it with components")
        with torch.no_grad():
            flat = self.encode(self.dequantised(self.checked(x, context), generator), context)
        self.noise.fit(flat, seed=seed)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Negative log-likelihood of x (B, *E) in nats per dimension; `nll` is in nats.

        Raises:
            AleatorError: event or context of the wrong shape, or something is not finite.
        """
        x = self.checked(x, context)
        x = self.dequantised(x, generator)
        nll = -self._estimates(x, context, 1, generator)[0]
        if self.levels is not None:
            nll = nll + self.dims * math.log(self.levels)
        terms = {"nll": nll.detach()}
        if self.levels is not None:
            terms["bits_per_dim"] = nll.detach() / (self.dims * math.log(2))
        return Loss(nll / self.dims, terms)

    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        *,
        generator: Generators | None = None,
        exact: bool | None = None,
        probes: int | None = None,
    ) -> Density:
        """Log-density of x (B, *E), in nats; of integers, a bound on their log-probability.

        Args:
            x: examples.
            context: condition, batch B.
            generator: stream of probes and of dequantisation, one or one per example.
            exact: take the exact determinant, whatever it costs; by default what the family
                trains with.
            probes: number of estimates; that of the flow if None.

        Raises:
            AleatorError: event or context of the wrong shape, or something is not finite.
        """
        x = self.checked(x, context)
        count = self.probes if probes is None else probes
        if count < 2:
            raise AleatorError(f"probes={count}: a standard error needs at least two")
        if self.levels is not None:
            draws = [
                self._estimates(self.dequantised(x, generator), context, 1, generator, exact)[0]
                for _ in range(count)
            ]
            estimates = torch.stack(draws) - self.dims * math.log(self.levels)
            return Density(estimates.mean(0), "lower_bound", _stderr(estimates))
        estimates = self._estimates(x, context, count, generator, exact)
        if len(estimates) == 1:
            return Density(estimates[0], "exact")
        return Density(estimates.mean(0), "unbiased", _stderr(estimates))

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: Any = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draw samples: (*S, B, *E), or (*S, *E) without context.

        Raises:
            AleatorError: a context of the wrong shape, a sampler or guidance (flows have
                neither), or an inverse that is not finite.
        """
        if sampler is not None or guidance is not None:
            raise AleatorError("a flow samples by its inverse: it has no sampler and no guidance")
        if self.conditions is not None:
            self.conditions.check(context)
        draws, batch = math.prod(shape), context_batch(context)
        weight = next(self.parameters(), torch.empty(()))
        count = draws * (batch or 1)
        if self.noise is None:
            z = randn((count, self.dims), generator, device=weight.device, dtype=weight.dtype)
        else:
            z = self.noise.sample(count, generator)
        x = self.transform.invert(z, expand_context(context, draws)) if count else z
        _must_be_finite(x, "a sample of this flow")
        x = x.reshape(count, *self.event_shape)
        if self.levels is not None:
            x = ((x + 0.5) * self.levels).floor().clamp(0, self.levels - 1)
        return x.reshape(*shape, *(() if batch is None else (batch,)), *self.event_shape)

    def _estimates(
        self,
        x: Tensor,
        context: Context,
        probes: int,
        generator: Generators | None,
        exact: bool | None = None,
    ) -> Tensor:
        """Estimates of ln p(x), (K, B); K = 1 where it is exact."""
        return self.noise_and_estimates(x, context, probes, generator, exact)[1]

    def noise_and_estimates(
        self,
        x: Tensor,
        context: Context,
        probes: int,
        generator: Generators | None,
        exact: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Noise (B, D) of continuous x (B, *E), and estimates of ln p(x), (K, B).

        Raises:
            AleatorError: an estimate is not finite.
        """
        if self.transform.exact if exact is None else exact:
            z, log_det = self.transform(x, context)
            log_det = log_det[None]
        else:
            z, log_det = self.transform.estimate(x, context, probes=probes, generator=generator)
        if self.noise is None:
            prior = -0.5 * z.square().sum(1) - 0.5 * self.dims * math.log(2 * math.pi)
        else:
            prior = self.noise.log_prob(z)
        value = prior + log_det
        _must_be_finite(value, "the log-density of this flow")
        return z, value

    def encode(self, x: Tensor, context: Context = None) -> Tensor:
        """Noise (B, D) of continuous x (B, *E); no determinant where that costs."""
        return self.transform.encode(x, context)

    def checked(self, x: Tensor, context: Context) -> Tensor:
        """The examples in the flow's type.

        Raises:
            AleatorError: event or context of the wrong shape, or something is not finite.
        """
        if x.dim() != 1 + len(self.event_shape) or x.shape[1:] != self.event_shape:
            expected = ", ".join(["B", *map(str, self.event_shape)])
            raise AleatorError(f"examples have shape {tuple(x.shape)}, expected ({expected})")
        if not torch.isfinite(x).all():
            raise AleatorError("the examples are not finite; mask or fill what is missing first")
        if self.conditions is not None:
            self.conditions.check(context, len(x))
        if not x.is_floating_point():
            x = x.to(next(self.parameters()).dtype)
        if self.levels is not None and not ((x == x.round()) & (x >= 0) & (x < self.levels)).all():
            raise AleatorError(f"this flow is of integers 0..{self.levels - 1}; got other values")
        return x

    def dequantised(self, x: Tensor, generator: Generators | None) -> Tensor:
        """Integers to [-1/2, 1/2), by uniform noise; nothing is done to continuous data."""
        if self.levels is None:
            return x
        u = rand(x.shape, generator, device=x.device, dtype=x.dtype)
        return (x + u) / self.levels - 0.5


def _stderr(estimates: Tensor) -> Tensor:
    return estimates.std(0) / math.sqrt(len(estimates))


def _must_be_finite(x: Tensor, what: str) -> None:
    finite = torch.isfinite(x)
    if not finite.all():
        raise AleatorError(
            f"{what} is not finite in {(~finite).sum().item()} of {finite.numel()} elements: "
            "training has diverged, or the input is far outside the training data"
        )
