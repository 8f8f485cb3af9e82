r"""Networks that cannot stretch: |g(x) - g(x')| <= c |x - x'|.

Every linear layer is divided by its largest singular value where that exceeds the bound. For a
convolution that is the norm of the *operator* on images of the given size, padding included:
power iteration goes through the convolution and its transpose, not through the reshaped kernel.
Activations do not stretch: LipSwish(x) = x σ(βx) / 1.1; and the pair [LipSwish(x), LipSwish(-x)]
has constant 1.00397, hence is divided by 1.004. A context enters as a bias, which is free.
References: Gouk et al. (2021) arXiv:1804.04368; Chen et al. (2019) arXiv:1906.02735;
Perugachi-Diaz et al. (2021) arXiv:2102.02694 (dense blocks with concatenated LipSwish).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.model import Context
from core.nets.conditions import Conditions

_SLACK = 1.001
"""Power iteration comes from below: what is still missing of the norm."""


class LipSwish(nn.Module):
    """x σ(βx) / 1.1 with a learned β > 0, elementwise."""

    growth = 1

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return x * torch.sigmoid(F.softplus(self.beta) * x) / 1.1


class ConcatenatedLipSwish(LipSwish):
    """[LipSwish(x), LipSwish(-x)] / 1.004 along the first event axis."""

    growth = 2

    def forward(self, x: Tensor) -> Tensor:
        """Apply."""
        return torch.cat([super().forward(x), super().forward(-x)], 1) / 1.004


class _Spectral(nn.Module, ABC):
    """A linear map x -> A x + bias with |A| <= bound."""

    u: Tensor
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self, shape: Sequence[int], outputs: int, out_shape: Sequence[int], bound: float
    ) -> None:
        super().__init__()
        self.bound = bound
        self.weight = nn.Parameter(torch.empty(*shape))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("u", F.normalize(torch.randn(1, *out_shape).flatten(), dim=0))
        self.out_shape = tuple(out_shape)
        self._converged_for: tuple[int, int] | None = None

    @abstractmethod
    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        """A x without bias, (B, ...)."""

    @abstractmethod
    def transpose(self, y: Tensor, weight: Tensor) -> Tensor:
        """A^T y, (B, ...)."""

    def norm(self, tolerance: float = 1e-7, max_steps: int = 2000) -> Tensor:
        """Largest singular value of A before the division, differentiable in the weight.

        In training a few iterations follow the weights; else as many as it takes.
        """
        key = (self.weight._version, self.weight.data_ptr())
        with torch.no_grad():
            u, weight, previous = self.u.reshape(1, *self.out_shape), self.weight, 0.0
            settled = self._converged_for is not None
            steps = 5 if self.training and settled else max_steps
            if key == self._converged_for:
                steps = 0
            for _ in range(steps):
                v = _unit(self.transpose(u, weight))
                u = self.operate(v, weight)
                sigma = u.norm().item()
                u = _unit(u)
                if abs(sigma - previous) <= tolerance * sigma:
                    break
                previous = sigma
            if steps:
                self.u = u.flatten()
                self._converged_for = key
            v = _unit(self.transpose(u, weight))
        return (u * self.operate(v, self.weight)).sum()

    def scaled_weight(self) -> Tensor:
        """The weight, divided where the norm exceeds the bound."""
        return self.weight / (self.norm() * _SLACK / self.bound).clamp_min(1)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Apply."""
        y = self.operate(x, self.scaled_weight() if weight is None else weight)
        return y + self.bias.reshape(-1, *[1] * (x.dim() - 2))


class SpectralLinear(_Spectral):
    """(B, inputs) -> (B, outputs)."""

    def __init__(self, inputs: int, outputs: int, bound: float = 0.97) -> None:
        """`bound`: on the largest singular value."""
        super().__init__((outputs, inputs), outputs, (outputs,), bound)

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        """A x."""
        return F.linear(x, weight)

    def transpose(self, y: Tensor, weight: Tensor) -> Tensor:
        """A^T y."""
        return F.linear(y, weight.T)


class SpectralConv2d(_Spectral):
    """(B, inputs, H, W) -> (B, outputs, H, W), zero padding, for images of one size."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        grid: Sequence[int],
        bound: float = 0.97,
    ) -> None:
        """`kernel`: odd; `grid`: (H, W), on which the norm depends."""
        super().__init__((outputs, inputs, kernel, kernel), outputs, (outputs, *grid), bound)

    def operate(self, x: Tensor, weight: Tensor) -> Tensor:
        """A x."""
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def transpose(self, y: Tensor, weight: Tensor) -> Tensor:
        """A^T y."""
        return F.conv_transpose2d(y, weight, padding=weight.shape[-1] // 2)


class LipschitzNet(nn.Module):
    """g (B, *E) -> (B, *E), of constant `bound` < 1 in x; perceptron or convolutions."""

    def __init__(
        self,
        event_shape: Sequence[int],
        conditions: Conditions | None = None,
        *,
        width: int = 64,
        depth: int = 2,
        bound: float = 0.95,
        dense: bool = False,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (D,) or (C, H, W).
            conditions: the parts of the context that shift the hidden features.
            width: hidden features (features added a layer, if dense).
            depth: hidden layers.
            bound: on the Lipschitz constant of the whole.
            dense: layers see all that came before, with learned weights and concatenated
                LipSwish (i-DenseNet); else a chain with LipSwish.
        """
        super().__init__()
        self.conditions = conditions or Conditions()
        self.dense, self.bound = dense, bound
        features, *grid = event_shape
        self.grid = tuple(grid)
        # A chain shares the bound out; dense layers have constant 1, and only the last has less.
        share = 1.0 if dense else bound ** (1 / (depth + 1))
        self.layers, self.activations = nn.ModuleList(), nn.ModuleList()
        self.contexts = nn.ModuleList()
        self.mix = nn.ParameterList()
        field = self.conditions.field_channels
        self.field = nn.Conv2d(field, width, 3, padding=1, bias=False) if field else None
        current = features
        for _ in range(depth):
            activation = ConcatenatedLipSwish() if dense else LipSwish()
            self.layers.append(self._layer(current, width, 3, share))
            self.activations.append(activation)
            if self.conditions.size:
                self.contexts.append(nn.Linear(self.conditions.size, width, bias=False))
            if dense:
                self.mix.append(nn.Parameter(torch.zeros(2)))
            current = activation.growth * width + (current if dense else 0)
        self.last = self._layer(current, features, 3, bound if dense else share)

    def _layer(self, inputs: int, outputs: int, kernel: int, bound: float) -> _Spectral:
        if self.grid:
            return SpectralConv2d(inputs, outputs, kernel, self.grid, bound)
        return SpectralLinear(inputs, outputs, bound)

    def forward(self, x: Tensor, context: Context = None) -> Tensor:
        """Evaluate."""
        vector, h = self.conditions.vector(context, x), x
        for i, (layer, activate) in enumerate(zip(self.layers, self.activations, strict=True)):
            inner = layer(h)
            if vector is not None:
                shift = self.contexts[i](vector)
                inner = inner + shift.reshape(*shift.shape, *[1] * len(self.grid))
            if i == 0 and self.field is not None:
                inner = inner + self.field(self.conditions.field(context, x))
            inner = activate(inner)
            if self.dense:  # |[a h, b φ(h)]|² <= (a² + b²) |h|², and a² + b² = 1
                a, b = self.mix[i].softmax(0).sqrt()
                inner = torch.cat([a * h, b * inner], 1)
            h = inner
        return self.last(h)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp_min(torch.finfo(x.dtype).tiny)
