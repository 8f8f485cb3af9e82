"""There and back: ratios of layer energies, images of voxels."""

import pytest
import torch

from apps.hep_simulation.preprocessing import Shares, from_ratios, ratios


def _edge_cases():
    """Ordinary, nothing, one layer, everything in the last layer."""
    return torch.tensor(
        [[3.0, 5.0, 2.0], [0.0, 0.0, 0.0], [0.0, 7.0, 0.0], [0.0, 0.0, 4.0]], dtype=torch.float64
    )


@pytest.mark.exact
def test_ratios_and_back_is_the_identity_and_conserves_energy():
    energies, incident = _edge_cases(), torch.tensor([9.0, 5.0, 8.0, 4.0], dtype=torch.float64)
    u = ratios(energies, incident)
    assert u[:, 0].tolist() == pytest.approx((energies.sum(1) / incident).tolist())
    assert u[0, 1:].tolist() == pytest.approx([0.3, 5 / 7])
    back = from_ratios(u, incident)
    assert torch.allclose(back, energies)
    assert torch.allclose(back.sum(1), u[:, 0] * incident)


@pytest.mark.exact
def test_voxels_and_back_is_the_identity():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(6, 3, 4, 5, generator=generator).double() * 20
    x[x < 8] = 0
    x[0] = 0  # an empty shower
    x[1] = 0
    x[1, 2, 3, 4] = 5.0  # a single voxel, in the last layer
    x[2, 0] = 0
    shares = Shares(3, 4, 5, threshold=0.5)
    uniform = torch.rand(x.shape, generator=generator).double()
    shares.fit(x, uniform)
    z = shares(x, uniform)
    assert z.shape == (6, 3, 5, 4)
    assert z.std().item() == pytest.approx(1.0, abs=0.3)
    back = shares.inverse(z, x.sum((2, 3)))
    assert torch.equal(back > 0, x > 0)
    assert torch.allclose(back, x, rtol=1e-4)


def test_any_image_gives_the_layer_energies_and_no_voxel_below_the_threshold():
    shares = Shares(3, 4, 5, threshold=0.5)
    z = 2 * torch.randn(40, 3, 5, 4, generator=torch.Generator().manual_seed(1)).double()
    energies = 0.5 + 6 * torch.rand(40, 3, generator=torch.Generator().manual_seed(2)).double()
    energies[:5, 1] = 0
    x = shares.inverse(z, energies)
    assert torch.allclose(x.sum((2, 3)), energies)
    assert x[x > 0].min() >= 0.5
    assert (x[:5, 1] == 0).all()
