"""The ridge on all predictors: scikit-learn's, cross-fitted without a look at the held-out."""

import numpy as np
import torch
from sklearn.linear_model import Ridge

from apps.climate_downscaling import scratch as scratch_module
from apps.climate_downscaling.field_dispersion import FieldDispersion
from apps.climate_downscaling.field_ridge import FieldRidge, cross_fit_fields
from apps.climate_downscaling.mean import blocks_with_gap

ALL = torch.ones(2, 3, dtype=torch.bool)


def data(steps=240, noise=0.5, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, 4, 3, 2, generator=g) * 5 + 100
    w = torch.randn(24, 2 * 6, generator=g) / 5
    z = ((x - 100).flatten(1) @ w).reshape(steps, 2, 2, 3) + 270
    return x, z + noise * torch.randn(z.shape, generator=g)


def test_equals_scikit_learn():
    x, z = data()
    ours = FieldRidge.fit(x, z, (10.0, 300.0))
    rows = ((x - x.mean(0)) / x.std(0)).flatten(1).double().numpy()
    for v, a in enumerate((10.0, 300.0)):
        theirs = Ridge(alpha=a).fit(rows, z[:, v].flatten(1).double().numpy())
        found = ours.predict(x)[:, v].flatten(1)
        np.testing.assert_allclose(found, theirs.predict(rows), rtol=1e-5)


def test_leverage_is_the_variance_that_uncertain_weights_add():
    x, z = data(steps=60)
    ours = FieldRidge.fit(x, z, (10.0, 10.0))
    rows = ((x - x.mean(0)) / x.std(0)).flatten(1).double()
    inverse = torch.linalg.inv(rows.T @ rows + 10 * torch.eye(24))
    expected = torch.einsum("bp,pq,bq->b", rows, inverse, rows)
    np.testing.assert_allclose(ours.leverage(x), expected, rtol=1e-4)
    far = 100 + 10 * (x - 100)
    assert (ours.leverage(far) > 50 * ours.leverage(x)).all()


def test_cross_fitted_means_have_not_seen_their_block():
    x, z = data()
    fitted = cross_fit_fields(x, z, ALL, (1.0, 10.0), blocks=4, gap=5)
    for train, held_out in blocks_with_gap(len(z), 4, 5):
        again = FieldRidge.fit(x[train], z[train], fitted.ridge.strength.tolist())
        torch.testing.assert_close(fitted.mean[held_out], again.predict(x[held_out]))
    inside = (fitted.ridge.predict(x) - z).square().mean()
    assert (fitted.mean - z).square().mean() > 1.05 * inside


def test_strength_follows_the_noise_of_each_variable():
    x, z = data(steps=120, noise=0.0)
    z[:, 1] = 270 + torch.randn(z[:, 1].shape, generator=torch.Generator().manual_seed(1))
    fitted = cross_fit_fields(x, z, ALL, (0.01, 1.0, 100.0, 10000.0), blocks=4, gap=2)
    clear, noisy = fitted.ridge.strength.tolist()
    assert clear <= 1.0
    assert noisy == 10000.0


def test_an_offset_moves_predictions_and_nothing_else():
    x, z = data()
    ridge = FieldRidge.fit(x, z, (10.0, 10.0))
    offset = torch.arange(12.0).reshape(2, 2, 3)
    moved = ridge.at(offset).predict(x) - ridge.predict(x)
    torch.testing.assert_close(moved, offset.expand_as(moved), atol=1e-4, rtol=0)


def test_spread_follows_the_anomaly_where_errors_do():
    g = torch.Generator().manual_seed(0)
    mean = torch.randn(800, 1, 4, 5, generator=g)
    valid = torch.ones(4, 5, dtype=torch.bool)
    valid[0, 0] = False
    error = torch.randn(mean.shape, generator=g) * torch.exp(0.5 * mean)
    error[:, :, 0, 0] = torch.nan
    leverage = torch.rand(800, generator=g)
    spread = FieldDispersion.fit(error, mean, leverage, valid, blocks=4, gap=2)
    assert abs(spread.weights[0, 1] - 0.5) < 0.05
    assert spread.weights[0, 0].abs() < 0.05
    scaled = (error / spread(mean, leverage))[:, 0, valid]
    assert abs(scaled.std() - 1) < 0.03
    assert spread.scale.isfinite().all()


def test_fits_in_pieces_are_fits_of_the_whole(monkeypatch):
    x, z = data()
    whole = cross_fit_fields(x, z, ALL, (1.0, 100.0), blocks=4, gap=5)
    monkeypatch.setattr(scratch_module, "PIECE_BYTES", 7 * 4 * z[0].numel())
    parts = cross_fit_fields(x, z, ALL, (1.0, 100.0), blocks=4, gap=5)
    assert parts.ridge.strength.tolist() == whole.ridge.strength.tolist()
    torch.testing.assert_close(parts.mean, whole.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.leverage, whole.leverage)
    for name, value in whole.ridge.tensors().items():
        torch.testing.assert_close(parts.ridge.tensors()[name], value, atol=1e-5, rtol=1e-4)
