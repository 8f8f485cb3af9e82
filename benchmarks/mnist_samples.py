"""Diffusion, flow matching and consistency on grey MNIST: one small U-Net, few minutes each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from mnist_data import Classifier, Digits
from torch import Tensor

from core import FitConfig, build, fit
from core.evaluation import frechet_distance
from core.path_model import PathModel
from core.random import keyed_generator
from core.report import write_text

DRAWN = 2000
UNET = {"name": "unet", "channels": 32, "multipliers": [1, 2], "patch": 2, "attention": [1]}
PATH = {"name": "edm", "sigma_max": 20.0}
SHARED = {"event_shape": [1, 28, 28], "net": UNET, "sigma_data": 0.6}
FAMILIES: dict[str, dict[str, Any]] = {
    "diffusion": {"path": PATH},
    "flow_matching": {},
    "consistency": {"path": PATH, "huber": 0.01, "growth": 200, "last_steps": 40},
}
STEPS = {"diffusion": 1600, "flow_matching": 1600, "consistency": 500}
SAMPLERS: dict[str, list[tuple[Any, int]]] = {
    "diffusion": [({"name": "2m", "steps": 30}, 30), ({"name": "2m", "steps": 8}, 8)],
    "flow_matching": [({"name": "2m", "steps": 30}, 30), ({"name": "2m", "steps": 8}, 8)],
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
        ema=0.995,
        precision="bf16-mixed",
        save_every=100,
    )
    job = {"family": family, "config": {**SHARED, **FAMILIES[family]}}
    done = fit(
        model, batches, options, folder=folder / family, resume=True, device="cpu", job=job
    )
    assert isinstance(done.model, PathModel)
    return done.model.eval(), done.seconds
