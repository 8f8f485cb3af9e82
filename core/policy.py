r"""Imitation as conditional generation: a policy is a model of actions given what is seen.

    π(a_{t:t+H} | o_t, g)     chunks of H actions; the first `execute` of them are carried out

A generative policy draws one of the ways in which demonstrators acted; regression on the same
data acts out their mean, which may be none of them. What counts is measured *closed-loop*: errors
lead to states that no demonstration shows. Goals are states that demonstrations reached later
(hindsight). References: Chi et al. (2023) arXiv:2303.04137 (diffusion policy); Ding et al. (2019)
arXiv:1906.05838 (goal-conditioned imitation); Ross et al. (2011) arXiv:1011.0686 (shift).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from core.checks import check_examples
from core.errors import AleatorError
from core.model import Context, GenerativeModel, Loss, context_batch, expand_context
from core.random import Generators


class Environment(Protocol):
    """Some copies of a task, side by side."""

    def reset(self, generator: torch.Generator) -> Tensor:
        """First observations (B, O)."""

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Act (B, A): observations (B, O), rewards (B,), and who is done (B,) for good."""


@dataclass(frozen=True)
class Demonstrations:
    """Chunks of actions and what was seen before each.

    Attributes:
        actions: (N, H, A).
        seen: (N, O) or (N, O + G): observation, and goal if there is one.
    """

    actions: Tensor
    seen: Tensor

    def batches(self, size: int) -> Callable[[int, torch.Generator], tuple[Tensor, Context]]:
        """For `core.training.fit`: actions and the context that they are conditioned on."""

        def batch(step: int, generator: torch.Generator) -> tuple[Tensor, Context]:
            rows = torch.randint(len(self.actions), (size,), generator=generator)
            return self.actions[rows], self.seen[rows]

        return batch


def demonstrations(
    observations: Sequence[Tensor],
    actions: Sequence[Tensor],
    *,
    horizon: int = 8,
    goal: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Demonstrations:
    """Cut trajectories into chunks.

    Args:
        observations: each (T, O), what was seen before each action.
        actions: each (T, A).
        horizon: H; the last action is repeated beyond the end.
        goal: observation (O,) -> goal (G,) that it attains: each chunk is given that of a state
            later in its own trajectory, drawn uniformly. No goals if None.
        generator: of the goals.

    Raises:
        AleatorError: trajectories that do not match, or none.
    """
    if not observations or len(observations) != len(actions) or horizon < 1:
        raise AleatorError(
            f"demonstrations: {len(observations)} of observations, {len(actions)} of actions, "
            f"horizon={horizon}; one each and a positive horizon are needed"
        )
    chunks, seen = [], []
    for number, (o, a) in enumerate(zip(observations, actions, strict=True)):
        if len(o) != len(a) or not len(a):
            raise AleatorError(
                f"trajectory {number}: {len(o)} observations for {len(a)} actions; one before each"
            )
        padded = torch.cat([a, a[-1:].expand(horizon - 1, -1)])
        for t in range(len(a)):
            chunks.append(padded[t : t + horizon])
            parts = [o[t]]
            if goal is not None:
                later = int(torch.randint(t, len(o), (), generator=generator))
                parts.append(goal(o[later]))
            seen.append(torch.cat(parts))
    return Demonstrations(torch.stack(chunks), torch.stack(seen))


@dataclass(frozen=True)
class Policy:
    """A model of chunks of actions (H, A) given a vector, as something that acts.

    Attributes:
        model: of any family, trained on `Demonstrations`.
        execute: how many actions of a chunk are carried out before it looks again.
        sampler: of the model.
    """

    model: GenerativeModel
    execute: int = 4
    sampler: Any = None

    def __post_init__(self) -> None:
        if len(self.model.event_shape) != 2 or not 1 <= self.execute <= self.model.event_shape[0]:
            raise AleatorError(
                f"policy: a model of chunks (H, A) and 1 ≤ execute ≤ H are needed, not events "
                f"{tuple(self.model.event_shape)} and execute={self.execute}"
            )

    def act(
        self, seen: Tensor, goal: Tensor | None = None, generator: Generators | None = None
    ) -> Tensor:
        """Chunks (B, H, A) given observations (B, O) and goals (B, G)."""
        context = seen if goal is None else torch.cat([seen, goal], 1)
        return self.model.sample((), context, sampler=self.sampler, generator=generator)


@dataclass(frozen=True)
class Rollout:
    """What happened, closed-loop.

    Attributes:
        observations: (T + 1, B, O); those of who is done stay as they were.
        actions: (T, B, A).
        returns: (B,) sums of rewards until done.
        lengths: (B,) steps until done.
    """

    observations: Tensor
    actions: Tensor
    returns: Tensor
    lengths: Tensor


def rollout(
    policy: Policy,
    environment: Environment,
    *,
    steps: int,
    goal: Tensor | None = None,
    generator: torch.Generator,
) -> Rollout:
    """Let a policy act.

    Args:
        policy: what acts.
        environment: where.
        steps: at most so many.
        goal: (B, G).
        generator: of the environment's start and the policy's draws.
    """
    seen = environment.reset(generator)
    done = torch.zeros(len(seen), dtype=torch.bool)
    returns, lengths = seen.new_zeros(len(seen)), torch.zeros(len(seen), dtype=torch.long)
    states, taken = [seen], []
    chunk = seen.new_empty(0)
    for t in range(steps):
        position = t % policy.execute
        if position == 0:
            chunk = policy.act(seen, goal, generator)
        action = chunk[:, position]
        after, reward, ended = environment.step(action)
        seen = torch.where(done[:, None], seen, after)
        returns = returns + torch.where(done, 0.0, reward)
        lengths += ~done
        done = done | ended
        states.append(seen)
        taken.append(action)
        if done.all():
            break
    return Rollout(torch.stack(states), torch.stack(taken), returns, lengths)


class Regression(GenerativeModel):
    """Behaviour cloning by regression: the mean action, whatever the draw. A baseline."""

    takes_net = False
    unsupported: ClassVar[Mapping[str, str]] = {"posterior": "it is no law of actions"}

    def __init__(
        self,
        event_shape: Sequence[int],
        context_shape: Sequence[int],
        *,
        net: nn.Module | Mapping[str, Any] | None = None,
    ) -> None:
        """`net`: context vector (B, D) -> (B, *E); an MLP by default."""
        super().__init__()
        from core.vae.base import make_net

        self.event_shape = torch.Size(event_shape)
        self.context_shape = torch.Size(context_shape)
        self.net = make_net(net, tuple(context_shape), tuple(event_shape))

    def mean(self, context: Context) -> Tensor:
        """Mean actions (B, *E) of a context vector (B, D)."""
        vector = context.get("vector") if isinstance(context, Mapping) else context
        if vector is None:
            raise AleatorError("regression needs a context vector (B, D)")
        return self.net(vector, vector.new_zeros(len(vector)), None)

    def loss(
        self, x: Tensor, context: Context = None, *, generator: Generators | None = None
    ) -> Loss:
        """Mean squared error of actions x (B, *E), (B,)."""
        check_examples(x, self.event_shape, context)
        value = (x - self.mean(context)).square().flatten(1).mean(1)
        return Loss(value, {"mse": value.detach()})

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        sampler: Any = None,
        guidance: Any = None,
        generator: Generators | None = None,
    ) -> Tensor:
        """The mean, as often as asked: (*S, B, *E)."""
        draws = math.prod(shape)
        out = self.mean(expand_context(context, draws))
        return out.reshape(*shape, context_batch(context) or 1, *self.event_shape)


