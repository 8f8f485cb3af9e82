r"""Reflow: flow matching again, on the pairs that a trained flow itself makes.

    (ε, x = flow(ε))     pairs that never cross: their straight lines make a straighter flow
    S = E ∫ |(ε - x) - u(x_t, t)|² dt      straightness, 0 if one Euler step is exact

Straight conditional paths alone do not make the marginal flow straight. Reference: Liu et al.
(2023) arXiv:2209.03003.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.errors import AleatorError
from core.model import Context, expand_context
from core.path_model import PathModel
from core.random import Generators, keyed_generator, randn
from core.solvers.base import uniform_grid

Pairs = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Context]]
"""(step, generator) -> examples, the noise that each came from, and their context."""


@torch.no_grad()
def flow_pairs(
    model: PathModel,
    noise: Tensor,
    context: Context = None,
    *,
    sampler: Any = None,
    generator: Generators | None = None,
) -> Tensor:
    """Where a trained flow takes noise (B, *E) of unit variance, (B, *E).

    Args:
        model: diffusion or flow matching.
        noise: (B, *E).
        context: condition, batch B.
        sampler: a deterministic one; by default Euler's method with 100 steps.
        generator: unused by deterministic samplers.
    """
    from core.solvers import make_sampler

    chosen = make_sampler({"name": "euler", "steps": 100} if sampler is None else sampler)
    x_t = model.prior_std * noise
    return chosen(model.bind(context), x_t, path=model.path, generator=generator)


class PairData:
    """Pairs of noise and data made in advance by a teacher, as batches for training.

    Called like any `batches` of `core.training.fit`, it returns examples and a context with the
    noise of each under the key `noise`, which `FlowMatching.loss` uses in place of its own.
    """

    def __init__(self, examples: Tensor, noise: Tensor, context: Context, batch: int) -> None:
        """`examples` and `noise` are (N, *E), the context of batch N."""
        if examples.shape != noise.shape or len(examples) < 1 or batch < 1:
            raise AleatorError(
                f"pairs: examples {tuple(examples.shape)}, noise {tuple(noise.shape)}, "
                f"batch={batch}; equal shapes and a positive batch are needed"
            )
        self.examples, self.noise, self.batch = examples, noise, batch
        if context is None:
            self.context: dict[str, Tensor] = {}
        elif isinstance(context, Tensor):
            self.context = {{4: "field", 2: "vector", 1: "label"}[context.dim()]: context}
        else:
            self.context = dict(context)

    @classmethod
    def of(
        cls,
        model: PathModel,
        count: int,
        context: Context = None,
        *,
        batch: int = 128,
        chunk: int = 1024,
        seed: int = 0,
        sampler: Any = None,
    ) -> PairData:
        """Draw `count` pairs from a teacher, for each row of the context if there is one."""
        examples, noises = [], []
        rows = 1 if context is None else len(next(iter(_parts(context))))
        repeated = expand_context(context, count)
        weight = next(model.parameters())
        total = count * rows
        for first in range(0, total, chunk):
            n = min(chunk, total - first)
            stream = keyed_generator(seed, first)
            noise = randn(
                (n, *model.event_shape), stream, device=weight.device, dtype=weight.dtype
            )
            part = _slice(repeated, first, n)
            examples.append(flow_pairs(model, noise, part, sampler=sampler))
            noises.append(noise)
        return cls(torch.cat(examples), torch.cat(noises), repeated, batch)

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        """A batch of a step."""
        rows = torch.randint(len(self.examples), (self.batch,), generator=generator)
        context = {name: part[rows] for name, part in self.context.items()}
        return self.examples[rows], {**context, "noise": self.noise[rows]}


@torch.no_grad()
def straightness(
    model: PathModel,
    noise: Tensor,
    context: Context = None,
    *,
    steps: int = 50,
) -> Tensor:
    """S of each trajectory from noise (B, *E), (B,), by Euler's method; for rectified paths."""
    times = uniform_grid(model.path, steps + 1, model.path.t_min)
    x, bound = model.prior_std * noise, model.bind(context)
    start, velocities = x, []
    for t, s in itertools.pairwise(times):
        u = bound(x, t).velocity
        velocities.append(u)
        x = x + (s - t) * u
    chord = (start - x) / (times[0] - times[-1])
    return torch.stack([(u - chord).square().flatten(1).sum(1) for u in velocities]).mean(0)


def _parts(context: Context) -> list[Tensor]:
    assert context is not None
    return [context] if isinstance(context, Tensor) else list(context.values())


def _slice(context: Context, first: int, count: int) -> Context:
    if context is None:
        return None
    if isinstance(context, Tensor):
        return context[first : first + count]
    return {name: part[first : first + count] for name, part in context.items()}
