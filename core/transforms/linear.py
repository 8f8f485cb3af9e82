r"""Linear transforms across features: permutation, invertible 1 x 1 convolution, actnorm.

The convolution multiplies the C features of every position by W = P L (U + diag s), P a fixed
permutation, L and U unit and strictly triangular: ln|det| = (number of positions) Σ ln|s|, and
the inverse is two triangular solves.
Reference: Kingma and Dhariwal (2018) arXiv:1807.03039.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.errors import AleatorError
from core.model import Context
from core.random import keyed_generator
from core.transforms.base import Transform, check_channels, pixels


class Permutation(Transform):
    """A fixed order of the features: y_i = x_{order(i)}."""

    order: Tensor
    back: Tensor

    def __init__(self, order: Tensor) -> None:
        """`order`: (D,) a permutation of 0..D-1.

        Raises:
            AleatorError: it is not one.
        """
        super().__init__()
        if not torch.equal(order.sort().values, torch.arange(len(order))):
            raise AleatorError(f"{order.tolist()} is not a permutation")
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    @classmethod
    def reverse(cls, features: int) -> Permutation:
        """Last feature first."""
        return cls(torch.arange(features - 1, -1, -1))

    @classmethod
    def random(cls, features: int, seed: int) -> Permutation:
        """A function of `seed` alone."""
        return cls(torch.randperm(features, generator=keyed_generator(seed, features)))

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        check_channels(x, len(self.order), "this permutation")
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        check_channels(y, len(self.order), "this permutation")
        return y[:, self.back], y.new_zeros(len(y))


class PLUConvolution(Transform):
    """Invertible 1 x 1 convolution of events (C,) or (C, H, W), a random rotation at birth."""

    order: Tensor
    sign: Tensor

    def __init__(self, channels: int, weight: Tensor | None = None) -> None:
        """Assemble.

        Args:
            channels: C.
            weight: (C, C) to start from; a random rotation if None.

        Raises:
            AleatorError: the weight is singular or not (C, C).
        """
        super().__init__()
        if weight is None:
            weight = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q
        self.register_buffer("order", torch.arange(channels))
        self.register_buffer("sign", torch.ones(channels))
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.set_weight(weight)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """Start anew from a weight (C, C).

        Raises:
            AleatorError: it is singular, not finite or not (C, C).
        """
        channels = len(self.order)
        if weight.shape != (channels, channels) or not torch.isfinite(weight).all():
            raise AleatorError(
                f"a 1x1 weight must be ({channels}, {channels}) and finite, not "
                f"{tuple(weight.shape)}"
            )
        permutation, lower, upper = torch.linalg.lu(weight.double())
        scale = upper.diagonal()
        if (scale.abs() <= 1e-12 * weight.double().abs().max()).any():
            raise AleatorError("this 1x1 weight is singular: it has no inverse, hence no density")
        # (P z)_i = z_{order(i)}
        self.order.copy_(permutation.argmax(1))
        self.sign.copy_(scale.sign())
        self.lower.copy_(lower.tril(-1))
        self.upper.copy_(upper.triu(1))
        self.log_scale.copy_(scale.abs().log())

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U + diag s.

        Raises:
            AleatorError: a diagonal element is 0 or not finite: the weight became singular.
        """
        scale = self.log_scale.exp()
        if not (torch.isfinite(scale) & (scale > 0)).all():
            raise AleatorError(
                "a 1x1 convolution became singular (a diagonal element is 0 or not finite); "
                "train with a smaller learning rate or clip gradients"
            )
        eye = torch.eye(len(scale), dtype=scale.dtype, device=scale.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + torch.diag(self.sign * scale)

    @property
    def weight(self) -> Tensor:
        """W = P L (U + diag s), (C, C)."""
        lower, upper = self.factors()
        return (lower @ upper)[self.order]

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        check_channels(x, len(self.order), "this 1x1 convolution")
        y = torch.einsum("ij,bj...->bi...", self.weight, x)
        return y, (pixels(x) * self.log_scale.sum()).expand(len(x))

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        check_channels(y, len(self.order), "this 1x1 convolution")
        lower, upper = self.factors()
        flat = y.movedim(1, 0).flatten(1)[self.order.argsort()]
        flat = torch.linalg.solve_triangular(lower, flat, upper=False, unitriangular=True)
        flat = torch.linalg.solve_triangular(upper, flat, upper=True)
        x = flat.reshape(y.shape[1], len(y), *y.shape[2:]).movedim(0, 1)
        return x, (-pixels(y) * self.log_scale.sum()).expand(len(y))


class ActNorm(Transform):
    """y = (x - m) exp(-s) per channel; the first batch in training sets mean 0, variance 1."""

    ready: Tensor

    def __init__(self, channels: int) -> None:
        """`channels`: length of the first axis of events (C,) or (C, H, W)."""
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels))
        self.log_std = nn.Parameter(torch.zeros(channels))
        self.register_buffer("ready", torch.tensor(False))
        self._known_ready = False  # spares a look at the device

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set mean and scale from a batch (B, C, ...); constants keep scale 1.

        Raises:
            AleatorError: the batch is not finite.
        """
        flat = x.movedim(1, 0).flatten(1)
        if not torch.isfinite(flat).all():
            raise AleatorError("the first batch is not finite: actnorm cannot be initialised")
        std = flat.std(1, correction=0)
        self.mean.copy_(flat.mean(1))
        self.log_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)).log())
        self.ready.fill_(True)

    def _shaped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_channels(x, len(self.mean), "this actnorm")
        shape = (-1, *[1] * (x.dim() - 2))
        return self.mean.reshape(shape), self.log_std.reshape(shape)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Data to noise."""
        mean, log_std = self._shaped(x)
        if self.training and not self._known_ready:
            if not self.ready:
                self.initialise(x)
            self._known_ready = True
        y = (x - mean) * (-log_std).exp()
        return y, (-pixels(x) * self.log_std.sum()).expand(len(x))

    def inverse(self, y: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        """Noise to data."""
        mean, log_std = self._shaped(y)
        x = torch.addcmul(mean, y, log_std.exp())
        return x, (pixels(y) * self.log_std.sum()).expand(len(y))
