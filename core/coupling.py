r"""Which noise goes with which example: independent, or by optimal transport within a batch.

    π = argmin over permutations of Σ_i |x_i - ε_π(i)|²  (+ w² |c_i - c_π'(i)|² with conditions)

Pairs that do not cross make marginal paths straighter, so that few steps do. A *permutation* uses
every example and every noise exactly once, which keeps both marginals; drawing pairs from the
plan with replacement loses a third of a batch. Under a condition the permutation must not tell
the noise about it: p(ε | c) has to stay N(0, I), or sampling starts from the wrong law. Noise is
therefore only exchanged between examples of equal condition (labels), or between near ones
(vectors), where near is a matter of a weight, and exact only in its limit.

References: Tong et al. (2024) arXiv:2302.00482; Pooladian et al. (2023) arXiv:2304.14772; Cheng
and Schwing (2025) arXiv:2503.10636 (conditions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from core.errors import AleatorError
from core.model import Context, context_batch
from core.nets.embeddings import context_part

Kind = Literal["independent", "optimal"]


@dataclass(frozen=True)
class Coupling:
    """How noise is paired with a batch.

    Attributes:
        kind: "independent", or "optimal" (transport within the batch).
        block: pairs are sought within blocks of so many examples: the cost of an assignment grows
            with the cube.
        condition_weight: w: how much more a difference in the context's `vector` or `field` costs
            than one of noise; large is exact and finds no partners.
    """

    kind: Kind = "independent"
    block: int = 256
    condition_weight: float = 10.0

    def __post_init__(self) -> None:
        if self.kind not in ("independent", "optimal"):
            raise AleatorError(f"unknown coupling {self.kind!r}; known: independent, optimal")
        if self.block < 2 or self.condition_weight < 0:
            raise AleatorError(
                f"coupling: block={self.block}, condition_weight={self.condition_weight}; blocks "
                "of two or more and no negative weight are needed"
            )

    def __call__(self, x: Tensor, noise: Tensor, context: Context = None) -> Tensor:
        """The noise (B, *E), permuted so that row i goes with example i."""
        if self.kind == "independent":
            return noise
        order = torch.empty(len(x), dtype=torch.long)
        for rows in _blocks(len(x), context, self.block):
            cost = _cost(x[rows], noise[rows], context, rows, self.condition_weight)
            order[rows] = rows[optimal_permutation(cost)]
        return noise[order.to(noise.device)]


def make_coupling(config: str | Mapping[str, Any] | Coupling) -> Coupling:
    """A coupling from its kind, {"kind": ..., **options}, or itself.

    Raises:
        AleatorError: unknown kind or option.
    """
    if isinstance(config, Coupling):
        return config
    options = {"kind": config} if isinstance(config, str) else dict(config)
    known = set(Coupling.__dataclass_fields__)
    if unknown := set(options) - known:
        raise AleatorError(
            f"coupling: no option {sorted(unknown)[0]!r}; it has {', '.join(sorted(known))}"
        )
    return Coupling(**options)


def optimal_permutation(cost: Tensor) -> Tensor:
    """The permutation π with least Σ_i cost[i, π(i)] of a square matrix, (N,)."""
    from scipy.optimize import linear_sum_assignment

    return torch.as_tensor(linear_sum_assignment(cost.detach().cpu().double().numpy())[1])


def _blocks(batch: int, context: Context, size: int) -> list[Tensor]:
    """Rows in blocks; examples of different labels are never in one."""
    if context is not None and context_batch(context) != batch:
        raise AleatorError(f"a context of batch {context_batch(context)} for {batch} examples")
    label = context_part(context, "label")
    groups = [torch.arange(batch)]
    if label is not None:
        groups = [(label.cpu() == value).nonzero()[:, 0] for value in label.cpu().unique()]
    return [block for group in groups for block in group.split(size)]


def _cost(x: Tensor, noise: Tensor, context: Context, rows: Tensor, weight: float) -> Tensor:
    """Squared distances of examples to noises, and of the conditions that they would bring."""
    cost = torch.cdist(x.flatten(1), noise.flatten(1)).square()
    for name in ("vector", "field"):
        part = context_part(context, name)
        if part is not None:
            c = part[rows.to(part.device)].flatten(1).to(cost)
            cost = cost + weight**2 * torch.cdist(c, c).square()
    return cost


def match_points(x: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
    """Noise of sets, each permuted within itself so that Σ_i |x_i - ε_π(i)|² is least.

    A set has no order: permuted or not, it is the same set of independent points, so that the
    law of the noise is kept under any condition. Only for networks that are equivariant, as they
    are for sets. Klein, Krämer and Noé (2023) arXiv:2306.15030.

    Args:
        x: (B, N, D) sets of points.
        noise: (B, N, D).
        mask: (B, N) bool, true for points that are there; others keep their noise.
    """
    cost = torch.cdist(x.double(), noise.double()).square().cpu()
    every = torch.arange(x.shape[1])
    order = every.repeat(len(x), 1)
    for row in range(len(x)):
        there = every if mask is None else mask[row].cpu().nonzero()[:, 0]
        order[row, there] = there[optimal_permutation(cost[row][there][:, there])]
    return noise.gather(1, order.to(noise.device)[:, :, None].expand_as(noise))
