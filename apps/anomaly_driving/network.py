"""A model at work on images of any size: resized to what it was trained on, tiled if large."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from apps.anomaly_driving.data import to_tensor
from apps.anomaly_driving.files import as_float16
from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.reconstruction import Reconstruction
from apps.anomaly_driving.scores import (
    SEGMENTS,
    SMOOTH,
    Fitted,
    predicted_classes,
    resolve,
    smoothed,
)
from apps.anomaly_driving.segments import segment_means, segments
from apps.anomaly_driving.tiles import Tiling, tiled_outputs
from core.errors import AleatorError

SMALLEST = 32
"""Pixels of the shorter side below which a network's grid has no cell."""


class Model(Protocol):
    """What is asked of a network: ours, or one that a user brings (`external`)."""

    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K known classes."""
        ...

    def __call__(self, images: Tensor) -> Outputs:
        """Outputs of (B, 3, H, W) in [0, 1]."""
        ...


@dataclass(frozen=True)
class Network:
    """A model and how images are given to it.

    Attributes:
        model: gives outputs of (B, 3, H, W) in [0, 1].
        longer_side: pixels that images are resized to; 0 for their own size.
        tiling: of images that are larger than a tile; None for whole images.
        device: where it runs.
    """

    model: Model
    longer_side: int = 0
    tiling: Tiling | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.longer_side < 0 or 0 < self.longer_side < SMALLEST:
            raise AleatorError(
                f"--longer-side {self.longer_side}: at least {SMALLEST}, or 0 for the image's own"
            )

    @property
    def has_head(self) -> bool:
        """Whether the model has an outlier head."""
        config = getattr(self.model, "config", None)
        return bool(config is not None and config.segmenter.outlier_head)

    def outputs(self, image: np.ndarray, where: object = "the image") -> Outputs:
        """Outputs of (H, W, 3) uint8 RGB, at the network's size.

        Raises:
            AleatorError: an image that is too small, or outputs that are not finite.
        """
        resized = self.resize(image, where)
        with torch.inference_mode():
            batch = to_tensor(resized)[None].to(self.device)
            found = tiled_outputs(self.model, batch, self.tiling)
        if not found.logits.isfinite().all():
            raise AleatorError(
                f"{where}: the network gives NaN or infinite logits; train it again"
            )
        return found

    def resize(self, image: np.ndarray, where: object = "the image") -> np.ndarray:
        """The image at the network's size: averaged down, or interpolated up."""
        import cv2

        height, width = image.shape[:2]
        if min(height, width) < SMALLEST:
            raise AleatorError(
                f"{where}: {height}×{width} pixels; the network needs at least {SMALLEST} a side"
            )
        if not self.longer_side or max(height, width) == self.longer_side:
            return image
        scale = self.longer_side / max(height, width)
        size = (max(SMALLEST, round(width * scale)), max(SMALLEST, round(height * scale)))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else 1)


@dataclass
class Scored:
    """Scores of an image at its own size.

    Attributes:
        scores: name -> (H, W) float16, higher = more unexpected.
        classes: (H, W) uint8, the most likely known class.
        network_seconds: of the network.
        score_seconds: name -> of the score alone.
    """

    scores: dict[str, np.ndarray]
    classes: np.ndarray
    network_seconds: float = 0.0
    score_seconds: dict[str, float] = field(default_factory=dict)


class Scorer:
    """Several scores from one pass of the network."""

    def __init__(
        self, network: Network, names: Sequence[str], fits: Mapping[str, Fitted] | None = None
    ) -> None:
        """Look the scores up.

        Raises:
            AleatorError: one that has not been fitted.
        """
        self.network, self.names = network, tuple(names)
        self.functions = {name: resolve(name, fits or {}) for name in names}

    def __call__(self, image: np.ndarray, where: object = "the image") -> Scored:
        """Score (H, W, 3) uint8 RGB.

        Raises:
            AleatorError: scores that are not finite or do not fit float16; what `Network` raises.
        """
        began = time.perf_counter()
        outputs = self.network.outputs(image, where)
        network = time.perf_counter() - began
        size = (image.shape[0], image.shape[1])
        scores, seconds = {}, {}
        with torch.inference_mode():
            for name, function in self.functions.items():
                began = time.perf_counter()
                if isinstance(function, Reconstruction):
                    raw = function.of_image(self._batch(image))
                else:
                    raw = function(outputs)
                if name.endswith(SEGMENTS):
                    raw = self._by_segment(raw, image)
                if name.endswith(SMOOTH):
                    raw = smoothed(raw)
                value = to_size(raw[:, None], size)[0, 0].cpu().numpy()
                scores[name] = as_float16(value, f"{where}: {name}")
                seconds[name] = time.perf_counter() - began
            classes = predicted_classes(outputs)[0].to(torch.uint8).cpu().numpy()
        return Scored(scores, _nearest(classes, size), network, seconds)

    def _batch(self, image: np.ndarray) -> Tensor:
        """(1, 3, h, w) in [0, 1] at the network's size."""
        return to_tensor(self.network.resize(image))[None].to(self.network.device)

    def _by_segment(self, raw: Tensor, image: np.ndarray) -> Tensor:
        """A score (1, h, w) averaged over segments of the image at the network's size."""
        flat = segment_means(raw[0].cpu().numpy(), segments(self.network.resize(image)))
        return torch.from_numpy(flat)[None].to(raw)


def to_size(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, h, w) resized to (B, C, *size), bilinear; itself if it has that size."""
    if tuple(values.shape[2:]) == size:
        return values
    return F.interpolate(values, size=size, mode="bilinear")


def _nearest(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    if classes.shape == size:
        return classes
    return cv2.resize(classes, size[::-1], interpolation=cv2.INTER_NEAREST)


def open_network(
    path: Path,
    *,
    longer_side: int | None = None,
    tiling: Tiling | None = None,
    device: str = "auto",
    **external: Any,
) -> Network:
    """A model from a folder of ours, or a TorchScript or ONNX file of the user's.

    Args:
        path: model folder, `.pt`/`.ts`/`.torchscript` or `.onnx`.
        longer_side: as of `Network`; what the model was trained on if None.
        tiling: as of `Network`.
        device: "auto", "cpu" or "cuda".
        external: `classes`, `mean` and `std` for networks that are not ours.

    Raises:
        AleatorError: neither, or damaged.
    """
    if path.is_file():
        from apps.anomaly_driving.external import open_external

        return Network(open_external(path, **external), longer_side or 0, tiling)
    from apps.anomaly_driving.model import load
    from core.training.fit import resolve_device

    where = resolve_device(device)
    model = load(path).to(where)
    chosen = model.config.longer_side if longer_side is None else longer_side
    return Network(model, chosen, tiling, where)
