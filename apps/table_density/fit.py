"""Fit: split the rows, decide on the columns, train, and judge on rows never seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from apps.table_density.columns import plan
from apps.table_density.data import choose, column, numbers, read_table
from apps.table_density.model import TableDensity, fingerprint_of, points
from apps.table_density.preprocessing import Cells, Preprocessor
from core.cards import write_card
from core.data import batch_indices
from core.errors import AleatorError
from core.flows import Flow
from core.model import Context, GenerativeModel
from core.random import rand
from core.registry import build
from core.report import command_line, hardware
from core.training import FitConfig, fit
from core.transforms import compile_splines

Say = Callable[[object], None]

FEW_ROWS = 5000
"""Below, a small flow that starts as the Gaussian of the rows does better than a large one."""

LEAST_ROWS = 50
SHRINK, THIN = 0.05, 1e-6
"""Added to the covariance that is whitened; a mixture has use for every direction, thin or not."""


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        source: the table.
        output: folder for the model.
        columns: to model; all others if empty.
        context: columns to condition on.
        drop: columns to leave out.
        jitter: name -> width of the noise added to a column.
        keep: columns to take as continuous, whatever they look like.
        family: "nsf", "maf", "real_nvp" or another flow of vectors.
        options: of the family.
        training: options of `core.training.FitConfig` that differ from those below.
        compiled: fuse the splines (tens of seconds, then several times faster).
        seed: of split, weights, batches and noise.
        resume: continue a run that was stopped.
        overwrite: replace a model that is there.
        device: where to train.
    """

    source: Path
    output: Path
    columns: Sequence[str] = ()
    context: Sequence[str] = ()
    drop: Sequence[str] = ()
    jitter: dict[str, float] = field(default_factory=dict)
    keep: Sequence[str] = ()
    family: str = "nsf"
    options: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    compiled: bool = False
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    device: str = "auto"


DEFAULTS: dict[str, Any] = {
    "steps": 3000,
    "batch_size": 512,
    "learning_rate": 2e-3,
    "warmup": 50,
    "weight_decay": 1e-4,
    "clip": 5.0,
    "ema": 0.995,
    "validate_every": 100,
    "patience": 8,
}


def run(request: Request, say: Say = print) -> TableDensity:
    """Fit a density to a table and save it.

    Raises:
        AleatorError: a table or options that cannot be used, or a model is there already.
    """
    if (request.output / "model.json").exists() and not request.overwrite:
        raise AleatorError(f"{request.output} holds a model; choose another folder or --overwrite")
    config = _training(request)
    frame = read_table(request.source)
    names = choose(frame, request.columns, request.context, request.drop)
    x = numbers(frame, names)
    for name in request.context:
        column(frame, name)
    train, valid, test = split(frame, request.seed)
    say(f"{request.source}: {len(frame)} rows, {len(names)} columns modelled")
    if twice := int(frame.duplicated().sum()):
        say(
            f"note: {twice} rows are there more than once; copies may be in training and test, "
            "which flatters the scores"
        )
    decided = plan(names, x[train.index], dict(request.jitter), set(request.keep))
    for remark in decided.remarks:
        say(f"column {remark}")
    preprocessor = Preprocessor.fit(train, decided.columns, request.context)
    options = _options(request, len(train), len(names), preprocessor.context_size)
    torch.manual_seed(request.seed)
    flow = build(options)
    if not isinstance(flow, Flow) or len(flow.event_shape) != 1:
        raise AleatorError(f"{request.family} is not a flow of vectors; take nsf, maf or real_nvp")
    started = time.monotonic()
    cells, context = preprocessor.cells(train), preprocessor.context(train)
    start(flow, points(cells, 1, request.seed)[0], context, request.seed)
    compile_splines(flow, request.compiled)
    fitted = fit(
        flow,
        _batches(cells, context, config),
        config,
        folder=request.output / "training",
        score=_score(preprocessor, valid),
        resume=request.resume,
        device=request.device,
        job={"table": fingerprint_of(x), "flow": options},
    )
    assert isinstance(fitted.model, Flow)
    model = TableDensity(fitted.model.eval(), preprocessor, options, torch.zeros(1), {})
    levels = model.log_prob(valid).value.sort().values
    scores = _judge(model, cells, context, test)
    card = _card(request, model, scores, frame, time.monotonic() - started)
    compile_splines(model.flow, False)
    model = TableDensity(model.flow, preprocessor, options, levels, card)
    model.save(request.output, fingerprint_of(x))
    write_card(request.output / "card.md", card)
    say(f"model written to {request.output}")
    return model


