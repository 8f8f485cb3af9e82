"""Imitation on Gymnasium tasks: a generative policy beside behaviour cloning by regression.

    python examples/policy.py [-o FOLDER]        needs `pip install gymnasium`

Obstacle: from (0, 0) to (4, 0) past a disc, which the demonstrations pass on either side; where
they part, the mean of both ways leads into the disc. Pendulum-v1: an expert that swings the
pendulum up by its energy and then holds it. Policies are judged closed-loop, from starts that no
demonstration has; intervals are 95 %, paired by start. About two minutes of one core.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import FitConfig, build, fit
from core.model import GenerativeModel
from core.policy import GymEnvironment, Policy, Regression, demonstrations, rollout
from core.random import keyed_generator
from core.report import Table, provenance, report, write_results, write_text

Expert = Callable[[Tensor, Tensor], Tensor]
"""(observations (B, O), side (B,) of -1 and 1 drawn once an episode) -> actions (B, A)."""
COPIES = 60


def register() -> None:
    """Make the obstacle known to Gymnasium as `Obstacle-v0`."""
    import gymnasium
    import numpy as np

    class Obstacle(gymnasium.Env):  # type: ignore[misc]
        """Velocities up to 0.5; 1 at the goal, 0 in the disc about (1.5, 0)."""

        observation_space = gymnasium.spaces.Box(-10, 10, (2,), np.float32)
        action_space = gymnasium.spaces.Box(-0.5, 0.5, (2,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.at = 0.05 * self.np_random.standard_normal(2)
            return self.at.astype(np.float32), {}

        def step(self, action: Any) -> Any:
            self.at = self.at + action * min(1.0, 0.5 / max(float(np.hypot(*action)), 1e-9))
            met = np.hypot(self.at[0] - 1.5, self.at[1]) < 0.9
            there = np.hypot(self.at[0] - 4, self.at[1]) < 0.6
            return self.at.astype(np.float32), float(there), bool(met or there), False, {}

    if "Obstacle-v0" not in gymnasium.registry:
        gymnasium.register("Obstacle-v0", entry_point=Obstacle, max_episode_steps=30)


def round_it(seen: Tensor, side: Tensor) -> Tensor:
    """Past the disc on one side, then to the goal."""
    waypoint = torch.stack([torch.full_like(side, 1.5), 1.7 * side], 1)
    aim = torch.where(seen[:, :1] < 1.4, waypoint, torch.tensor([4.0, 0.0]))
    gap = aim - seen
    return 0.4 * gap / gap.norm(dim=1, keepdim=True).clamp(min=0.4)


def swing_up(seen: Tensor, side: Tensor) -> Tensor:
    """Pump energy until it is that of the upright pendulum, then hold; `side` is a first push."""
    cosine, sine, rate = seen.unbind(1)
    angle, lacking = torch.atan2(sine, cosine), 5 - (rate.square() / 6 + 5 * cosine)
    push = torch.where(rate.abs() < 0.3, side, rate.sign())
    hold = -(10 * angle + 2.5 * rate)
    torque = torch.where((angle.abs() < 0.5) & (rate.abs() < 4), hold, 1.5 * lacking * push)
    return torque.clamp(-2, 2)[:, None]


TASKS: dict[str, tuple[Expert, int, int, float, int]] = {
    "Obstacle-v0": (round_it, 30, 30, 0.02, 200),
    "Pendulum-v1": (swing_up, 200, 60, 0.1, 200),
}
"""Name -> expert, steps of an episode and of a demonstration, noise of its actions, how many.

