"""The out-of-distribution score: exact on Gaussians, calibrated on unseen data, sees shifts."""

import pytest
import torch

from apps.climate_downscaling.ood import OutOfDistribution


def weather(steps: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Fields of two patterns with memory, plus noise."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.linalg.qr(torch.randn(24, 2, generator=torch.Generator().manual_seed(9)))[0]
    state = torch.randn(steps, 2, generator=g) * torch.tensor([3.0, 1.0])
    noise = 0.1 * torch.randn(steps, 24, generator=g)
    return (state @ patterns.T + noise + shift).reshape(steps, 4, 6)


@pytest.mark.exact
def test_full_rank_distance_is_mahalanobis():
    fields = weather(400, 0)
    fitted = OutOfDistribution.fit(fields, explained=1.0)
    rows = fields.reshape(400, -1).double()
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / 399
    expected = (centred @ torch.linalg.inv(covariance) * centred).sum(1).sqrt()
    torch.testing.assert_close(fitted.distance(fields), expected, rtol=1e-6, atol=1e-6)


def test_unseen_data_of_the_same_climate_rarely_exceeds_one():
    fitted = OutOfDistribution.fit(weather(600, 0))
    exceed = (fitted.score(weather(2000, 1)) > 1).double().mean()
    assert 0.001 < exceed < 0.03


def test_a_warmer_climate_and_an_unseen_pattern_are_seen():
    fitted = OutOfDistribution.fit(weather(600, 0))
    assert (fitted.score(weather(200, 2, shift=3.0)) > 1).all()
    checkerboard = weather(50, 3)
    checkerboard += 2.0 * (-1.0) ** torch.arange(24.0).reshape(4, 6)
    assert (fitted.score(checkerboard) > 1).all()


def test_score_survives_storage():
    fitted = OutOfDistribution.fit(weather(100, 0))
    again = OutOfDistribution(**fitted.tensors())
    fields = weather(10, 5)
    assert torch.equal(fitted.score(fields), again.score(fields))
