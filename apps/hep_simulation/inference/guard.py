r"""Is this set like anything that was simulated? A misfit test and a check of ranges.

    r = t̄ - b - B û,   D² = n rᵀ S⁻¹ r,   û the least-squares estimate of u given t̄

t̄ is the mean of standardised observables and their squares; b, B and S come from training sets.
Under the training distribution D² is about χ²; its actual law, nonlinearity included, is taken
from training sets of the same size, so that 1 % of good sets are flagged at p < 0.01. A set of
more events than any in training is judged block by block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_KNOTS = 400
"""Quantiles of D² that are kept."""


@dataclass(frozen=True)
class Guard:
    """What sets of the training distribution look like.

    Attributes:
        offset: (K,) b.
        slope: (D, K) B.
        precision: (K, K) S⁻¹.
        low: (F,) least standardised observables in training.
        high: (F,) greatest.
        counts: (C,) set sizes at which D² was tabulated.
        table: (C, Q) sorted D² of training sets.
    """

    offset: Tensor
    slope: Tensor
    precision: Tensor
    low: Tensor
    high: Tensor
    counts: Tensor
    table: Tensor

    @classmethod
    def fit(cls, u: Tensor, events: Tensor, counts: list[int]) -> Guard:
        """From training parameters (N, D) and standardised sets (N, M, F)."""
        t, flat = _statistics(events), u.double()
        design = torch.cat([torch.ones(len(flat), 1).double(), flat], 1)
        fitted = torch.linalg.lstsq(design, t.mean(1)).solution
        within = t - t.mean(1, keepdim=True)
        noise = torch.einsum("nei,nej->ij", within, within) / (len(t) * max(1, t.shape[1] - 1))
        noise = noise + 1e-6 * noise.diagonal().mean() * torch.eye(len(noise)).to(noise)
        flat_events = events.flatten(0, 1)
        guard = cls(
            fitted[0], fitted[1:], torch.linalg.inv(noise),
            flat_events.amin(0), flat_events.amax(0), torch.tensor(counts), torch.zeros(0),
        )  # fmt: skip
        levels = torch.linspace(0, 1, _KNOTS, dtype=torch.float64)
        table = [guard.distance(events[:, :n]).quantile(levels) for n in counts]
        return cls(**{**vars(guard), "table": torch.stack(table)})

    def distance(self, events: Tensor) -> Tensor:
        """D² (B,) of sets (B, n, F)."""
        gap = _statistics(events).mean(1) - self.offset
        weights = self.slope @ self.precision
        best = torch.linalg.lstsq(weights @ self.slope.T, (gap @ weights.T).T).solution.T
        r = gap - best @ self.slope
        return events.shape[1] * torch.einsum("bi,ij,bj->b", r, self.precision, r)

    def misfit(self, events: Tensor) -> Tensor:
        """P-values (B,): share of training sets of this size that fit as badly."""
        size = events.shape[1]
        most = int(self.counts[-1])
        if size > most:
            blocks = events[:, : size // most * most].unflatten(1, (-1, most))
            p = torch.stack([self.misfit(block) for block in blocks.unbind(1)], 1)
            return (p.amin(1) * p.shape[1]).clamp(max=1)  # Bonferroni over the blocks
        row = int((self.counts <= size).sum()) - 1
        table = self.table[max(row, 0)]
        above = len(table) - torch.searchsorted(table, self.distance(events).contiguous())
        return (above + 1).double() / (len(table) + 1)

    def predictive(self, events: Tensor, u: Tensor) -> Tensor:
        """Posterior predictive check of the mean of every observable.

            p = P[mean of n new events < observed mean],   averaged over the posterior

        The mean of n events given u is taken as Gaussian (b + B u, S/n).

        Args:
            events: (n, F) one standardised set.
            u: (S, D) draws of its posterior.

        Returns:
            (F,) p in (0, 1): near 0 or 1 the posterior does not explain what was seen.
        """
        features = events.shape[1]
        mean = (self.offset + u.double() @ self.slope)[:, :features]
        noise = torch.linalg.inv(self.precision).diagonal()[:features]
        gap = events.double().clamp(-10, 10).mean(0) - mean
        return torch.special.ndtr(gap / (noise / len(events)).sqrt()).mean(0)

    def outside(self, events: Tensor) -> Tensor:
        """Share (B,) of events with an observable beyond all of training."""
        margin = 0.05 * (self.high - self.low)
        out = (events < self.low - margin) | (events > self.high + margin)
        return out.any(2).double().mean(1)

    def tensors(self) -> dict[str, Tensor]:
        """For the checkpoint."""
        return dict(vars(self))


def _statistics(events: Tensor) -> Tensor:
    s = events.double().clamp(-10, 10)
    return torch.cat([s, s.square()], -1)
