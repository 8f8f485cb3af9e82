r"""Is a posterior sampler right on average? Every check here is a rank that must be uniform.

For (θ, y) from the simulator and θ_1 ... θ_S from q(θ | y), any f(θ, y) ranks f(θ) among f(θ_s)
uniformly on {0, ..., S} if q is the posterior:

    SBC                 f(θ) = θ_d, one rank for each parameter
    TARP                f(θ) = |θ - r(y)|, distance from a reference point
    expected coverage   f(θ) = -ln q(θ | y): the level of the highest-density region through θ

SBC looks at marginals; TARP with many references is also sufficient: uniform for all of them
means q is right. No check sees what the prior itself would pass (a q equal to the prior has
uniform SBC ranks). References: Talts et al. (2018) arXiv:1804.06788; Lemos et al. (2023)
arXiv:2302.03026; Hermans et al. (2022) arXiv:2110.06581; Säilynoja et al. (2022) arXiv:2103.10522
(the band).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import AleatorError
from core.evaluation.calibration import ranks_of
from core.random import rand


@dataclass(frozen=True)
class Coverage:
    """How often the truth lies inside regions of given levels.

    Attributes:
        levels: (L,) what is promised.
        found: (L,) what is observed; below the level is over-confident.
        low: (L,) lower ends of Wilson's confidence intervals.
        high: (L,) upper ends.
    """

    levels: Tensor
    found: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Ranks:
    """Ranks of truths among draws.

    Attributes:
        ranks: (N,) or (N, D) integers from 0 to S.
        draws: S.
    """

    ranks: Tensor
    draws: int

    def coverage(
        self, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95), confidence: float = 0.95
    ) -> Coverage:
        """Frequency of (rank + U) / (S + 1) ≤ level over all ranks, U uniform and averaged out.

        For TARP and expected coverage: how often the truth is in the region of that level.
        """
        _check_levels((*levels, confidence))
        first = self.ranks.double().flatten()[:, None] / (self.draws + 1)
        inside = (torch.tensor(levels, dtype=torch.float64) - first) * (self.draws + 1)
        found = inside.clamp(0, 1).mean(0)
        low, high = wilson(found, len(self.ranks), confidence)
        return Coverage(torch.tensor(levels, dtype=torch.float64), found, low, high)

    def p_value(self, simulations: int = 2000) -> Tensor:
        """Probability, were all ranks uniform, of a cumulative histogram as far off, () or (D,).

        The distance is the least two-sided binomial probability over all points of the empirical
        distribution, and its law is simulated: right for any N and S. Of D parameters the least
        is expected to be about 1 / (D + 1).
        """
        columns = self.ranks.reshape(len(self.ranks), -1)
        table, null = _cut_points(len(columns), self.draws, simulations)
        observed = _least(table, _histogram(columns, self.draws))
        p = (1 + (null[None] <= observed[:, None]).sum(1)) / (1 + len(null))
        return p.reshape(self.ranks.shape[1:])

    def band(self, confidence: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
        """Points z and the simultaneous band around z in which the ECDF of uniform ranks stays.

        Returns:
            z, low and high, each (K,): for plots of `ecdf` against z.
        """
        _check_levels((confidence,))
        n = len(self.ranks)
        table, null = _cut_points(n, self.draws, 2000)
        gamma = null.sort().values[math.floor((1 - confidence) * len(null))]
        inside = table >= gamma
        low = inside.double().argmax(0)
        high = n - inside.flip(0).double().argmax(0)
        return _points(self.draws), low / n, high / n

    def flat(self) -> Ranks:
        """The same without an axis of parameters, where there is one parameter."""
        return Ranks(self.ranks.squeeze(-1), self.draws)

    def ecdf(self) -> Tensor:
        """Share of ranks below each point of `band`, (K,) or (K, D)."""
        columns = self.ranks.reshape(len(self.ranks), -1)
        shares = _histogram(columns, self.draws).T / len(columns)
        return shares.reshape(-1, *self.ranks.shape[1:])


def sbc(draws: Tensor, truth: Tensor, generator: torch.Generator | None = None) -> Ranks:
    """Simulation-based calibration: the rank of each parameter among its posterior draws.

    Args:
        draws: (S, N, D) from q(θ | y_n).
        truth: (N, D) the θ that y_n was simulated with.
        generator: breaks ties at random.

    Raises:
        AleatorError: shapes do not match, or values are missing.
    """
    _check_draws(draws, truth)
    below, ties, valid = ranks_of(draws, truth)
    if not valid.all():
        raise AleatorError("sbc: NaN among draws or truths")
    u = rand(truth.shape, generator, device=truth.device, dtype=torch.float64)
    return Ranks((below + (u * (ties + 1)).long().minimum(ties)).cpu(), len(draws))


def tarp(
    draws: Tensor,
    truth: Tensor,
    references: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Ranks:
    """Tests of accuracy with random points: the rank of the truth's distance from a reference.

    Args:
        draws: (S, N, D) from q(θ | y_n).
        truth: (N, D).
        references: (N, D) points, which may depend on y_n but not on θ_n; by default uniform in
            the box of all truths. Distances are taken in units of the truths' spread.
        generator: of the references.

    Raises:
        AleatorError: shapes do not match, or values are missing.
    """
    _check_draws(draws, truth)
    low, high = truth.amin(0), truth.amax(0)
    if references is None:
        u = rand(truth.shape, generator, device=truth.device, dtype=truth.dtype)
        references = low + (high - low) * u
    elif references.shape != truth.shape:
        raise AleatorError(
            f"tarp: references of shape {tuple(references.shape)} for truths {tuple(truth.shape)}"
        )
    spread = truth.std(0).clamp(min=torch.finfo(truth.dtype).tiny)
    near = ((draws - references) / spread).square().sum(-1)
    return sbc(near[..., None], ((truth - references) / spread).square().sum(-1)[:, None]).flat()


def expected_coverage(
    log_q_draws: Tensor, log_q_truth: Tensor, generator: torch.Generator | None = None
) -> Ranks:
    """Expected coverage of highest-density regions.

    Args:
        log_q_draws: (S, N) ln q(θ_s | y_n) of draws of q(· | y_n).
        log_q_truth: (N,) ln q(θ_n | y_n).
        generator: breaks ties at random.

    Returns:
        ranks of the truth by falling density: `coverage` says how often the region of highest
        density with a given mass holds the truth.
    """
    return sbc(-log_q_draws[..., None], -log_q_truth[:, None], generator).flat()


def wilson(share: Tensor, n: int, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Wilson's interval of a probability observed as a share of n trials."""
    from scipy import stats

    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)).sqrt()
    return (centre - half).clamp(min=0), (centre + half).clamp(max=1)


