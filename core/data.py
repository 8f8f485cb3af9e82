"""Data that fits in memory: splits that do not leak, standardisation, and seeded batches.

Batches are index tensors, a pure function of (seed, step): training can stop at any step and go
on with exactly the batches that would have come.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from core.errors import AleatorError
from core.random import keyed_generator


@dataclass(frozen=True)
class Standardizer:
    """x ↦ (x - mean) / std, fitted on training data only.

    Attributes:
        mean: broadcasts against the data.
        std: likewise; constants have std 1.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, data: Tensor, dims: tuple[int, ...] = (0,)) -> Standardizer:
        """Mean and standard deviation of (T, ...) data over `dims`, which are kept as size 1."""
        mean = data.double().mean(dims, keepdim=True)
        std = data.double().std(dims, correction=0, keepdim=True)
        std = torch.where(std > 1e-12 * (1 + mean.abs()), std, torch.ones_like(std))
        return cls(mean.to(data.dtype), std.to(data.dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """Standardise."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Undo it."""
        return z * self.std.to(z) + self.mean.to(z)


def chronological_split(steps: int, test_fraction: float, gap: int = 0) -> tuple[slice, slice]:
    """Training part first, test part last, `gap` steps between them that belong to neither.

    Args:
        steps: of the whole series.
        test_fraction: of the steps.
        gap: as long as neighbours resemble each other.

    Raises:
        AleatorError: nothing is left to train or to test on.
    """
    if not 0 < test_fraction < 1 or gap < 0:
        raise AleatorError(
            f"test_fraction={test_fraction}, gap={gap}: expected a fraction in (0, 1), a gap >= 0"
        )
    test = math.ceil(test_fraction * steps)
    train = steps - test - gap
    if train < 1:
        raise AleatorError(
            f"{steps} steps are too few for a test part of {test} and a gap of {gap}: "
            "give more data, a smaller test_fraction or a smaller gap"
        )
    return slice(0, train), slice(steps - test, steps)


def batch_indices(seed: int, step: int, batch: int, size: int) -> Tensor:
    """The examples of a training step: every epoch a new permutation, whole batches only.

    Args:
        seed: of the training run.
        step: counted from 0.
        batch: examples a step; the whole set, if that has fewer.
        size: of the training set.

    Returns:
        (min(batch, size),) indices.
    """
    batch = min(batch, size)
    epoch, position = divmod(step, size // batch)
    return _permutation(seed, epoch, size)[position * batch : (position + 1) * batch]


def chunked_batch_indices(
    seed: int, step: int, batch: int, size: int, chunk: int, buffer: int
) -> Tensor:
    """As `batch_indices`, for examples that are read from disk in runs.

    Every epoch chunks of neighbouring examples come in a new order, `buffer` of them at a time,
    and the examples of these are shuffled together: a batch looks at few chunks, and what is in
    one chunk is in different batches. Where all fits into one buffer, it is `batch_indices`.

    Args:
        seed: of the training run.
        step: counted from 0.
        batch: examples a step.
        size: of the training set.
        chunk: neighbouring examples that are read together.
        buffer: chunks that are shuffled together.

    Returns:
        (min(batch, size),) indices.
    """
    if size <= chunk * buffer:
        return batch_indices(seed, step, batch, size)
    batch = min(batch, size)
    epoch, position = divmod(step, size // batch)
    order = _chunked_permutation(seed, epoch, size, chunk, buffer)
    return order[position * batch : (position + 1) * batch]


@lru_cache(maxsize=4)
def _chunked_permutation(seed: int, epoch: int, size: int, chunk: int, buffer: int) -> Tensor:
    generator = keyed_generator(seed, epoch)
    chunks = torch.arange(size).split(chunk)
    order = torch.randperm(len(chunks), generator=generator).tolist()
    parts = []
    for first in range(0, len(order), buffer):
        together = torch.cat([chunks[i] for i in order[first : first + buffer]])
        parts.append(together[torch.randperm(len(together), generator=generator)])
    return torch.cat(parts)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> Tensor:
    return torch.randperm(size, generator=keyed_generator(seed, epoch))
