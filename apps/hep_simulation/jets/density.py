r"""A proper density of a reconstructed object: pattern, count and continuous values in turn.

    p(k, n, v | c) = P(k | c) P(n | k, c) Π_j p(v_j | k, n, v_<j, c)

    k   which energy components are exactly zero: one of the patterns seen in training
    n   number of constituents: a mixture of logistics on ln n, integrated over [n - ½, n + ½]
        and cut at n_min(k), so that Σ_n P = 1
    v   kinematics and sticks, each a mixture of Gaussians; a value that the pattern or the count
        fixes (mass of a single massless constituent, share of an absent component) has no density

Every factor has a small perceptron of its own, so that a draw costs a few matrix products; inside,
features come first and the batch last, which is how sums over a few components are fast. Draws
are functions of uniform numbers, hence of (seed, event) alone.
References: Bishop (1994) "Mixture density networks"; Salimans et al. (2017) arXiv:1701.05517
(discretised logistics); Uria et al. (2013) arXiv:1306.0186 (RNADE).
"""

from __future__ import annotations

import itertools
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
_MIDDLE = 2.5
"""About the mean of ln n, so that the networks put out numbers near 0."""


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
        self.pattern = Perceptron(context_dim, width, patterns)
        self.count = Perceptron(context_dim + patterns, width, 3 * count_mixtures)
        known = context_dim + patterns + 2
        self.nets = nn.ModuleList(
            Perceptron(known + 2 * j, width, 3 * mixtures) for j in range(self.values)
        )

    @torch.no_grad()
    def begin(self, pattern: Tensor) -> None:
        """Start from the frequencies of training patterns (N,): what is rare stays rare."""
        self.pattern.begin(pattern, len(self.least))

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
        c = _vector(context, self.context_shape).T
        pattern, count = x[:, 0].long(), x[:, 1]
        if ((pattern < 0) | (pattern >= len(self.least))).any():
            raise AleatorError(f"patterns must be in 0..{len(self.least) - 1}")
        if (count < self.least[pattern]).any() or (count != count.round()).any():
            raise AleatorError("counts must be whole numbers, no fewer than the pattern needs")
        free, v = self.active(pattern, count).T, x[:, 2:].T
        known = torch.cat([c, self._onehot(pattern, c)])
        parts = {
            "pattern": self.pattern(c).log_softmax(0).gather(0, pattern[None])[0],
            "count": self._count_log_prob(self.count(known), pattern, count),
        }
        seen, total = _start(known, count), torch.zeros_like(count)
        for j, net in enumerate(self.nets):
            log_p = _mixture_log_prob(net(seen), v[j])
            total = total + torch.where(free[j], log_p, 0.0)
            seen = _seen(seen, v[j], free[j])
        parts["values"] = total
        return parts

    def _onehot(self, pattern: Tensor, like: Tensor) -> Tensor:
        return (pattern == torch.arange(len(self.least), device=pattern.device)[:, None]).to(like)

    def _count_log_prob(self, raw: Tensor, pattern: Tensor, count: Tensor) -> Tensor:
        weight, mean, scale = _logistics(raw)
        cut = torch.log((self.least[pattern] - 0.5).clamp(min=1e-6))
        a, b, c = (
            (edge - mean) / scale for edge in (torch.log(count - 0.5), torch.log(count + 0.5), cut)
        )
        # σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)): no cancellation in either tail
        gap = torch.log(-torch.expm1((a - b).clamp(max=-1e-6)))
        inside = F.logsigmoid(b) + F.logsigmoid(-a) + gap
        return (weight + inside).logsumexp(0) - (weight + F.logsigmoid(-c)).logsumexp(0)

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
        c = _vector(context, self.context_shape).T.contiguous()
        u = u.T.to(c)
        pattern = choose(self.pattern(c).softmax(0), u[0])
        known = torch.cat([c, self._onehot(pattern, c)])
        count = self._draw_count(self.count(known), pattern, u[1])
        free = self.active(pattern, count).T
        seen, values = _start(known, count), []
        for j, net in enumerate(self.nets):
            v = _mixture_draw(net(seen), u[2 + 2 * j], u[3 + 2 * j])
            values.append(torch.where(free[j], v, 0.0))
            seen = _seen(seen, v, free[j])
        return torch.stack([pattern.to(c), count, *values], 1)

    def _draw_count(self, raw: Tensor, pattern: Tensor, u: Tensor) -> Tensor:
        """Mixture of logistics above the cut: component by its mass there, then its quantile."""
        weight, mean, scale = _logistics(raw)
        least = self.least[pattern].to(raw)
        cut = torch.log((least - 0.5).clamp(min=1e-6))
        mass = (weight + F.logsigmoid((mean - cut) / scale)).softmax(0)
        k = choose(mass, u)[None]
        # what is left of u within the component is uniform again
        edge = mass.cumsum(0).gather(0, k)[0]
        share = mass.gather(0, k)[0]
        rest = ((u - edge + share) / share).clamp(1e-6, 1 - 1e-6)
        mean, scale = mean.gather(0, k)[0], scale.gather(0, k)[0]
        above = torch.sigmoid((mean - cut) / scale)
        x = mean - scale * torch.logit((above * (1 - rest)).clamp(1e-12, _LARGEST))
        return torch.maximum(x.clamp(max=9.0).exp().round(), least)


