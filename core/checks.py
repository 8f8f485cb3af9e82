"""What every family asks of examples and their context, with errors in one clear line."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from core.errors import AleatorError
from core.model import Context, context_batch


def check_examples(x: Tensor, event_shape: Sequence[int], context: Context = None) -> None:
    """Raise AleatorError unless x is finite, of shape (B, *E), with one context each."""
    expected = tuple(event_shape)
    if tuple(x.shape[1:]) != expected or x.dim() != 1 + len(expected):
        raise AleatorError(f"examples of shape {tuple(x.shape)}; (B, *{list(expected)}) is needed")
    if not x.isfinite().all():
        row = int((~x.isfinite().flatten(1).all(1)).nonzero()[0])
        raise AleatorError(f"examples: NaN or infinite values, first in example {row}")
    batch = context_batch(context)
    if batch is not None and batch != len(x):
        raise AleatorError(f"a context of batch {batch} for {len(x)} examples")
