"""Closed-set quality of a model on the labelled frames of a training folder."""

from __future__ import annotations

import numpy as np
import torch

from apps.anomaly_driving.class_metrics import ClassMetrics
from apps.anomaly_driving.frames import Frames
from apps.anomaly_driving.model import AnomalyModel


@torch.no_grad()
def frames_miou(model: AnomalyModel, frames: Frames, batch: int = 4) -> float | None:
    """Mean IoU of the known classes at the frames' own size; None without a labelled pixel."""
    counted = ClassMetrics(model.classes)
    device = next(model.parameters()).device
    known = np.where(frames.labels < len(frames.classes), frames.labels, 255).astype(np.int64)
    model.eval()
    for first in range(0, len(frames), batch):
        part = slice(first, first + batch)
        images = torch.from_numpy(frames.images[part]).permute(0, 3, 1, 2).float() / 255
        found = model(images.to(device)).logits.argmax(1).byte().cpu().numpy()
        for predicted, labels in zip(found, known[part], strict=True):
            counted.add(predicted, labels)
    return counted.mean()
