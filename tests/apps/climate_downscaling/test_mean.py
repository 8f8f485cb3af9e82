"""The regression of the mean: exact where it must be, local, cross-fitted without leaks."""

import pytest
import torch

from apps.climate_downscaling.mean import (
    LocalRidge,
    MeanConfig,
    blocks_with_gap,
    cross_fit,
    nearest_cells,
    upsample,
)
from core.errors import AleatorError


def climate(steps=300, variables=1, noise=0.0, seed=0):
    """Fine fields that are bicubic plus a fixed local linear pattern of the coarse field."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(steps, variables, 3, 4, generator=g)
    pattern = torch.randn(variables, 6, 8, generator=torch.Generator().manual_seed(99))
    fine = upsample(coarse, 2) + pattern * upsample(coarse, 2, "nearest") + 0.3
    return coarse, fine + noise * torch.randn(fine.shape, generator=g)


@pytest.mark.exact
@pytest.mark.parametrize("variables", [1, 2])
def test_a_local_linear_truth_is_recovered(variables):
    coarse, fine = climate(variables=variables)
    fitted = LocalRidge.fit(coarse, fine, length=1.0, strength=1e-6)
    new_coarse, new_fine = climate(variables=variables, seed=1)
    torch.testing.assert_close(fitted.predict(new_coarse), new_fine, rtol=1e-3, atol=1e-3)


@pytest.mark.exact
def test_it_is_the_generalised_ridge_of_its_prior():
    """Against the dense solution with the explicit prior covariance, for one coarse cell."""
    coarse, fine = climate(60, noise=0.5)
    fitted = LocalRidge.fit(coarse, fine, length=0.8, strength=2.0)
    x = ((coarse - coarse.mean(0)) / coarse.std(0)).flatten(1).double()
    target = (fine - upsample(coarse, 2)).double()
    y = target[:, 0, 0, 0] - target[:, 0, 0, 0].mean()
    near, distance = nearest_cells(3, 4, 12)
    penalty = torch.zeros(12, dtype=torch.float64)
    penalty[near[0]] = torch.exp(distance[0] / 0.8)
    w = torch.linalg.solve(x.T @ x + 2.0 * torch.diag(penalty), x.T @ y)
    expected = upsample(coarse, 2)[:, 0, 0, 0] + (x @ w + target[:, 0, 0, 0].mean()).float()
    torch.testing.assert_close(fitted.predict(coarse)[:, 0, 0, 0], expected, rtol=1e-4, atol=1e-4)


def test_cross_fitting_leaves_the_block_and_its_gap_out():
    coarse, fine = climate(80, noise=0.3)
    config = MeanConfig(lengths=(1.0,), strengths=(1.0,), blocks=4, gap=5)
    predicted = cross_fit(coarse, fine, config).mean
    changed = fine.clone()
    changed[20:40] += 100  # the second block
    changed[15:20] += 100  # and the gap before it
    again = cross_fit(coarse, changed, config).mean
    torch.testing.assert_close(again[20:40], predicted[20:40])
    assert (again[60:] - predicted[60:]).abs().mean() > 1


def test_out_of_sample_residuals_are_wider_and_right():
    coarse, fine = climate(60, noise=0.5)
    found = cross_fit(coarse, fine, MeanConfig(blocks=4, gap=2))
    fitted, predicted, table = found.ridge, found.mean, found.errors
    new_coarse, new_fine = climate(2000, noise=0.5, seed=5)
    unseen = (fitted.predict(new_coarse) - new_fine).std()
    assert (fitted.predict(coarse) - fine).std() < 0.97 * unseen
    assert (predicted - fine).std().item() == pytest.approx(unseen.item(), rel=0.06)
    assert f"L={fitted.length:g},a={fitted.strength:g}" == min(table, key=table.get)


@pytest.mark.exact
def test_leverage_is_the_variance_that_the_weights_add():
    coarse, fine = climate(60, noise=0.5)
    fitted = LocalRidge.fit(coarse, fine, length=1.0, strength=2.0)
    h, w = coarse.shape[-2:]
    near, distance = nearest_cells(h, w, fitted.weights.shape[1])
    x = ((coarse - fitted.centres) / fitted.scale).double().flatten(1)[:, near[0]]
    covariance = torch.linalg.inv(x.T @ x + 2.0 * torch.diag(torch.exp(distance[0] / 1.0)))
    expected = (x @ covariance * x).sum(1)
    leverage = fitted.leverage(coarse)
    torch.testing.assert_close(leverage[:, 0, 0].double(), expected, rtol=1e-3, atol=1e-6)
    far = fitted.leverage(fitted.centres + 3 * (coarse - fitted.centres))
    torch.testing.assert_close(far, 9 * leverage, rtol=1e-3, atol=1e-5)


def test_blocks_cover_time_once():
    folds = list(blocks_with_gap(100, 6, 10))
    assert torch.cat([held for _, held in folds]).tolist() == list(range(100))
    for train, held in folds:
        assert (train[:, None] - held[None]).abs().min() > 10
    with pytest.raises(AleatorError, match=r"too few for 6 blocks"):
        list(blocks_with_gap(20, 6, 24))


def test_options_are_checked():
    with pytest.raises(AleatorError, match="bicubic, bilinear, nearest"):
        MeanConfig(base="spline")
    with pytest.raises(AleatorError, match="at least 2"):
        MeanConfig(blocks=1)


@pytest.mark.parametrize(
    ("h", "w", "count"), [(8, 12, 39), (7, 7, 500), (20, 31, 79), (3, 40, 13), (30, 5, 140)]
)
def test_nearest_cells_are_those_of_all_pairs(h, w, count):
    places = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    squares = (places[:, None] - places[None]).square().sum(-1)
    order = squares.sort(dim=1, stable=True).indices[:, :count]
    index, distance = nearest_cells(h, w, count)
    assert torch.equal(index, order)
    torch.testing.assert_close(distance, squares.gather(1, order).double().sqrt())
