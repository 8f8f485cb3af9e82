r"""Flow matching: regression of the velocity of conditional paths.

    loss(x) = |u_t(x_t | x) - û(x_t, t)|² / D,    u_t = α'(t) x + σ'(t) ε

Its gradient equals that of the regression on the intractable marginal velocity, so that the
minimiser generates the data (Lipman et al. 2023, arXiv:2210.02747). Straight conditional paths
do not make the marginal flow straight. Rectified (σ_min = 0) and optimal-transport (σ_min > 0)
paths are `path="rectified"`; any other Gaussian path will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from core.diffusion import Diffusion, Times
from core.paths import Path


class FlowMatching(Diffusion):
    """Conditional flow matching on any Gaussian path; samplers and densities are diffusion's."""

    def __init__(
        self,
        net: nn.Module,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        path: str | Path | dict[str, Any] = "rectified",
        prediction: Any = "velocity",
        times: Times = "uniform",
        log_sigma_mean: float = 0.0,
        log_sigma_std: float = 1.0,
        **options: Any,
    ) -> None:
        """Assemble; arguments as for `Diffusion`, with the defaults of flow matching.

        `times="logit_normal"` draws times as Esser et al. (2024), arXiv:2403.03206, do.
        """
        super().__init__(
            net,
            event_shape,
            context_shape,
            path=path,
            prediction=prediction,
            weighting="velocity",
            times=times,
            log_sigma_mean=log_sigma_mean,
            log_sigma_std=log_sigma_std,
            **options,
        )
