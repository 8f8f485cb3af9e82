"""A network that was trained elsewhere: TorchScript or ONNX, RGB in and K logits out.

Only the logits are known, so scores of the outlier head and of features are not to be had. The
network sees (x - mean) / std; its output is brought to the size of its input.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apps.anomaly_driving.model import Outputs
from core.errors import AleatorError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SUFFIXES = (".pt", ".ts", ".torchscript", ".onnx")

METADATA = "aleator"
"""Key of what an ONNX file that we exported says of itself: JSON with classes, mean and std."""

NORMALISATIONS = {
    "imagenet": IMAGENET,
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation of RGB in [0, 1] by a word."""

Run = Callable[[Tensor], Tensor]


class ExternalModel(nn.Module):
    """The contract of `model.AnomalyModel` round a function of images to logits.

    Attributes:
        classes: names of its K classes; numbers if none were given.
        fingerprint: of its file.
        warnings: what is doubtful about its outputs.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        run: Run,
        *,
        classes: Sequence[str] = (),
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        fingerprint: str = "",
        where: object = "the network",
        size: tuple[int, int] | None = None,
    ) -> None:
        """Wrap.

        Args:
            run: normalised images (B, 3, H, W) -> logits (B, K, h, w).
            classes: K names in the order of the logits.
            mean: of RGB in [0, 1], subtracted.
            std: what divides then.
            fingerprint: of the file.
            where: the file, for messages.
            size: (H, W) if the network takes no other.

        Raises:
            AleatorError: it does not give (B, K, h, w) logits, or K is not the number of names.
        """
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise AleatorError(f"mean {tuple(mean)} and std {tuple(std)}: three numbers, std > 0")
        self.run, self.where, self.size, self.fingerprint = run, where, size, fingerprint
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.warnings: list[str] = []
        probe = torch.rand(1, 3, *(size or (64, 96)), generator=torch.Generator().manual_seed(0))
        logits = self(probe).logits
        k = logits.shape[1]
        if classes and len(classes) != k:
            raise AleatorError(
                f"{where}: {k} channels of logits for {len(classes)} classes; give one name for "
                "each channel"
            )
        self.classes = tuple(classes) or tuple(f"class {i}" for i in range(k))
        if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones(()), atol=1e-3):
            self.warnings.append(
                f"{where}: outputs sum to 1 over the classes, as if softmax had been applied; "
                "max_logit, energy and hybrid need logits"
            )

    def forward(self, images: Tensor) -> Outputs:
        """Logits at the images' size; no outlier head, no features.

        Raises:
            AleatorError: the network fails on this input, or gives something else.
        """
        own = tuple(images.shape[2:])
        x = (images - self.mean) / self.std
        if self.size is not None and self.size != own:
            x = F.interpolate(x, size=self.size, mode="bilinear", antialias=True)
        try:
            logits = self.run(x)
        except Exception as error:  # whatever a foreign network may raise
            text = " ".join(str(error).split())[-200:]
            raise AleatorError(f"{self.where}: fails on images of {own} ({text})") from None
        if not isinstance(logits, Tensor) or logits.dim() != 4 or logits.shape[1] < 2:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise AleatorError(f"{self.where}: gives {got}; logits of shape (B, K, h, w), K >= 2")
        logits = logits.float()
        if tuple(logits.shape[2:]) != own:
            logits = F.interpolate(logits, size=own, mode="bilinear")
        return Outputs(logits, None, logits.new_empty(0))


def open_external(path: Path, **options: Any) -> ExternalModel:
    """A TorchScript or ONNX file.

    Args:
        path: `.pt`, `.ts`, `.torchscript` or `.onnx`.
        options: `classes`, `mean`, `std` of `ExternalModel`.

    Raises:
        AleatorError: another kind of file, or damaged.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise AleatorError(
            f"{path}: a network from elsewhere is TorchScript or ONNX ({', '.join(SUFFIXES)}); "
            "a model of ours is a folder"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if path.suffix.lower() == ".onnx":
        run, size, about = _onnx(path)
    else:
        run, size, about = _torchscript(path), None, {}
    given = about | {key: value for key, value in options.items() if value is not None}
    return ExternalModel(run, fingerprint=digest, where=path, size=size, **given)


def normalisation(word: str) -> dict[str, Any]:
    """Options `mean` and `std` of `ExternalModel`.

    Raises:
        AleatorError: an unknown word.
    """
    if word not in NORMALISATIONS:
        raise AleatorError(f"--normalise {word}: known are {', '.join(NORMALISATIONS)}")
    mean, std = NORMALISATIONS[word]
    return {"mean": mean, "std": std}


def read_classes(path: Path) -> tuple[str, ...]:
    """Names from a JSON list, or one a line.

    Raises:
        AleatorError: not readable, or fewer than two names.
    """
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AleatorError(f"{path}: not a list of class names ({error})") from None
    found = tuple(str(name).strip() for name in names if str(name).strip())
    if len(found) < 2 or len(set(found)) != len(found):
        raise AleatorError(f"{path}: at least two class names, each once; it has {len(found)}")
    return found


def _torchscript(path: Path) -> Run:
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError:
        raise AleatorError(
            f"{path}: not TorchScript, or damaged; save it with torch.jit.trace(net, x).save(...) "
            "(a pickled state_dict or module is not read: it can run any code)"
        ) from None


def _onnx(path: Path) -> tuple[Run, tuple[int, int] | None, dict[str, Any]]:
    """The function of an ONNX file, its size if it takes only one, and what it says of itself."""
    try:
        import onnxruntime as ort
    except ModuleNotFoundError:
        raise AleatorError("ONNX needs onnxruntime: pip install 'aleator[onnx]'") from None
    try:
        session = ort.InferenceSession(str(path), providers=ort.get_available_providers())
    except Exception as error:  # onnxruntime has a dozen kinds of its own
        text = " ".join(str(error).split())[:160]
        raise AleatorError(f"{path}: not an ONNX model, or damaged ({text})") from None
    given = session.get_inputs()[0]
    rows, columns = given.shape[2:] if len(given.shape) == 4 else (None, None)
    size = (rows, columns) if isinstance(rows, int) and isinstance(columns, int) else None

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {given.name: x.cpu().numpy()})[0])

    told = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
    return run, size, {key: told[key] for key in ("classes", "mean", "std") if key in told}
