"""ONNX: a network with its scores as one file, checked against the model before it is kept.

Input `images` (N, 3, H, W) float32 RGB in [0, 1], not normalised otherwise; outputs `logits`
(N, K, H, W) and one (N, H, W) for each score. N is free; H and W are those of the export, since
networks pad by their size.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apps.anomaly_driving.external import METADATA
from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.network import SMALLEST, Network
from apps.anomaly_driving.scores import (
    AFTER,
    DEFAULT,
    Fitted,
    available,
    is_fitted,
    parse,
    parts,
    resolve,
)
from core.errors import AleatorError
from core.random import keyed_generator, rand
from core.report import replacing

TOLERANCE = 1e-4
"""Largest difference from the model: absolute, or relative to the largest value if that is > 1."""


class _Exported(nn.Module):
    """Tensors out instead of `Outputs`."""

    def __init__(self, model: Any, functions: Sequence[Callable[[Outputs], Tensor]]) -> None:
        super().__init__()
        self.model, self.functions = model, functions

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits and scores of (N, 3, H, W) in [0, 1]."""
        outputs = self.model(images)
        return (outputs.logits, *(function(outputs) for function in self.functions))


def export_onnx(
    network: Network,
    path: Path,
    names: str | None,
    size: str,
    *,
    fits: Mapping[str, Fitted] | None = None,
    overwrite: bool = False,
) -> tuple[Path, float]:
    """Write a model of ours as ONNX.

    Args:
        network: its model is written; images come at the size of the export.
        path: OUT.onnx.
        names: scores of the logits and the outlier head, and ensembles of them; all that the
            model has if None.
        size: "HEIGHTxWIDTH".
        fits: of the ensembles.
        overwrite: replace an existing file.

    Returns:
        the file, and the largest difference from the model that was found.

    Raises:
        AleatorError: no ONNX installed, a score of features or of a fit that is not there, a bad
            size, or outputs that differ by more than the tolerance.
    """
    if path.suffix != ".onnx":
        raise AleatorError(f"{path}: name the file .onnx")
    if path.exists() and not overwrite:
        raise AleatorError(f"{path} exists; choose another name or --overwrite")
    if not isinstance(network.model, nn.Module) or not hasattr(network.model, "config"):
        raise AleatorError("only models of ours are exported; this one comes from a file already")
    height, width = _size(size)
    ensembles = {name: fit for name, fit in (fits or {}).items() if of_outputs(name)}
    usual = [*DEFAULT, *ensembles]
    chosen = parse(names) if names else available(usual, head=network.has_head, fits=ensembles)
    for suffix in AFTER:
        if any(name.endswith(suffix) for name in chosen):
            raise AleatorError(f"{suffix} is done after the network and cannot be exported")
    module = _Exported(network.model, [resolve(name, ensembles) for name in chosen]).cpu().eval()
    example = rand((2, 3, height, width), keyed_generator(0, 0))  # a batch of one would be fixed
    outputs = ["logits", *chosen]
    with replacing(path) as draft:
        _export(module, example, draft, outputs)
        _describe(draft, network.model.classes, chosen)
        worst = _difference(module, draft, (height, width))
        if worst > TOLERANCE:
            raise AleatorError(
                f"{path}: the ONNX file differs from the model by {worst:.2g}, more than "
                f"{TOLERANCE:g}; not written"
            )
    return path, worst


def of_outputs(name: str) -> bool:
    """Whether a fitted score is an ensemble of functions of the outputs, and nothing more."""
    return "+" in name and not any(is_fitted(part) for part in parts(name))


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise AleatorError(f"--size {text}: expected HEIGHTxWIDTH, e.g. 360x480") from None
    if min(height, width) < SMALLEST:
        raise AleatorError(f"--size {text}: at least {SMALLEST} a side")
    return height, width


def _export(module: nn.Module, example: Tensor, path: Path, outputs: Sequence[str]) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError:
        raise AleatorError(
            "export needs onnx, onnxscript and onnxruntime: pip install 'aleator[onnx]'"
        ) from None
    with _quiet():
        torch.onnx.export(
            module,
            (example,),
            str(path),
            input_names=["images"],
            output_names=list(outputs),
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _describe(path: Path, classes: Sequence[str], names: Sequence[str]) -> None:
    """Say in the file what its input and outputs are; `external` reads it."""
    import onnx

    stored = onnx.load(str(path))
    about = {"classes": list(classes), "scores": list(names), "mean": [0, 0, 0], "std": [1, 1, 1]}
    onnx.helper.set_model_props(stored, {METADATA: json.dumps(about)})
    onnx.save(stored, str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout and stderr, about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _difference(module: nn.Module, path: Path, size: tuple[int, int]) -> float:
    """Largest difference of the outputs on two batches, relative to values above 1."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (1, 2):
        x = rand((count, 3, *size), keyed_generator(1, count))
        with torch.inference_mode():
            wanted = module(x)
        for ours, theirs in zip(wanted, session.run(None, {"images": x.numpy()}), strict=True):
            scale = max(1.0, float(ours.abs().max()))
            worst = max(worst, float((ours - torch.from_numpy(theirs)).abs().max()) / scale)
    return worst
