r"""The training loop, on Lightning Fabric: short, seeded by the step, and exactly resumable.

Everything random in step k comes from a generator keyed by (seed, k): a run that was killed and
resumed makes the same steps as one that was not. AdamW with warm-up and cosine decay, gradient
clipping, averaged weights (EMA), early stopping on a validation score, `metrics.jsonl`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.model import Context, GenerativeModel, map_context
from core.progress import progress_bar
from core.random import keyed_generator
from core.training.config import FitConfig
from core.training.ema import EMA
from core.training.state import Progress, Tensors, load_state, save_state, snapshot

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batches = Callable[[int, torch.Generator], tuple[Tensor, Context]]
"""batches(step, generator) -> examples (B, *E) and their context; a function of these alone."""

Score = Callable[[GenerativeModel], float]
"""score(averaged model) -> a validation score; less is better."""

STATE, METRICS = "state.safetensors", "metrics.jsonl"
_RUNNING = {"log_every", "save_every", "devices", "stop_at"}
"""Options that may change on resume: they do not change the weights."""


@dataclass(frozen=True)
class Fitted:
    """What came of a run.

    Attributes:
        model: with the best averaged weights (the last, without a validation score).
        steps: done, over all sittings.
        best_step: whose weights these are.
        best_score: their validation score; infinite without one.
        seconds: of training.
        rank: of this process among those that shared the batches; only the first is to write.
    """

    model: GenerativeModel
    steps: int
    best_step: int
    best_score: float
    seconds: float
    rank: int = 0


def fit(
    model: GenerativeModel,
    batches: Batches,
    config: FitConfig,
    *,
    folder: Path | str,
    score: Score | None = None,
    resume: bool = False,
    device: str = "auto",
    job: dict[str, Any] | None = None,
    progress: str | None = "steps",
) -> Fitted:
    """Train a model.

    Args:
        model: freshly built; its weights are overwritten when resuming.
        batches: examples and context of a step.
        config: options.
        folder: for `metrics.jsonl` and the state of the run; made if not there.
        score: validation score of the averaged model, every `config.validate_every` steps.
        resume: go on from the state in the folder, if there is one.
        device: "auto", "cpu", "cuda" or "mps".
        job: what else must be the same to resume, e.g. fingerprints of the data.
        progress: unit shown on stderr; silent if None.

    Returns:
        the model with its best averaged weights, on the CPU.

    Raises:
        CheckpointError: the state to resume from is damaged or of other settings.
        FloatingPointError: the loss is not finite.
    """
    from lightning_fabric import Fabric

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = resolve_device(device)
    fabric = Fabric(
        accelerator=accelerator,
        devices=config.devices,
        precision=_precision(config, accelerator),
        strategy="ddp" if config.devices > 1 else "auto",
    )
    if config.devices > 1:
        fabric.launch()
    with torch.random.fork_rng():
        run = _Run(model, batches, config, folder, score, fabric, job or {})
        run.begin(resume)
        with progress_bar(run.last, progress, done=run.progress.step) as advance:
            for _ in run.steps():
                advance(1)
    return run.finished()


class _Objective(nn.Module):
    """The loss as a forward pass, of plain tensors: what Fabric wraps, and DDP hooks into."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.model.loss(batch.x, batch.context, generator=batch.generator)
        return loss.value, dict(loss.terms)


class _Batch:
    """What a step needs, as one object: Fabric casts the floating-point tensors that it is given.

    In bf16 a time near the end of a path becomes 1, where there is no signal left to divide by,
    and a count above 256 another count. Autocast does what is cheaper in bf16 without that.
    """

    def __init__(self, x: Tensor, context: Context, generator: torch.Generator) -> None:
        self.x, self.context, self.generator = x, context, generator


