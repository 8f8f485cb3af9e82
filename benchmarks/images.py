r"""Bits per dimension of image flows, and hybrid models: digits (8 x 8) and MNIST's test set.

1. RealNVP, Glow, residual flow, i-DenseNet and a continuous flow with (about) equally many
   parameters, trained for the same seconds on one thread: bits per dimension of test images, as
   a bound by uniform dequantisation.
2. The lecture's table of hybrid models, p(y|x) p(x)^λ on one invertible trunk, at small scale:
   accuracy and bits per dimension for λ = 0, 1/D, 1; and how well four scores tell images of the
   other data set from those of this one (area under the ROC curve).

Splits are 80 / 10 / 10 with seed 0; the weights kept are those of the best validation loss.
Seconds are those that this process computed, so that other work on the machine does not count.
A training that is done is kept, as a line of OUT/images_rows.partial, and not repeated: run it
again after an interruption, or for the other data set with other seconds.

    python benchmarks/images.py --data FOLDER --sets digits --seconds 15 --hybrid-seconds 7
    python benchmarks/images.py --data FOLDER --sets mnist --seconds 60 --hybrid-seconds 10
"""

from __future__ import annotations

import argparse
import copy
import functools
import gzip
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
from core.transforms import ODE

BATCH, DRAWS, TESTED = 64, 4, 200
SOLVER = {"method": "rk4", "steps": 4}
MEASURED_BY = {"rtol": 1e-4, "atol": 1e-4}
RATES = {"residual flow": 5e-3, "i-DenseNet": 5e-3, "CNF": 5e-3}  # the others: 2e-3
TRUNKS = {
    "coupling": "RealNVP, convolutions",
    "coupling + 1 x 1": "Glow",
    "residual": "residual flow",
    "dense": "i-DenseNet",
}
BUDGETS = {"digits": 50_000, "mnist": 100_000}
WEIGHTS = {"0": 0.0, "1/D": None, "1": 1.0}
SCORES = {
    "of density": "ln p(x)",
    "of joint": "ln p(x, y)",
    "of sureness": "p(y|x)",
    "of typicality": "typicality",
}
NOTES = (
    "MNIST is its test set of 10 000 images, of which 8 000 train: figures of papers, which "
    "train on 60 000, are no comparison. Seconds are of the process, on one thread.",
    f"Bits per dimension are a bound, by {DRAWS} draws of uniform noise an image; residual "
    "flows and the continuous flow add an unbiased estimate of the determinant.",
    "The continuous flow trains by four steps of rk4, and is measured by dopri5 at 1e-4.",
    "Adam at 2e-3, and at 5e-3 for residual flows, i-DenseNet and the continuous flow, which was "
    "set by trials of 10 s on digits; batches of 64.",
    "All flows are of the logit of the pixels' cells, standardised by the first batch.",
    "Images of the other data set are unseen kinds: MNIST pooled to 8 x 8 for digits, digits "
    "interpolated to 28 x 28 for MNIST. Scores are ln p(x); ln p(x) + max ln p(y|x); "
    "max p(y|x); and typicality, -|ln p(x) - its mean over validation images|.",
)


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
    common |= {"logit": 1e-6, "standardised": True}
    squeezes = 1 if images.name == "digits" else 2
    glow = {"family": "glow", "scales": 2, "steps": 4}
    residual = {"family": "residual_flow", "layers": 6, "squeezes": squeezes, "exact_terms": 2}
    found: dict[str, Callable[[int], dict[str, Any]]] = {
        "RealNVP, perceptrons": lambda w: {"family": "real_nvp", "layers": 6, "hidden": [w, w]},
        "RealNVP, convolutions": lambda w: {**glow, "mixing": "reverse", "width": w},
        "Glow": lambda w: {**glow, "width": w},
        "residual flow": lambda w: {**residual, "width": w},
        "i-DenseNet": lambda w: {**residual, "width": w, "dense": True},
        "CNF": lambda w: {
            "family": "cnf",
            "net": {"name": "mlp", "width": 2 * w, "blocks": 2},
            "trace": "hutchinson",
            "gradient": "direct",
            "solver": SOLVER,
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
    model: GenerativeModel, images: Images, seconds: float, labelled: bool, rate: float
) -> Trained:
    """Adam with cosine decay over the seconds; the best of ten validation losses is kept."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    x, label = images.parts[0], images.labels[0]
    best, kept, begun, step = math.inf, copy.deepcopy(model.state_dict()), time.process_time(), 0
    next_score = 0.1
    while (done := (time.process_time() - begun) / seconds) < 1:
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
    spent = time.process_time() - begun
    if _validate(model, images, labelled) > best:
        model.load_state_dict(kept)
    return Trained(model.eval(), spent, step)


@torch.no_grad()
def _validate(model: GenerativeModel, images: Images, labelled: bool) -> float:
    x, label = images.parts[1][:200], images.labels[1][:200]
    context = label if labelled else None
    return model.eval().loss(x, context, generator=keyed_generator(2)).mean().item()


@torch.no_grad()
def log_probs(model: GenerativeModel, x: Tensor) -> Tensor:
    """Ln P of each image, (N,)."""
    found = [
        model.log_prob(part, generator=keyed_generator(3, i)).value
        for i, part in enumerate(x.split(100))
    ]
    return torch.cat(found)


def bits(log_p: Tensor, images: Images) -> float:
    """Bits per dimension."""
    return -log_p.mean().item() / (math.prod(images.shape) * math.log(2))


def family(images: Images, name: str, seconds: float) -> dict[str, Any]:
    """One flow: trained and measured."""
    torch.manual_seed(0)
    config, parameters = sized(configs(images)[name], BUDGETS[images.name])
    done = train(build(config), images, seconds, False, RATES.get(name, 2e-3))
    for part in done.model.modules():
        if isinstance(part, ODE):  # few fixed steps are for training; a density is to a tolerance
            part.solver = dict(MEASURED_BY)
    begun = time.process_time()
    found = log_probs(done.model, images.parts[2][:TESTED])
    return {
        "parameters": parameters, "steps": done.steps, "seconds": done.seconds,
        "bpd": bits(found, images), "error": bits(-found.std(), images) / math.sqrt(len(found)),
        "each": 1e3 * (time.process_time() - begun) / (len(found) * DRAWS),
    }  # fmt: skip


def hybrid(images: Images, trunk: str, word: str, seconds: float) -> dict[str, Any]:
    """One hybrid model with one weight: trained and measured."""
    torch.manual_seed(0)
    config, parameters = sized(configs(images)[TRUNKS[trunk]], BUDGETS[images.name])
    flow = {k: v for k, v in config.items() if k != "event_shape"}
    model = HybridModel(images.shape, flow=flow, classes=10, weight=WEIGHTS[word])
    done = train(model, images, seconds, True, RATES.get(TRUNKS[trunk], 2e-3))
    return {
        "parameters": parameters, "steps": done.steps, "seconds": done.seconds,
        **_judged(model, images, word),
    }  # fmt: skip


@torch.no_grad()
def _judged(model: HybridModel, images: Images, word: str) -> dict[str, float]:
    x, label = images.parts[2], images.labels[2]
    logits = torch.cat([model.logits(part) for part in x.split(200)])
    row = {"accuracy": 100 * (logits.argmax(1) == label).float().mean().item()}
    if word == "0":
        return row
    inside = log_probs(model, x[:TESTED])
    row["bpd"] = bits(inside, images)
    if word == "1/D":
        other = images.other[:TESTED]
        outside, typical = log_probs(model, other), log_probs(model, images.parts[1][:TESTED])
        sure = [model.logits(part).log_softmax(1).amax(1) for part in (x[:TESTED], other)]
        row["of density"] = auroc(inside, outside)
        row["of joint"] = auroc(inside + sure[0], outside + sure[1])
        row["of sureness"] = auroc(*sure)
        row["of typicality"] = auroc(*(-(p - typical.mean()).abs() for p in (inside, outside)))
    return row


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that an image of the data scores higher than one of another kind."""
    from sklearn.metrics import roc_auc_score

    truth = [1] * len(inside) + [0] * len(outside)
    return float(roc_auc_score(truth, torch.cat([inside, outside]).numpy()))


@dataclass
class Log:
    """What is done, one JSON object a line; a training is known by its names and its seconds."""

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.read()

    def read(self) -> None:
        """What is there, by whichever process."""
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                self.rows[json.dumps(row["key"])] = row

    def once(self, make: Callable[[], dict[str, Any]], *key: Any) -> None:
        """Make a row, unless it is there, and keep it at once."""
        self.read()
        if json.dumps(key) in self.rows:
            return
        row = {"key": list(key), **make()}
        self.rows[json.dumps(key)] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def tables(self) -> list[Table]:
        """The longest training of each kind, as the two tables."""
        longest = {}
        for row in sorted(self.rows.values(), key=lambda row: row["key"][-1]):
            longest[tuple(row["key"][:-1])] = row
        flows, trunks = [], {}
        for (kind, data, name, *rest), row in longest.items():
            if kind == "flow":
                flows.append({"data": data, "flow": name, **row})
                continue
            (word,) = rest
            its = trunks.setdefault((data, name), {"data": data, "trunk": name})
            its |= {
                key if key.startswith("of ") else f"{key} {word}": row[key]
                for key in ("accuracy", "bpd", "steps", "seconds", *SCORES)
                if key in row
            }
        return [_flow_table(flows), _hybrid_table(list(trunks.values()))]


def _flow_table(rows: list[dict[str, Any]]) -> Table:
    return Table(
        sorted(rows, key=lambda row: row["data"]),
        {"data": "data", "flow": "flow", "parameters": "parameters", "seconds": "seconds",
         "steps": "steps", "bpd": "bits per dimension", "error": "± s.e.",
         "each": "density (ms an image)"},
        {"seconds": ".0f", "bpd": ".3f", "error": ".3f", "each": ".2f", "parameters": ",d"},
        title=f"Bits per dimension of {TESTED} test images at equal parameters and seconds",
    )  # fmt: skip


def _hybrid_table(rows: list[dict[str, Any]]) -> Table:
    columns = {"data": "data", "trunk": "trunk", "seconds 1/D": "seconds, λ = 1/D"}
    columns |= {"steps 1/D": "steps, λ = 1/D", "accuracy 0": "accuracy, λ = 0"}
    for word in ("1/D", "1"):
        columns |= {f"accuracy {word}": f"accuracy, λ = {word}", f"bpd {word}": f"bpd, λ = {word}"}
    columns |= SCORES
    formats = {key: ".1f" if key.startswith("accuracy") else ".2f" for key in columns}
    formats |= {"seconds 1/D": ".0f", "steps 1/D": "d"} | dict.fromkeys(SCORES, ".3f")
    title = "Hybrid models; the last columns: area under the ROC curve at λ = 1/D, by score"
    return Table(sorted(rows, key=lambda row: row["data"]), columns, formats, title=title)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of MNIST's files")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a flow; 0: none is run")
    parser.add_argument("--hybrid-seconds", type=float, default=30.0, help="of a weight; 0: none")
    parser.add_argument("--sets", default="digits,mnist", help="none: only write the tables")
    parser.add_argument("--only", default="", help="trainings whose names have this in them")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "images_rows.partial")
    wanted = set(options.sets.split(",")) & set(BUDGETS)
    for images in load(options.data) if wanted else []:
        if images.name not in wanted:
            continue
        work: list[tuple[tuple[Any, ...], Callable[[], dict[str, Any]]]] = []
        seconds = options.seconds
        for name in configs(images) if seconds else ():
            work.append((
                ("flow", images.name, name, seconds),
                functools.partial(family, images, name, seconds),
            ))  # fmt: skip
        seconds = options.hybrid_seconds
        for trunk, word in itertools.product(TRUNKS, WEIGHTS) if seconds else ():
            work.append((
                ("hybrid", images.name, trunk, word, seconds),
                functools.partial(hybrid, images, trunk, word, seconds),
            ))  # fmt: skip
        for key, make in work:
            if options.only in " ".join(map(str, key)):
                log.once(make, *key)
    found = log.tables()
    made_by = provenance()
    made_by["hardware"] = f"{hardware()}, 1 thread used, other work on the machine"
    made_by["versions"] = versions()
    results = write_results(options.out / "images.json", found, made_by=made_by, notes=NOTES)
    page = report(results, "Flows of images, and hybrid models")
    page += "".join(f"\nNote: {line}\n" for line in NOTES)
    write_text(options.out / "images.md", page)
    for table in found:
        table.print()


if __name__ == "__main__":
    main()
