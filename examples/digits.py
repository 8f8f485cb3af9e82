r"""Every family on the 8 × 8 handwritten digits that scikit-learn brings: minutes on two cores.

    python examples/digits.py vae                  one family: a grid of samples, and a card
    python examples/digits.py --all                all of them, and one table
    python examples/digits.py --table              the table again, of what is there

Values 0 ... 16 are made continuous by uniform noise, so that densities bound the log-mass of the
integers and bits per dimension can be compared. 1437 digits are trained on, 360 are held out.
Fréchet distances are in 16 features of a classifier that is trained here: they compare families
with one another, and with nothing that is published.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core import FitConfig, GenerativeModel, build, fit
from core.cards import write_card
from core.energy import EnergyModel
from core.evaluation import frechet_distance
from core.random import keyed_generator, rand
from core.report import Table, hardware, provenance, report, write_results, write_text

BIN = 2 / 17  # width of a value's bin in [-1, 1]
DIMS = 64
UNET = {"name": "unet", "channels": 16, "multipliers": [1, 2]}
MLP = {"width": 192, "blocks": 2}
GAUSSIAN = {"name": "gaussian", "scale": 0.3, "learned": "shared"}
AUTOENCODER = {"latent_dim": 16, "likelihood": GAUSSIAN, "encoder": MLP, "decoder": MLP}
SCORE = {"sigma_data": 0.7}

FAMILIES: dict[str, dict[str, Any]] = {
    "diffusion": {**SCORE, "net": UNET},
    "flow_matching": {**SCORE, "net": UNET},
    "consistency": {**SCORE, "net": UNET, "growth": 250, "path": {"name": "edm", "sigma_max": 20}},
    "daed": {"generator": {**SCORE, "net": UNET}, "autoencoder": UNET},
    "vae": {**AUTOENCODER},
    "joint_vae": {**AUTOENCODER, "latent_dim": 10},
    "hierarchical_vae": {**AUTOENCODER, "latent_dim": None, "latent_dims": [16, 8]},
    "top_down_vae": {**AUTOENCODER, "latent_dim": None, "latent_dims": [12, 8], "level": MLP},
    "self_supervised_vae": {"levels": 2, "coarse": AUTOENCODER, "detail": AUTOENCODER},
    "vq_vae": {
        **AUTOENCODER,
        "latent_dim": None,
        "codes": 32,
        "positions": 16,
        "encoder": {"name": "coder", "channels": 16},
        "decoder": {"name": "coder", "channels": 16},
    },
    "latent_diffusion": {"autoencoder": {**AUTOENCODER, "beta": 0.3}, "prior": {"net": MLP}},
    "latent_flow_matching": {"autoencoder": {**AUTOENCODER, "beta": 0.3}, "prior": {"net": MLP}},
    "energy": {
        "energy": MLP,
        "base": "fitted",
        "base_scale": 1.0,
        "chain_steps": 20,
        "chain_step": 0.1,
        "sampler": {"name": "mala", "step": 0.1, "steps": 1000},
    },
}
BOUND = {"draws": 64}
FLOW = {"trace": "hutchinson", "rtol": 1e-3, "atol": 1e-3}
LATENT = {"draws": 4, "rtol": 1e-4}
DENSITY: dict[str, dict[str, Any]] = {
    "diffusion": FLOW,
    "flow_matching": FLOW,
    "latent_diffusion": LATENT,
    "latent_flow_matching": LATENT,
    "energy": {"chains": 128, "temperatures": 800},
    "vae": BOUND,
    "joint_vae": BOUND,
    "hierarchical_vae": BOUND,
    "top_down_vae": BOUND,
    "self_supervised_vae": BOUND,
}
EVALUATIONS = {"diffusion": 20, "flow_matching": 20, "consistency": 2, "daed": 20, "energy": 1000}
EVALUATIONS |= {"latent_diffusion": 21, "latent_flow_matching": 21, "vq_vae": 17}


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out digits (N, 1, 8, 8), values 0 to 16, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(1797, generator=keyed_generator(0))
    x = torch.as_tensor(digits.images, dtype=torch.float32)[order, None]
    label = torch.as_tensor(digits.target)[order]
    return x[:1437], label[:1437], x[1437:], label[1437:]


def continuous(values: Tensor, generator: torch.Generator) -> Tensor:
    """Integers 0 to 16 to [-1, 1), uniform within each bin."""
    return (values + rand(values.shape, generator)) * BIN - 1


def config(family: str) -> dict[str, Any]:
    """What `build` makes of a family."""
    options = {k: v for k, v in FAMILIES[family].items() if v is not None}
    return {"family": family, "event_shape": [1, 8, 8], **options}


def train(family: str, steps: int, folder: Path, seed: int = 0) -> tuple[GenerativeModel, float]:
    """A trained model and the seconds that it took."""
    values = data()[0]
    torch.manual_seed(seed)
    model = build(config(family))

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, None]:
        rows = torch.randint(len(values), (64,), generator=generator)
        return continuous(values[rows], generator), None

    if isinstance(model, EnergyModel):
        model.fit_base(torch.cat([continuous(values, keyed_generator(5, k)) for k in range(4)]))
    rate = 1e-3 if family == "energy" else 2e-3
    options = FitConfig(steps=steps, learning_rate=rate, validate_every=0, ema=0.995, seed=seed)
    fitted = fit(model, batches, options, folder=folder, progress="steps", device="cpu")
    return fitted.model.eval(), fitted.seconds


def classifier() -> nn.Module:
    """Digits to 16 features, trained to tell the labels."""
    values, label, *_ = data()
    generator = keyed_generator(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 16), nn.SiLU())
    head = nn.Linear(16, 10)
    weights = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, 3e-3, weight_decay=0.01)
    for _ in range(600):
        rows = torch.randint(len(values), (128,), generator=generator)
        loss = F.cross_entropy(head(net(continuous(values[rows], generator))), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.requires_grad_(False)
    scale = net(continuous(values, generator)).std(0)
    return nn.Sequential(net, _Scale(scale))


class _Scale(nn.Module):
    """Features in units of their spread over the training digits."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x / self.scale


