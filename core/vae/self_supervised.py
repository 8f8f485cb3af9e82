r"""Self-supervised VAE: coarse first, then the detail that coarsening loses.

    x  <->  (y, r):   y = mean of each 2 × 2 block,   r = the other three Haar coefficients
    ln p(x) = ln p(y) + ln p(r | y) + const,          again for y, down the levels

In the paper y = d(x) is any downscaling and x is decoded from y and z, so that x need not agree
with y. Here it does, exactly: the detail is what is orthogonal to the means, the map is a
bijection, and the sum of the levels' bounds is a bound on the density of x. Each conditional is a
VAE that is given y. Reference: Gatopoulos and Tomczak (2021) arXiv:2010.02014.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.checks import check_examples
from core.errors import AleatorError
from core.model import Context, Density, GenerativeModel, Loss
from core.random import Generators
from core.registry import build
from core.vae.vae import VAE


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means of 2 × 2 blocks (B, C, H/2, W/2) and orthonormal detail (B, 3 C, H/2, W/2)."""
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    detail = torch.cat([a - b + c - d, a + b - c - d, a - b - c + d], 1) / 2
    return (a + b + c + d) / 4, detail


def merge(mean: Tensor, detail: Tensor) -> Tensor:
    """The inverse of `split`."""
    p, q, r = detail.chunk(3, 1)
    p, q, r = p / 2, q / 2, r / 2
    top = torch.stack([mean + p + q + r, mean - p + q - r], -1).flatten(-2)
    bottom = torch.stack([mean + p - q - r, mean - p - q + r], -1).flatten(-2)
    return torch.stack([top, bottom], -2).flatten(-3, -2)


