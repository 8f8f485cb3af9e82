"""The examples run from a fresh checkout, and leave a grid and a card."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def digits():
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_script_trains_draws_and_writes_a_card(tmp_path):
    command = [sys.executable, str(EXAMPLES / "vae.py"), "--steps", "3", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert done.returncode == 0, done.stderr
    assert "lower_bound" in done.stdout
    assert (tmp_path / "vae.png").stat().st_size > 2000
    card = (tmp_path / "vae.md").read_text()
    assert "python examples/digits.py vae --steps 3" in card
    assert "1437 to train on" in card


def test_every_family_has_its_script_and_can_be_built(digits):
    for family in digits.FAMILIES:
        assert (EXAMPLES / f"{family}.py").exists()
        model = digits.build(digits.config(family))
        assert tuple(model.event_shape) == (1, 8, 8)


@pytest.mark.exact
def test_bits_count_the_bins(digits):
    """A uniform density on [-1, 1) is log2(17) bits for each of 17 values."""
    values = digits.data()[2]
    assert values.min() == 0
    assert values.max() == 16
    x = digits.continuous(values, torch.Generator().manual_seed(0))
    assert -1 <= x.min()
    assert x.max() < 1
    assert torch.equal(((x + 1) / digits.BIN).floor(), values)

    class Uniform:
        unsupported = {}  # noqa: RUF012

        def log_prob(self, x, **options):
            from core import Density

            return Density(torch.full((len(x),), -64 * torch.log(torch.tensor(2.0))), "exact")

    row = digits.evaluate(Uniform(), "uniform", x[:200])
    assert row["bits"] == pytest.approx(torch.log2(torch.tensor(17.0)).item(), rel=1e-5)
    assert abs(row["frechet"]) < 0.5  # the held-out digits against themselves


def test_the_table_is_put_together_from_what_lies_in_a_folder(digits, tmp_path):
    kept = EXAMPLES.parent / "benchmarks" / "results"
    for name in ("references", "energy", "diffusion"):
        shutil.copy(kept / "families" / f"{name}.json", tmp_path)
    (tmp_path / "vae.json").write_text(json.dumps({"family": "vae", "steps": 3, "frechet": 9.0}))
    found = digits.collect(tmp_path, 800)
    names = [row["family"] for row in found.rows]
    assert names[-2:] == ["diffusion", "energy"]  # of the families' order; vae has other steps
    assert "one Gaussian" in names
    page = (tmp_path / "families.md").read_text()
    assert "python examples/digits.py --all --steps 800" in page
    whole = (kept / "families.md").read_text().splitlines()
    assert {line.split("|")[1].strip() for line in whole if line.startswith("| ")} >= {
        "family",
        *digits.FAMILIES,
    }
    (tmp_path / "references.json").unlink()
    with pytest.raises(SystemExit, match="no rows of 7 steps"):
        digits.collect(tmp_path, 7)
