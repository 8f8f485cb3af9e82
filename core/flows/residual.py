r"""Residual flows, plain and dense: free-form layers that are invertible because they contract.

The log-determinant is estimated without bias in training and by default in `log_prob`, which
says so; `log_prob(x, exact=True)` takes slogdet of the Jacobian.
References: Chen et al. (2019) arXiv:1906.02735; Perugachi-Diaz et al. (2021) arXiv:2102.02694.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.errors import AleatorError
from core.flows.base import Flow
from core.nets.conditions import Conditions
from core.nets.lipschitz import LipschitzNet
from core.transforms import ActNorm, Composition, Flatten, Residual, Squeeze, Transform


class ResidualFlow(Flow):
    """Actnorm and residual blocks, of perceptrons on vectors and of convolutions on images."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        field_channels: int = 0,
        vector_dim: int = 0,
        classes: int = 0,
        layers: int = 8,
        width: int = 64,
        depth: int = 2,
        bound: float = 0.95,
        dense: bool = False,
        squeezes: int = 0,
        exact_terms: int = 4,
        tolerance: float = 1e-6,
        **options: Any,
    ) -> None:
        """Assemble.

        Args:
            event_shape: (C, H, W) for convolutions; anything else is flattened.
            context_shape: shape of the main context tensor of one example.
            field_channels: channels of the context `field` (images only), 0 if none.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            layers: number of residual blocks.
            width: hidden features.
            depth: hidden layers a block.
            bound: on the Lipschitz constant of a block, below 1.
            dense: i-DenseNet blocks.
            squeezes: how often 2 x 2 pixels become channels, at the beginning (images only).
            exact_terms: terms of the series before the roulette begins.
            tolerance: of the inverse.
            options: `levels` and `probes` of `Flow`.

        Raises:
            AleatorError: a bound that does not make the blocks invertible, or an image option
                for vectors.
        """
        if not 0 < bound < 1:
            raise AleatorError(f"bound={bound}: residual blocks are invertible for 0 < bound < 1")
        image = len(event_shape) == 3
        if not image and (field_channels or squeezes):
            raise AleatorError(
                f"field_channels and squeezes are for events (C, H, W), not {tuple(event_shape)}"
            )
        if image and any(n % 2**squeezes for n in event_shape[1:]):
            raise AleatorError(
                f"height and width of {tuple(event_shape)} must divide by 2^squeezes"
            )
        conditions = Conditions(vector_dim, classes, field_channels)
        parts: list[Transform] = [Squeeze() for _ in range(squeezes)]
        shape: tuple[int, ...] = tuple(event_shape)
        if image:
            shape = (shape[0] * 4**squeezes, shape[1] >> squeezes, shape[2] >> squeezes)
        else:
            parts.append(Flatten(shape))
            size = 1
            for n in shape:
                size *= n
            shape = (size,)
        for _ in range(layers):
            net = LipschitzNet(
                shape, conditions, width=width, depth=depth, bound=bound, dense=dense
            )
            block = Residual(net, exact_terms=exact_terms, tolerance=tolerance)
            parts += [ActNorm(shape[0]), block]
        parts.append(ActNorm(shape[0]))
        if image:
            parts.append(Flatten(shape))
        super().__init__(
            Composition(parts), event_shape, context_shape, conditions=conditions, **options
        )