def start(flow: Flow, x: Tensor, context: Context, seed: int) -> None:
    """Fit to rows (N, D) what need not be learned: the linear layer, then the mixture."""
    if getattr(flow, "linear", False):
        flow.whiten(x, SHRINK if flow.noise is None else THIN)
    if flow.noise is not None:
        flow.fit_noise(x, context, seed=seed)


def split(frame: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """80 / 10 / 10 at random.

    Raises:
        AleatorError: too few rows.
    """
    if len(frame) < LEAST_ROWS:
        raise AleatorError(f"{len(frame)} rows are too few: at least {LEAST_ROWS} are needed")
    frame = frame.reset_index(drop=True)
    order = np.random.default_rng(seed).permutation(len(frame))
    first, second = int(0.8 * len(frame)), int(0.9 * len(frame))
    parts = (order[:first], order[first:second], order[second:])
    train, valid, test = (frame.loc[part] for part in parts)
    return train, valid, test


def _training(request: Request) -> FitConfig:
    known = FitConfig.__dataclass_fields__
    for name in request.training:
        if name not in known:
            raise AleatorError(f"fit has no option {name!r}; it has {', '.join(known)}")
    return FitConfig(**{**DEFAULTS, "seed": request.seed, **request.training})


def _options(request: Request, rows: int, dims: int, context_size: int) -> dict[str, Any]:
    """Of the flow: small and Gaussian at birth for few rows, unless the user says otherwise."""
    options: dict[str, Any] = {"family": request.family, "event_shape": [dims]}
    if context_size:
        options["vector_dim"] = context_size
    if request.family in ("nsf", "maf", "real_nvp") and rows < FEW_ROWS:
        options |= {"linear": True, "layers": 2, "hidden": [32]}
    return options | request.options


def _batches(
    cells: Cells, context: Tensor | None, config: FitConfig
) -> Callable[[int, torch.Generator], tuple[Tensor, Context]]:
    """Rows of a step, at fresh points of their cells."""

    def batches(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
        rows = batch_indices(config.seed, step, config.batch_size, len(cells.low))
        part = Cells(cells.low[rows], cells.width[rows], cells.log_unit[rows])
        z = part.low if cells.exact else part.at(rand(part.low.shape, generator))
        return z, None if context is None else context[rows]

    return batches


def _score(preprocessor: Preprocessor, valid: pd.DataFrame) -> Callable[[GenerativeModel], float]:
    """Mean negative log-density of validation rows, at fixed points of their cells."""
    cells, context = preprocessor.cells(valid), preprocessor.context(valid)
    z = points(cells, 1, 1)[0]

    @torch.no_grad()
    def score(model: GenerativeModel) -> float:
        device = next(model.parameters()).device
        moved = None if context is None else context.to(device)
        return -model.log_prob(z.to(device), moved).value.mean().item()

    return score


def _judge(
    model: TableDensity, cells: Cells, context: Tensor | None, test: pd.DataFrame
) -> list[dict[str, Any]]:
    """Mean ln p of test rows: the flow, and a Gaussian of the training rows."""
    found = model.log_prob(test)
    rows = [_row(f"flow ({found.kind.replace('_', ' ')})", found.value)]
    if context is None:
        z = points(cells, 1, 0)[0].double()
        eye = 1e-6 * torch.eye(z.shape[1], dtype=torch.float64)
        law = torch.distributions.MultivariateNormal(z.mean(0), torch.cov(z.T) + eye)
        there = model.preprocessor.cells(test)
        value = torch.stack([law.log_prob(p.double()) for p in points(there, 16, 0)]).mean(0)
        rows.append(_row("Gaussian", value + there.log_unit))
    return rows


def _row(name: str, value: Tensor) -> dict[str, Any]:
    error = value.std().item() / len(value) ** 0.5
    return {"density": name, "test ln p (nats a row)": value.mean().item(), "± s.e.": error}


def _card(
    request: Request,
    model: TableDensity,
    scores: list[dict[str, Any]],
    frame: pd.DataFrame,
    seconds: float,
) -> dict[str, Any]:
    columns = model.preprocessor.columns
    return {
        "title": f"Density of {request.source.name}",
        "data": f"{request.source.name}: {len(frame)} rows, {len(columns)} columns",
        "split": "80 / 10 / 10 at random",
        "seed": request.seed,
        "hardware": hardware(),
        "minutes": seconds / 60,
        "parameters": sum(p.numel() for p in model.flow.parameters()),
        "command": command_line(),
        "columns": {c.name: c.kind for c in columns},
        "context": [g.name for g in model.preprocessor.given] or None,
        "scores": scores,
        "limits": "Rows are taken as independent; a discrete column as its distinct values in "
        "training. Log-densities are in the units of the table.",
    }
