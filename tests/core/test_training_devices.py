"""Two processes that share every batch learn what one learns from the whole of it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

SCRIPT = """
import sys
import torch
from core.diffusion import Diffusion
from core.nets import MLP
from core.training import FitConfig, fit

def batch(step, generator):
    x = torch.randn(64, 2, generator=generator)
    return x * torch.tensor([1.0, 0.3]), None

if __name__ == "__main__":
    folder, devices = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    model = Diffusion(MLP((2,), width=32), (2,), path={"name": "edm"})
    config = FitConfig(steps=60, batch_size=64, log_every=1, validate_every=0, devices=devices)
    fitted = fit(model, batch, config, folder=folder, device="cpu")
    if fitted.rank == 0:
        torch.save(fitted.model.state_dict(), folder + "/weights.pt")
"""


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    curves = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        subprocess.run(
            [sys.executable, str(script), str(folder), str(devices)], check=True, timeout=300
        )
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
        assert (folder / "weights.pt").exists()
    one, two = np.array(curves)
    assert len(one) == len(two) == 60
    # the logged loss is of the first process's half batch, with noise of its own
    means = [curve.reshape(6, 10).mean(1) for curve in (one, two)]
    np.testing.assert_allclose(means[0], means[1], rtol=0.25)
    assert two.mean() == pytest.approx(one.mean(), rel=0.06)
    a, b = (
        torch.cat([v.flatten() for v in torch.load(path / "weights.pt").values()])
        for path in (tmp_path / "1", tmp_path / "2")
    )
    assert (a - b).norm() < 0.2 * a.norm()
