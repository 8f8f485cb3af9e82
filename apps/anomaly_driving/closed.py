"""Closed-set quality: mean intersection over union of the known classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from apps.anomaly_driving.config import Config
from apps.anomaly_driving.frames import Frames, read_frames
from apps.anomaly_driving.model import AnomalyModel


def confusion(
    predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """(K, K) counts, true class by predicted one; pixels of other labels do not count."""
    known = labels < classes
    flat = labels[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def mean_iou(counts: NDArray[np.int64]) -> float:
    """Mean of TP / (TP + FP + FN) over the classes that occur or are predicted."""
    hit = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hit
    there = union > 0
    return float((hit[there] / union[there]).mean())


@torch.no_grad()
def closed_miou(model: AnomalyModel, folder: Path, config: Config, batch: int = 4) -> float:
    """MIoU of a model on the labelled frames of a folder, at the size it was trained at."""
    frames = read_frames(folder, config.classes, config.void, height=config.rows)
    return frames_miou(model, frames.without_ids(config.held_out), batch)


def frames_miou(model: AnomalyModel, frames: Frames, batch: int = 4) -> float:
    """MIoU of a model on frames."""
    classes = len(frames.classes)
    counts = np.zeros((classes, classes), np.int64)
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        for first in range(0, len(frames), batch):
            part = slice(first, first + batch)
            images = torch.from_numpy(frames.images[part]).permute(0, 3, 1, 2).float() / 255
            found = model(images.to(device)).logits.argmax(1).cpu().numpy()
            counts += confusion(found, frames.labels[part], classes)
    return mean_iou(counts)
