r"""Bits per dimension of image flows, and hybrid models: digits (8 x 8) and MNIST's test set.

1. RealNVP, Glow, residual flow, i-DenseNet and a continuous flow with (about) equally many
   parameters, trained for the same seconds on one thread: bits per dimension of test images, as
   a bound by uniform dequantisation.
2. The lecture's table of hybrid models, p(y|x) p(x)^λ on one invertible trunk, at small scale:
   accuracy and bits per dimension for λ = 0, 1/D, 1, and how well ln p(x) and the joint decision
   tell images of the other data set from those of this one (area under the ROC curve).

Splits are 80 / 10 / 10 with seed 0; the weights kept are those of the best validation loss.

    python benchmarks/images.py [--data FOLDER] [--seconds 60] [--hybrid-seconds 30] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.hybrid import HybridModel
from core.model import GenerativeModel
from core.random import keyed_generator
from core.registry import build
from core.report import Table, hardware, provenance, report, versions, write_results, write_text

BATCH, DRAWS = 64, 4
BUDGETS = {"digits": 50_000, "mnist": 100_000}
WEIGHTS = {"0": 0.0, "1/D": None, "1": 1.0}


@dataclass(frozen=True)
class Images:
    """Integers (N, 1, H, W) in three parts with labels; images of another kind."""

    name: str
    levels: int
    parts: tuple[Tensor, Tensor, Tensor]
    labels: tuple[Tensor, Tensor, Tensor]
    other: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parts[0].shape[1:])


def load(folder: Path) -> list[Images]:
    """Digits and MNIST; each is the other's unseen kind, resampled to its size and levels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.as_tensor(digits.images).float()[:, None]
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        marks = np.frombuffer(file.read(), np.uint8, offset=8)
    large = torch.tensor(pixels).float()
    to_small = torch.nn.functional.adaptive_avg_pool2d(large[:500], 8) / 255 * 16
    to_large = torch.nn.functional.interpolate(small[:500] / 16 * 255, (28, 28), mode="bilinear")
    return [
        _split("digits", 17, small, torch.as_tensor(digits.target), to_small.round()),
        _split("mnist", 256, large, torch.tensor(marks).long(), to_large.round().clamp(0, 255)),
    ]


def _split(name: str, levels: int, x: Tensor, label: Tensor, other: Tensor) -> Images:
    order = torch.as_tensor(np.random.default_rng(0).permutation(len(x)))
    x, label = x[order], label[order]
    first, second = int(0.8 * len(x)), int(0.9 * len(x))
    parts, labels = (t.tensor_split([first, second]) for t in (x, label))
    return Images(name, levels, parts, labels, other)


def configs(images: Images) -> dict[str, Callable[[int], dict[str, Any]]]:
    """Name -> config, given a width."""
    common = {"event_shape": list(images.shape), "levels": images.levels, "probes": DRAWS}
    squeezes = 1 if images.name == "digits" else 2
    residual = {"family": "residual_flow", "layers": 6, "squeezes": squeezes, "exact_terms": 3}
    solver = {"rtol": 1e-3, "atol": 1e-3}
    found: dict[str, Callable[[int], dict[str, Any]]] = {
        "RealNVP": lambda w: {"family": "real_nvp", "layers": 6, "hidden": [w, w]},
        "Glow": lambda w: {"family": "glow", "scales": 2, "steps": 4, "width": w},
        "residual flow": lambda w: {**residual, "width": w},
        "i-DenseNet": lambda w: {**residual, "width": w, "dense": True},
        "CNF": lambda w: {
            "family": "cnf",
            "net": {"name": "mlp", "width": 2 * w, "blocks": 2},
            "trace": "hutchinson",
            "solver": solver,
        },
    }
    return {name: lambda w, make=make: common | make(w) for name, make in found.items()}


