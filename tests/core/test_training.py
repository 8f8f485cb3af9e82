"""Training learns what it should, stops when told, and resumes as if it had never stopped."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from core import build
from core.errors import AleatorError, CheckpointError
from core.model import Loss
from core.training import FitConfig, fit
from core.training.ema import EMA
from core.training.fit import learning_rate, parameter_groups, resolve_device

MODEL = {
    "family": "diffusion",
    "event_shape": [2],
    "net": {"name": "mlp", "width": 32, "blocks": 1, "dropout": 0.1},
}


def batches(step, generator):
    """Two-dimensional Gaussian with standard deviations 1 and 0.5."""
    return torch.randn(64, 2, generator=generator) * torch.tensor([1.0, 0.5]), None


def short(**options):
    return FitConfig(**{"steps": 40, "validate_every": 10, "log_every": 5, "warmup": 5} | options)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def fresh(seed=0):
    torch.manual_seed(seed)
    return build(MODEL)


def test_training_learns_the_spread_of_a_gaussian(tmp_path):
    config = FitConfig(steps=600, batch_size=64, validate_every=0, ema=0.99)
    model = fit(fresh(), batches, config, folder=tmp_path, progress=None).model
    x = model.sample((4000,), generator=torch.Generator().manual_seed(1))
    assert x.std(0)[0].item() == pytest.approx(1.0, rel=0.08)
    assert x.std(0)[1].item() == pytest.approx(0.5, rel=0.1)


def test_a_resumed_run_makes_the_same_steps(tmp_path):
    scores = iter(range(100))
    whole = fit(fresh(), batches, short(), folder=tmp_path / "a", progress=None)

    def stop(model):
        if next(scores) == 2:
            raise KeyboardInterrupt
        return 1.0

    config = short(save_every=10)
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), batches, config, folder=tmp_path / "b", score=stop, progress=None)
    config = short(save_every=15)  # how often the state is saved may change
    resumed = fit(
        fresh(9), batches, config, folder=tmp_path / "b", score=stop, resume=True, progress=None
    )
    assert resumed.steps == 40
    plain = [line for line in metrics(tmp_path / "b") if "loss" in line]
    assert plain == metrics(tmp_path / "a")
    last = fit(
        fresh(9), batches, short(), folder=tmp_path / "b", score=stop, resume=True, progress=None
    )
    assert last.best_step == 10  # nothing was left to do; equal scores keep the first
    state = whole.model.state_dict()
    again = fit(fresh(), batches, short(), folder=tmp_path / "c", progress=None).model.state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_a_run_that_stops_early_is_the_beginning_of_the_whole(tmp_path):
    whole = fit(fresh(), batches, short(), folder=tmp_path / "a", progress=None)
    part = fit(fresh(), batches, short(stop_at=15), folder=tmp_path / "b", progress=None)
    assert part.steps == 15
    rest = fit(fresh(9), batches, short(), folder=tmp_path / "b", resume=True, progress=None)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    state, again = whole.model.state_dict(), rest.model.state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)


SCRIPT = """
import os, signal, sys, torch
sys.path.insert(0, {tests!r})
from test_training import batches, fresh, short
from core.training import fit

def killing(step, generator):
    if step == 23 and sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return batches(step, generator)

