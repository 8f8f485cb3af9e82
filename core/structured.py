r"""Random discrete structures: spanning trees and matchings, exactly.

    trees       p(T) = Π_{e in T} w_e / Z,   Z = det of the Laplacian without one row and column
    matchings   p(π) = exp(Σ_i θ_{i, π(i)}) / Z,   Z = the permanent of exp θ

Edge marginals are gradients of ln Z. Trees are drawn by Wilson's loop-erased random walks. The
permanent is summed over subsets, 2^N of them: exact up to N = 16; Sinkhorn's iteration and
perturb-and-MAP are the approximations beyond. References: Kirchhoff (1847); Wilson (1996)
doi:10.1145/237814.237880; Ryser (1963); Mena et al. (2018) arXiv:1802.08665; Papandreou and
Yuille (2011) doi:10.1109/ICCV.2011.6126242.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.checks import check_examples
from core.coupling import optimal_permutation
from core.errors import AleatorError
from core.model import Context, Density, GenerativeModel, Loss, context_batch, expand_context
from core.random import Generators, first_stream, rand

LARGEST = 16
"""Points of the largest matching whose permanent is computed."""


def tree_log_partition(log_weights: Tensor) -> Tensor:
    """Log-sum ln Z over all spanning trees of complete graphs.

    Args:
        log_weights: (B, N, N) symmetric ln w of the edges; the diagonal is not used. -inf is no
            edge.

    Returns:
        (B,); its gradient in `log_weights` is half the probability of each edge, in either order.

    Raises:
        AleatorError: not square, or not symmetric.
    """
    _check_symmetric(log_weights)
    n = log_weights.shape[1]
    off = ~torch.eye(n, dtype=torch.bool, device=log_weights.device)
    top = log_weights.detach().masked_fill(~off, -math.inf).amax((1, 2), keepdim=True)
    w = torch.where(off, log_weights - top, -math.inf).exp()  # the largest is 1: no overflow
    laplacian = torch.diag_embed(w.sum(2)) - w
    log_det = torch.linalg.slogdet(laplacian[:, 1:, 1:])[1]
    return log_det + (n - 1) * top[:, 0, 0]


def tree_marginals(log_weights: Tensor) -> Tensor:
    """Probability that each edge is in the tree, (B, N, N), summing to N - 1 over edges."""
    with torch.enable_grad():
        given = log_weights.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(tree_log_partition(given).sum(), given)
    return gradient + gradient.mT


def tree_entropy(log_weights: Tensor) -> Tensor:
    """Entropy of the law of trees, (B,) nats: ln Z - Σ_e p(e) ln w_e."""
    marginal = tree_marginals(log_weights)
    used = torch.where(marginal > 0, marginal * log_weights, 0.0)
    return tree_log_partition(log_weights) - 0.5 * used.sum((1, 2))


def sample_tree(log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A spanning tree of one graph (N, N) by Wilson's algorithm, adjacency (N, N) of 0 and 1.

    Each node not yet in the tree walks at random, by weight, until it meets the tree; loops of
    the walk are forgotten.
    """
    _check_symmetric(log_weights[None])
    n = len(log_weights)
    off = ~torch.eye(n, dtype=torch.bool)
    steps = torch.where(off, log_weights.detach().cpu().double(), -math.inf).softmax(1).cumsum(1)
    table = steps.tolist()
    following: list[int] = [-1] * n
    inside = [True] + [False] * (n - 1)
    for start in range(1, n):
        node = start
        while not inside[node]:
            u = float(rand((1,), generator, dtype=torch.float64)) * table[node][-1]
            following[node] = next(k for k, share in enumerate(table[node]) if u < share)
            node = following[node]
        node = start
        while not inside[node]:
            inside[node] = True
            node = following[node]
    tree = torch.zeros(n, n)
    for node in range(1, n):
        tree[node, following[node]] = tree[following[node], node] = 1
    return tree.to(log_weights)


def sinkhorn(scores: Tensor, iterations: int = 200) -> Tensor:
    """Log of the doubly stochastic matrix diag(a) exp(θ) diag(b) of scores θ (B, N, N)."""
    for _ in range(iterations):
        scores = scores - scores.logsumexp(2, keepdim=True)
        scores = scores - scores.logsumexp(1, keepdim=True)
    return scores