def sized(make: Callable[[int], dict[str, Any]], budget: int) -> tuple[dict[str, Any], int]:
    """The config whose number of parameters comes closest to the budget, and that number."""
    sizes = {}
    for width in (*range(4, 40, 2), *range(40, 200, 4)):
        sizes[width] = sum(p.numel() for p in build(make(width)).parameters())
        if sizes[width] > budget:
            break
    best = min(sizes, key=lambda width: abs(sizes[width] - budget))
    return make(best), sizes[best]


@dataclass
class Trained:
    """A model after its seconds."""

    model: GenerativeModel
    seconds: float
    steps: int


def train(
    model: GenerativeModel, images: Images, seconds: float, labelled: bool, rate: float = 2e-3
) -> Trained:
    """Adam with cosine decay over the seconds; the best of ten validation losses is kept."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    x, label = images.parts[0], images.labels[0]
    best, kept, begun, step = math.inf, copy.deepcopy(model.state_dict()), time.perf_counter(), 0
    next_score = 0.1
    while (done := (time.perf_counter() - begun) / seconds) < 1:
        rows = torch.randint(0, len(x), (BATCH,), generator=keyed_generator(0, step))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.zero_grad()
        context = label[rows] if labelled else None
        model.train().loss(x[rows], context, generator=keyed_generator(1, step)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        step += 1
        if done > next_score:
            score = _validate(model, images, labelled)
            next_score += 0.1
            if score < best:
                best, kept = score, copy.deepcopy(model.state_dict())
    spent = time.perf_counter() - begun
    if _validate(model, images, labelled) > best:
        model.load_state_dict(kept)
    return Trained(model.eval(), spent, step)


@torch.no_grad()
def _validate(model: GenerativeModel, images: Images, labelled: bool) -> float:
    x, label = images.parts[1][:128], images.labels[1][:128]
    context = label if labelled else None
    return model.eval().loss(x, context, generator=keyed_generator(2)).mean().item()


@torch.no_grad()
def bits(model: GenerativeModel, x: Tensor) -> Tensor:
    """Bits per dimension, (N,)."""
    found = [
        model.log_prob(part, generator=keyed_generator(3, i)).bits_per_dim(part.shape[1:])
        for i, part in enumerate(x.split(100))
    ]
    return torch.cat(found)


def families(images: Images, seconds: float) -> list[dict[str, Any]]:
    """One row a family."""
    rows = []
    for name, make in configs(images).items():
        torch.manual_seed(0)
        config, parameters = sized(make, BUDGETS[images.name])
        model = build(config)
        done = train(model, images, seconds, False)
        begun = time.perf_counter()
        found = bits(done.model, images.parts[2][:200])
        rows.append({
            "data": images.name, "flow": name, "parameters": parameters, "steps": done.steps,
            "seconds": done.seconds, "bpd": found.mean().item(),
            "error": found.std().item() / math.sqrt(len(found)),
            "each": 1e3 * (time.perf_counter() - begun) / (len(found) * DRAWS),
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def hybrids(images: Images, seconds: float) -> list[dict[str, Any]]:
    """One row a trunk, columns by weight."""
    shared = configs(images)
    glow, budget = shared["Glow"], BUDGETS[images.name]
    trunks = {
        "coupling": lambda w: glow(w) | {"mixing": "reverse"},
        "coupling + 1 x 1": glow,
        "residual": shared["residual flow"],
        "dense": shared["i-DenseNet"],
    }
    rows = []
    for name, make in trunks.items():
        config, _ = sized(make, budget)
        trunk = {k: v for k, v in config.items() if k != "event_shape"}
        row: dict[str, Any] = {"data": images.name, "trunk": name}
        for word, weight in WEIGHTS.items():
            torch.manual_seed(0)
            model = HybridModel(images.shape, flow=trunk, classes=10, weight=weight)
            # λ nll is in nats an image: the step must not grow with the number of pixels
            rate = 2e-3 if weight != 1 else 1e-3
            done = train(model, images, seconds, True, rate)
            row |= _judged(model, images, word)
            row[f"steps {word}"] = done.steps
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


@torch.no_grad()
def _judged(model: HybridModel, images: Images, word: str) -> dict[str, float]:
    x, label = images.parts[2][:200], images.labels[2]
    whole = images.parts[2]
    correct = torch.cat([model.logits(part).argmax(1) for part in whole.split(200)]) == label
    row = {f"accuracy {word}": 100 * correct.float().mean().item()}
    row[f"bpd {word}"] = bits(model, x).mean().item()
    if word == "1/D":
        seen = model.decide(x, generator=keyed_generator(4))[1]
        other = model.decide(images.other[:200], generator=keyed_generator(4))[1]
        row["found out"] = auroc(seen, other)
        sure = [model.logits(part).softmax(1).amax(1) for part in (x, images.other[:200])]
        row["by sureness"] = auroc(*sure)
    return row


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that an image of the data scores higher than one of another kind."""
    from sklearn.metrics import roc_auc_score

    truth = [1] * len(inside) + [0] * len(outside)
    return float(roc_auc_score(truth, torch.cat([inside, outside]).numpy()))


