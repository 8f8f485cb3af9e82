"""Splits do not leak, standardisation inverts, and batches are a function of (seed, step)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from core.data import (
    Standardizer,
    batch_indices,
    chronological_split,
    chunked_batch_indices,
)
from core.errors import AleatorError


def test_the_benchmark_split_of_the_era5_sample():
    train, test = chronological_split(744, 0.2, gap=24)
    assert (train.stop, test.start, test.stop) == (571, 595, 744)


@pytest.mark.property
@given(st.integers(10, 3000), st.floats(0.05, 0.6), st.integers(0, 3))
def test_parts_are_apart_by_the_gap(steps, fraction, gap):
    train, test = chronological_split(steps, fraction, gap)
    assert test.start - train.stop == gap
    assert test.stop == steps
    assert 0 <= (test.stop - test.start) - fraction * steps < 1


@pytest.mark.parametrize(("steps", "fraction", "gap"), [(10, 0.5, 5), (10, 0.0, 1), (10, 0.2, -1)])
def test_impossible_splits_are_refused(steps, fraction, gap):
    with pytest.raises(AleatorError, match="gap"):
        chronological_split(steps, fraction, gap)


def test_standardizer_agrees_with_sklearn_and_inverts():
    x = torch.randn(500, 7, dtype=torch.float64) * 5 + 280
    x[:, 3] = 271.15  # a constant stays finite
    ours, theirs = Standardizer.fit(x), StandardScaler().fit(x.numpy())
    torch.testing.assert_close(ours(x), torch.from_numpy(theirs.transform(x.numpy())))
    torch.testing.assert_close(ours.inverse(ours(x)), x)


@pytest.mark.property
@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 40))
def test_every_epoch_sees_every_example_at_most_once(seed, batch, size):
    per_epoch = size // min(batch, size)
    epochs = [
        torch.cat([batch_indices(seed, e * per_epoch + i, batch, size) for i in range(per_epoch)])
        for e in range(2)
    ]
    for seen in epochs:
        assert len(seen.unique()) == len(seen) == per_epoch * min(batch, size)
        assert 0 <= seen.min() <= seen.max() < size


def test_batches_depend_on_seed_and_epoch():
    first = batch_indices(0, 0, 64, 64)
    assert not torch.equal(first, batch_indices(1, 0, 64, 64))
    assert not torch.equal(first, batch_indices(0, 1, 64, 64))
    assert torch.equal(first, batch_indices(0, 0, 64, 64))


def test_batches_of_chunks_see_every_example_once_and_few_chunks_at_once():
    size, chunk, buffer, batch = 1000, 10, 5, 25
    epochs = []
    for epoch in range(2):
        steps = range(epoch * 40, (epoch + 1) * 40)
        found = [chunked_batch_indices(7, s, batch, size, chunk, buffer) for s in steps]
        assert sorted(torch.cat(found).tolist()) == list(range(size))
        for pair in zip(found[::2], found[1::2], strict=True):  # a buffer is two batches
            assert len(set((torch.cat(pair) // chunk).tolist())) == buffer
            assert len(set((pair[0] // chunk).tolist())) > 2  # and its chunks are mixed
        epochs.append(torch.cat(found))
    assert not torch.equal(*epochs)
    again = chunked_batch_indices(7, 3, batch, size, chunk, buffer)
    assert torch.equal(again, epochs[0][75:100])


def test_what_fits_into_a_buffer_is_shuffled_as_a_whole():
    for step in range(9):
        assert torch.equal(
            chunked_batch_indices(1, step, 8, 50, 10, 5), batch_indices(1, step, 8, 50)
        )
