"""Names of tensors in a checkpoint: those of a part begin with its name and a dot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part, under names that say so."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors of one part, under its own names for them."""
    start = prefix + "."
    return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}
