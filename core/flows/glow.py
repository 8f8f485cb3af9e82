r"""Glow: a multiscale flow of images.

Each level squeezes 2 x 2 pixels into channels, then repeats actnorm, invertible 1 x 1
convolution and affine coupling; all but the last then send half of the channels to noise, given
the other half. The density accounts for every part: for integers (`levels=256`) the bits per
dimension of `log_prob(...).bits_per_dim(event_shape)` are those of the images as stored.
Reference: Kingma and Dhariwal (2018) arXiv:1807.03039.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from core.errors import AleatorError
from core.flows.base import Flow
from core.nets.conditions import Conditions
from core.transforms import (
    ActNorm,
    Affine,
    Composition,
    Coupling,
    CouplingConv,
    Flatten,
    Permutation,
    PLUConvolution,
    Split,
    Squeeze,
    Transform,
)


class Glow(Flow):
    """Multiscale affine couplings with 1 x 1 convolutions."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        field_channels: int = 0,
        vector_dim: int = 0,
        classes: int = 0,
        scales: int = 2,
        steps: int = 4,
        width: int = 64,
        mixing: Literal["convolution", "reverse"] = "convolution",
        **options: Any,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (C, H, W), H and W divisible by 2^scales.
            context_shape: shape of the main context tensor of one example.
            field_channels: channels of the context `field`, 0 if none.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            scales: number of levels.
            steps: of flow, a level.
            width: hidden channels of the couplings.
            mixing: of the channels before a coupling: invertible 1 x 1 convolutions, or their
                order reversed.
            options: `levels` and `probes` of `Flow`.

        Raises:
            AleatorError: not an image, or one that cannot be squeezed so often.
        """
        if len(event_shape) != 3:
            raise AleatorError(
                f"Glow needs an event (C, H, W), not {tuple(event_shape)}; use NSF or RealNVP"
            )
        if scales < 1 or any(n % 2**scales for n in event_shape[1:]):
            raise AleatorError(
                f"height and width of {tuple(event_shape)} must divide by 2^scales = {2**scales}"
            )
        if mixing not in ("convolution", "reverse"):
            raise AleatorError(f"unknown mixing {mixing!r}; known: convolution, reverse")
        mix = PLUConvolution if mixing == "convolution" else Permutation.reverse
        conditions = Conditions(vector_dim, classes, field_channels)

        def coupling(channels: int) -> Coupling:
            kept = channels // 2
            outputs = (channels - kept) * Affine.size
            return Coupling(Affine(), CouplingConv(kept, outputs, conditions, width), channels)

        def level(shape: tuple[int, ...], left: int) -> Transform:
            channels, grid = 4 * shape[0], (shape[1] // 2, shape[2] // 2)
            parts: list[Transform] = [Squeeze()]
            for _ in range(steps):
                parts += [ActNorm(channels), mix(channels), coupling(channels)]
            if left == 1:
                return Composition([*parts, ActNorm(channels), Flatten((channels, *grid))])
            rest = level((channels // 2, *grid), left - 1)
            return Composition([*parts, Split((channels, *grid), coupling(channels), rest)])

        transform = level(tuple(event_shape), scales)
        super().__init__(transform, event_shape, context_shape, conditions=conditions, **options)
