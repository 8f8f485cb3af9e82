"""The MNIST benchmark: its data, its bad input, and the judge of weights from elsewhere."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import AleatorError
from core.random import keyed_generator

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _importable():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def write(folder, images, labels):
    import mnist_data

    for name, values in zip(mnist_data.NAMES, (images, labels), strict=True):
        head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (folder / name).write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


def test_the_split_keeps_each_image_with_its_label(tmp_path):
    import mnist_data

    labels = np.arange(1200) % 10
    images = np.zeros((1200, 28, 28)) + 20 * labels[:, None, None]
    write(tmp_path, images, labels)
    train, held = mnist_data.load(tmp_path)
    assert (len(train), len(held)) == (200, 1000)
    for part in (train, held):
        grey = (127.5 * (part.grey[:, 0, 0, 0] + 1)).round().long()
        assert torch.equal(grey, 20 * part.label)
        share = part.binary.flatten(1).mean(1)
        assert (share - 20 * part.label / 255).abs().max() < 5 * 0.5 / 28
    again = mnist_data.load(tmp_path)[1]
    assert torch.equal(again.binary, held.binary)


def test_bad_data_are_one_clear_line(tmp_path):
    import mnist_data

    with pytest.raises(AleatorError, match="is missing: DATA is a folder with"):
        mnist_data.load(tmp_path)
    write(tmp_path, np.zeros((1200, 28, 28)), np.zeros(1100))
    with pytest.raises(AleatorError, match=r"images \(1200, 28, 28\) and labels \(1100,\)"):
        mnist_data.load(tmp_path)
    path = tmp_path / mnist_data.NAMES[1]
    path.write_bytes(b"no gzip")
    with pytest.raises(AleatorError, match="not a gzip file, or damaged"):
        mnist_data.load(tmp_path)
    path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc"))
    with pytest.raises(AleatorError, match="not an array of bytes in MNIST's format"):
        mnist_data.load(tmp_path)
    command = [sys.executable, str(FOLDER / "mnist.py"), str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is missing" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.exact
def test_the_shared_networks_have_the_bounds_of_their_formula():
    """Our ELBO against KL and binary cross-entropy written out, on the same draws."""
    import mnist_bounds
    import mnist_data

    torch.manual_seed(0)
    model = mnist_bounds.make().double()
    x = (torch.rand(3, 1, 28, 28, generator=keyed_generator(0)) < 0.3).double()
    held = mnist_data.Digits(x, x, torch.zeros(3))
    found = mnist_bounds.bounds(model, held)
    mean, log_variance = model.encoder.body(x.flatten(1)).detach().chunk(2, 1)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    eps = torch.randn(3, 50, 20, generator=keyed_generator(7), dtype=torch.float64)
    z = mean[:, None] + (0.5 * log_variance).exp()[:, None] * eps
    share = model.decoder.body(z.flatten(0, 1)).detach().sigmoid()
    error = torch.nn.functional.binary_cross_entropy(
        share, x.flatten(1).repeat_interleave(50, 0), reduction="none"
    )
    elbo = (-error.sum(1).reshape(3, 50).mean(1) - kl).mean().item()
    assert found["elbo"] == pytest.approx(elbo, rel=1e-9)
    assert found["iwae"] > found["elbo"]


def test_an_interpreter_without_pythae_is_one_clear_line(tmp_path):
    import mnist_bounds
    import mnist_data

    x = torch.zeros(2, 1, 28, 28)
    few = mnist_data.Digits(x, x, torch.zeros(2))
    false = tmp_path / "python"
    false.write_text("#!/bin/sh\necho 'No module named pythae' >&2\nexit 1\n")
    false.chmod(0o755)
    with pytest.raises(AleatorError, match="failed: No module named pythae"):
        mnist_bounds.pythae(false, few, few, 1, 0, tmp_path)
