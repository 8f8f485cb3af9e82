"""Latent-variable and score families on MNIST's 10 000 test images: 9000 train, 1000 are held out.

1. Bounds: a VAE of ours and one of pythae, the same networks, epochs, batches and learning rate on
   statically binarised images; ELBO and IWAE-50 bound of held-out images by one code.
2. Samples: diffusion, flow matching and consistency (distilled from that diffusion) with a small
   U-Net on grey images; Fréchet distance in 32 features of a classifier that is trained here, with
   that of training images as the floor. Never to be read beside published FIDs.

    python benchmarks/mnist.py DATA [--models MODELS] [--pythae PYTHON] [--out FOLDER]

DATA holds t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz. Trainings lie in MODELS and go
on where they were stopped. PYTHON is an interpreter with pythae; without one pythae is left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def tables(options: argparse.Namespace) -> list[Any]:
    """Both tables, and the grids."""
    import mnist_bounds
    import mnist_samples
    import torch
    from mnist_data import load, train_classifier

    from core.random import keyed_generator
    from core.report import Table

    train, held = load(options.data)
    judge = train_classifier(train)
    right = (judge(held.grey).argmax(1) == held.label).float().mean().item()
    print(f"classifier: {100 * right:.1f} % of held-out images", flush=True)
    samples = mnist_samples.references(train, held, judge)
    samples += mnist_samples.rows(train, held, judge, options.models, options.figures)
    bounds, vae = mnist_bounds.rows(
        train, held, options.models, options.epochs, options.seeds, options.pythae
    )
    x = 2 * vae.sample((mnist_samples.DRAWN,), generator=keyed_generator(4)) - 1
    mnist_samples.grid(x, options.figures / "mnist_vae.png")
    size = sum(p.numel() for p in vae.parameters())
    row = {"family": "vae, binarised", "evaluations": 1, "seconds": bounds[0]["seconds"]}
    binary = 2 * held.binary - 1
    samples.append({**row, "parameters": size, **mnist_samples.judged(x, binary, judge)})
    torch.set_num_threads(1)
    nats = {"library": "VAE of", "elbo": "ELBO", "elbo_error": "± s.e."}
    nats |= {"elbo_seeds": "± seeds"} if options.seeds > 1 else {}
    nats |= {"iwae": "IWAE-50", "iwae_error": "± s.e. "}
    nats |= {"iwae_seeds": "± seeds "} if options.seeds > 1 else {}
    nats |= {"own": "its own ln p, 50 draws", "seconds": "train, s", "seeds": "trainings"}
    columns = {"family": "family", "evaluations": "evaluations", "frechet": "Fréchet"}
    columns |= {"error": "± s.e.", "sure": "classifier sure, %", "seconds": "train, s"}
    columns |= {"parameters": "parameters"}
    return [
        Table(
            bounds, nats, {k: ".2f" for k in nats if k not in ("library", "seeds", "seconds")}
            | {"seconds": ".0f"},
            title="Bounds on ln p(x) of 1000 held-out binarised images, nats",
        ),
        Table(
            samples, columns,
            {"frechet": ".2f", "error": ".2f", "sure": ".1f", "seconds": ".0f",
             "parameters": ",d"},
            title=f"{mnist_samples.DRAWN} samples against 1000 held-out images",
        ),
    ]  # fmt: skip


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    lines = __doc__.splitlines()
    parser = argparse.ArgumentParser(description=lines[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of MNIST's two files")
    parser.add_argument("--models", type=Path, default=Path("runs/mnist"), help="trainings")
    parser.add_argument("--pythae", type=Path, metavar="PYTHON", help="interpreter with pythae")
    parser.add_argument("--epochs", type=int, default=30, help="of the VAEs")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each VAE")
    parser.add_argument("--figures", type=Path, default=Path("runs/mnist/figures"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.seeds < 1:
        parser.error("--epochs and --seeds must be positive")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    import torch

    from core.errors import AleatorError
    from core.report import hardware, report, versions, write_results, write_text

    torch.set_num_threads(1)
    try:
        found = tables(options)
    except AleatorError as error:
        print(f"mnist.py: {error}", file=sys.stderr)
        return 2
    notes = (
        "MNIST is its test set here, 9000 images of which train: no figure of a paper, which "
        "trains on 60 000, is a comparison.",
        "Bounds are of the same images and code for both libraries, at the same batch, learning "
        "rate and number of epochs; ours is trained by `fit` (warm-up, cosine, averaged weights), "
        "pythae's by its trainer (Adam, cosine by epoch). ± s.e. is over images; one training "
        "each does not say how much another seed would change.",
        "Seconds of training are of the wall clock, with other work running beside.",
        "Fréchet distances are in 32 features of a classifier trained here on these 9000 images, "
        "bias taken away: they compare rows of this table with one another only, grey with grey "
        "and binarised with binarised. The training images are the floor.",
    )
    from datetime import UTC, datetime

    command = "python benchmarks/mnist.py DATA --models MODELS"
    command += " --pythae PYTHON" if options.pythae else ""
    made_by = {
        "command": f"{command} --epochs {options.epochs} --seeds {options.seeds}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": f"{hardware()}, 1 thread used, other work on the machine",
    }
    results = write_results(options.out / "mnist.json", found, made_by=made_by, notes=notes)
    page = report(results, "MNIST's test set: bounds and samples")
    write_text(options.out / "mnist.md", page + "".join(f"\nNote: {line}\n" for line in notes))
    for table in found:
        table.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
