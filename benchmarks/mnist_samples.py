"""Diffusion, flow matching and consistency on grey MNIST: one small U-Net, few minutes each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mnist_data import Classifier, Digits
from torch import Tensor

from core import FitConfig, build, fit
from core.evaluation import frechet_distance
from core.model import GenerativeModel
from core.path_model import PathModel
from core.random import keyed_generator
from core.report import replacing

DRAWN = 600
UNET = {"name": "unet", "channels": 24, "multipliers": [1, 2], "patch": 2}
PATH = {"name": "edm", "sigma_max": 20.0}
SHARED = {"event_shape": [1, 28, 28], "net": UNET, "sigma_data": 0.6}
FAMILIES: dict[str, dict[str, Any]] = {
    "diffusion": {"path": PATH},
    "flow_matching": {},
    "consistency": {"path": PATH, "huber": 0.01, "growth": 100, "last_steps": 40},
}
STEPS = {"diffusion": 4500, "flow_matching": 4500, "consistency": 600}
SAMPLERS: dict[str, list[tuple[Any, int]]] = {
    "diffusion": [({"name": "2m", "steps": 20}, 20)],
    "flow_matching": [({"name": "2m", "steps": 20}, 20)],
    "consistency": [(2, 2), (1, 1)],
}


def trained(
    family: str, train: Digits, folder: Path, steps: int | None = None
) -> tuple[PathModel, float]:
    """A model and the seconds that it took; goes on where a run in `folder` was stopped.

    The consistency model is distilled from the diffusion model, which is trained first, and
    begins with its weights.
    """
    torch.manual_seed(0)
    teacher = trained("diffusion", train, folder)[0] if family == "consistency" else None
    given = {} if teacher is None else {"teacher": teacher.eval().requires_grad_(False)}
    model = build({"family": family, **SHARED, **FAMILIES[family], **given})
    assert isinstance(model, PathModel)
    if teacher is not None:
        model.denoiser.net.load_state_dict(teacher.denoiser.net.state_dict())

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, None]:
        return train.grey[torch.randint(len(train), (64,), generator=generator)], None

    options = FitConfig(
        steps=steps or STEPS[family],
        learning_rate=2e-3 if teacher is None else 4e-4,
        validate_every=0,
        ema=0.99,
        precision="bf16-mixed",
        save_every=50,
    )
    job = {"family": family, "config": {**SHARED, **FAMILIES[family]}}
    done = fit(model, batches, options, folder=folder / family, resume=True, device="cpu", job=job)
    assert isinstance(done.model, PathModel)
    return done.model.eval(), done.seconds


def drawn(model: GenerativeModel, sampler: Any, file: Path) -> tuple[Tensor, float | None]:
    """Samples of the first seed, and the seconds that they took where they were drawn now."""
    if file.exists():
        return torch.from_numpy(np.load(file)), None
    since = time.monotonic()
    x = model.sample((DRAWN,), sampler=sampler, generator=keyed_generator(4)).clamp(-1, 1)
    seconds = time.monotonic() - since
    with replacing(file) as draft, draft.open("wb") as stream:
        np.save(stream, x.numpy())
    return x, seconds


def judged(x: Tensor, held: Tensor, judge: Classifier) -> dict[str, float]:
    """Fréchet distance to held-out images, and the share that the classifier is sure of."""
    found = frechet_distance(judge.features(x), judge.features(held), groups=10)
    sure = judge(x).softmax(1).amax(1) > 0.95
    return {
        "frechet": found.value,
        "error": found.stderr,
        "sure": 100 * sure.float().mean().item(),
    }


def grid(x: Tensor, file: Path) -> None:
    """The first hundred, none left out: black ink on white paper, one pixel a pixel."""
    from PIL import Image

    tiles = x[:100, 0].reshape(10, 10, 28, 28).permute(0, 2, 1, 3).reshape(280, 280)
    ink = (127.5 * (1 - tiles.clamp(-1, 1))).round().to(torch.uint8).numpy()
    with replacing(file) as draft, draft.open("wb") as stream:
        Image.fromarray(ink).save(stream, format="png", optimize=True)


def references(train: Digits, held: Digits, judge: Classifier) -> list[dict[str, Any]]:
    """What no sample can be expected to beat: as many training images, grey and binarised."""
    part = train[slice(None, DRAWN)]
    grey = judged(part.grey, held.grey, judge)
    binary = judged(2 * part.binary - 1, 2 * held.binary - 1, judge)
    blank = {"seconds": None, "evaluations": None, "parameters": None}
    return [
        {"family": "training images", **blank, **grey},
        {"family": "training images, binarised", **blank, **binary},
    ]


def rows(
    train: Digits, held: Digits, judge: Classifier, folder: Path, figures: Path
) -> list[dict[str, Any]]:
    """A row for each family and number of evaluations; a grid for each family."""
    found = []
    for family in FAMILIES:
        model, seconds = trained(family, train, folder)
        for k, (sampler, evaluations) in enumerate(SAMPLERS[family]):
            x, drawing = drawn(model, sampler, folder / f"{family}_{evaluations}.npy")
            if k == 0:
                grid(x, figures / f"mnist_{family}.png")
            found.append({
                "family": family, "evaluations": evaluations, "seconds": seconds,
                "drawing": drawing, "parameters": sum(p.numel() for p in model.parameters()),
                **judged(x, held.grey, judge),
            })  # fmt: skip
            print(found[-1], flush=True)
    return found
