"""Paths: derivatives against autograd, the log-SNR clock and its inverse, end points."""

import pytest
import torch

from core.errors import AleatorError
from core.paths import PATHS, path_from_config

EVERY = [*sorted(PATHS), {"name": "rectified", "sigma_min": 0.1}, {"name": "vp", "beta_max": 5.0}]


def times(path, n=41):
    return torch.linspace(max(path.t_min, 1e-3), 1 - 1e-3, n, dtype=torch.float64)


@pytest.mark.exact
@pytest.mark.parametrize("config", EVERY, ids=str)
def test_derivatives_equal_autograd(config):
    path = path_from_config(config)
    t = times(path).requires_grad_()
    for value, derivative in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        y = value(t)
        by_autograd = (
            torch.autograd.grad(y.sum(), t)[0] if y.requires_grad else torch.zeros_like(t)
        )
        torch.testing.assert_close(derivative(t), by_autograd, rtol=1e-10, atol=1e-10)


@pytest.mark.exact
@pytest.mark.parametrize("config", EVERY, ids=str)
def test_log_snr_decreases_and_inverts(config):
    path = path_from_config(config)
    t = times(path)
    lam = path.log_snr(t)
    assert (lam.diff() < 0).all()
    torch.testing.assert_close(path.t_from_log_snr(lam), t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lam.exp(), (path.alpha(t) / path.sigma(t)) ** 2)


@pytest.mark.exact
def test_end_points_and_identities():
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for name in ("vp", "cosine"):
        path = path_from_config(name)
        t = times(path)
        torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t))
    edm = path_from_config("edm")
    assert edm.sigma(zero).item() == pytest.approx(0.002)
    assert edm.sigma(one).item() == pytest.approx(80.0)
    ot = path_from_config({"name": "rectified", "sigma_min": 0.1})
    assert (ot.alpha(zero), ot.sigma(zero)) == (1, pytest.approx(0.1))
    assert (ot.alpha(one), ot.sigma(one)) == (0, 1)


@pytest.mark.exact
def test_optimal_transport_path_velocity_is_lipmans():
    r"""X8: u_t(x | x_1) = (x_1 - (1-σ_min) x) / (1 - (1-σ_min) τ) along ψ_τ, with τ = 1 - t."""
    s = 0.1
    path = path_from_config({"name": "rectified", "sigma_min": s})
    data, noise = torch.tensor(1.7, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    for tau in (0.0, 0.3, 0.9):
        t = torch.tensor(1 - tau, dtype=torch.float64)
        x = path.alpha(t) * data + path.sigma(t) * noise
        lipman = (data - (1 - s) * x) / (1 - (1 - s) * tau)
        ours = -(path.d_alpha(t) * data + path.d_sigma(t) * noise)  # dτ = -dt
        torch.testing.assert_close(ours, lipman, rtol=1e-12, atol=1e-12)


def test_config_round_trip_and_errors():
    for name in PATHS:
        assert path_from_config(path_from_config(name).to_config()) == path_from_config(name)
    with pytest.raises(AleatorError, match=r"unknown path 'vpp'; known: .*vp"):
        path_from_config("vpp")
    with pytest.raises(AleatorError, match="has no parameter 'beta'"):
        path_from_config({"name": "vp", "beta": 1})
