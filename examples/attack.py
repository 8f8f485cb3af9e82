"""Attacks on the codes of a VAE, and the defence by Markov chains, on 8 × 8 digits.

    python examples/attack.py [-o FOLDER]

A VAE is trained on 1497 of scikit-learn's digits and a linear classifier on its codes. Each of
the 300 held-out digits is then changed by at most r of the range of grey, so as to move its code
as far as can be; the defence runs Hamiltonian Monte Carlo on p(z | x) from the attacked code and
classifies the mean of the draws. Intervals are of the paired differences between the same digits,
95 %, by the bootstrap. About a minute of one core.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import FitConfig, build, fit
from core.random import keyed_generator
from core.report import Table, provenance, report, write_results, write_text
from core.vae.attack import defend, latent_attack
from core.vae.vae import VAE

RADII = (0.05, 0.1, 0.15, 0.2)
HELD = 300
NET = {"width": 128, "blocks": 2}
CONFIG = {
    "family": "vae",
    "event_shape": [64],
    "latent_dim": 10,
    "encoder": NET,
    "decoder": NET,
    "likelihood": {"name": "gaussian", "scale": 0.2},
}


def data() -> tuple[Tensor, np.ndarray]:
    """Digits (1797, 64) in [0, 1], the held-out ones first, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(1797, generator=keyed_generator(0))
    return torch.as_tensor(digits.data / 16, dtype=torch.float32)[order], digits.target[order]


def train(x: Tensor, steps: int) -> VAE:
    """A VAE of digits (N, 64)."""

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return x[torch.randint(len(x), (128,), generator=generator)], None

    torch.manual_seed(0)
    options = FitConfig(steps=steps, learning_rate=2e-3, validate_every=0, ema=0.99)
    with tempfile.TemporaryDirectory() as folder:
        model = fit(build(CONFIG), batches, options, folder=folder, device="cpu").model
    assert isinstance(model, VAE)
    return model.eval()


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Mean of a - b over the same digits, and the ends of its 95 % interval."""
    gap = a.astype(float) - b.astype(float)
    rows = np.random.default_rng(0).integers(len(gap), size=(4000, len(gap)))
    low, high = np.quantile(gap[rows].mean(1), [0.025, 0.975])
    return gap.mean(), low, high


def study(radii: tuple[float, ...] = RADII, steps: int = 800) -> list[dict[str, Any]]:
    """One row for each radius: accuracies in per cent and paired differences."""
    from sklearn.linear_model import LogisticRegression

    x, label = data()
    model = train(x[HELD:], steps)
    with torch.no_grad():
        judge = LogisticRegression(max_iter=2000).fit(model.encode(x[HELD:]).mean, label[HELD:])
    x, label = x[:HELD], label[:HELD]

    def right(z: Tensor) -> np.ndarray:
        return judge.predict(z.detach().numpy()) == label

    def defended(x: Tensor, key: int) -> np.ndarray:
        run = defend(model, x, steps=120, warmup=80, keep=4, generator=keyed_generator(2, key))
        return right(run.draws[5:].mean(0))

    clean, rows = right(model.encode(x).mean), []
    for k, radius in enumerate((0.0, *radii)):
        moved = x
        if radius:
            options = {"radius": radius, "steps": 40, "generator": keyed_generator(1, k)}
            moved = latent_attack(model, x, **options)
        noise = radius * (2 * torch.rand(x.shape, generator=keyed_generator(3, k)) - 1).sign()
        broken, healed = right(model.encode(moved).mean), defended(moved, k)
        drop, gain = difference(clean, broken), difference(healed, broken)
        rows.append(
            {
                "radius": radius,
                "noise": 100 * right(model.encode(x + noise).mean).mean(),
                "attacked": 100 * broken.mean(),
                "defended": 100 * healed.mean(),
                "drop": _interval(drop),
                "gain": _interval(gain),
                "drop_low": 100 * drop[1],
                "gain_low": 100 * gain[1],
            }
        )
    return rows


def _interval(found: tuple[float, float, float]) -> str:
    value, low, high = (100 * v for v in found)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/attack"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = {
        "radius": "r",
        "noise": "signs at random, %",
        "attacked": "attacked, %",
        "defended": "defended, %",
        "drop": "lost by the attack [95 %]",
        "gain": "won back [95 %]",
    }
    formats = {"radius": ".2f", "noise": ".1f", "attacked": ".1f", "defended": ".1f"}
    title = f"Accuracy of a linear classifier of codes on {HELD} held-out digits"
    found = Table(study(), columns, formats, title=title)
    made_by = {**provenance(), "command": "python examples/attack.py"}
    results = write_results(options.out / "attack.json", [found], made_by=made_by)
    write_text(options.out / "attack.md", report(results, "Attack and defence of a VAE"))
    found.print()


if __name__ == "__main__":
    main()