def matching_log_partition(scores: Tensor) -> Tensor:
    """Log-permanent ln Σ_π exp(Σ_i θ_{i, π(i)}) of scores (B, N, N), (B,), differentiable.

    Raises:
        AleatorError: not square, or more than 16 points.
    """
    return _suffixes(scores)[0][:, -1]


def _suffixes(scores: Tensor) -> list[Tensor]:
    """Log-sums over matchings of the rows from i on with each set of columns, i = 0 ... N."""
    n = _check_square(scores)
    value = scores.new_full((len(scores), 1 << n), -math.inf)
    value[:, 0] = 0.0
    levels = [value]
    sets = torch.arange(1 << n, device=scores.device)
    for row in reversed(range(n)):
        parts = []
        for column in range(n):
            has = (sets >> column) & 1 == 1
            rest = levels[0][:, sets ^ (1 << column)]
            fitting = rest + scores[:, row, column, None]
            parts.append(torch.where(has, fitting, -math.inf))
        stacked = torch.stack(parts)
        safe = torch.where(stacked.isfinite().any(0), stacked, 0.0)  # no gradient of empty sums
        summed = safe.logsumexp(0)
        levels.insert(0, torch.where(stacked.isfinite().any(0), summed, -math.inf))
    return levels


def sample_matching(scores: Tensor, generator: Generators | None = None) -> Tensor:
    """Exact draws of π for scores (B, N, N): π(i) as (B, N), row by row."""
    n = _check_square(scores)
    levels = _suffixes(scores.detach())
    u = rand((len(scores), n), generator, device=scores.device, dtype=scores.dtype)
    left = torch.full((len(scores),), (1 << n) - 1, device=scores.device)
    chosen = []
    for row in range(n):
        columns = torch.arange(n, device=scores.device)
        free = (left[:, None] >> columns) & 1 == 1
        rest = left[:, None] ^ (1 << columns)
        tail = levels[row + 1].gather(1, torch.where(free, rest, 0))
        share = torch.where(free, tail + scores[:, row], -math.inf).softmax(1).cumsum(1)
        column = (share < u[:, row : row + 1] * share[:, -1:]).sum(1)
        chosen.append(column)
        left = left ^ (1 << column)
    return torch.stack(chosen, 1)


def perturb_and_map(scores: Tensor, generator: Generators | None = None) -> Tensor:
    """The best matching of scores with Gumbel noise, (B, N): any N, and not quite p(π)."""
    u = rand(scores.shape, generator, device=scores.device, dtype=scores.dtype)
    tiny = torch.finfo(scores.dtype).tiny
    gumbel = -(-u.clamp(min=tiny).log()).clamp(min=tiny).log()
    return torch.stack([optimal_permutation(-row) for row in scores + gumbel])