config = short(save_every=7)
fitted = fit(fresh(), killing, config, folder=sys.argv[1], resume=True, progress=None)
torch.save(fitted.model.state_dict(), sys.argv[1] + "/weights.pt")
"""


def test_a_killed_run_resumes_exactly(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(tests=os.path.dirname(__file__))))

    def run(folder, word):
        command = [sys.executable, str(script), str(tmp_path / folder), word]
        return subprocess.run(command, check=False).returncode

    assert run("killed", "kill") == -signal.SIGKILL
    assert max(line["step"] for line in metrics(tmp_path / "killed")) == 20
    assert not list((tmp_path / "killed").glob("*.partial"))
    assert run("killed", "go on") == 0
    assert run("whole", "go on") == 0
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    one, two = (torch.load(tmp_path / f / "weights.pt") for f in ("killed", "whole"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_early_stopping_keeps_the_best_weights(tmp_path):
    seen = []

    def score(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return [3.0, 1.0, 2.0, 2.0, 2.0][len(seen) - 1]

    config = short(steps=200, patience=3)
    fitted = fit(fresh(), batches, config, folder=tmp_path, score=score, progress=None)
    assert (fitted.steps, fitted.best_step, fitted.best_score) == (50, 20, 1.0)
    state = fitted.model.state_dict()
    assert all(torch.equal(state[name], seen[1][name]) for name in state)
    assert not torch.equal(state["denoiser.net.last.weight"], seen[4]["denoiser.net.last.weight"])


def test_resuming_with_other_settings_or_data_is_refused(tmp_path):
    fit(fresh(), batches, short(), folder=tmp_path, progress=None, job={"data": "one"})
    again = {"folder": tmp_path, "resume": True, "progress": None}
    with pytest.raises(CheckpointError, match=r"learning_rate=0\.002, not 0\.1"):
        fit(fresh(), batches, short(learning_rate=0.1), **again, job={"data": "one"})
    with pytest.raises(CheckpointError, match="data='one', not 'two'"):
        fit(fresh(), batches, short(), **again, job={"data": "two"})
    (tmp_path / "state.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match="damaged"):
        fit(fresh(), batches, short(), **again, job={"data": "one"})


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    def bad(step, generator):
        return torch.full((8, 2), math.inf), None

    with pytest.raises(FloatingPointError, match=r"lower fit\.learning_rate"):
        fit(fresh(), bad, short(), folder=tmp_path, progress=None)


@pytest.mark.exact
def test_ema_of_constant_steps_is_the_geometric_sum():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.9)
    torch.nn.init.ones_(model.weight)
    rest = 1.0
    for step in range(200):
        ema.update(model, step)
        rest *= min(0.9, (1 + step) / (10 + step))
    assert ema.model.weight.item() == pytest.approx(1 - rest, rel=1e-5)


@pytest.mark.exact
def test_schedule_warms_up_and_ends_at_zero():
    config = FitConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(0.5 * (1 + math.cos(0.09 * math.pi)))
    assert rates[100] == pytest.approx(0.0)


def test_only_kernels_decay():
    decays, plain = parameter_groups(fresh(), 0.1)
    assert {p.dim() for p in plain["params"]} == {1}
    assert min(p.dim() for p in decays["params"]) == 2
    assert (decays["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)


def test_mixed_precision_leaves_the_examples_as_they_are(tmp_path):
    """A count of 1001 is no bf16 number, nor is a time near the end of a path."""
    given = torch.tensor([[1001.0], [0.99995]])
    seen = []

    class Model(torch.nn.Module):
        event_shape, context_shape = torch.Size([1]), None

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def loss(self, x, context=None, *, generator=None):
            hidden = self.layer(x)
            seen.append((x.clone(), context["vector"].clone(), hidden.dtype))
            return Loss(hidden.float().square().sum(1), {})

    fit(
        Model(),
        lambda step, generator: (given, {"vector": given}),
        FitConfig(steps=1, validate_every=0, precision="bf16-mixed"),
        folder=tmp_path,
        progress=None,
        device="cpu",
    )
    x, vector, dtype = seen[0]
    assert torch.equal(x, given)
    assert torch.equal(vector, given)
    assert dtype == torch.bfloat16  # what is worth it is done in bf16 all the same


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"ema": 1.0}, {"learning_rate": 0.0}, {"precision": "16"}]
)
def test_bad_options_are_named(bad):
    with pytest.raises(AleatorError, match=f"fit.{next(iter(bad))}="):
        FitConfig(**bad)


def test_unknown_and_absent_devices_are_named():
    with pytest.raises(AleatorError, match="known: auto, cpu, cuda, mps"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(AleatorError, match="not available"):
            resolve_device("cuda")
