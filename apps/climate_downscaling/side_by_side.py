"""Time steps drawn in threads of one process, each with its share of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

MOST_THREADS = 8
"""Time steps drawn side by side on a CPU; each holds the network's activations of a batch."""


def side_by_side(draw: Callable[[int], None], times: Sequence[int], place: str) -> None:
    """Draw time steps, on a CPU in as many threads as torch has.

    Networks this small gain little from threads within an operation, and lose much wherever
    another process wants the same cores.
    """
    threads = torch.get_num_threads() if place == "cpu" else 1
    pool = min(threads, MOST_THREADS, len(times))
    if pool <= 1:
        for t in times:
            draw(t)
        return
    with ThreadPoolExecutor(pool, "draw", torch.set_num_threads, (threads // pool,)) as executor:
        for _ in executor.map(draw, times):
            pass
