"""A small calorimeter, showers of it, and the bundled ones."""

import h5py
import numpy as np
import pytest
import torch

from apps.hep_simulation.data import open_showers
from apps.hep_simulation.geometry import Geometry, Layer, read_geometry
from apps.hep_simulation.simulate import bundled

EDGES = (0.0, 1.0, 3.0, 6.0)


@pytest.fixture
def small():
    """5 layers of 3 rings and 4 sectors."""
    return Geometry("electron", 11, tuple(Layer(i, EDGES, 4) for i in range(5)))


@pytest.fixture
def uneven():
    """Layers that differ, one without voxels: as data set 1."""
    layers = (Layer(0, (0.0, 5.0, 9.0), 1), Layer(1, EDGES, 4), Layer(2, (0.0,), 1))
    return Geometry("photon", 22, (*layers, Layer(3, (0.0, 2.0), 1)))


def _toy(geometry, count, seed=0, threshold=0.5):
    """Showers whose energies fall with depth and radius; about half of the voxels are empty."""
    random = np.random.default_rng(seed)
    energies = np.exp(random.uniform(np.log(1e3), np.log(2e4), count))
    depth = np.repeat(np.arange(len(geometry.active)), [x.voxels for x in geometry.active])
    weight = np.exp(-0.5 * depth - 0.3 * geometry.radii) * random.gamma(
        0.7, size=(count, len(depth))
    )
    response = 1 + 0.1 * random.normal(size=count)
    showers = energies[:, None] * response[:, None] * weight / weight.sum(1, keepdims=True)
    showers[showers < max(threshold, 0.5)] = 0
    particles = np.where(random.uniform(size=count) < 0.5, 11, 22)
    return showers.astype(np.float32), energies, particles


@pytest.fixture(scope="session")
def toy():
    """A function of geometry, count and seed: showers, energies and particles."""
    return _toy


@pytest.fixture
def write(tmp_path):
    """Write a file of toy showers; datasets may be replaced or left out (None)."""

    def written(geometry, name="showers.hdf5", count=60, **changed):
        showers, energies, particles = _toy(geometry, count)
        parts = {
            "incident_energies": energies[:, None],
            "incident_pdg": particles[:, None],
            "showers": showers,
            **changed,
        }
        with h5py.File(tmp_path / name, "w") as file:
            for key, value in parts.items():
                if value is not None:
                    file.create_dataset(key, data=value)
        return tmp_path / name

    return written


@pytest.fixture(scope="session")
def binning():
    """The bundled geometry."""
    return read_geometry(bundled("binning.xml"))


@pytest.fixture(scope="session")
def geant4(binning):
    """300 showers of Geant4."""
    return open_showers(bundled("showers.hdf5"), binning).read()


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads cost more than they bring."""
    torch.set_num_threads(1)