Demonstrations of the pendulum end soon after it is up: four states in five would else be at rest.
"""


class Follows(GenerativeModel):
    """The expert itself as a model of chunks of one action."""

    def __init__(self, expert: Expert, shape: tuple[int, int], context: int) -> None:
        super().__init__()
        self.expert, self.side = expert, torch.empty(0)
        self.event_shape, self.context_shape = torch.Size(shape), torch.Size([context])

    def loss(self, x: Tensor, context: Any = None, *, generator: Any = None) -> Any:  # noqa: D102
        raise TypeError("the expert is not trained")

    def sample(self, shape: Any = (), context: Any = None, **options: Any) -> Tensor:  # noqa: D102
        if len(self.side) != len(context):
            g = keyed_generator(7, len(context))
            self.side = 2.0 * torch.randint(2, (len(context),), generator=g) - 1
        return self.expert(context, self.side)[:, None]


def shown(task: str) -> tuple[list[Tensor], list[Tensor]]:
    """Observations and actions of the expert's episodes, with a little noise on the actions."""
    expert, _, steps, noise, copies = TASKS[task]
    generator = keyed_generator(0)
    environment = GymEnvironment(task, copies)
    seen = environment.reset(generator)
    side = 2.0 * torch.randint(2, (copies,), generator=generator) - 1
    observed: list[list[Tensor]] = [[] for _ in range(copies)]
    acted: list[list[Tensor]] = [[] for _ in range(copies)]
    done = torch.zeros(copies, dtype=torch.bool)
    for _ in range(steps):
        action = expert(seen, side)
        action = action + noise * torch.randn(action.shape, generator=generator)
        for k in (~done).nonzero()[:, 0].tolist():
            observed[k].append(seen[k])
            acted[k].append(action[k])
        seen, _, ended = environment.step(action)
        done |= ended
        if done.all():
            break
    return [torch.stack(o) for o in observed], [torch.stack(a) for a in acted]


def policies(task: str, steps: int) -> dict[str, Policy]:
    """The expert, and both ways of imitating it on the same demonstrations."""
    data = demonstrations(*shown(task), horizon=4)
    (actions, size), seen = data.actions.shape[1:], data.seen.shape[1]
    net = {"width": 96, "blocks": 2, "vector_dim": seen}
    spread = data.actions.std().item()
    torch.manual_seed(0)
    models: dict[str, GenerativeModel] = {
        "flow matching": build(
            {
                "family": "flow_matching",
                "event_shape": [actions, size],
                "net": net,
                "sigma_data": spread,
            }
        ),
        "regression": Regression((actions, size), (seen,), net={"width": 96, "blocks": 2}),
    }
    options = FitConfig(steps=steps, learning_rate=3e-3, validate_every=0, ema=0.98)
    found = {"expert": Policy(Follows(TASKS[task][0], (1, size), seen), execute=1)}
    for name, model in models.items():
        with tempfile.TemporaryDirectory() as folder:
            fitted = fit(
                model, data.batches(128), options, folder=folder, device="cpu", progress=None
            )
        sampler = {"name": "2m", "steps": 8} if name == "flow matching" else None
        found[name] = Policy(fitted.model.eval(), execute=2, sampler=sampler)
    return found


def study(task: str, steps: int = 1500) -> list[dict[str, Any]]:
    """A row for each policy: mean return over starts, and the gain on regression."""
    returns = {}
    for name, policy in policies(task, steps).items():
        environment = GymEnvironment(task, COPIES)
        run = rollout(policy, environment, steps=TASKS[task][1], generator=keyed_generator(1))
        returns[name] = run.returns.double()
    rows = []
    for name, value in returns.items():
        gap = value - returns["regression"]
        half = 1.96 * gap.std().item() / math.sqrt(COPIES)
        mean = gap.mean().item()
        rows.append(
            {
                "task": task,
                "policy": name,
                "return": value.mean().item(),
                "error": value.std().item() / math.sqrt(COPIES),
                "gain": None if name == "regression" else f"{mean:.2f} ± {half:.2f}",
                "gain_low": mean - half,
            }
        )
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/policy"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        register()
    except ImportError:
        parser.error("gymnasium is not installed: pip install gymnasium")
    rows = [row for task in TASKS for row in study(task)]
    columns = {"task": "task", "policy": "policy", "return": "return", "error": "± s.e."}
    columns |= {"gain": "more than regression"}
    formats = {"return": ".2f", "error": ".2f"}
    found = Table(rows, columns, formats, title=f"Mean return of {COPIES} episodes, closed-loop")
    made_by = {**provenance(), "command": "python examples/policy.py"}
    results = write_results(options.out / "policy.json", [found], made_by=made_by)
    write_text(options.out / "policy.md", report(results, "Imitation, closed-loop"))
    found.print()


if __name__ == "__main__":
    main()
