"""How a model is trained; every field has a sensible default and is checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.errors import AleatorError

Precision = Literal["auto", "32-true", "bf16-mixed"]


@dataclass(frozen=True)
class FitConfig:
    """Options of `fit`.

    Attributes:
        steps: optimiser steps.
        batch_size: examples a step, over all devices.
        learning_rate: at its peak; AdamW.
        warmup: steps of linear increase before the cosine decay to zero.
        weight_decay: of AdamW, on matrices and kernels; biases and norms are left alone.
        clip: largest norm of the gradient; 0 for no limit.
        ema: decay of the averaged weights, which are what is kept and scored.
        precision: "auto" is bf16 where the device has it in hardware.
        log_every: steps between lines of `metrics.jsonl`.
        validate_every: steps between validation scores; 0 for none.
        patience: stop after so many validations without a better score; 0 for never.
        save_every: steps between checkpoints of the run.
        stop_at: step to stop at, before the schedule's end; 0 for its end.
        devices: how many, where there are several.
        seed: of initialisation, batches and noise.
    """

    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.998
    precision: Precision = "auto"
    log_every: int = 50
    validate_every: int = 250
    patience: int = 0
    save_every: int = 500
    stop_at: int = 0
    devices: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        at_least = {"steps": 1, "batch_size": 1, "log_every": 1, "save_every": 1, "devices": 1}
        at_least |= {"warmup": 0, "validate_every": 0, "patience": 0, "clip": 0, "weight_decay": 0}
        at_least |= {"stop_at": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise AleatorError(f"fit.{name}={getattr(self, name)}: at least {least} is needed")
        if not 0 <= self.ema < 1:
            raise AleatorError(f"fit.ema={self.ema}: it must be in [0, 1)")
        if self.learning_rate <= 0:
            raise AleatorError(f"fit.learning_rate={self.learning_rate}: it must be positive")
        if self.precision not in ("auto", "32-true", "bf16-mixed"):
            raise AleatorError(
                f"fit.precision={self.precision!r}; known: auto, 32-true, bf16-mixed"
            )
