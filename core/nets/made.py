r"""MADE: a perceptron whose outputs for feature i see features 1..i-1 only.

Every hidden unit has a degree, the number of leading features that it may see; a weight is
masked unless its target's degree is at least its source's. Units are sorted by degree, so that
all that becomes known with one more feature is a contiguous slice of every layer: evaluated slice
by slice, D steps cost the multiply-adds of *one* (masked) forward pass, not of D.
Reference: Germain et al. (2015) arXiv:1502.03509.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MADE(nn.Module):
    """Masked perceptron, (B, D) -> (size, B, D)."""

    def __init__(
        self, features: int, size: int, *, context_dim: int = 0, hidden: Sequence[int] = (64, 64)
    ) -> None:
        """Assemble.

        Args:
            features: D.
            size: outputs a feature.
            context_dim: length of what conditions all outputs.
            hidden: units of the hidden layers.
        """
        super().__init__()
        self.features, self.size = features, size
        first = 0 if context_dim or features == 1 else 1  # without context degree 0 is constant
        span = max(features - first, 1)
        degrees = [torch.arange(1, features + 1)]
        degrees += [first + torch.arange(n) * span // n for n in hidden]
        degrees.append(torch.arange(features).repeat(size))
        sizes = [features, *hidden, features * size]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        for i, (source, target) in enumerate(pairwise(degrees)):
            mask = (target[:, None] >= source).to(torch.get_default_dtype())
            self.register_buffer(f"mask_{i}", mask, persistent=False)
        # ends[l][i]: how many units of layer l (0: the input) have degree <= i.
        self.ends = [
            [int((d <= i).sum()) for i in range(features)] for d in degrees[: len(sizes) - 1]
        ]
        self.context_in: nn.Linear | None = None
        self.context_out: nn.Linear | None = None
        if context_dim:
            self.context_in = nn.Linear(context_dim, sizes[1], bias=False)
            self.context_out = nn.Linear(context_dim, sizes[-1], bias=False)
        with torch.no_grad():
            layers[-1].weight.mul_(0.1)
            layers[-1].bias.zero_()
            if self.context_out is not None:
                self.context_out.weight.mul_(0.1)

    def linear(self) -> list[tuple[Tensor, Tensor]]:
        """Masked weight and bias of each layer."""
        masks = [self.get_buffer(f"mask_{i}") for i in range(len(self.layers))]
        layers: list[nn.Linear] = list(self.layers)  # type: ignore[arg-type]
        return [(i.weight * mask, i.bias) for i, mask in zip(layers, masks, strict=True)]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, D) and (B, context_dim) -> (size, B, D); in memory the batch comes last."""
        h, last = x.T, len(self.layers) - 1
        for i, (weight, bias) in enumerate(self.linear()):
            h = torch.addmm(bias[:, None], weight, h)
            if i == 0 and self.context_in is not None:
                h = h + self.context_in(context).T
            if i < last:
                h = F.relu(h)
        if self.context_out is not None:
            h = h + self.context_out(context).T
        return h.reshape(self.size, self.features, len(x)).mT


class FeatureByFeature:
    """MADE evaluated as features become known: `outputs(i)` after features 0..i-1 were `push`ed.

    Activations are kept (units, B), so that what a step reads is one block of memory. With
    gradients on, they are concatenated rather than written in place.
    """

    def __init__(self, net: MADE, like: Tensor, context: Tensor | None = None) -> None:
        """`like`: (B, ...) tells batch size, dtype and device; `context`: (B, context_dim)."""
        self.net = net
        self.grad = torch.is_grad_enabled()
        self.weights, biases = zip(*net.linear(), strict=True)
        self.biases = [bias[:, None] for bias in biases]
        self.shape = (net.size, net.features)
        self.context_in = self.context_out = None
        if net.context_in is not None and net.context_out is not None:
            assert context is not None
            self.context_in = (net.context_in.weight @ context.T).add(self.biases[0])
            self.context_out = (net.context_out.weight @ context.T).add(self.biases[-1])
        widths = [weight.shape[1] for weight in self.weights]
        self.known = [like.new_empty(0 if self.grad else n, len(like)) for n in widths]

    def push(self, i: int, x: Tensor) -> None:
        """Make feature i known, (B,) values."""
        self._store(0, i, x[None])

    def outputs(self, i: int) -> Tensor:
        """(size, B) outputs for feature i."""
        ends, last = self.net.ends, len(self.weights) - 1
        for layer in range(last):
            start = ends[layer + 1][i - 1] if i else 0
            end, seen = ends[layer + 1][i], ends[layer][i]
            if end > start:
                rows = slice(start, end)
                extra = self.context_in if layer == 0 else None
                self._store(layer + 1, start, F.relu(self._affine(layer, rows, seen, extra)))
        seen = ends[last][i]
        weight = self.weights[last].unflatten(0, self.shape)[:, i, :seen]
        extra = self.biases[last] if self.context_out is None else self.context_out
        return torch.addmm(extra.unflatten(0, self.shape)[:, i], weight, self.known[last][:seen])

    def _affine(self, layer: int, rows: slice, seen: int, extra: Tensor | None) -> Tensor:
        bias = (self.biases[layer] if extra is None else extra)[rows]
        return torch.addmm(bias, self.weights[layer][rows, :seen], self.known[layer][:seen])

    def _store(self, layer: int, start: int, values: Tensor) -> None:
        if self.grad:
            self.known[layer] = torch.cat([self.known[layer], values])
        else:
            self.known[layer][start : start + len(values)] = values
