"""The state of a run on disk: weights, averages, optimiser and counters in one safetensors file.

One file, written atomically: a run that is killed at any moment finds either the last state or
the one before it, never half of one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoint import write_bytes
from core.errors import CheckpointError

Tensors = dict[str, Tensor]


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        step: optimiser steps done.
        best_score: least validation score so far.
        best_step: when it was.
        stale: validations since then.
        seconds: of training, over all sittings.
    """

    step: int = 0
    best_score: float = float("inf")
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0


def save_state(
    path: Path,
    progress: Progress,
    parts: Mapping[str, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    job: Mapping[str, Any],
) -> None:
    """Write everything that the next step depends on.

    Args:
        path: the file.
        progress: counters.
        parts: state dicts by name, e.g. model, ema, best.
        optimizer: its moments are stored.
        job: what must be the same when the run is resumed.
    """
    from safetensors.torch import save

    tensors = {
        f"{part}/{name}": value.detach().cpu().contiguous().clone()
        for part, state in parts.items()
        for name, value in state.items()
    }
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value).cpu().contiguous()
    notes = {"progress": json.dumps(vars(progress)), "job": json.dumps(job, sort_keys=True)}
    write_bytes(path, save(tensors, metadata=notes))


def begun_with(path: Path) -> dict[str, Any]:
    """The job of the run whose state is there; empty if there is none that can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["job"])
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
        return {}


def refuse_other(path: Path, begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to resume a run that was begun as another one.

    Raises:
        CheckpointError: naming the first setting that differs.
    """
    for key in {**begun, **wanted}:
        if begun.get(key) != wanted.get(key):
            raise CheckpointError(
                f"{path}: this run was begun with {key}={begun.get(key)!r}, not "
                f"{wanted.get(key)!r}; resume with the same settings, or train in another folder"
            )


def load_state(
    path: Path, optimizer: torch.optim.Optimizer, job: Mapping[str, Any]
) -> tuple[Progress, dict[str, Tensors]]:
    """Read a state and put the moments back into the optimiser.

    Returns:
        counters and state dicts by name.

    Raises:
        CheckpointError: the file is damaged, or of a run with other settings.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        progress, begun = Progress(**json.loads(notes["progress"])), json.loads(notes["job"])
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path}: damaged ({error}); remove it to train from the start"
        ) from None
    refuse_other(path, begun, json.loads(json.dumps(job)))
    parts: dict[str, Tensors] = {}
    moments: dict[int, Tensors] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition("/")
        if part == "optimizer":
            index, _, leaf = rest.partition("/")
            moments.setdefault(int(index), {})[leaf] = value
        else:
            parts.setdefault(part, {})[rest] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return progress, parts


def snapshot(model: nn.Module) -> Tensors:
    """A copy of a model's weights and buffers, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
