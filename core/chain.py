r"""A chain of simulators as composed conditional generators: θ → parton → shower → … → observable.

    p(x | θ) = ∫ p(z_1 | θ) p(z_2 | z_1) ... p(x | z_n) dz

Each stage is a model of any family whose context is what the stage before put out (flattened into
the context's `vector`). Stages are trained side by side on records of the simulator's every step,
and sampled one after another; any of them can be replaced by another family, or by the simulator.
Reference: Cranmer, Brehmer and Louppe (2020) doi:10.1073/pnas.1912789117.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import AleatorError
from core.model import Context, GenerativeModel, Loss, context_batch, expand_context
from core.random import Generators


class Chain(nn.Module):
    """Stages by name, in order."""

    def __init__(self, stages: Mapping[str, GenerativeModel]) -> None:
        """Assemble.

        Args:
            stages: name -> model; the first takes the parameters θ as its context.

        Raises:
            AleatorError: no stage.
        """
        super().__init__()
        if not stages:
            raise AleatorError("a chain needs at least one stage")
        self.stages = nn.ModuleDict(stages)

    def loss(
        self,
        records: Mapping[str, Tensor],
        context: Context,
        *,
        generator: Generators | None = None,
    ) -> Loss:
        """Sum of the stages' losses on records of a simulator.

        Args:
            records: name of each stage -> what it put out, (B, *E).
            context: θ, (B, D) or a mapping.
            generator: stream of the losses.

        Raises:
            AleatorError: a stage without records.
        """
        terms, total, given = {}, None, context
        for name, stage in self._models():
            if name not in records:
                raise AleatorError(f"chain: no records of the stage {name!r}")
            value = stage.loss(records[name], given, generator=generator).value
            terms[name] = value.detach()
            total = value if total is None else total + value
            given = self._given(records[name])
        assert total is not None
        return Loss(total, terms)

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Context = None,
        *,
        samplers: Mapping[str, Any] | None = None,
        generator: Generators | None = None,
    ) -> dict[str, Tensor]:
        """Run the chain.

        Args:
            shape: S.
            context: θ, batch B.
            samplers: name of a stage -> its sampler.
            generator: one stream, or prod(S) · B of them, S-major: each goes on from stage to
                stage.

        Returns:
            name -> what each stage put out, (*S, B, *E).

        Raises:
            AleatorError: no context, or a sampler of a stage that is not there.
        """
        batch = context_batch(context)
        if batch is None:
            raise AleatorError("a chain begins with its parameters: give sample() a context")
        if unknown := set(samplers or {}) - set(self.stages):
            raise AleatorError(
                f"chain: no stage {sorted(unknown)[0]!r}; it has {', '.join(self.stages)}"
            )
        given = expand_context(context, math.prod(shape))
        found = {}
        for name, stage in self._models():
            chosen = (samplers or {}).get(name)
            out = stage.sample((), given, sampler=chosen, generator=generator)
            found[name] = out.reshape(*shape, batch, *stage.event_shape)
            given = self._given(out)
        return found

    def _models(self) -> list[tuple[str, GenerativeModel]]:
        return [(name, stage) for name, stage in self.stages.items()]  # type: ignore[misc]

    @staticmethod
    def _given(out: Tensor) -> Context:
        return out.flatten(1)
