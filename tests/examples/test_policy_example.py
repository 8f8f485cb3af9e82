"""The tasks of the imitation example: the expert solves them, the mean of both ways does not."""

import importlib.util
from pathlib import Path

import pytest
import torch

from core.policy import GymEnvironment, Policy, rollout
from core.random import keyed_generator

pytest.importorskip("gymnasium")
SCRIPT = Path(__file__).parents[2] / "examples" / "policy.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("policy_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register()
    module.register()  # a second time does no harm
    return module


def returns(example, task, expert, size, seen, copies=12):
    policy = Policy(example.Follows(expert, (1, size), seen), execute=1)
    steps = example.TASKS[task][1]
    environment = GymEnvironment(task, copies)
    return rollout(policy, environment, steps=steps, generator=keyed_generator(3)).returns


def test_the_obstacle_is_passed_on_either_side_and_not_through_the_middle(example):
    both = returns(example, "Obstacle-v0", example.round_it, 2, 2)
    assert (both == 1).all()

    def mean(seen, side):
        one = torch.ones_like(side)
        return 0.5 * (example.round_it(seen, one) + example.round_it(seen, -one))

    assert (returns(example, "Obstacle-v0", mean, 2, 2) == 0).all()


def test_the_pendulum_is_swung_up_and_held(example):
    found = returns(example, "Pendulum-v1", example.swing_up, 1, 3)
    idle = returns(example, "Pendulum-v1", lambda seen, side: torch.zeros(len(seen), 1), 1, 3)
    assert found.mean() > -350
    assert idle.mean() < -900


def test_demonstrations_end_with_their_episode(example):
    seen, acted = example.shown("Obstacle-v0")
    assert len(seen) == example.TASKS["Obstacle-v0"][4]
    assert all(len(s) == len(a) <= 30 for s, a in zip(seen, acted, strict=True))
    assert {len(s) for s in seen} != {30}
    ways = torch.stack([s[:, 1][s[:, 1].abs().argmax()] for s in seen])
    assert 0.3 < (ways > 0).double().mean() < 0.7
