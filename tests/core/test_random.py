"""Draws belong to a sample, not to a batch."""

import pytest
import torch

from core.random import Blend, keyed_generator, moving_average, rand, randn


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


def test_neighbours_of_a_moving_average_correlate_as_asked():
    correlation = torch.tensor([0.0, 0.5, 0.9])
    weights = moving_average(correlation)
    torch.testing.assert_close(weights.square().sum(0), torch.ones(3).double())
    assert weights[1:, 0].eq(0).all()
    noise = torch.stack(
        [randn((1, 3, 4000), [blend(7, t, weights[..., None])])[0] for t in range(3)]
    )
    torch.testing.assert_close(noise.std(2), torch.ones(3, 3), atol=0.05, rtol=0)
    for channel, rho in enumerate((0.0, 0.5, 0.9)):
        r = torch.corrcoef(noise[:, channel])
        assert abs(r[0, 1] - rho) < 0.06
        assert abs(r[0, 2] - rho**2) < 0.06


def blend(seed, time, weights):
    return Blend(tuple(keyed_generator(seed, time - j) for j in range(len(weights))), weights)


def test_a_blend_of_one_stream_is_that_stream():
    weights = moving_average(torch.zeros(2))[..., None]
    assert weights.shape == (1, 2, 1)
    torch.testing.assert_close(
        randn((1, 2, 5), [blend(3, 11, weights)]), randn((1, 2, 5), [keyed_generator(3, 11)])
    )
    uniform = rand((1, 4), [blend(3, 11, weights)])
    torch.testing.assert_close(uniform, rand((1, 4), [keyed_generator(3, 11)]))


def test_correlations_out_of_range_are_refused():
    for value in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            moving_average(torch.tensor([value]))
