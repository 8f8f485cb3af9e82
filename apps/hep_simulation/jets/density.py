r"""A proper density of a reconstructed object: pattern, count and continuous values in turn.

    p(k, n, v | c) = P(k | c) P(n | k, c) Π_j p(v_j | k, n, v_<j, c)

    k   which energy components are exactly zero: one of the patterns seen in training
    n   number of constituents: a mixture of logistics on ln n, integrated over [n - ½, n + ½]
        and cut at n_min(k), so that Σ_n P = 1
    v   kinematics and sticks, each a mixture of Gaussians; a value that the pattern or the count
        fixes (mass of a single massless constituent, share of an absent component) has no density

Every factor has a small perceptron of its own, so that a draw costs a few matrix products. Draws
are functions of uniform numbers, hence of (seed, event) alone.
References: Bishop (1994) "Mixture density networks"; Salimans et al. (2017) arXiv:1701.05517
(discretised logistics); Uria et al. (2013) arXiv:1306.0186 (RNADE).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.checks import check_examples
from core.errors import AleatorError
from core.model import Context, Density, GenerativeModel, Loss, context_batch, expand_context
from core.random import Generators, rand

_LEAST_SCALE = 1e-3
"""Of a Gaussian, in units of the value's deviation: no spike on a repeated value."""
_LARGEST = 1 - 2.0**-24


