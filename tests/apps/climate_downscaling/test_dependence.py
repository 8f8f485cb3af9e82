"""Correlations in space, time and between variables, on fields that have known ones."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from apps.climate_downscaling.dependence import cell_correlation, correlation_length, lag_one
from core.errors import AleatorError

LAT, LON = np.meshgrid(np.arange(40.0, 44, 0.5), np.arange(0.0, 6, 0.5), indexing="ij")


def kilometres():
    p = np.deg2rad(np.stack([LAT.ravel(), LON.ravel()]))
    x = np.stack([np.cos(p[0]) * np.cos(p[1]), np.cos(p[0]) * np.sin(p[1]), np.sin(p[0])])
    return 6371 * np.arccos(np.clip(x.T @ x, -1, 1))


def fields(length, steps=4000, seed=0):
    root = np.linalg.cholesky(np.exp(-kilometres() / length) + 1e-9 * np.eye(LAT.size))
    noise = np.random.default_rng(seed).standard_normal((steps, LAT.size))
    return torch.from_numpy((noise @ root.T).reshape(steps, *LAT.shape))


@pytest.mark.parametrize("length", [60.0, 150.0])
def test_length_of_an_exponential_correlation(length):
    found = correlation_length(fields(length), LAT, LON)
    assert found == pytest.approx(length, rel=0.1)


def test_length_leaves_out_the_sea_and_what_never_varies():
    x = fields(100.0)
    x[:, 0] = math.nan
    x[:, 1, 1] = 5.0
    assert correlation_length(x, LAT, LON) == pytest.approx(100, rel=0.12)
    with pytest.raises(AleatorError, match="three cells"):
        correlation_length(torch.full((5, 4, 4), math.nan), LAT[:4, :4], LON[:4, :4])


def test_length_is_infinite_where_all_cells_go_together():
    x = torch.randn(50, 1, 1).expand(50, *LAT.shape)
    assert correlation_length(x, LAT, LON) == math.inf


def test_between_variables_equals_scipy():
    a, b = fields(50.0, 200), fields(80.0, 200, seed=1)
    b = b + 0.5 * a
    b[:, 2, 3] = math.nan
    flat = zip(a.flatten(1).T.numpy(), b.flatten(1).T.numpy(), strict=True)
    theirs = [pearsonr(x, y).statistic for x, y in flat if np.isfinite(y).all()]
    assert cell_correlation(a, b) == pytest.approx(np.mean(theirs), abs=1e-12)
    with pytest.raises(AleatorError, match="no cell"):
        cell_correlation(a, torch.full_like(a, math.nan))


def test_lag_one_skips_the_gaps():
    generator = torch.Generator().manual_seed(0)
    winters = []
    for _ in range(60):
        x = [torch.randn(2, 2, generator=generator)]
        for _ in range(89):
            x.append(0.7 * x[-1] + math.sqrt(1 - 0.49) * torch.randn(2, 2, generator=generator))
        winters.append(torch.stack(x))
    keys = (np.arange(60)[:, None] * 365 + np.arange(90)).ravel() * 86400
    assert lag_one(torch.cat(winters), keys) == pytest.approx(0.7, abs=0.02)