def tables(images: list[Images], seconds: float, hybrid_seconds: float) -> list[Table]:
    bpd = Table(
        [row for each in images for row in families(each, seconds)],
        {"data": "data", "flow": "flow", "parameters": "parameters", "seconds": "seconds",
         "steps": "steps", "bpd": "bits per dimension", "error": "± s.e.",
         "each": "density (ms an image)"},
        {"seconds": ".0f", "bpd": ".3f", "error": ".3f", "each": ".2f", "parameters": ",d"},
        title="Bits per dimension of 200 test images at equal parameters and seconds",
    )  # fmt: skip
    columns = {"data": "data", "trunk": "trunk", "accuracy 0": "accuracy, λ = 0"}
    for word in ("1/D", "1"):
        columns |= {f"accuracy {word}": f"accuracy, λ = {word}", f"bpd {word}": f"bpd, λ = {word}"}
    columns |= {"found out": "AUROC of ln p(x, y)", "by sureness": "AUROC of p(y|x)"}
    formats = {key: ".1f" if key.startswith("acc") else ".2f" for key in columns}
    formats |= {"found out": ".3f", "by sureness": ".3f"}
    hybrid = Table(
        [row for each in images for row in hybrids(each, hybrid_seconds)],
        columns,
        formats,
        title=f"Hybrid models, {hybrid_seconds:.0f} s each; the last columns at λ = 1/D",
    )
    return [bpd, hybrid]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of MNIST's files")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--hybrid-seconds", type=float, default=30.0)
    parser.add_argument("--sets", default="digits,mnist")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = [each for each in load(options.data) if each.name in options.sets.split(",")]
    found = tables(images, options.seconds, options.hybrid_seconds)
    notes = (
        "MNIST is its test set of 10 000 images, of which 8 000 train: figures of papers, which "
        "train on 60 000, are no comparison. Seconds are of the wall clock, with other work "
        "running on the machine.",
        f"Bits per dimension are a bound, by {DRAWS} draws of uniform noise an image; residual "
        "flows and the continuous flow add an unbiased estimate of the determinant.",
        "Images of the other data set are unseen kinds: MNIST pooled to 8 x 8 for digits, digits "
        "interpolated to 28 x 28 for MNIST.",
    )
    made_by = provenance()
    made_by["hardware"] = f"{hardware()}, 1 thread used, other work on the machine"
    made_by["versions"] = versions()
    results = write_results(options.out / "images.json", found, made_by=made_by, notes=notes)
    page = report(results, "Flows of images, and hybrid models")
    page += "".join(f"\nNote: {line}\n" for line in notes)
    write_text(options.out / "images.md", page)
    for table in found:
        table.print()


if __name__ == "__main__":
    main()
