"""The truncated Gaussian against SciPy, quadrature and automatic differentiation."""

import numpy as np
import pytest
import torch
from scipy import stats

from apps.hep_simulation.inference.truncated import TruncatedGaussian
from core.errors import AleatorError


def law(batch, dims, seed=0, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.rand(batch, dims, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    root = torch.randn(batch, dims, dims, generator=generator, dtype=torch.float64)
    tril = scale * torch.linalg.cholesky(root @ root.mT + 0.3 * torch.eye(dims))
    return {"mean": mean, "scale_tril": tril}


def log_density(u, given):
    y, log_det = TruncatedGaussian()(u, given)
    return stats.norm.logpdf(y.numpy()).sum(1) + log_det.numpy()


@pytest.mark.exact
@pytest.mark.parametrize(("mean", "scale"), [(0.5, 0.1), (-0.3, 0.2), (1.1, 0.05), (0.4, 30.0)])
def test_one_dimension_is_scipys_truncated_normal(mean, scale):
    u = torch.linspace(0.001, 0.999, 201, dtype=torch.float64)[:, None]
    given = {
        "mean": torch.full((201, 1), mean, dtype=torch.float64),
        "scale_tril": torch.full((201, 1, 1), scale, dtype=torch.float64),
    }
    expected = stats.truncnorm.logpdf(
        u[:, 0].numpy(), -mean / scale, (1 - mean) / scale, mean, scale
    )
    assert np.allclose(log_density(u, given), expected, atol=1e-8)


@pytest.mark.exact
def test_density_integrates_to_one_over_the_box():
    side = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    grid = torch.cartesian_prod(side, side)
    for seed in range(4):
        one = {name: value.expand(len(grid), *value.shape[1:]) for name, value in
               law(1, 2, seed).items()}  # fmt: skip
        assert np.exp(log_density(grid, one)).mean() == pytest.approx(1, abs=2e-3)


def test_inverse_undoes_forward_and_stays_in_the_box():
    given = law(500, 3)
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, log_det = TruncatedGaussian().inverse(z, given)
    back, forward = TruncatedGaussian()(u, given)
    inside = ((u > 1e-6) & (u < 1 - 1e-6)).all(1)
    assert ((u > 0) & (u < 1)).all()
    assert inside.sum() > 450
    assert torch.allclose(back[inside], z[inside], atol=1e-5)
    assert torch.allclose(forward[inside], -log_det[inside], atol=1e-4)


def test_log_determinant_is_that_of_automatic_differentiation():
    given = law(1, 3, seed=3)
    u = torch.tensor([[0.2, 0.7, 0.4]], dtype=torch.float64)
    transform = TruncatedGaussian()
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v, given)[0][0], u)[:, 0]
    assert transform(u, given)[1].item() == pytest.approx(torch.logdet(jacobian).item(), abs=1e-9)


def test_extreme_laws_stay_finite():
    u = torch.tensor([[0.999999, 1e-6], [0.5, 0.5]], dtype=torch.float64)
    given = {
        "mean": torch.tensor([[-3.0, 4.0], [0.1, 0.9]], dtype=torch.float64),
        "scale_tril": 0.01 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2),
    }
    y, log_det = TruncatedGaussian()(u, given)
    assert y.isfinite().all()
    assert log_det.isfinite().all()


def test_a_context_without_a_law_is_refused():
    with pytest.raises(AleatorError, match="scale_tril"):
        TruncatedGaussian()(torch.zeros(1, 1), {"mean": torch.zeros(1, 1)})
