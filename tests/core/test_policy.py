"""Imitation closed-loop: two ways round an obstacle, goals in hindsight, Gymnasium's tasks."""

import math

import pytest
import torch

from core import build
from core.errors import AleatorError
from core.policy import GymEnvironment, Policy, Regression, demonstrations, rollout
from core.random import keyed_generator
from core.training import FitConfig, fit


class Field:
    """From (0, 0) to (4, 0) by velocities up to 0.5; a disc about (1.5, 0) must not be met."""

    def __init__(self, copies):
        self.copies = copies

    def reset(self, generator):
        self.x = 0.05 * torch.randn(self.copies, 2, generator=generator)
        return self.x.clone()

    def step(self, action):
        length = action.norm(dim=1, keepdim=True).clamp(min=1e-9)
        self.x = self.x + action * (0.5 / length).clamp(max=1.0)
        met = (self.x - torch.tensor([1.5, 0.0])).norm(dim=1) < 0.9
        there = (self.x - torch.tensor([4.0, 0.0])).norm(dim=1) < 0.6
        return self.x.clone(), there.float(), met | there


def expert(x, side):
    """Round the obstacle on one side, then to the goal."""
    waypoint = torch.stack([torch.full_like(side, 1.5), 1.7 * side], 1)
    goal = torch.tensor([4.0, 0.0]).expand(len(x), -1)
    aim = torch.where((x[:, :1] < 1.4), waypoint, goal)
    gap = aim - x
    return 0.4 * gap / gap.norm(dim=1, keepdim=True).clamp(min=0.4)


def shown(copies=200, seed=0):
    g = keyed_generator(seed)
    field = Field(copies)
    x = field.reset(g)
    side = 2.0 * torch.randint(2, (copies,), generator=g) - 1
    seen, taken = [[] for _ in range(copies)], [[] for _ in range(copies)]
    done = torch.zeros(copies, dtype=torch.bool)
    for _ in range(30):
        action = expert(x, side) + 0.02 * torch.randn(copies, 2, generator=g)
        for k in (~done).nonzero()[:, 0].tolist():
            seen[k].append(x[k])
            taken[k].append(action[k])
        x, _, ended = field.step(action)
        done |= ended
        if done.all():
            break
    assert done.all()
    return [torch.stack(s) for s in seen], [torch.stack(a) for a in taken]


def trained(model, data, tmp_path, steps=500):
    config = FitConfig(steps=steps, learning_rate=3e-3, validate_every=0, ema=0.98)
    return fit(
        model, data.batches(128), config, folder=tmp_path, progress=None, device="cpu"
    ).model.eval()


def test_a_generative_policy_goes_both_ways_round_and_the_mean_meets_the_obstacle(tmp_path):
    data = demonstrations(*shown(), horizon=4)
    torch.manual_seed(0)
    net = {"width": 96, "blocks": 2, "vector_dim": 2}
    diffusion = build(
        {"family": "flow_matching", "event_shape": [4, 2], "net": net, "sigma_data": 0.4}
    )
    regression = Regression((4, 2), (2,), net={"width": 64, "blocks": 2})
    found = {}
    for name, model in (("generative", diffusion), ("regression", regression)):
        sampler = {"name": "2m", "steps": 8} if name == "generative" else None
        fitted = trained(model, data, tmp_path / name, steps=1000)
        policy = Policy(fitted, execute=2, sampler=sampler)
        found[name] = rollout(policy, Field(200), steps=30, generator=keyed_generator(1))
    success = {name: (run.returns > 0).double().mean().item() for name, run in found.items()}
    print(f"closed-loop success: {success}")
    assert success["generative"] > 0.85  # 0.98 after 1500 steps: examples/policy.py
    assert success["regression"] < 0.2
    run = found["generative"]
    way = run.observations[..., 1].abs().max(0).indices
    side = run.observations[way, torch.arange(200), 1][run.returns > 0] > 0
    assert 0.2 < side.double().mean() < 0.8


