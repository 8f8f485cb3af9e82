"""High-level features against their definitions."""

import numpy as np
import pytest

from apps.hep_simulation.features import coarse, features


def _by_hand(shower, geometry):
    """The definitions, voxel by voxel."""
    found, voxel = [], 0
    for layer in geometry.active:
        energy, eta, eta2, r, r2, hits = 0.0, 0.0, 0.0, 0.0, 0.0, 0
        for sector in range(layer.sectors):
            angle = -np.pi + (sector + 0.5) * 2 * np.pi / layer.sectors
            for ring in range(layer.rings):
                e, radius = float(shower[voxel]), 0.5 * sum(layer.r_edges[ring : ring + 2])
                voxel += 1
                energy, hits = energy + e, hits + (e > 0)
                eta += e * radius * np.cos(angle)
                eta2 += e * (radius * np.cos(angle)) ** 2
                r, r2 = r + e * radius, r2 + e * radius**2
        safe = energy + 1e-16
        width = np.sqrt(max(eta2 / safe - (eta / safe) ** 2, 0))
        width_r = np.sqrt(max(r2 / safe - (r / safe) ** 2, 0))
        sparsity = 1 - hits / layer.voxels
        found.append((energy, eta / safe, width, r / safe, width_r, sparsity))
    return np.array(found)


@pytest.mark.exact
def test_features_are_those_of_the_definitions(small, uneven, toy):
    for geometry in (small, uneven):
        showers, energies, _ = toy(geometry, 5)
        found = features(showers, energies, geometry)
        angular = [layer.sectors > 1 for layer in geometry.active]
        for row, shower in enumerate(showers):
            wanted = _by_hand(shower, geometry)
            assert found.layers[row] == pytest.approx(wanted[:, 0])
            assert found.centre_eta[row] == pytest.approx(wanted[angular, 1], abs=1e-9)
            assert found.width_eta[row] == pytest.approx(wanted[angular, 2], abs=1e-6)
            assert found.centre_r[row] == pytest.approx(wanted[:, 3])
            assert found.width_r[row] == pytest.approx(wanted[:, 4], abs=1e-6)
            assert found.sparsity[row] == pytest.approx(wanted[:, 5])
        assert found.response == pytest.approx(showers.sum(1) / energies, rel=1e-5)


def test_the_classifier_sees_the_362_columns_of_the_challenge(binning, geant4):
    found = features(geant4.showers[:3], geant4.energies[:3], binning).columns()
    assert found.shape == (3, 362)
    assert found[:, 0] == pytest.approx(np.log10(geant4.energies[:3]))


def test_rotation_turns_centres_and_leaves_radii(small, toy):
    showers, energies, _ = toy(small, 4)
    turned = np.roll(showers.reshape(4, 5, 4, 3), 1, axis=2).reshape(4, -1)
    one, other = (features(part, energies, small) for part in (showers, turned))
    assert other.centre_eta == pytest.approx(-one.centre_phi, abs=1e-9)  # a quarter turn
    assert other.centre_phi == pytest.approx(one.centre_eta, abs=1e-9)
    assert other.centre_r == pytest.approx(one.centre_r)


def test_the_coarse_grid_keeps_the_energy(binning, geant4):
    found = coarse(geant4.showers[:10], binning, (15, 4, 3))
    assert found.shape == (10, 180)
    assert found.sum(1) == pytest.approx(geant4.showers[:10].sum(1), rel=1e-5)
    first = geant4.showers[0].reshape(45, 16, 9)[:3, :4, :3].sum()
    assert found[0, 0] == pytest.approx(first, rel=1e-5)


def test_geant4_showers_have_the_known_response_and_maximum(binning, geant4):
    found = features(geant4.showers, geant4.energies, binning)
    assert found.response.mean() == pytest.approx(1.0, abs=0.02)
    deepest = found.layers[geant4.energies > 2e4].mean(0).argmax()
    assert 9 <= deepest <= 14