class SelfSupervisedVAE(GenerativeModel):
    """A VAE of the coarsest image, and one of the detail at each finer level."""

    takes_net = False

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        levels: int = 3,
        coarse: Mapping[str, Any] | VAE | None = None,
        detail: Mapping[str, Any] | Sequence[VAE] | None = None,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (C, H, W), sides that halve levels - 1 times.
            context_shape: shape of the main context tensor of one example, for the record.
            levels: resolutions, the finest included.
            coarse: config of the VAE of the coarsest image, or the VAE.
            detail: config of the VAEs of detail given the coarser image (their context `vector`),
                or the VAEs, finest first.

        Raises:
            AleatorError: not images that halve, or options that do not fit.
        """
        super().__init__()
        factor = 2 ** (levels - 1)
        if (
            len(event_shape) != 3
            or levels < 2
            or event_shape[1] % factor
            or event_shape[2] % factor
        ):
            raise AleatorError(
                f"self-supervised vae: an event (C, H, W) with sides divisible by {factor} and "
                f"two levels or more are needed, not {tuple(event_shape)} and {levels}"
            )
        self.event_shape = torch.Size(event_shape)
        self.context_shape = None if context_shape is None else torch.Size(context_shape)
        self.levels = levels
        channels, height, width = event_shape
        shapes = [(channels, height >> k, width >> k) for k in range(levels)]
        self.coarse = _vae(coarse, shapes[-1], 0)
        if detail is None or isinstance(detail, Mapping):
            built = [
                _vae(detail, (3 * channels, *shape[1:]), math.prod(shape)) for shape in shapes[1:]
            ]
        else:
            built = list(detail)
        wanted = [(3 * channels, *shape[1:]) for shape in shapes[1:]]
        found = [tuple(vae.event_shape) for vae in built]
        if found != wanted:
            raise AleatorError(f"self-supervised vae: VAEs of {found} for details of {wanted}")
        self.details = nn.ModuleList(built)

    def parts(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The coarsest image; detail and coarser image of each level, finest first."""
        pairs = []
        for _ in range(self.levels - 1):
            x, detail = split(x)
            pairs.append((detail, x))
        return x, pairs

    def volume(self) -> float:
        """Log-determinant ln |∂(y, r)/∂x| of all levels: every mean is half an orthonormal one."""
        cells = [math.prod(self.event_shape) >> 2 * k for k in range(1, self.levels)]
        return -math.log(2.0) * sum(cells)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Sum of the levels' losses of examples x (B, C, H, W), value (B,) nats."""
        check_examples(x, self.event_shape, context)
        coarsest, pairs = self.parts(x)
        found = self.coarse.loss(coarsest, context, generator=generator)
        value, terms = found.value - self.volume(), {"coarse": found.value.detach()}
        for k, (vae, (detail, coarser)) in enumerate(zip(self.details, pairs, strict=True)):
            assert isinstance(vae, VAE)
            given = with_vector(context, coarser)
            part = vae.loss(detail, given, generator=generator).value
            value = value + part
            terms[f"detail_{k}"] = part.detach()
        return Loss(value, terms)

    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        *,
        generator: Generators | None = None,
        **options: Any,
    ) -> Density:
        """The sum of the levels' bounds, (B,) nats; options as for `VAE.log_prob`."""
        check_examples(x, self.event_shape, context)
        coarsest, pairs = self.parts(x)
        parts = [self.coarse.log_prob(coarsest, context, generator=generator, **options)]
        for vae, (detail, coarser) in zip(self.details, pairs, strict=True):
            assert isinstance(vae, VAE)
            given = with_vector(context, coarser)
            parts.append(vae.log_prob(detail, given, generator=generator, **options))
        value = torch.stack([p.value for p in parts]).sum(0) + self.volume()
        errors = [p.stderr for p in parts if p.stderr is not None]
        stderr = torch.stack(errors).square().sum(0).sqrt() if errors else None
        return Density(value, "lower_bound", stderr)

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: str | None = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draw the coarsest image, then detail upon detail: (*S, B, *E)."""
        rows, repeated, leading = self.coarse.layout(shape, context)
        options = {"sampler": sampler, "guidance": guidance, "generator": generator}
        x = self.coarse.sample(shape, context, **options)
        x = x.reshape(rows, *self.coarse.event_shape)
        return self.refine(x, repeated, sampler=sampler, generator=generator).reshape(
            *leading, *self.event_shape
        )

    @torch.no_grad()
    def refine(
        self,
        x: Tensor,
        context: Context = None,
        *,
        sampler: str | None = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Super-resolution: detail drawn upon images (N, C, h, w) of any level, (N, *E).

        Block means of the result are the given images, exactly.

        Raises:
            AleatorError: images of a size that is none of the levels'.
        """
        sizes = []
        for vae in reversed(self.details):
            assert isinstance(vae, VAE)
            sizes.append(list(vae.event_shape[-2:]))
            if x.shape[-2:] == vae.event_shape[-2:]:
                detail = vae.sample(
                    (), with_vector(context, x), sampler=sampler, generator=generator
                )
                x = merge(x, detail)
        if x.shape[1:] != self.event_shape:
            raise AleatorError(f"images of shape {tuple(x.shape)}: the levels are of {sizes}")
        return x


def with_vector(context: Context, image: Tensor) -> Context:
    """The context with a flattened image in front of its vector."""
    vector = image.flatten(1)
    if context is None:
        return vector
    if isinstance(context, Tensor):
        kind = {4: "field", 2: "vector", 1: "label"}[context.dim()]
        context = {kind: context}
    if "vector" in context:
        vector = torch.cat([vector, context["vector"]], 1)
    return {**context, "vector": vector}


def _vae(
    config: Mapping[str, Any] | VAE | None, event_shape: Sequence[int], vector_dim: int
) -> VAE:
    """A VAE from its config; its networks take the coarser image as a vector."""
    if isinstance(config, VAE):
        return config
    options = dict(config or {})
    for side in ("encoder", "decoder"):
        net = dict(options.get(side) or {})
        net["vector_dim"] = net.get("vector_dim", 0) + vector_dim
        options[side] = net
    built = build({**options, "family": "vae", "event_shape": tuple(event_shape)})
    assert isinstance(built, VAE)
    return built
