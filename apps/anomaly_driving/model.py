r"""The model: a segmenter of K known classes, with the logit of an outlier head beside them.

    log p̂(x) = logsumexp_k logits_k(x),    p(d_out | x) = sigmoid(d_out(x))

What is unexpected is scored from these (see `scores`): the hybrid ratio
ln p(d_out | x) - ln p̂(x) of Grcić et al. (2022), arXiv:2207.02606, and others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from apps.anomaly_driving.augment import faded
from apps.anomaly_driving.segmenter import SegmenterConfig, build_segmenter
from core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from core.errors import AleatorError, CheckpointError

APP = "anomaly_driving"
CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)
"""Known classes of CamVid, ids 0 to 10; 11 is void."""
STRIDE = 32
"""Images are padded to multiples of it."""
FEATURE_STRIDE = 4
"""Pixels a side of a cell of `Outputs.features`, at least."""
OWN = "segmenter."
"""Prefix of the network's tensors in a checkpoint; generators of negatives have their own."""


@dataclass(frozen=True)
class ModelConfig:
    """What rebuilds a model.

    Attributes:
        classes: names of the K known classes, in the order of the logits.
        void: label id of pixels that belong to none.
        segmenter: the network.
        mean: of RGB in [0, 1], subtracted.
        std: what divides it then.
        longer_side: pixels of the images that it was trained on: what `score` resizes to.
        scales: of it at which the network looks when it scores; its logits are averaged. Two
            scales rarely err alike, and cost what they have pixels.
        colours: share of an image's colours that the network sees when it scores, 1 for all and
            0 for grey: those of another town are strange where its shapes are not.
    """

    classes: tuple[str, ...] = CAMVID
    void: int = 11
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    mean: tuple[float, float, float] = (0.41, 0.42, 0.43)
    std: tuple[float, float, float] = (0.29, 0.30, 0.30)
    longer_side: int = 480
    scales: tuple[float, ...] = (1.0,)
    colours: float = 1.0

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise AleatorError(f"{len(self.classes)} classes: at least two are needed")
        if not self.scales or not all(0.25 <= scale <= 2 for scale in self.scales):
            raise AleatorError(f"scales {self.scales}: some between 0.25 and 2 are needed")
        if not 0 <= self.colours <= 1:
            raise AleatorError(f"colours {self.colours}: a share between 0 and 1 is needed")
        if 0 <= self.void < len(self.classes):
            raise AleatorError(f"void id {self.void} is also the id of {self.classes[self.void]}")

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return TypeAdapter(ModelConfig).dump_python(self, mode="json")


@dataclass(frozen=True)
class Outputs:
    """What the network says of B images of H × W pixels.

    Attributes:
        logits: (B, K, H, W) of the known classes.
        d_out: (B, H, W) logit of the outlier head; None without one.
        features: (B, C, h, w) of the decoder, what distances are measured in.
    """

    logits: Tensor
    d_out: Tensor | None
    features: Tensor


