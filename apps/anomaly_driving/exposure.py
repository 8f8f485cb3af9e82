r"""The training objective: known pictures, negatives pasted into them, one loss for both.

    x̃, ỹ, n = paste(x, y),   L(x̃, ỹ, n) + w · NLL_flow(patches of x)

`Exposure` is a `GenerativeModel` of pictures with something unexpected in them, given known ones,
so that `core.training.fit` trains it and resumes it like any other. With a flow, the loss of the
segmenter on its pasted samples reaches the flow: the two pull in opposite directions, and the
samples settle at the border of the known (Grcić et al. 2021, arXiv:2112.12833).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apps.anomaly_driving.augment import AugmentConfig, dressed, relight
from apps.anomaly_driving.losses import (
    LossConfig,
    forgotten,
    known_cross_entropy,
    mean_of,
    moved_density,
    outlier_cross_entropy,
    raised_density,
    sunken_density,
    uniform_divergence,
)
from apps.anomaly_driving.model import AnomalyModel
from apps.anomaly_driving.negatives.mixer import Mixed, Mixer
from core.model import Context, GenerativeModel, Loss
from core.random import Generators


class Exposure(GenerativeModel):
    """A segmenter and what it is exposed to."""

    def __init__(
        self,
        model: AnomalyModel,
        mixer: Mixer,
        loss: LossConfig,
        augment: AugmentConfig,
        class_weights: Tensor | None = None,
        bfloat16: bool = False,
        start: AnomalyModel | None = None,
        held: AnomalyModel | None = None,
    ) -> None:
        """Assemble.

        Args:
            model: the segmenter.
            mixer: what pastes.
            loss: weights of the terms.
            augment: light and colour, after pasting.
            class_weights: (K,) in the cross-entropy.
            bfloat16: run the network in mixed precision.
            start: model whose answers on the known are kept; needed for `loss.keep`.
            held: model whose density is held; needed for `loss.hold`.
        """
        super().__init__()
        self.model, self.mixer = model, mixer
        self.weights, self.augment = loss, augment
        self.class_weights, self.mixed_precision = class_weights, bfloat16
        # in tuples, so that they are no part of what is trained, averaged and saved
        self.start, self.held = frozen(start), frozen(held)
        self.event_shape = torch.Size((3, augment.height, augment.width))
        self.context_shape = self.event_shape

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """The objective of images (B, 3, H, W) in [0, 1] with a context of `label` (B, H, W)."""
        assert isinstance(context, dict)
        assert isinstance(generator, torch.Generator)
        labels = context["label"]
        # a mixed-precision trainer hands over half precision, of which pixels have 256 levels
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            known = len(self.model.classes)
            worn = dressed(x, labels, known, self.augment.dress, generator)
            mixed: Mixed = self.mixer(worn, labels, generator)
            images = relight(mixed.images, self.augment, generator)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed_precision):
            seen = self.model(images)
            before = answers(self.start, x) if self.weights.keep else None
            held = answers(self.held, images.detach()) if self.weights.hold else None
        terms = self._terms(seen.logits, seen.d_out, mixed)
        if before is not None:
            clean = (mixed.labels != self.model.void) & ~mixed.known
            terms["keep"] = self.weights.keep * mean_of(forgotten(seen.logits, before), clean)
        if held is not None:
            everywhere = torch.ones_like(mixed.negative)
            moved = moved_density(seen.logits, held)
            terms["hold"] = self.weights.hold * mean_of(moved, everywhere)
        value = torch.stack(list(terms.values())).sum(0)
        flow = self.mixer.likelihood_loss(worn, generator)
        if flow is not None:
            weighted, nll = flow
            value = value + weighted
            terms["flow"] = nll.expand(len(x))
        return Loss(value, {name: term.detach() for name, term in terms.items()})

    def _terms(self, logits: Tensor, d_out: Tensor | None, mixed: Mixed) -> dict[str, Tensor]:
        w, void = self.weights, self.model.void
        terms = {"known": known_cross_entropy(logits, mixed.labels, void, self.class_weights)}
        if not self.mixer.pastes:
            return terms
        negative, known = mixed.negative, (mixed.labels != void) & ~mixed.negative
        if w.uniform:
            divergence = uniform_divergence(logits, w.divergence)
            terms["uniform"] = w.uniform * mean_of(divergence, negative)
        if w.energy:
            cost = raised_density(logits, w.margin)
            terms["energy"] = w.energy * mean_of(cost, negative)
        if w.raised:
            terms["raised"] = w.raised * mean_of(sunken_density(logits, w.floor), known)
        if w.d_out and d_out is not None:
            bce = outlier_cross_entropy(d_out, negative, known, w.balance)
            terms["d_out"] = w.d_out * bce
        return terms

    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: Any = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """Pictures with something unexpected in them, (*S, B, 3, H, W).

        The context holds the known ones: `field` (B, 3, H, W) and `label` (B, H, W).
        """
        assert isinstance(context, dict)
        assert isinstance(generator, torch.Generator)
        draws = [
            self.mix(context["field"], context["label"], generator).images
            for _ in range(math.prod(shape))
        ]
        return torch.stack(draws).reshape(*shape, *draws[0].shape)

    @torch.no_grad()
    def mix(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Mixed:
        """Paste, without gradients and without a change of light."""
        return self.mixer(images, labels, generator)


def frozen(model: AnomalyModel | None) -> tuple[AnomalyModel, ...]:
    """A model that is asked and not trained; empty for none."""
    return (model.eval().requires_grad_(False),) if model is not None else ()


@torch.no_grad()
def answers(model: tuple[AnomalyModel, ...], images: Tensor) -> Tensor | None:
    """Logits of a frozen model; None without one."""
    return model[0].to(images.device)(images).logits if model else None
