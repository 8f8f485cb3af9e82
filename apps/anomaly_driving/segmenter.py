"""Networks of segmentation-models-pytorch, always from scratch or from a file of the user's.

Nothing is ever downloaded: weights that would have to be are refused. An unknown architecture or
encoder is answered with the nearest names that exist.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import AleatorError, CheckpointError

_TORCHVISION_OPERATORS = ("nms", "qnms")


@dataclass(frozen=True)
class SegmenterConfig:
    """Which network.

    Attributes:
        arch: an architecture of segmentation-models-pytorch: unet, fpn, deeplabv3plus, ...
        encoder: one of its encoders, e.g. resnet18, or "tu-" and a name of timm.
        depth: stages of the encoder, each of which halves the grid.
        outlier_head: whether there is a logit of "pasted, not known" beside the classes.
        options: further arguments of the architecture, e.g. {"decoder_channels": 96}.
        encoder_weights: None; anything else would be downloaded and is refused.
    """

    arch: str = "deeplabv3plus"
    encoder: str = "tu-resnet18"
    depth: int = 4
    outlier_head: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    encoder_weights: str | None = None

    def __post_init__(self) -> None:
        if not 3 <= self.depth <= 5:
            raise AleatorError(f"segmenter.depth={self.depth}: expected 3, 4 or 5")
        if self.encoder_weights is not None:
            raise AleatorError(
                f"segmenter.encoder_weights={self.encoder_weights!r} would need a download, which "
                "this program never makes; train from scratch (null), or give a file: --weights"
            )


def build_segmenter(config: SegmenterConfig, classes: int) -> nn.Module:
    """A network of (B, 3, H, W) images to (B, classes [+ 1], H, W) logits, freshly initialised.

    Args:
        config: which.
        classes: K, known classes; the outlier head is one channel more.

    Raises:
        AleatorError: unknown architecture, encoder or option, or a combination that the library
            does not make.
    """
    library = smp()
    name = nearest("architecture", config.arch.lower(), library.MODEL_ARCHITECTURES_MAPPING)
    made = library.MODEL_ARCHITECTURES_MAPPING[name]
    check_encoder(config.encoder)
    options = dict(config.options)
    if name.startswith("deeplab"):
        options.setdefault("encoder_output_stride", 16)
        options.setdefault("decoder_channels", 96)
    known = set(inspect.signature(made.__init__).parameters) - {"self", "kwargs"}
    if unknown := sorted(set(options) - known):
        raise AleatorError(
            f"{name} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}"
        )
    if name in ("unet", "unetplusplus", "manet", "linknet") and "decoder_channels" in known:
        options.setdefault("decoder_channels", (256, 128, 64, 32, 16)[-config.depth :])
    try:
        return made(
            encoder_name=config.encoder,
            encoder_depth=config.depth,
            encoder_weights=None,
            in_channels=3,
            classes=classes + config.outlier_head,
            **options,
        )
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
        raise AleatorError(
            f"{config.arch} with encoder {config.encoder}, depth {config.depth} cannot be built: "
            f"{error}"
        ) from None


def check_encoder(name: str) -> None:
    """Raise AleatorError with the nearest names if there is no such encoder."""
    if name.startswith("tu-"):
        import timm

        nearest("encoder", name, [f"tu-{known}" for known in timm.list_models()])
    else:
        nearest("encoder", name, smp().encoders.get_encoder_names())


def nearest(kind: str, name: str, known: Any) -> str:
    """`name`, if it is known.

    Raises:
        AleatorError: it is not; with up to five names that look like it.
    """
    if name in known:
        return name
    near = difflib.get_close_matches(name, list(known), n=5, cutoff=0.5)
    listed = ", ".join(near or sorted(known)[:12])
    what = "near names" if near else "some that there are"
    raise AleatorError(f"unknown {kind} {name!r}; {what}: {listed}")


@functools.cache
def smp() -> ModuleType:
    """segmentation_models_pytorch, imported when it is needed.

    It imports torchvision, only for a tool that lists layers. A torchvision built for another
    torch (with CUDA beside a CPU build, say) fails at import, because its compiled operators are
    not there; their names are declared then, which is all that the import asks for.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_operators()
    return importlib.import_module("segmentation_models_pytorch")


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _TORCHVISION_OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)  # declarations end with the object that made them
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    importlib.import_module("torchvision")


_KEPT: list[torch.library.Library] = []


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        AleatorError: no such file.
        CheckpointError: another format, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise AleatorError(f"{path}: no such file of weights; nothing is downloaded")
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: pickled weights can run any code and are not read; save them with "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors')"
        )
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or cut short ({error})") from None
