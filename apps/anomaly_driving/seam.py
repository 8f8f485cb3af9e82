"""The seam test: known things, pasted by the same hands, must not look unknown.

A network can win every benchmark of pasted objects by finding pasted edges. So known parts of
other pictures are pasted with the outlines, borders and tones of the negatives, and asked for:
an AuROC of 0.5 says that they look like any other known pixel, 1 that the paste is what is found.
It is not to be 0.5 exactly: a known thing in a place where it never is may well be unexpected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from apps.anomaly_driving.files import as_float16
from apps.anomaly_driving.frames import Frames
from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.negatives.config import NegativesConfig, PlacementConfig
from apps.anomaly_driving.negatives.mixer import Mixer
from apps.anomaly_driving.pixel_metrics import PixelCounts, frame_counts
from core.random import keyed_generator

ScoreOf = Callable[[Outputs], Tensor]
IGNORED = 255


@torch.no_grad()
def seam_auroc(
    model: Callable[[Tensor], Outputs],
    frames: Frames,
    scores: Sequence[ScoreOf],
    placement: PlacementConfig | None = None,
    *,
    seed: int = 0,
    batch: int = 4,
) -> list[float]:
    """AuROC of pasted known pixels against untouched known ones, for each score.

    Args:
        model: of images (B, 3, H, W).
        frames: known pictures; parts of one are pasted into another.
        scores: of outputs, (B, H, W), higher = more unexpected.
        placement: how they are pasted; that of training by default.
        seed: of places and outlines.
        batch: pictures at a time.

    Raises:
        AleatorError: nothing was pasted.
    """
    placed = dataclasses.replace(placement or PlacementConfig(), known=1.0)
    config = NegativesConfig(placement=placed)
    mixer = Mixer(None, config, len(frames.classes), frames.void)
    counts = [PixelCounts() for _ in scores]
    for first in range(0, len(frames) - 1, batch):
        part = slice(first, first + batch)
        images = torch.from_numpy(frames.images[part]).permute(0, 3, 1, 2).float() / 255
        labels = torch.from_numpy(frames.labels[part]).long()
        mixed = mixer(images, labels, keyed_generator(seed, 13, first))
        outputs = model(mixed.images)
        asked = torch.where(mixed.labels == frames.void, IGNORED, mixed.known.long()).byte()
        for counted, score in zip(counts, scores, strict=True):
            values = score(outputs).float().cpu().numpy()
            for value, known in zip(values, asked.numpy(), strict=True):
                counted.add(frame_counts(as_float16(value, "the seam test"), known))
    return [counted.curve("the seam test").auroc for counted in counts]
