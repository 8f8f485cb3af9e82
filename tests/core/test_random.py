"""Draws belong to a sample, not to a batch."""

import pytest
import torch

from core.random import keyed_generator, rand, randn


def test_keyed_streams_do_not_depend_on_the_batch():
    keys = [(7, m, t) for m in range(3) for t in (-5, 0, 2**40)]
    whole = randn((9, 4), [keyed_generator(*k) for k in keys])
    parts = [randn((1, 4), [keyed_generator(*k)]) for k in keys]
    assert torch.equal(whole, torch.cat(parts))
    assert len(torch.unique(whole)) == whole.numel()


def test_key_order_and_sign_matter():
    draws = {
        tuple(rand((3,), keyed_generator(*k)).tolist())
        for k in [(1, 2), (2, 1), (-1, 2), (1, -2), (1,), (1, 0)]
    }
    assert len(draws) == 6


def test_one_generator_a_sample_is_needed():
    with pytest.raises(ValueError, match="2 generators for 3 samples"):
        randn((3, 1), [keyed_generator(0), keyed_generator(1)])
