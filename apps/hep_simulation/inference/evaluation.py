"""Is the posterior right on average? Scores on simulations whose parameters are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apps.hep_simulation.inference.data import EventSets
from apps.hep_simulation.inference.posterior import Inference
from core.errors import AleatorError
from core.evaluation import Ranks, expected_coverage, sbc, tarp
from core.random import keyed_generator


@dataclass(frozen=True)
class Judged:
    """Scores of a posterior on test simulations.

    Attributes:
        log_q: (N,) ln q(u | x) of the truths in nats; the prior has 0.
        ranks: of every parameter (SBC).
        distances: of the truth from random points (TARP).
        regions: of the truth by falling density (expected coverage).
        draws: (S, N, D) of u.
        truth: (N, D).
    """

    log_q: Tensor
    ranks: Ranks
    distances: Ranks
    regions: Ranks
    draws: Tensor
    truth: Tensor

    def row(self) -> dict[str, Any]:
        """Numbers for a table."""
        inner = self.ranks.ranks.double() / self.ranks.draws
        p = self.ranks.p_value()
        return {
            "log_q": self.log_q.mean().item(),
            "stderr": self.log_q.std().item() / len(self.log_q) ** 0.5,
            "cover_68": ((inner - 0.5).abs() < 0.34).double().mean().item(),
            "cover_95": ((inner - 0.5).abs() < 0.475).double().mean().item(),
            "sbc_p": p.min().item(),
            "sbc_p_each": ", ".join(f"{value:.2f}" for value in p.tolist()),
            "tarp_p": self.distances.p_value().item(),
            "region_68": self.regions.coverage((0.68,)).found.item(),
            "region_p": self.regions.p_value().item(),
            "shrink": ", ".join(
                f"{v:.2f}" for v in (self.draws.std(0).mean(0) * 12**0.5).tolist()
            ),
        }


def judge(model: Inference, sets: EventSets, *, draws: int = 500, seed: int = 0) -> Judged:
    """Score a model on simulations that it was not trained on.

    Args:
        model: trained.
        sets: with `theta`; take `sets.first(n)` for n events a set.
        draws: a set.
        seed: of the draws.

    Raises:
        AleatorError: the truths are not known.
    """
    if sets.theta is None:
        raise AleatorError(f"{sets.source}: no theta; only simulations can be judged")
    truth = torch.as_tensor(model.prior.to_unit(sets.theta))
    drawn, at_draws, at_truth = [], [], []
    for k, x in enumerate(np.asarray(sets.x)):
        u = model.sample_unit(x, draws, keyed_generator(seed, k))
        found = model.log_prob_unit(torch.cat([u, truth[k][None]]), x).value
        drawn.append(u)
        at_draws.append(found[:-1])
        at_truth.append(found[-1])
    u, log_truth = torch.stack(drawn, 1), torch.stack(at_truth)
    generator = keyed_generator(seed, -1)
    return Judged(
        log_truth, sbc(u, truth, generator),
        tarp(u, truth, torch.rand(truth.shape, generator=generator, dtype=torch.float64)),
        expected_coverage(torch.stack(at_draws, 1), log_truth, generator), u, truth,
    )  # fmt: skip