class MixedDensity(GenerativeModel):
    """Events are rows (k, n, v_1, ..., v_K) with standardised v; contexts are (B, C)."""

    takes_net = False
    rules: Tensor
    least: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        context_dim: int,
        active: Sequence[Sequence[int]],
        least: Sequence[int],
        needs_two: Sequence[int] = (),
        width: int = 64,
        mixtures: int = 8,
        count_mixtures: int = 4,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (2 + K,).
            context_dim: C.
            active: (patterns, K) 1 where the pattern leaves a value free.
            least: smallest count of each pattern.
            needs_two: values that are fixed where the count is 1.
            width: hidden units of each perceptron.
            mixtures: Gaussians of each value.
            count_mixtures: logistics of the count.

        Raises:
            AleatorError: the rules do not match the event.
        """
        super().__init__()
        (size,) = event_shape
        self.event_shape = torch.Size((size,))
        self.context_shape = torch.Size((context_dim,))
        self.values, self.mixtures, self.count_mixtures = size - 2, mixtures, count_mixtures
        rules = torch.as_tensor(active, dtype=torch.bool)
        if rules.shape != (len(least), self.values) or min(least) < 0:
            raise AleatorError(
                f"rules of shape {tuple(rules.shape)} for {len(least)} patterns and {self.values} "
                "values"
            )
        two = torch.zeros(self.values, dtype=torch.bool)
        two[list(needs_two)] = True
        self.register_buffer("rules", torch.stack([rules & ~two, rules]))
        self.register_buffer("least", torch.as_tensor(least))
        patterns = len(least)
        self.pattern = _perceptron(context_dim, width, patterns)
        self.count = _perceptron(context_dim + patterns, width, 3 * count_mixtures)
        known = context_dim + patterns + 2
        self.nets = nn.ModuleList(
            _perceptron(known + 2 * j, width, 3 * mixtures) for j in range(self.values)
        )

    def active(self, pattern: Tensor, count: Tensor) -> Tensor:
        """Which values have a density, bool (B, K), given patterns and counts (B,)."""
        return self.rules[(count > 1).long(), pattern]

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """-ln p in nats, and its parts: `pattern`, `count`, `values`."""
        parts = self._parts(x, context)
        terms = {name: -value.detach() for name, value in parts.items()}
        return Loss(-sum(parts.values(), torch.zeros(())), terms)

    def log_prob(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Density:
        """Exact ln p of x (B, 2 + K): mass of pattern and count, density of the free values."""
        return Density(sum(self._parts(x, context).values(), torch.zeros(())), "exact")

    def _parts(self, x: Tensor, context: Context) -> dict[str, Tensor]:
        check_examples(x, self.event_shape, context)
        c = _vector(context, self.context_shape)
        pattern, count = x[:, 0].long(), x[:, 1]
        if ((pattern < 0) | (pattern >= len(self.least))).any():
            raise AleatorError(f"patterns must be in 0..{len(self.least) - 1}")
        if (count < self.least[pattern]).any() or (count != count.round()).any():
            raise AleatorError("counts must be whole numbers, no fewer than the pattern needs")
        free, v = self.active(pattern, count), x[:, 2:]
        onehot = F.one_hot(pattern, len(self.least)).to(c)
        known = torch.cat([c, onehot], 1)
        parts = {
            "pattern": _pick(self.pattern(c).log_softmax(1), pattern),
            "count": self._count_log_prob(self.count(known), pattern, count),
        }
        seen, total = self._start(known, count), torch.zeros_like(count)
        for j, net in enumerate(self.nets):
            log_p = _mixture_log_prob(net(seen), v[:, j])
            total = total + torch.where(free[:, j], log_p, 0.0)
            seen = _seen(seen, v[:, j], free[:, j])
        parts["values"] = total
        return parts

    @staticmethod
    def _start(known: Tensor, count: Tensor) -> Tensor:
        return torch.cat([known, (count.log() - 2.5)[:, None], (count == 1)[:, None].to(known)], 1)

    def _count_log_prob(self, raw: Tensor, pattern: Tensor, count: Tensor) -> Tensor:
        weight, mean, scale = self._logistics(raw)
        low, high = (torch.log(count - 0.5)[:, None], torch.log(count + 0.5)[:, None])
        cut = torch.log((self.least[pattern] - 0.5).clamp(min=1e-6))[:, None]
        a, b, c = ((edge - mean) / scale for edge in (low, high, cut))
        # σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)): no cancellation in either tail
        gap = torch.log(-torch.expm1((a - b).clamp(max=-1e-6)))
        inside = F.logsigmoid(b) + F.logsigmoid(-a) + gap
        return (weight + inside).logsumexp(1) - (weight + F.logsigmoid(-c)).logsumexp(1)

    def _logistics(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, mean, scale = raw.chunk(3, 1)
        return weight.log_softmax(1), mean + 2.5, F.softplus(scale) + 0.02

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
        """Draws (*S, B, 2 + K)."""
        if sampler is not None or guidance is not None:
            raise AleatorError("a mixed density is sampled directly: no sampler, no guidance")
        batch, draws = context_batch(context), math.prod(shape)
        if batch is None:
            raise AleatorError("a mixed density needs a context (B, C)")
        u = rand((draws * batch, self.uniforms), generator)
        x = self.from_uniform(u, expand_context(context, draws))
        return x.reshape(*shape, batch, *self.event_shape)

    @property
    def uniforms(self) -> int:
        """Uniform numbers a draw is a function of: two, and two a value."""
        return 2 + 2 * self.values

    @torch.no_grad()
    def from_uniform(self, u: Tensor, context: Context) -> Tensor:
        """Draws (B, 2 + K) from uniform numbers (B, `uniforms`); fixed values are 0."""
        c = _vector(context, self.context_shape)
        pattern = _choose(self.pattern(c).softmax(1), u[:, 0])
        onehot = F.one_hot(pattern, len(self.least)).to(c)
        known = torch.cat([c, onehot], 1)
        count = self._draw_count(self.count(known), pattern, u[:, 1])
        free = self.active(pattern, count)
        seen, values = self._start(known, count), []
        for j, net in enumerate(self.nets):
            v = _mixture_draw(net(seen), u[:, 2 + 2 * j], u[:, 3 + 2 * j])
            v = torch.where(free[:, j], v, 0.0)
            values.append(v)
            seen = _seen(seen, v, free[:, j])
        return torch.stack([pattern.to(c), count, *values], 1)

    def _draw_count(self, raw: Tensor, pattern: Tensor, u: Tensor) -> Tensor:
        """Mixture of logistics above the cut: component by its mass there, then its quantile."""
        weight, mean, scale = self._logistics(raw)
        least = self.least[pattern].to(raw)
        cut = torch.log((least - 0.5).clamp(min=1e-6))[:, None]
        mass = (weight + F.logsigmoid((mean - cut) / scale)).softmax(1)
        edges = mass.cumsum(1)
        k = (edges < (u * edges[:, -1])[:, None]).sum(1).clamp(max=mass.shape[1] - 1)[:, None]
        # what is left of u within the component is uniform again
        start = (edges - mass).gather(1, k)[:, 0]
        rest = ((u * edges[:, -1] - start) / mass.gather(1, k)[:, 0]).clamp(1e-6, 1 - 1e-6)
        mean, scale = mean.gather(1, k)[:, 0], scale.gather(1, k)[:, 0]
        above = torch.sigmoid((mean - cut[:, 0]) / scale)
        x = mean - scale * torch.logit((above * (1 - rest)).clamp(1e-12, _LARGEST))
        return torch.maximum(x.clamp(max=9.0).exp().round(), least)


def _perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(width, outputs)
    with torch.no_grad():
        last.weight.mul_(0.3)
        # mixtures begin spread out, so that no two components are alike
        last.bias.uniform_(-1, 1)
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last
    )


def _seen(seen: Tensor, v: Tensor, free: Tensor) -> Tensor:
    """What the next perceptron sees: v, and its square as outliers do matter; 0 where fixed."""
    v = torch.where(free, v, 0.0).clamp(-6, 6)
    return torch.cat([seen, v[:, None], v.abs()[:, None]], 1)


def _gaussians(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weight, mean, scale = raw.chunk(3, 1)
    return weight, mean, F.softplus(scale - 0.5) + _LEAST_SCALE


def _mixture_log_prob(raw: Tensor, v: Tensor) -> Tensor:
    weight, mean, scale = _gaussians(raw)
    z = (v[:, None] - mean) / scale
    log_p = -0.5 * z.square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return (weight.log_softmax(1) + log_p).logsumexp(1)


def _mixture_draw(raw: Tensor, u: Tensor, v: Tensor) -> Tensor:
    weight, mean, scale = raw.chunk(3, 1)
    k = _choose(weight.softmax(1), u)[:, None]
    scale = F.softplus(scale.gather(1, k)[:, 0] - 0.5) + _LEAST_SCALE
    return mean.gather(1, k)[:, 0] + scale * torch.special.ndtri(v.clamp(1e-7, _LARGEST))


def _choose(share: Tensor, u: Tensor) -> Tensor:
    edges = share.cumsum(1)
    return (edges < (u * edges[:, -1])[:, None]).sum(1).clamp(max=share.shape[1] - 1)


def _pick(log_share: Tensor, index: Tensor) -> Tensor:
    return log_share.gather(1, index[:, None])[:, 0]


def _vector(context: Context, shape: torch.Size | None) -> Tensor:
    assert shape is not None
    if not isinstance(context, Tensor) or context.dim() != 2 or context.shape[1:] != shape:
        raise AleatorError(f"a context (B, {shape[0]}) is needed")
    return context
