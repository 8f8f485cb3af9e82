"""The denoising autoencoder of a DAED on digits that it never saw: 0 to 4 first, then 5 to 9.

    python examples/daed_transfer.py [-o FOLDER] [--steps 150]

A DAED is trained on the 8 × 8 digits 0 to 4. On 60 images of 5 to 9 three models are compared, at
equal steps and seeds: as it was; the same autoencoder, frozen, with a new generator; and all of it
from scratch. The bound on ln p(x) of 300 other images of 5 to 9 is the sum of what the generator
and what the autoencoder give; the error is that of noise taken off, in units of the grey range.
Reference: Deja et al. (2022), arXiv:2206.00070.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from digits import BIN, DIMS, continuous
from torch import Tensor

from core import FitConfig, build, fit
from core.random import keyed_generator, randn
from core.report import Table, provenance, report, write_results, write_text
from core.vae.daed import DAED

NET = {"name": "unet", "channels": 12, "multipliers": [1, 2]}
CONFIG = {
    "family": "daed",
    "event_shape": [1, 8, 8],
    "generator": {"sigma_data": 0.7, "net": NET},
    "autoencoder": NET,
}
FEW, HELD, SEEDS = 60, 300, 2


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Integers (N, 1, 8, 8): digits 0 to 4; a few of 5 to 9; others of 5 to 9, held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(1797, generator=keyed_generator(0))
    x = torch.as_tensor(digits.images, dtype=torch.float32)[order, None]
    late = torch.as_tensor(digits.target)[order] >= 5
    return x[~late], x[late][:FEW], x[late][FEW : FEW + HELD]


def make(seed: int) -> DAED:
    """A fresh model."""
    torch.manual_seed(seed)
    model = build(CONFIG)
    assert isinstance(model, DAED)
    return model


def train(model: DAED, values: Tensor, steps: int, seed: int) -> DAED:
    """Train what is not frozen on integers (N, 1, 8, 8)."""

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, None]:
        rows = torch.randint(len(values), (32,), generator=generator)
        return continuous(values[rows], generator), None

    options = FitConfig(
        steps=steps, learning_rate=2e-3, validate_every=0, warmup=20, ema=0.98, seed=seed
    )
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(model, batches, options, folder=folder, device="cpu", progress=None).model
    assert isinstance(fitted, DAED)
    return fitted.eval().requires_grad_(False)


def reuse(source: DAED, seed: int) -> DAED:
    """A fresh generator above the autoencoder of another model, which is frozen."""
    model = make(seed)
    model.autoencoder.load_state_dict(source.autoencoder.state_dict())
    model.log_scale.data.copy_(source.log_scale)
    model.autoencoder.requires_grad_(False)
    model.log_scale.requires_grad_(False)
    return model


@torch.no_grad()
def judged(model: DAED, values: Tensor) -> dict[str, float]:
    """Bits per dimension of held-out digits (less is better) in two parts, and denoising error."""
    x = continuous(values, keyed_generator(2))
    whole = model.log_prob(x, steps=30, draws=2, generator=keyed_generator(3)).value.double()
    parts = [
        model.law(model.noisy(x, keyed_generator(4, k))).log_prob(x).flatten(1).sum(1)
        for k in range(8)
    ]
    below = torch.stack(parts).mean(0).double()
    point = model.generator.path.at(model.t_meet)
    noise = point.sigma / point.alpha
    found = model.remove_noise(x + noise * randn(x.shape, keyed_generator(5)), noise)
    unit = DIMS * math.log(2)
    return {
        "bits": -(whole.mean().item() + DIMS * math.log(BIN)) / unit,
        "generator": -(whole - below).mean().item() / unit,
        "autoencoder": -(below.mean().item() + DIMS * math.log(BIN)) / unit,
        "error": (found - x).square().mean().sqrt().item() / 2,
    }


def study(steps: int, source_steps: int, seeds: int = SEEDS) -> list[dict[str, Any]]:
    """A row for each way, the mean over seeds and the paired gain over training from scratch."""
    early, few, held = data()
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        source = train(make(seed), early, source_steps, seed)
        ways = {
            "as it was on 0 to 4": source,
            "autoencoder kept, new generator": train(reuse(source, 100 + seed), few, steps, seed),
            "all from scratch": train(make(100 + seed), few, steps, seed),
        }
        for name, model in ways.items():
            found.setdefault(name, []).append(judged(model, held))
            print(seed, name, found[name][-1], flush=True)
    base = found["all from scratch"]
    return [_row(name, each, base, steps) for name, each in found.items()]


def _row(
    name: str, each: list[dict[str, float]], base: list[dict[str, float]], steps: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"way": name, "steps": 0 if name.startswith("as it") else steps}
    for key in each[0]:
        values = torch.tensor([one[key] for one in each], dtype=torch.float64)
        row[key] = values.mean().item()
    gain = [b["bits"] - e["bits"] for b, e in zip(base, each, strict=True)]
    row["gain"], row["least"] = sum(gain) / len(gain), min(gain)
    return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="on 5 to 9")
    parser.add_argument("--source-steps", type=int, default=400, help="on 0 to 4")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/daed_transfer"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = {
        "way": "model",
        "steps": "steps on 5 to 9",
        "bits": "bits / dim",
        "generator": "of the generator",
        "autoencoder": "of the autoencoder",
        "error": "error of denoising",
        "gain": "gain on scratch",
        "least": "least of the seeds",
    }
    formats = dict.fromkeys(columns, ".3f") | {"error": ".4f"}
    del formats["way"], formats["steps"]
    rows = study(options.steps, options.source_steps)
    found = Table(rows, columns, formats, title=f"{HELD} held-out digits 5 to 9, {SEEDS} seeds")
    command = f"python examples/daed_transfer.py --steps {options.steps}"
    command += f" --source-steps {options.source_steps}"
    results = write_results(
        options.out / "daed_transfer.json", [found], made_by={**provenance(), "command": command}
    )
    page = report(results, "The denoiser of a DAED on digits that it never saw")
    write_text(options.out / "daed_transfer.md", page)
    found.print()


if __name__ == "__main__":
    main()