class _Run:
    """One run: the objects that a step changes."""

    def __init__(
        self,
        model: GenerativeModel,
        batches: Batches,
        config: FitConfig,
        folder: Path,
        score: Score | None,
        fabric: Fabric,
        job: dict[str, Any],
    ) -> None:
        self.batches, self.config, self.folder, self.fabric = batches, config, folder, fabric
        self.score = score if config.validate_every else None
        self.bare, self.ema = model, EMA(model, config.ema)
        self.ema.model.to(fabric.device)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, config.weight_decay), config.learning_rate, betas=(0.9, 0.99)
        )
        self.model, self.optimizer = fabric.setup(_Objective(model), optimizer)
        self.progress = Progress()
        self.best: Tensors = {}
        self.last = min(config.steps, config.stop_at or config.steps)
        self.job = {k: v for k, v in asdict(config).items() if k not in _RUNNING} | job

    def steps(self) -> Iterator[None]:
        """Train until the last step, or until the score has stopped to improve."""
        config, since = self.config, time.monotonic()
        while self.progress.step < self.last and not self._exhausted():
            self._step(self.progress.step)
            self.progress.step += 1
            now = time.monotonic()
            self.progress.seconds += now - since
            since = now
            last = self.progress.step == self.last
            if self.score and (last or self.progress.step % config.validate_every == 0):
                self._validate()
            if last or self._exhausted() or self.progress.step % config.save_every == 0:
                self.save()
            yield

    def _exhausted(self) -> bool:
        return bool(self.config.patience) and self.progress.stale >= self.config.patience

    def _step(self, step: int) -> None:
        config, fabric = self.config, self.fabric
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x, context = self.batches(step, keyed_generator(config.seed, step, 0))
        share = slice(fabric.global_rank, None, fabric.world_size)
        x = fabric.to_device(x[share])
        context = map_context(context, lambda c: fabric.to_device(c[share]))
        noise = keyed_generator(config.seed, step, 1, fabric.global_rank)
        torch.manual_seed(noise.initial_seed())  # dropout draws from the global stream
        self.model.train()
        losses, terms = self.model(_Batch(x, context, noise))
        value = losses.mean()
        if not value.isfinite():
            raise FloatingPointError(
                f"the loss is {value.item()} at step {step + 1}: lower fit.learning_rate"
            )
        fabric.backward(value)
        norm = None
        if config.clip:
            norm = fabric.clip_gradients(self.model, self.optimizer, max_norm=config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.bare, step)
        if (step + 1) % config.log_every == 0 or step == 0:
            means = {name: term.mean().item() for name, term in terms.items()}
            gradient = {} if norm is None else {"gradient_norm": float(norm)}
            self._log({"loss": value.item(), **means, "learning_rate": rate, **gradient}, step + 1)

    def _validate(self) -> None:
        assert self.score is not None
        torch.manual_seed(self.config.seed)
        score = float(self.score(self.ema.model))
        self._log({"score": score})
        if score < self.progress.best_score:
            self.progress.best_score, self.progress.best_step = score, self.progress.step
            self.progress.stale, self.best = 0, snapshot(self.ema.model)
        else:
            self.progress.stale += 1

    def _log(self, values: dict[str, float], step: int | None = None) -> None:
        if self.fabric.global_rank == 0:
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps({"step": step or self.progress.step, **values}) + "\n")

    def save(self) -> None:
        """Write the state of the run."""
        if self.fabric.global_rank:
            return
        parts = {"model": snapshot(self.bare), "ema": snapshot(self.ema.model), "best": self.best}
        save_state(self.folder / STATE, self.progress, parts, self.optimizer, self.job)

    def begin(self, resume: bool) -> None:
        """Start afresh, or go back to the last state: later lines of the log are dropped."""
        if resume and (self.folder / STATE).exists():
            self.progress, parts = load_state(self.folder / STATE, self.optimizer, self.job)
            self.bare.load_state_dict(parts["model"])
            self.ema.model.load_state_dict(parts["ema"])
            self.best = parts.get("best", {})
        elif self.fabric.global_rank == 0:
            (self.folder / STATE).unlink(missing_ok=True)
        if self.fabric.global_rank == 0:
            _cut_log(self.folder / METRICS, self.progress.step)

    def finished(self) -> Fitted:
        """The result."""
        model = self.ema.model.cpu()
        if self.best:
            model.load_state_dict(self.best)
        done = self.progress
        best_step = done.best_step if self.best else done.step
        rank = self.fabric.global_rank
        return Fitted(model, done.step, best_step, done.best_score, done.seconds, rank)


def _cut_log(path: Path, step: int) -> None:
    """Keep the whole lines up to `step`: a killed run may have logged more than it saved."""
    if path.exists():
        lines = [text for text in path.read_text().splitlines(keepends=True) if text[-1] == "\n"]
        path.write_text("".join(text for text in lines if json.loads(text)["step"] <= step))


def learning_rate(config: FitConfig, step: int) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Kernels and matrices decay; biases, norms and embeddings of one dimension do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]


def resolve_device(device: str = "auto") -> str:
    """The accelerator that "auto" means here: "cuda", "mps" or "cpu".

    Raises:
        AleatorError: unknown, or not on this machine.
    """
    from core.errors import AleatorError

    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    there["mps"] = torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if device not in there:
        raise AleatorError(f"device {device!r}; known: auto, {', '.join(there)}")
    if not there[device]:
        raise AleatorError(f"device {device!r} is not available here; use auto or cpu")
    return device


def _precision(config: FitConfig, accelerator: str) -> Any:
    if config.precision != "auto":
        return config.precision
    pays = accelerator == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if pays else "32-true"
