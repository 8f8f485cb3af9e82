r"""Hybrid models: one invertible trunk that classifies and says how likely its input is.

    ln p(x, y) = ln p(y | x) + ln p(x),    training maximises ln p(y | x) + λ ln p(x)

The trunk z = f(x) is a flow; a head on z gives p(y | x), the flow gives p(x). λ = 0 is a
classifier whose p(x) means nothing, λ = 1 the joint likelihood, which the D dimensions of x
dominate; λ = 1/D balances the two. A decision by p(x, y) refuses what a classifier alone is sure
of although nothing like it was ever seen.
References: Nalisnick et al. (2019) arXiv:1902.02767; Perugachi-Diaz et al. (2021)
arXiv:2102.02694.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import AleatorError
from core.flows.base import Flow
from core.model import Context, Density, GenerativeModel, Loss
from core.nets.embeddings import context_part
from core.random import Generators
from core.registry import build


class HybridModel(GenerativeModel):
    """A classifier with a density; the class is the context's `label`."""

    takes_net = False

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        flow: Mapping[str, Any] | Flow,
        classes: int,
        weight: float | None = None,
        hidden: Sequence[int] = (),
    ) -> None:
        """Assemble.

        Args:
            event_shape: E.
            flow: the trunk, unconditional: a flow, or a config without its event shape.
            classes: number of classes.
            weight: λ; 1/D if None.
            hidden: units of hidden layers of the head; none is a linear head.

        Raises:
            AleatorError: fewer than two classes, a negative weight, or a trunk that is no flow.
        """
        super().__init__()
        if classes < 2:
            raise AleatorError(f"classes={classes}: at least two are needed")
        if not isinstance(flow, Flow):
            built = build({**flow, "event_shape": list(event_shape)})
            if not isinstance(built, Flow):
                raise AleatorError(f"the trunk must be a flow, not {type(built).__name__}")
            flow = built
        if flow.event_shape != torch.Size(event_shape):
            raise AleatorError(
                f"the trunk is of events {tuple(flow.event_shape)}, not {tuple(event_shape)}"
            )
        self.flow, self.classes = flow, classes
        self.event_shape, self.context_shape = torch.Size(event_shape), torch.Size(())
        self.weight = 1 / flow.dims if weight is None else weight
        if not self.weight >= 0:
            raise AleatorError(f"weight={weight}: it must not be negative")
        layers: list[nn.Module] = []
        width = flow.dims
        for units in hidden:
            layers += [nn.Linear(width, units), nn.SiLU()]
            width = units
        self.head = nn.Sequential(*layers, nn.Linear(width, classes))

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """-ln p(y | x) - λ ln p(x), in nats; terms `cross_entropy`, `nll` and `correct`.

        With λ = 0 there is no `nll`: no determinant is computed.

        Raises:
            AleatorError: examples as for the flow, or labels that are missing or out of range.
        """
        label = self._label(context, len(x))
        x = self.flow.checked(x, None)
        x = self.flow.dequantised(x, generator)
        estimates = None
        if self.weight:
            z, estimates = self.flow.noise_and_estimates(x, None, 1, generator)
        else:
            z = self.flow.encode(x)
        logits = self.head(z)
        value = cross_entropy = F.cross_entropy(logits, label, reduction="none")
        correct = (logits.argmax(1) == label).to(logits.dtype)
        terms = {"cross_entropy": cross_entropy.detach(), "correct": correct}
        if estimates is not None:
            nll = -estimates[0] + self._unit
            value = value + self.weight * nll
            terms["nll"] = nll.detach()
        return Loss(value, terms)

    def logits(self, x: Tensor) -> Tensor:
        """Of p(y | x), (B, classes); integers are taken at the middle of their cells."""
        x = self.flow.checked(x, None)
        if self.flow.levels is not None:
            x = (x + 0.5) / self.flow.levels - 0.5
        return self.head(self.flow.encode(x))

    def log_prob(
        self,
        x: Tensor,
        context: Context = None,
        *,
        generator: Generators | None = None,
        **options: Any,
    ) -> Density:
        """Ln p(x); given labels ln p(x, y), the joint.

        Args:
            x: (B, *E).
            context: labels, or None.
            generator: as for the flow.
            options: of the flow's `log_prob`.
        """
        found = self.flow.log_prob(x, generator=generator, **options)
        if context is None:
            return found
        label = self._label(context, len(x))
        joint = found.value - F.cross_entropy(self.logits(x), label, reduction="none")
        return Density(joint, found.kind, found.stderr)

    def decide(self, x: Tensor, *, generator: Generators | None = None) -> tuple[Tensor, Tensor]:
        """The most probable class (B,), and ln p(x, class) (B,): small where nothing is known."""
        log_p = self.logits(x).log_softmax(1)
        best = log_p.max(1)
        return best.indices, best.values + self.flow.log_prob(x, generator=generator).value

    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: Any = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Draws of p(x), (*S, *E).

        Raises:
            AleatorError: a context: p(x | y) has no sampler; draw x and ask `logits` for y.
        """
        if context is not None:
            raise AleatorError(
                "a hybrid model samples x without a label: draw x, then y from its logits"
            )
        return self.flow.sample(shape, sampler=sampler, guidance=guidance, generator=generator)

    @property
    def _unit(self) -> float:
        """D ln(levels): from the density of dequantised integers to their probability."""
        levels = self.flow.levels
        return 0.0 if levels is None else self.flow.dims * float(torch.tensor(levels).log())

    def _label(self, context: Context, batch: int) -> Tensor:
        label = context_part(context, "label")
        if label is None or label.shape != (batch,) or label.is_floating_point():
            shape = None if label is None else tuple(label.shape)
            raise AleatorError(f"labels {shape}; integers ({batch},) are needed as the context")
        if ((label < 0) | (label >= self.classes)).any():
            raise AleatorError(
                f"labels must be in 0..{self.classes - 1}; got {label.min()}..{label.max()}"
            )
        return label