class StructuredModel(GenerativeModel):
    """A law of structures over N points, its scores free or put out by a network."""

    takes_net = False
    unsupported: ClassVar[Mapping[str, str]] = {
        "posterior": "structures are discrete; weigh samples by their likelihood"
    }

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        scores: nn.Module | Mapping[str, Any] | None = None,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (N, N): adjacencies, or permutation matrices.
            context_shape: shape of the context vector of one example, (D,), or None.
            scores: with a context vector (B, D), a network from it to (B, N, N); an MLP by
                default. Without, the scores are parameters.

        Raises:
            AleatorError: events that are not square, or an unknown network.
        """
        super().__init__()
        if len(event_shape) != 2 or event_shape[0] != event_shape[1] or event_shape[0] < 2:
            raise AleatorError(f"structures need an event (N, N), not {tuple(event_shape)}")
        self.event_shape = torch.Size(event_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        self.free = nn.Parameter(torch.zeros(tuple(event_shape)))
        self.net: nn.Module | None = None
        if context_shape is not None:
            from core.vae.base import make_net

            self.net = make_net(scores, tuple(context_shape), tuple(event_shape), awake=False)

    def scores(self, context: Context, batch: int) -> Tensor:
        """Scores (B, N, N) of a context.

        Raises:
            AleatorError: a context where there should be none, or none where there should be one.
        """
        if self.net is None:
            if context is not None:
                raise AleatorError("this law has no context: give context_shape in its config")
            return self.free.expand(batch, -1, -1)
        vector = context.get("vector") if isinstance(context, Mapping) else context
        if vector is None:
            raise AleatorError("this law needs a context vector (B, D)")
        return self.free + self.net(vector, vector.new_zeros(len(vector)), None)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Negative log-probability of structures x (B, N, N), (B,) nats."""
        value = -self._log_prob(x, context)
        return Loss(value, {"nll": value.detach()})

    def log_prob(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Density:
        """Log-probability of structures x (B, N, N), exact, (B,) nats."""
        with torch.no_grad():
            return Density(self._log_prob(x, context), "exact")

    @abstractmethod
    def _log_prob(self, x: Tensor, context: Context) -> Tensor:
        """Log-probability (B,) of checked structures."""

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
        """Exact draws: (*S, B, N, N), or (*S, N, N) without context."""
        if sampler is not None or guidance is not None:
            raise AleatorError("structures are drawn exactly: no sampler and no guidance")
        draws, batch = math.prod(shape), context_batch(context)
        rows = draws * (batch or 1)
        x = self._draw(self.scores(expand_context(context, draws), rows), generator)
        leading = (*shape, *(() if batch is None else (batch,)))
        return x.reshape(*leading, *self.event_shape)

    @abstractmethod
    def _draw(self, scores: Tensor, generator: Generators | None) -> Tensor:
        """One structure for each row of scores (B, N, N)."""


class SpanningTree(StructuredModel):
    """A law of spanning trees with a weight for each edge."""

    def _log_weights(self, scores: Tensor) -> Tensor:
        return 0.5 * (scores + scores.mT)

    def _log_prob(self, x: Tensor, context: Context) -> Tensor:
        check_examples(x, self.event_shape, context)
        n = self.event_shape[0]
        eye = torch.eye(n, device=x.device, dtype=x.dtype)
        # A graph of N - 1 edges is a tree if it is connected: no determinant of another rank.
        laplacian = torch.diag_embed(x.sum(2)) - x
        good = ((x == 0) | (x == 1)).all((1, 2)) & (x == x.mT).all((1, 2))
        good &= (x * eye).sum((1, 2)) == 0
        good &= (torch.linalg.det(laplacian[:, 1:, 1:].double()) - 1).abs() < 1e-6
        if not good.all():
            row = int((~good).nonzero()[0])
            raise AleatorError(f"example {row} is no adjacency of a spanning tree of {n} nodes")
        log_weights = self._log_weights(self.scores(context, len(x)))
        return 0.5 * (x * log_weights).sum((1, 2)) - tree_log_partition(log_weights)

    def _draw(self, scores: Tensor, generator: Generators | None) -> Tensor:
        if isinstance(generator, Sequence):
            streams: Sequence[torch.Generator | None] = [first_stream(g) for g in generator]
        else:
            streams = [generator] * len(scores)
        trees = zip(self._log_weights(scores), streams, strict=True)
        return torch.stack([sample_tree(w, g) for w, g in trees])


class Matching(StructuredModel):
    """A law of bipartite matchings with a score for each pair."""

    def _log_prob(self, x: Tensor, context: Context) -> Tensor:
        check_examples(x, self.event_shape, context)
        good = ((x == 0) | (x == 1)).all((1, 2))
        good &= (x.sum(1) == 1).all(1) & (x.sum(2) == 1).all(1)
        if not good.all():
            row = int((~good).nonzero()[0])
            raise AleatorError(f"example {row} is no permutation matrix")
        scores = self.scores(context, len(x))
        return (x * scores).sum((1, 2)) - matching_log_partition(scores)

    def _draw(self, scores: Tensor, generator: Generators | None) -> Tensor:
        pairs = sample_matching(scores, generator)
        return torch.nn.functional.one_hot(pairs, scores.shape[1]).to(scores)


def _check_square(scores: Tensor) -> int:
    if scores.dim() != 3 or scores.shape[1] != scores.shape[2] or not 1 <= scores.shape[1]:
        raise AleatorError(f"scores of shape {tuple(scores.shape)}; (B, N, N) is needed")
    if scores.shape[1] > LARGEST:
        raise AleatorError(
            f"a permanent of {scores.shape[1]} points: at most {LARGEST}; use perturb_and_map"
        )
    return scores.shape[1]


def _check_symmetric(log_weights: Tensor) -> None:
    shape = tuple(log_weights.shape)
    if log_weights.dim() != 3 or shape[1] != shape[2] or shape[1] < 2:
        raise AleatorError(f"log-weights of shape {shape}; (B, N, N) with N ≥ 2 is needed")
    if not torch.allclose(log_weights, log_weights.mT, equal_nan=True):
        raise AleatorError("log-weights of undirected edges must be symmetric")