class AnomalyModel(nn.Module):
    """A segmenter that says how sure it is.

    Attributes:
        config: what rebuilds it.
        fingerprint: of the checkpoint; empty before it is saved.
        card: what the checkpoint says about its making.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """A freshly initialised network.

        Raises:
            AleatorError: unknown architecture or encoder.
        """
        super().__init__()
        self.config = config
        self.segmenter = build_segmenter(config.segmenter, len(config.classes))
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)
        self.fingerprint = ""
        self.card: Mapping[str, Any] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K known classes."""
        return self.config.classes

    @property
    def void(self) -> int:
        """Label id of pixels that belong to no class."""
        return self.config.void

    def forward(self, images: Tensor) -> Outputs:
        """Logits and features of RGB images (B, 3, H, W) in [0, 1], of any size.

        Raises:
            AleatorError: another shape.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise AleatorError(f"images of shape {tuple(images.shape)}; (B, 3, H, W) is needed")
        if self.training:
            return self._at_one_scale(images)
        if self.config.colours < 1:
            images = faded(images, self.config.colours)
        return mean_outputs([self._at_one_scale(x) for x in rescaled(images, self.config.scales)])

    def _at_one_scale(self, images: Tensor) -> Outputs:
        height, width = images.shape[2:]
        x = (images - self.mean) / self.std
        bottom, right = -height % STRIDE, -width % STRIDE
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom), mode="replicate")
        network: Any = self.segmenter
        decoded = network.decoder(network.encoder(x))
        # the head may end in bfloat16; scores subtract large logits and need float32
        output = network.segmentation_head(decoded).float()
        if output.shape[2:] != x.shape[2:]:  # some decoders end at another stride
            output = F.interpolate(output, x.shape[2:], mode="bilinear")
        output = output[..., :height, :width]
        known = len(self.classes)
        d_out = output[:, known] if self.config.segmenter.outlier_head else None
        return Outputs(output[:, :known], d_out, _features(decoded, x, height, width))

    def save(
        self,
        folder: Path | str,
        *,
        card: Mapping[str, Any] | None = None,
        data_fingerprint: str = "",
        more: Mapping[str, Tensor] | None = None,
        notes: Mapping[str, Any] | None = None,
        half: bool = False,
    ) -> Checkpoint:
        """Write `model.safetensors` and `model.json`.

        Args:
            folder: made if it is not there.
            card: facts for the model card.
            data_fingerprint: of the training data.
            more: further tensors, e.g. of a generator of negatives.
            notes: further JSON for the config, under "notes".
            half: keep floating tensors in float16, which halves the file.
        """
        tensors = {OWN + name: value for name, value in self.segmenter.state_dict().items()}
        tensors |= more or {}
        if half:
            tensors = {name: _halved(value) for name, value in tensors.items()}
        config = {**self.config.to_dict(), "notes": dict(notes or {})}
        written = save_checkpoint(
            folder,
            app=APP,
            config=config,
            tensors=tensors,
            card=card,
            data_fingerprint=data_fingerprint,
        )
        self.fingerprint, self.card = written.fingerprint, written.card
        return written


def _features(decoded: Tensor, x: Tensor, height: int, width: int) -> Tensor:
    """The decoder's output without padding, averaged to cells of `FEATURE_STRIDE` pixels."""
    stride = max(1, x.shape[-1] // decoded.shape[-1])
    if stride < FEATURE_STRIDE:
        decoded, stride = F.avg_pool2d(decoded, FEATURE_STRIDE // stride), FEATURE_STRIDE
    return decoded[..., : -(-height // stride), : -(-width // stride)].float()


def rescaled(images: Tensor, scales: Sequence[float]) -> list[Tensor]:
    """Images (B, 3, H, W) at each scale, bilinear."""
    height, width = images.shape[2:]
    sizes = [(round(height * scale), round(width * scale)) for scale in scales]
    return [
        images if size == (height, width) else F.interpolate(images, size, mode="bilinear")
        for size in sizes
    ]


def mean_outputs(found: Sequence[Outputs]) -> Outputs:
    """The mean of logits at the size of the first, whose features they are."""
    if len(found) == 1:
        return found[0]
    size = found[0].logits.shape[2:]

    def mean(values: list[Tensor]) -> Tensor:
        at_size = [
            v if v.shape[2:] == size else F.interpolate(v, size, mode="bilinear") for v in values
        ]
        return torch.stack(at_size).mean(0)

    heads = [seen.d_out[:, None] for seen in found if seen.d_out is not None]
    d_out = mean(heads)[:, 0] if heads else None
    return Outputs(mean([seen.logits for seen in found]), d_out, found[0].features)


def _halved(value: Tensor) -> Tensor:
    """In float16, if that holds all values: variances of batch norms may be too small or large."""
    if value.dtype != torch.float32:
        return value
    small = value.half()
    close = torch.allclose(small.float(), value, rtol=2e-3, atol=1e-6)
    return small if close else value


def load(folder: Path | str) -> AnomalyModel:
    """A trained model, ready to score, in float32.

    Raises:
        CheckpointError: not a model folder, damaged, of another application, or its weights do
            not fit its config.
    """
    return from_checkpoint(load_checkpoint(folder, app=APP), str(folder))


def save(model: AnomalyModel, folder: Path | str, **options: Any) -> Checkpoint:
    """`model.save(folder, **options)`."""
    return model.save(folder, **options)


def from_checkpoint(found: Checkpoint, folder: str) -> AnomalyModel:
    """The model of a checkpoint that was read from `folder`."""
    values = {key: value for key, value in found.config.items() if key != "notes"}
    try:
        config = TypeAdapter(ModelConfig).validate_python(values)
    except ValidationError as error:
        raise CheckpointError(f"{folder}: bad config ({error.errors()[0]['msg']})") from None
    model = AnomalyModel(config)
    weights = {
        name.removeprefix(OWN): value.float() if value.is_floating_point() else value
        for name, value in found.tensors.items()
        if name.startswith(OWN)
    }
    try:
        model.segmenter.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: weights do not fit the config ({reason})") from None
    model.fingerprint, model.card = found.fingerprint, found.card
    return channels_last(model.eval())


def channels_last(model: AnomalyModel) -> AnomalyModel:
    """The same model with kernels laid out as CPUs and tensor cores like them."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
