"""Fitting scores to known images, and keeping the fits beside the model that they belong to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from apps.anomaly_driving import feature_scores as fs
from apps.anomaly_driving.data import Sample, to_tensor
from apps.anomaly_driving.model import Outputs
from apps.anomaly_driving.network import Network
from apps.anomaly_driving.reconstruction import Reconstruction, known_patches
from apps.anomaly_driving.scores import SCORES, bare, is_fitted, parts, resolve
from core.checkpoint import load_checkpoint, save_checkpoint
from core.errors import AleatorError
from core.random import keyed_generator

APP = "anomaly_driving.score"
FOLDER = "scores"
BANK, FLOW_SAMPLE, PATCHES = 4000, 50_000, 16_000
"""Features kept for k-NN and for the flow, patches for the reconstruction."""

Samples = Callable[[], Iterable[Sample]]
"""Reads the data once more."""


def fit_scores(
    network: Network, samples: Samples, names: Sequence[str], *, seed: int = 0
) -> dict[str, fs.FeatureScore]:
    """Fit scores to images of what is known.

    Args:
        network: whose outputs.
        samples: training images; pixels labelled 1 or 255 are left out, images without a label
            count as known altogether.
        names: scores that need a fit, see `scores.is_fitted`; others are ignored.
        seed: of the samples and of the flow.

    Raises:
        AleatorError: nothing known, or a network without what a score needs.
    """
    wanted = list(dict.fromkeys(bare(name) for name in names if is_fitted(name)))
    single = {part for name in wanted for part in parts(name) if SCORES[part].function is None}
    fits = _fit_single(network, samples, sorted(single), seed) if single else {}
    ensembles = [name for name in wanted if "+" in name]
    if ensembles:
        fits |= _fit_ensembles(network, samples, ensembles, fits)
    return fits


def _fit_single(
    network: Network, samples: Samples, names: Sequence[str], seed: int
) -> dict[str, fs.FeatureScore]:
    k = len(network.model.classes)
    top, features = fs.Moments(k), fs.Moments(k)
    bank, many = fs.Reservoir(BANK, seed), fs.Reservoir(FLOW_SAMPLE, seed + 1)
    patches = fs.Reservoir(PATCHES, seed + 2)
    for index, (outputs, known, image) in enumerate(_outputs(network, samples)):
        if "std_max_logit" in names:
            value, label = outputs.logits.max(1)
            top.add(value[known][:, None], label[known])
        if {"mahalanobis", "knn", "flow"} & set(names):
            vectors, labels = fs.known_features(outputs, known)
            features.add(vectors, labels)
            bank.add(vectors)
            many.add(vectors)
        if "reconstruction" in names:
            patches.add(known_patches(image, known, keyed_generator(seed, index)))
    found: dict[str, fs.FeatureScore] = {}
    if "std_max_logit" in names:
        found["std_max_logit"] = fs.StandardisedMaxLogit.of(top)
    if "mahalanobis" in names:
        found["mahalanobis"] = fs.Mahalanobis.of(features)
    if "knn" in names:
        found["knn"] = fs.Nearest.of(bank.sample())
    if "flow" in names:
        with tempfile.TemporaryDirectory() as work:
            found["flow"] = fs.FlowDensity.of(many.sample(), Path(work), seed)
    if "reconstruction" in names:
        with tempfile.TemporaryDirectory() as work:
            found["reconstruction"] = Reconstruction.of(patches.sample(), Path(work), seed)
    return found


def _fit_ensembles(
    network: Network,
    samples: Samples,
    names: Sequence[str],
    fits: Mapping[str, fs.FeatureScore],
) -> dict[str, fs.FeatureScore]:
    members = sorted({part for name in names for part in parts(name)})
    functions = {name: resolve(name, fits) for name in members}
    moments = {name: fs.Moments(1) for name in members}
    for outputs, known, _ in _outputs(network, samples):
        for name, function in functions.items():
            value = function(outputs)[known][:, None]
            moments[name].add(value, torch.zeros(len(value), dtype=torch.long))
    found: dict[str, fs.FeatureScore] = {}
    for name in names:
        mean = torch.stack([moments[part].mean()[0, 0] for part in parts(name)])
        std = torch.stack([moments[part].std()[0, 0] for part in parts(name)])
        found[name] = fs.Ensemble({"mean": mean, "std": std}, name, fits)
    return found


def _outputs(network: Network, samples: Samples) -> Iterable[tuple[Outputs, Tensor, Tensor]]:
    """Outputs of each image, where it is known, and itself, all at the network's size."""
    for sample in samples():
        outputs = network.outputs(sample.image, sample.frame.image)
        known = np.ones(sample.size, np.uint8) if sample.anomaly is None else sample.anomaly == 0
        size = outputs.logits.shape[2:]
        resized = cv2.resize(
            known.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST
        )
        image = to_tensor(network.resize(sample.image))[None]
        yield outputs, torch.from_numpy(resized > 0)[None].to(outputs.logits.device), image


def save_fits(folder: Path, fits: Mapping[str, fs.FeatureScore], model: str) -> None:
    """Write each fit to FOLDER/scores/NAME, with the fingerprint of the model it is of."""
    for name, fit in fits.items():
        save_checkpoint(
            folder / FOLDER / name,
            app=APP,
            config={"score": name, "model": model},
            tensors=fit.state,
        )


def load_fits(
    folder: Path, model: str, wanted: Sequence[str] | None = None
) -> dict[str, fs.FeatureScore]:
    """Fits beside a model.

    Args:
        folder: of the model.
        model: its fingerprint.
        wanted: names to be read, with the members of ensembles; all if None.

    Raises:
        AleatorError: a fit that belongs to another model.
    """
    there = sorted(path.name for path in (folder / FOLDER).glob("*") if path.is_dir())
    if wanted is not None:
        needed = {part for name in wanted for part in [bare(name), *parts(name)]}
        there = [name for name in there if name in needed]
    found: dict[str, fs.FeatureScore] = {}
    for name in sorted(there, key=lambda text: "+" in text):
        kept = load_checkpoint(folder / FOLDER / name, app=APP)
        if kept.config.get("model") != model:
            raise AleatorError(
                f"{folder / FOLDER / name}: fitted to another model than the one in {folder}; "
                "fit it again with calibrate --fit"
            )
        if "+" in name:
            found[name] = fs.Ensemble(kept.tensors, name, found)
        else:
            found[name] = _SINGLE[name](kept.tensors)
    return found


_SINGLE: dict[str, Callable[[Mapping[str, Tensor]], fs.FeatureScore]] = {
    "std_max_logit": fs.StandardisedMaxLogit,
    "mahalanobis": fs.Mahalanobis,
    "knn": fs.Nearest,
    "flow": fs.FlowDensity,
    "reconstruction": Reconstruction,
}
