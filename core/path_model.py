"""What diffusion and flow matching share: a path, a denoiser, every sampler, guidance, density.

The two families differ in nothing but the loss that they are trained with; see
`core.diffusion` and `core.flow_matching`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.denoiser import Denoiser, Posterior, Prediction
from core.errors import AleatorError
from core.model import (
    Context,
    Density,
    GenerativeModel,
    context_batch,
    expand_context,
    map_context,
)
from core.paths import Path
from core.random import Generators, rand, randn
from core.solvers import Sampler, make_sampler
from core.tiling import Tiles


class PathModel(GenerativeModel):
    """A denoiser on a Gaussian path; subclasses add a loss.

    Attributes:
        tiles: how fields that are larger are denoised piece by piece; None denoises them whole.
    """

    tiles: Tiles | None = None

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        path: str | Path | dict[str, Any],
        prediction: Prediction = "edm",
        sigma_data: float = 1.0,
        learned_variance: bool = False,
        context_dropout: float = 0.0,
        sampler: str | Mapping[str, Any] | Sampler | None = None,
    ) -> None:
        """Assemble.

        Args:
            net: (x (B, *E), c_noise (B,), context) -> (B, *E); see `core.nets`.
            event_shape: E.
            context_shape: shape of the main context tensor of one example, for the record.
            path: the forward process, by name or with parameters.
            prediction: how the network's output is read; "edm" preconditions.
            sigma_data: standard deviation of the data, per element.
            learned_variance: the network has twice the channels; see `core.denoiser`.
            context_dropout: probability that an example is trained without its context, so that
                classifier-free guidance has an unconditional branch.
            sampler: the default of `sample`.
        """
        super().__init__()
        if not 0 <= context_dropout < 1:
            raise AleatorError(f"context_dropout={context_dropout}: it must be in [0, 1)")
        self.event_shape = torch.Size(event_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        self.denoiser = Denoiser(net, path, prediction, sigma_data, learned_variance)
        self.path = self.denoiser.path
        self.context_dropout = context_dropout
        self.sampler = make_sampler(sampler)

    def denoise(self, x_t: Tensor, t: Tensor | float, context: Context = None) -> Posterior:
        """Posterior of x_0 given x_t (B, *E) at times t ((B,) or one number for all)."""
        if self.tiles is not None:
            return self.tiles.denoise(self.denoiser, x_t, t, context)
        return self.denoiser(x_t, t, context)

    @property
    def prior_std(self) -> float:
        """Standard deviation of x_T: noise, and what little is left of standardised data."""
        point = self.path.at(self.path.t_max)
        return math.hypot(point.sigma, point.alpha * self.denoiser.sigma_data)

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: str | Mapping[str, Any] | Sampler | None = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draw samples: (*S, B, *E), or (*S, *E) without context."""
        draws, batch = math.prod(shape), context_batch(context)
        weight = next(self.parameters(), torch.empty(()))
        x_t = self.prior_std * randn(
            (draws * (batch or 1), *self.event_shape),
            generator,
            device=weight.device,
            dtype=weight.dtype,
        )
        repeated = expand_context(context, draws)
        chosen = self.sampler if sampler is None else make_sampler(sampler)
        x = chosen(self.bind(repeated, guidance), x_t, path=self.path, generator=generator)
        return x.reshape(*shape, *(() if batch is None else (batch,)), *self.event_shape)

    def bind(self, context: Context, guidance: Any = None) -> Any:
        """`denoise` with context and guidance bound: what samplers call."""
        if guidance is not None:
            return guidance.bind(self, context)
        return lambda x_t, t: self.denoise(x_t, t, context)

    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        *,
        generator: Generators | None = None,
        trace: str | None = None,
        **options: Any,
    ) -> Density:
        """Log-density by the probability-flow ODE, in nats; see `core.density.flow_log_prob`.

        Args:
            x: (B, *E).
            context: condition, batch B.
            generator: stream of the Hutchinson probes.
            trace: "exact", or "hutchinson" (unbiased, with standard error); by default exact up
                to 64 dimensions.
            options: further options of `flow_log_prob`.
        """
        from core.density import flow_log_prob

        trace = trace or ("exact" if math.prod(self.event_shape) <= 64 else "hutchinson")
        return flow_log_prob(
            self.bind(context),
            x,
            path=self.path,
            prior_std=self.prior_std,
            trace=trace,
            generator=generator,
            **options,
        )

    def noised(
        self, x: Tensor, t: Tensor, generator: Generators | None
    ) -> tuple[Tensor, Tensor, Any]:
        """x_t = α x + σ ε at times t (B,); returns x_t, ε and the path's coefficients."""
        eps = randn(x.shape, generator, device=x.device, dtype=x.dtype)
        point = self.path.at(t, x)
        return point.alpha * x + point.sigma * eps, eps, point

    def drop_context(self, context: Context, generator: Generators | None) -> Context:
        """Replace the context of some examples by the null context, in training."""
        batch = context_batch(context)
        if batch is None or not self.context_dropout:
            return context
        drop = per_example_uniform(batch, generator) < self.context_dropout
        return map_context(context, lambda c: mask_context(c, drop.to(c.device)))


def mask_context(tensor: Tensor, drop: Tensor) -> Tensor:
    """The null context where `drop` (B,) is set: zeros, and -1 for labels."""
    where = drop.reshape(-1, *[1] * (tensor.dim() - 1))
    return torch.where(where, null_like(tensor), tensor)


def null_like(tensor: Tensor) -> Tensor:
    """The null value of a context tensor: zeros of a field or vector, -1 of a label."""
    return torch.zeros_like(tensor) if tensor.is_floating_point() else torch.full_like(tensor, -1)


def per_example_uniform(batch: int, generator: Generators | None) -> Tensor:
    """(B,) uniform draws; stratified over the batch where one stream serves all of it."""
    if generator is None or isinstance(generator, torch.Generator):
        strata = torch.randperm(batch, generator=generator)
        return (strata + rand((batch,), generator)) / batch
    return rand((batch, 1), generator)[:, 0]