def evaluate(model: GenerativeModel, family: str, samples: Tensor) -> dict[str, Any]:
    """Bits per dimension of held-out digits, and Fréchet distance of samples."""
    values = data()[2]
    held, generator = continuous(values, keyed_generator(2)), keyed_generator(3)
    row: dict[str, Any] = {}
    if "log_prob" not in model.unsupported:
        x = held[:120]
        density = model.log_prob(x, generator=generator, **DENSITY.get(family, {}))
        value = density.value.double()
        bits = -(value + DIMS * math.log(BIN)) / (DIMS * math.log(2))
        row |= {"kind": density.kind, "bits": bits.mean().item()}
        row["bits_error"] = bits.std().item() / math.sqrt(len(bits))
    features = classifier()
    found = frechet_distance(features(samples), features(held), groups=10)
    return row | {"frechet": found.value, "frechet_error": found.stderr}


def grid(samples: Tensor, path: Path, title: str) -> None:
    """The first hundred samples, none left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tiles = samples[:100, 0].reshape(10, 10, 8, 8).permute(0, 2, 1, 3).reshape(80, 80)
    figure, axes = plt.subplots(figsize=(4, 4.2))
    axes.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def run(family: str, steps: int, out: Path) -> dict[str, Any]:
    """Train, draw and judge one family; a grid and a card in `out`."""
    with tempfile.TemporaryDirectory() as folder:
        model, seconds = train(family, steps, Path(folder))
    since = time.monotonic()
    samples = model.sample((1000,), generator=keyed_generator(4)).detach()
    drawing = time.monotonic() - since
    grid(samples, out / f"{family}.png", f"{family}, 100 unselected samples")
    row = {
        "family": family,
        **evaluate(model, family, samples),
        "seconds": seconds,
        "evaluations": EVALUATIONS.get(family, 1),
        "drawing": drawing,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    card = {
        "title": f"{family} on 8 × 8 digits",
        "summary": f"An example of the family `{family}`; see examples/digits.py.",
        "data": "scikit-learn's digits, made continuous by uniform noise",
        "split": "1437 to train on, 360 held out, by a permutation of seed 0",
        "seed": 0,
        "hardware": hardware(),
        "minutes": seconds / 60,
        "parameters": row["parameters"],
        "command": f"python examples/digits.py {family} --steps {steps}",
        "scores": [{k: v for k, v in row.items() if k not in ("seconds", "parameters")}],
    }
    write_card(out / f"{family}.md", card)
    print(row, flush=True)
    return row


def run_once(family: str, steps: int, out: Path) -> dict[str, Any]:
    """`run`, or what it found before: a job that was stopped goes on where it was."""
    file = out / f"{family}.json"
    if file.exists():
        known = json.loads(file.read_text())
        if known["steps"] == steps:
            return known
    row = {"steps": steps, **run(family, steps, out), "made": provenance()}
    write_text(file, json.dumps(row, indent=1) + "\n")
    return row


def collect(out: Path, steps: int) -> Table:
    """The table of the rows that lie in a folder, written there as families.json and .md."""
    rows = []
    for name in ("references", *FAMILIES):
        if (file := out / f"{name}.json").exists():
            known = json.loads(file.read_text())
            rows += [r for r in known.get("rows", [known]) if r.get("steps", steps) == steps]
    if not rows:
        raise SystemExit(f"digits.py: no rows of {steps} steps in {out}; train some first")
    found = table([{k: v for k, v in row.items() if k != "made"} for row in rows])
    made_by = rows[-1].get("made") or provenance()
    made_by["command"] = f"python examples/digits.py --all --steps {steps}"
    results = write_results(out / "families.json", [found], made_by=made_by)
    write_text(out / "families.md", report(results, "Families of models, compared"))
    return found


def references() -> list[dict[str, Any]]:
    """What takes no training worth the name: a Gaussian, a mixture of Gaussians, the data."""
    from sklearn.mixture import GaussianMixture

    values, _, held_values, _ = data()
    x = torch.cat([continuous(values, keyed_generator(5, k)) for k in range(4)]).flatten(1)
    held = continuous(held_values, keyed_generator(2)).flatten(1)
    features, rows = classifier(), []
    for count, name in ((1, "one Gaussian"), (20, "20 Gaussians")):
        since = time.monotonic()
        law = GaussianMixture(count, random_state=0, reg_covar=1e-3).fit(x.numpy())
        seconds = time.monotonic() - since
        value = torch.as_tensor(law.score_samples(held[:120].numpy()))
        bits = -(value + DIMS * math.log(BIN)) / (DIMS * math.log(2))
        drawn = torch.as_tensor(law.sample(1000)[0], dtype=torch.float32)
        found = frechet_distance(features(drawn), features(held), groups=10)
        row = {"family": name, "kind": "exact", "bits": bits.mean().item(), "seconds": seconds}
        row["bits_error"] = bits.std().item() / math.sqrt(len(bits))
        rows.append({**row, "frechet": found.value, "frechet_error": found.stderr})
    found = frechet_distance(features(x[:1437]), features(held), groups=10)
    rows.append(
        {"family": "training digits", "frechet": found.value, "frechet_error": found.stderr}
    )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """The comparison."""
    columns = {
        "family": "family",
        "kind": "density",
        "bits": "bits / dim",
        "bits_error": "± (digits)",
        "frechet": "Fréchet",
        "frechet_error": "±",
        "seconds": "train, s",
        "evaluations": "evaluations",
        "drawing": "1000 draws, s",
        "parameters": "parameters",
    }
    formats = {"bits": ".3f", "bits_error": ".3f", "frechet": ".2f", "frechet_error": ".2f"}
    formats |= {"seconds": ".0f", "drawing": ".1f"}
    return Table(rows, columns, formats, {"frechet": "min"}, "Families on 8 × 8 digits")


def main(family: str | None = None) -> None:
    """The command line; `family` is what a thin script is of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    if family is None:
        parser.add_argument("families", nargs="*", choices=[*FAMILIES, []])
        parser.add_argument("--all", action="store_true", help="all families, and the table")
        parser.add_argument("--table", action="store_true", help="the table of what is in --out")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/digits"))
    options = parser.parse_args()
    chosen = [family] if family else (list(FAMILIES) if options.all else options.families)
    whole = family is None and (options.all or options.table)
    if not chosen and not whole:
        parser.error(f"which? {', '.join(FAMILIES)}, or --all")
    torch.set_num_threads(max(1, min(2, torch.get_num_threads())))
    if whole and not (file := options.out / "references.json").exists():
        write_text(file, json.dumps({"rows": references()}, indent=1) + "\n")
    rows = []
    for name in chosen:
        rows.append(run_once(name, options.steps, options.out))
        if whole:  # a page that grows, should the job be stopped
            collect(options.out, options.steps)
    (collect(options.out, options.steps) if whole else table(rows)).print()


if __name__ == "__main__":
    main()
