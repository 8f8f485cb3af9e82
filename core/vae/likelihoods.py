r"""From a decoder's output to a law of the data, and from data to what an encoder sees.

    p(x | z) = law(parameters from decoder(z)),   e.g. NB(library · softmax(h), θ)

A likelihood says how many outputs it needs for each element (`outputs`), and owns parameters that
do not depend on z. With `library=True` the means of counts are shares of a given total, as in
Lopez et al. (2018) doi:10.1038/s41592-018-0229-2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.distributions import (
    Bernoulli,
    DiscretisedLogistic,
    Gaussian,
    Law,
    NegativeBinomial,
    Poisson,
    ZeroInflated,
    check_counts,
)
from core.errors import AleatorError


class Likelihood(nn.Module, ABC):
    """Base: a map from outputs (N, outputs · E_0, ...) to a law of shape (N, *E).

    Attributes:
        outputs: network outputs for each element of an example.
        counts: whether the data are counts.
        library: whether the means are shares of a total that the context gives.
    """

    outputs: int = 1
    counts: ClassVar[bool] = False
    library: bool = False

    def features(self, x: Tensor) -> Tensor:
        """What the encoder sees of examples (B, *E); ln(1 + x) of counts."""
        return x

    def check(self, x: Tensor) -> None:
        """Raise AleatorError where the law gives x no probability."""

    @abstractmethod
    def forward(self, output: Tensor, library: Tensor | None = None) -> Law:
        """The law; `library` (N,) where the means are shares of it."""


class GaussianLikelihood(Likelihood):
    """N(output, scale²)."""

    log_scale: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        scale: float = 1.0,
        learned: Literal["no", "shared", "element", "predicted"] = "shared",
        least: float = 1e-3,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            scale: its value, or where learning starts.
            learned: not at all, one for all elements, one for each, or put out by the decoder.
            least: lower limit of a learned scale; without one the density of repeated values
                is unbounded.
        """
        super().__init__()
        if scale <= 0 or learned not in ("no", "shared", "element", "predicted"):
            raise AleatorError(
                f"gaussian likelihood: scale={scale!r}, learned={learned!r}; a positive scale and "
                "one of no, shared, element, predicted are needed"
            )
        self.outputs = 2 if learned == "predicted" else 1
        self.least = min(least, scale)
        start = torch.full(tuple(event_shape) if learned == "element" else (), scale).log()
        if learned in ("shared", "element"):
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)

    def forward(self, output: Tensor, library: Tensor | None = None) -> Gaussian:
        """N(mean, scale²)."""
        if self.outputs == 1:
            return Gaussian(output, self.log_scale.exp().clamp(min=self.least))
        mean, raw = output.chunk(2, 1)
        return Gaussian(mean, (self.log_scale + raw.clamp(-15, 15)).exp().clamp(min=self.least))


class BernoulliLikelihood(Likelihood):
    """Zeros and ones."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        """`event_shape` is not needed; all likelihoods take it."""
        super().__init__()

    def forward(self, output: Tensor, library: Tensor | None = None) -> Bernoulli:
        """Outputs are logits."""
        return Bernoulli(output)


class LogisticLikelihood(Likelihood):
    """Values on a grid, e.g. 256 levels of grey in [-1, 1]."""

    outputs = 2

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        low: float = -1.0,
        high: float = 1.0,
        bins: int = 256,
        scale: float = 0.1,
    ) -> None:
        """`low`, `high` and `bins` are the grid; `scale` is where the predicted scale starts."""
        super().__init__()
        if not (low < high and bins >= 2 and scale > 0):
            raise AleatorError(
                f"logistic likelihood: low={low}, high={high}, bins={bins}, scale={scale}; "
                "low < high, two bins or more and a positive scale are needed"
            )
        self.low, self.high, self.bins, self.scale = low, high, bins, scale

    def forward(self, output: Tensor, library: Tensor | None = None) -> DiscretisedLogistic:
        """The scale is limited to a hundredth of a bin from below."""
        loc, raw = output.chunk(2, 1)
        least = 0.01 * (self.high - self.low) / (self.bins - 1)
        scale = (self.scale * raw.clamp(-15, 15).exp()).clamp(min=least)
        return DiscretisedLogistic(loc, scale, self.low, self.high, self.bins)


class CountLikelihood(Likelihood):
    """Poisson, negative binomial or zero-inflated negative binomial."""

    counts = True

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        law: Literal["poisson", "nb", "zinb"] = "nb",
        library: bool = False,
        dispersion: Literal["element", "predicted"] = "element",
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            law: of the counts.
            library: means are library · softmax(output) over all elements; else exp(output).
            dispersion: θ of each element, or put out by the decoder.
        """
        super().__init__()
        if dispersion not in ("element", "predicted"):
            raise AleatorError(f"dispersion={dispersion!r}; known: element, predicted")
        self.law, self.library = law, library
        predicted = law != "poisson" and dispersion == "predicted"
        self.outputs = 1 + predicted + (law == "zinb")
        own = law != "poisson" and not predicted
        self.log_dispersion = nn.Parameter(torch.zeros(tuple(event_shape))) if own else None

    def features(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.log1p(x)

    def check(self, x: Tensor) -> None:  # noqa: D102
        check_counts(x)

    def forward(self, output: Tensor, library: Tensor | None = None) -> Law:  # noqa: D102
        parts = list(output.chunk(self.outputs, 1)) if self.outputs > 1 else [output]
        h = parts.pop(0)
        if self.library:
            assert library is not None
            log_share = F.log_softmax(h.flatten(1), 1).reshape(h.shape)
            h = log_share.clamp(min=-40.0) + library.log().reshape(-1, *[1] * (h.dim() - 1))
        mean = h.clamp(-60.0, 20.0).exp()
        if self.law == "poisson":
            return Poisson(mean)
        log_theta = parts.pop(0) if self.log_dispersion is None else self.log_dispersion
        law = NegativeBinomial(mean, log_theta.clamp(-12.0, 12.0).exp().expand_as(mean))
        return ZeroInflated(law, parts.pop(0)) if self.law == "zinb" else law


def make_likelihood(
    config: str | Mapping[str, Any] | Likelihood, event_shape: Sequence[int]
) -> Likelihood:
    """A likelihood from its name, a mapping {"name": ..., **options}, or itself.

    Names: gaussian, bernoulli, logistic (discretised), poisson, nb, zinb.

    Raises:
        AleatorError: unknown name or option; the known ones are listed.
    """
    if isinstance(config, Likelihood):
        return config
    options = {"name": config} if isinstance(config, str) else dict(config)
    name = options.pop("name", None)
    classes: dict[str, type[Likelihood]] = {
        "gaussian": GaussianLikelihood,
        "bernoulli": BernoulliLikelihood,
        "logistic": LogisticLikelihood,
        **dict.fromkeys(("poisson", "nb", "zinb"), CountLikelihood),
    }
    if name not in classes:
        raise AleatorError(f"unknown likelihood {name!r}; known: {', '.join(sorted(classes))}")
    if classes[name] is CountLikelihood:
        options["law"] = name
    try:
        return classes[name](event_shape, **options)
    except TypeError:
        known = set(classes[name].__init__.__annotations__) - {"event_shape", "law", "return"}
        raise AleatorError(
            f"likelihood {name}: bad options {sorted(set(options) - {'law'})}; "
            f"it has {', '.join(sorted(known)) or 'none'}"
        ) from None
