"""Flows of vectors (and of anything else, flattened): RealNVP, MAF and neural spline flows.

References: Dinh et al. (2017) arXiv:1605.08803; Papamakarios et al. (2017) arXiv:1705.07057;
Wehenkel and Louppe (2019) arXiv:1908.05164; Durkan et al. (2019) arXiv:1906.04032.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from core.errors import AleatorError
from core.flows.base import Flow
from core.nets.conditions import Conditions
from core.transforms import (
    Affine,
    Autoregressive,
    Composition,
    Coupling,
    CouplingMLP,
    Flatten,
    Monotone,
    Permutation,
    PLUConvolution,
    RationalQuadratic,
    Transform,
    Univariate,
)


class _VectorFlow(Flow):
    """Layers of one kind, the features reordered between them."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None,
        univariate: Callable[[], Univariate],
        *,
        autoregressive: bool,
        layers: int,
        hidden: Sequence[int],
        vector_dim: int,
        classes: int,
        linear: bool = False,
        **options: Any,
    ) -> None:
        if layers < 1:
            raise AleatorError(f"layers={layers}: a flow needs at least one")
        conditions, dims = Conditions(vector_dim, classes), math.prod(event_shape)
        parts: list[Transform] = [Flatten(event_shape)]
        if linear:
            parts.append(PLUConvolution(dims, torch.eye(dims)))
        if dims < 2 and not autoregressive:
            raise AleatorError("coupling needs two features; take an autoregressive flow for one")
        for i in range(layers):
            if autoregressive:
                parts += [Permutation.reverse(dims)] if i else []
                parts.append(Autoregressive(univariate(), dims, conditions, hidden))
                continue
            # The halves change places, and every second time are drawn anew.
            order = Permutation.random(dims, i // 2) if i % 2 == 0 else Permutation.reverse(dims)
            function = univariate()
            outputs = (dims - dims // 2) * function.size
            net = CouplingMLP(dims // 2, outputs, conditions, hidden)
            parts += [order, Coupling(function, net, dims)]
        super().__init__(
            Composition(parts), event_shape, context_shape, conditions=conditions, **options
        )
        self.linear = linear

    def whiten(self, x: Tensor, shrink: float = 0.0) -> None:
        """Let the linear layer decorrelate examples (N, *E), so that training starts Gaussian.

        Args:
            x: training examples; of mean about 0.
            shrink: added to the diagonal of their covariance.

        Raises:
            AleatorError: the flow has no linear layer, or the covariance is singular.
        """
        if not self.linear:
            raise AleatorError("this flow has no linear layer: build it with linear=True")
        flat = x.detach().flatten(1).double()
        covariance = torch.cov(flat.T).reshape(self.dims, self.dims)
        covariance = covariance + shrink * torch.eye(self.dims, dtype=torch.float64)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if failed or not torch.isfinite(factor).all():
            raise AleatorError(
                f"the covariance of {len(x)} examples of {self.dims} features is singular: leave "
                "out features that repeat others, or shrink"
            )
        self._plu().set_weight(torch.linalg.inv(factor))

    def _plu(self) -> PLUConvolution:
        (found,) = (part for part in self.transform.modules() if isinstance(part, PLUConvolution))
        return found


class RealNVP(_VectorFlow):
    """Affine couplings."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        vector_dim: int = 0,
        classes: int = 0,
        layers: int = 6,
        hidden: Sequence[int] = (64, 64),
        **options: Any,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E; flattened inside; at least two elements.
            context_shape: shape of the main context tensor of one example.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            layers: number of couplings.
            hidden: units of the hidden layers of each network.
            options: `linear` (a linear layer comes first, see `whiten`); `levels` and `probes` of
                `Flow`.
        """
        super().__init__(
            event_shape,
            context_shape,
            Affine,
            autoregressive=False,
            layers=layers,
            hidden=hidden,
            vector_dim=vector_dim,
            classes=classes,
            **options,
        )


class MAF(_VectorFlow):
    """Masked autoregressive layers, affine or with monotone networks (UMNN)."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        vector_dim: int = 0,
        classes: int = 0,
        layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        univariate: Literal["affine", "monotone"] = "affine",
        **options: Any,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E; flattened inside.
            context_shape: shape of the main context tensor of one example.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            layers: number of autoregressive layers.
            hidden: units of the hidden layers of each network.
            univariate: the functions: "affine", or "monotone" for networks that are universal.
            options: `linear` (a linear layer comes first, see `whiten`); `levels` and `probes` of
                `Flow`.

        Raises:
            AleatorError: an unknown univariate.
        """
        known: dict[str, Callable[[], Univariate]] = {"affine": Affine, "monotone": Monotone}
        if univariate not in known:
            raise AleatorError(f"unknown univariate {univariate!r}; known: {', '.join(known)}")
        super().__init__(
            event_shape,
            context_shape,
            known[univariate],
            autoregressive=True,
            layers=layers,
            hidden=hidden,
            vector_dim=vector_dim,
            classes=classes,
            **options,
        )


class NSF(_VectorFlow):
    """Rational-quadratic splines, autoregressive or coupling."""

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        vector_dim: int = 0,
        classes: int = 0,
        layers: int = 5,
        hidden: Sequence[int] = (64, 64),
        autoregressive: bool = True,
        bins: int = 8,
        bound: float = 5.0,
        **options: Any,
    ) -> None:
        """Assemble.

        Args:
            event_shape: E; flattened inside.
            context_shape: shape of the main context tensor of one example.
            vector_dim: length of the context `vector`, 0 if none.
            classes: number of values of the context `label`, 0 if none.
            layers: number of layers.
            hidden: units of the hidden layers of each network.
            autoregressive: masked autoregressive layers (better densities); else couplings
                (sampling as fast as the density).
            bins: pieces of a spline.
            bound: splines are the identity outside [-bound, bound]; standardise the data.
            options: `linear` (a linear layer comes first, see `whiten`); `levels` and `probes` of
                `Flow`.
        """
        super().__init__(
            event_shape,
            context_shape,
            lambda: RationalQuadratic(bins, bound),
            autoregressive=autoregressive,
            layers=layers,
            hidden=hidden,
            vector_dim=vector_dim,
            classes=classes,
            **options,
        )