@pytest.mark.exact
def test_trajectories_are_cut_into_chunks():
    o = torch.arange(10.0).reshape(5, 2)
    a = torch.arange(5.0)[:, None]
    data = demonstrations([o], [a], horizon=3)
    assert data.actions[:, :, 0].tolist() == [
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [3, 4, 4],
        [4, 4, 4],
    ]
    assert torch.equal(data.seen, o)
    x, context = data.batches(4)(0, keyed_generator(0))
    assert torch.equal(o[x[:, 0, 0].long()], context)


@pytest.mark.exact
def test_goals_are_states_of_the_same_trajectory_that_come_later():
    o = torch.arange(20.0)[:, None]
    data = demonstrations(
        [o[:10], o[10:]], [o[:10], o[10:]], goal=lambda s: 10 * s, generator=keyed_generator(0)
    )
    now, goal = data.seen[:, 0], data.seen[:, 1] / 10
    assert (goal >= now).all()
    assert ((goal < 10) == (now < 10)).all()
    assert (goal > now).any()


def test_goal_conditioned_policies_go_where_they_are_told(tmp_path):
    """Demonstrations wander; the goal says where to."""
    g = keyed_generator(0)
    seen, taken = [], []
    for _ in range(150):
        heading = 2 * math.pi * torch.rand((), generator=g)
        step = 0.3 * torch.stack([heading.cos(), heading.sin()])
        path = torch.cumsum(step.expand(10, 2), 0) - step
        seen.append(path)
        taken.append(step.expand(10, 2))
    data = demonstrations(seen, taken, horizon=2, goal=lambda s: s, generator=g)
    torch.manual_seed(0)
    net = {"width": 64, "blocks": 2, "vector_dim": 4}
    model = build(
        {"family": "flow_matching", "event_shape": [2, 2], "net": net, "sigma_data": 0.2}
    )
    policy = Policy(trained(model, data, tmp_path), execute=1, sampler={"name": "2m", "steps": 8})

    class Open(Field):
        def step(self, action):
            self.x = self.x + action
            return self.x.clone(), torch.zeros(len(action)), torch.zeros(len(action)).bool()

    angle = torch.linspace(0, 2 * math.pi, 60)
    goal = 2.0 * torch.stack([angle.cos(), angle.sin()], 1)
    run = rollout(policy, Open(60), steps=7, goal=goal, generator=keyed_generator(1))
    nearest = (run.observations - goal).norm(dim=2).min(0).values
    assert nearest.median() < 0.5
    assert (run.observations[0] - goal).norm(dim=1).min() > 1.5


class Constant(Regression):
    """Always the same scores."""

    def __init__(self, scores):
        super().__init__((1, 2), (4,))
        self.scores = torch.tensor(scores)

    def sample(self, shape=(), context=None, **options):
        return self.scores.expand(len(context), 1, 2)


def test_gymnasium_tasks_are_rolled_out_as_gymnasium_does():
    gymnasium = pytest.importorskip("gymnasium")
    environment = GymEnvironment("CartPole-v1", 3)
    policy = Policy(Constant([0.0, 1.0]), execute=1)
    run = rollout(policy, environment, steps=100, generator=keyed_generator(2))
    seeds = torch.randint(2**31 - 1, (3,), generator=keyed_generator(2)).tolist()
    for k, seed in enumerate(seeds):
        task, total = gymnasium.make("CartPole-v1"), 0.0
        task.reset(seed=seed)
        done = False
        while not done:
            seen, reward, done, _, _ = task.step(1)
            total += reward
        assert run.returns[k] == total == run.lengths[k]
        assert torch.equal(run.observations[-1, k], torch.as_tensor(seen))
    with pytest.raises(AleatorError, match="copies=0"):
        GymEnvironment("CartPole-v1", 0)


def test_mistakes_are_named():
    o, a = torch.zeros(3, 2), torch.zeros(2, 1)
    with pytest.raises(AleatorError, match="trajectory 0: 3 observations for 2 actions"):
        demonstrations([o], [a])
    with pytest.raises(AleatorError, match="0 of observations"):
        demonstrations([], [])
    with pytest.raises(AleatorError, match="execute=3"):
        Policy(Regression((2, 1), (3,)), execute=3)
    with pytest.raises(AleatorError, match="has no log_prob"):
        Regression((2, 1), (3,)).log_prob(torch.zeros(1, 2, 1))