def _points(draws: int) -> Tensor:
    """At most 100 points of the rank's distribution function: P(rank < k) = k / (S + 1)."""
    count = min(draws, 100)
    k = (torch.arange(1, count + 1, dtype=torch.float64) * (draws + 1) / (count + 1)).round()
    return k / (draws + 1)


def _histogram(columns: Tensor, draws: int) -> Tensor:
    """Numbers of ranks (N, D) below each point, (D, K)."""
    edges = (_points(draws) * (draws + 1)).round()
    ranked = columns.double().T.contiguous().sort(1).values
    return torch.searchsorted(ranked, edges.expand(len(ranked), -1).contiguous())


@functools.lru_cache(maxsize=16)
def _cut_points(n: int, draws: int, simulations: int) -> tuple[Tensor, Tensor]:
    """Two-sided probabilities of counts 0 ... n at each point (n + 1, K), and simulated minima."""
    from scipy import stats

    z, counts = _points(draws).numpy(), torch.arange(n + 1).numpy()[:, None]
    below = torch.as_tensor(stats.binom.cdf(counts, n, z))
    above = torch.as_tensor(stats.binom.sf(counts - 1, n, z))
    table = 2 * below.minimum(above)
    generator = torch.Generator().manual_seed(0)  # part of the test's definition, not of its data
    parts = [
        _histogram(torch.randint(draws + 1, (n, 100), generator=generator), draws)
        for _ in range(math.ceil(simulations / 100))
    ]
    return table, _least(table, torch.cat(parts))


def _least(table: Tensor, found: Tensor) -> Tensor:
    """The least probability of counts (D, K) over all points, (D,)."""
    return table.gather(0, found.long()).amin(1)


def _check_levels(levels: Sequence[float]) -> None:
    if not all(0 < level < 1 for level in levels):
        raise AleatorError(f"levels {list(levels)} are not all between 0 and 1")


def _check_draws(draws: Tensor, truth: Tensor) -> None:
    if draws.dim() != 3 or truth.dim() != 2 or draws.shape[1:] != truth.shape or not len(draws):
        raise AleatorError(
            f"draws of shape {tuple(draws.shape)} for truths {tuple(truth.shape)}; (S, N, D) and "
            "(N, D) are needed"
        )