class Perceptron(nn.Module):
    """Two hidden layers; (inputs, B) -> (outputs, B)."""

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        """The last bias begins spread out, so that no two components of a mixture are alike."""
        super().__init__()
        sizes = [inputs, width, width, outputs]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        with torch.no_grad():
            layers[-1].weight.mul_(0.3)
            layers[-1].bias.uniform_(-1, 1)
        self.layers = nn.ModuleList(layers)

    @torch.no_grad()
    def begin(self, classes: Tensor, number: int) -> None:
        """Let the outputs be the logarithms of the frequencies of classes (N,)."""
        count = torch.bincount(classes.long(), minlength=number).double() + 0.01
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_((count / count.sum()).log())

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate."""
        for i, layer in enumerate(self.layers):
            x = torch.addmm(layer.bias[:, None], layer.weight, x if i == 0 else x.relu_())  # type: ignore[index, arg-type]
        return x


def _start(known: Tensor, count: Tensor) -> Tensor:
    return torch.cat([known, (count.log() - _MIDDLE)[None], (count == 1)[None].to(known)])


def _seen(seen: Tensor, v: Tensor, free: Tensor) -> Tensor:
    """What the next perceptron sees: v and |v|; 0 where fixed."""
    v = torch.where(free, v.clamp(-6, 6), 0.0)
    return torch.cat([seen, v[None], v.abs()[None]])


def _logistics(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-weights, means and scales of ln n."""
    weight, mean, scale = raw.chunk(3)
    return weight.log_softmax(0), mean + _MIDDLE, F.softplus(scale) + 0.02


def _mixture_log_prob(raw: Tensor, v: Tensor) -> Tensor:
    weight, mean, scale = raw.chunk(3)
    scale = F.softplus(scale - 0.5) + _LEAST_SCALE
    log_p = -0.5 * ((v - mean) / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    return (weight.log_softmax(0) + log_p).logsumexp(0)


def _mixture_draw(raw: Tensor, u: Tensor, v: Tensor) -> Tensor:
    weight, mean, scale = raw.chunk(3)
    k = choose(weight.softmax(0), u)[None]
    scale = F.softplus(scale.gather(0, k)[0] - 0.5) + _LEAST_SCALE
    return mean.gather(0, k)[0] + scale * torch.special.ndtri(v.clamp(1e-7, _LARGEST))


def choose(share: Tensor, u: Tensor) -> Tensor:
    """Component (B,) of shares (K, B) that a uniform number (B,) falls in."""
    return (share.cumsum(0)[:-1] <= u).sum(0)


def _vector(context: Context, shape: torch.Size | None) -> Tensor:
    assert shape is not None
    if not isinstance(context, Tensor) or context.dim() != 2 or context.shape[1:] != shape:
        raise AleatorError(f"a context (B, {shape[0]}) is needed")
    return context