class GymEnvironment:
    """Copies of a Gymnasium task with vectors as observations; needs `pip install gymnasium`."""

    def __init__(self, name: str, copies: int, **options: Any) -> None:
        """`name` and `options` as for `gymnasium.make`.

        Raises:
            AleatorError: gymnasium is not installed, or `copies` is not positive.
        """
        try:
            import gymnasium
        except ImportError:
            raise AleatorError("gymnasium is not installed: pip install gymnasium") from None
        if copies < 1:
            raise AleatorError(f"gym environment: copies={copies}; at least one is needed")
        self.tasks = [gymnasium.make(name, **options) for _ in range(copies)]
        self.discrete = hasattr(self.tasks[0].action_space, "n")
        self.ended = [False] * copies
        self.last: list[Tensor] = []

    def reset(self, generator: torch.Generator) -> Tensor:
        """First observations (B, O), seeded by the generator."""
        seeds = torch.randint(2**31 - 1, (len(self.tasks),), generator=generator).tolist()
        self.ended = [False] * len(self.tasks)
        self.last = [
            torch.as_tensor(task.reset(seed=seed)[0], dtype=torch.float32)
            for task, seed in zip(self.tasks, seeds, strict=True)
        ]
        return torch.stack(self.last)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Act (B, A); discrete actions are the largest of A scores."""
        rewards = torch.zeros(len(self.tasks))
        for k, (task, row) in enumerate(zip(self.tasks, action, strict=True)):
            if self.ended[k]:
                continue
            chosen: Any = int(row.argmax()) if self.discrete else row.detach().cpu().numpy()
            seen, reward, terminated, truncated, _ = task.step(chosen)
            self.last[k] = torch.as_tensor(seen, dtype=torch.float32)
            rewards[k], self.ended[k] = float(reward), bool(terminated or truncated)
        return torch.stack(self.last), rewards, torch.tensor(self.ended)
