r"""How far two samples are apart, and how sure one can be of it.

    energy    2 E|X - Y| - E|X - X'| - E|Y - Y'|
    MMD²      E k(X, X') + E k(Y, Y') - 2 E k(X, Y)
    sliced W  (E_θ W_p^p(θ·X, θ·Y))^{1/p},  θ uniform on the sphere
    Fréchet   |m - n|² + Tr(A + B - 2 (A B)^{1/2}),  means m, n and covariances A, B of features

All are zero between equal distributions. Energy and MMD² are unbiased estimates, which may come
out negative; the other two are too large by a term that falls with the number of examples, and
the jackknife takes its leading part away. Standard errors are those of the delete-a-group
jackknife over both samples. Near zero the estimates are not normal: whether two samples differ at
all is for the permutation test to say. References: Székely and Rizzo (2013)
doi:10.1016/j.jspi.2013.03.018; Gretton et al. (2012) JMLR 13:723; Bonneel et al. (2015)
doi:10.1007/s10851-014-0506-3; Heusel et al. (2017) arXiv:1706.08500.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.errors import AleatorError
from core.random import randn

_BLOCK = 1 << 22
"""Elements of the largest matrix of pairs that is held at once."""

Statistic = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Distance:
    """An estimate with its uncertainty.

    Attributes:
        value: the estimate.
        stderr: its standard error over fresh samples.
        low: lower end of the confidence interval (Student's t around the value).
        high: upper end.
        p_value: probability of as large a value between samples of one distribution, by
            permutation; None where it was not asked for.
    """

    value: float
    stderr: float
    low: float
    high: float
    p_value: float | None = None


def energy_distance(x: Tensor, y: Tensor, **options: Any) -> Distance:
    """Energy distance of x (N, *E) and y (M, *E), by unbiased U-statistics.

    SciPy's one-dimensional `energy_distance` is the square root of the biased form.

    Args:
        x: one sample.
        y: the other.
        **options: groups, level, permutations, generator, as for `mmd`.
    """
    return _pairwise(lambda a, b: -torch.cdist(a, b, compute_mode=_EXACT), x, y, **options)


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    bandwidths: Sequence[float] | None = None,
    **options: Any,
) -> Distance:
    r"""Squared maximum mean discrepancy with a mean of Gaussian kernels exp(-|a - b|² / 2h²).

    Args:
        x: (N, *E) one sample.
        y: (M, *E) the other.
        bandwidths: values of h; by default half, one and two times the median distance within
            the pooled sample.
        **options: groups (of the jackknife, 20), level (of the interval, 0.95), permutations (of
            the test; 0 for none), generator (of the permutations).

    Returns:
        the unbiased estimate of MMD².

    Raises:
        AleatorError: samples that do not match or are too small, or an option out of range.
    """
    if bandwidths is None:
        median = median_distance(*two_samples(x, y))
        bandwidths = (0.5 * median, median, 2 * median)
    if not bandwidths or min(bandwidths) <= 0:
        raise AleatorError(f"mmd: bandwidths={list(bandwidths)}; they must be positive")

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = torch.cdist(a, b, compute_mode=_EXACT).square()
        return torch.stack([(-0.5 * squared / h**2).exp() for h in bandwidths]).mean(0)

    return _pairwise(kernel, x, y, **options)


def median_distance(x: Tensor, y: Tensor, most: int = 1000) -> float:
    """Median distance between examples of the pooled sample, of each the first `most`."""
    pooled = torch.cat([x[:most], y[:most]])
    median = torch.pdist(pooled).median().item()
    if median == 0:
        raise AleatorError("mmd: over half of all examples are equal; give bandwidths")
    return median


def sliced_wasserstein(
    x: Tensor,
    y: Tensor,
    *,
    projections: int = 256,
    order: float = 2.0,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Distance:
    """Sliced Wasserstein distance of x (N, *E) and y (M, *E), in the unit of the data.

    Args:
        x: one sample.
        y: the other; of any size.
        projections: directions, drawn once: the same for samples and subsamples.
        order: p ≥ 1.
        generator: directions and permutations.
        **options: groups, level, permutations, as for `mmd`.

    Returns:
        the estimate as it is, too large where the samples are few.

    Raises:
        AleatorError: samples that do not match or are too small, or an option out of range.
    """
    x, y = two_samples(x, y)
    if order < 1 or projections < 1:
        raise AleatorError(f"sliced_wasserstein: order={order}, projections={projections}: ≥ 1")
    directions = randn((x.shape[1], projections), generator, device=x.device, dtype=x.dtype)
    directions = directions / directions.norm(dim=0)

    def statistic(a: Tensor, b: Tensor) -> float:
        return _transport(a, b, order).mean().item() ** (1 / order)

    return jackknife(statistic, x @ directions, y @ directions, generator=generator, **options)


def _transport(x: Tensor, y: Tensor, order: float) -> Tensor:
    """W_p^p of the columns of x (N, K) and y (M, K), (K,): quantiles against quantiles."""
    n, m = len(x), len(y)
    x, y = x.sort(0).values, y.sort(0).values
    if n == m:
        return (x - y).abs().pow(order).mean(0)
    # Both quantile functions are constant between consecutive multiples of 1/n and 1/m.
    edges = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    width = edges.diff().to(x) / (n * m)
    start = edges[:-1]
    gap = (x[(start // m).to(x.device)] - y[(start // n).to(y.device)]).abs().pow(order)
    return (width[:, None] * gap).sum(0)


def frechet_distance(
    x: Tensor,
    y: Tensor,
    *,
    corrected: bool = True,
    **options: Any,
) -> Distance:
    """Squared Fréchet distance between Gaussians fitted to features x (N, D) and y (M, D).

    Args:
        x: features of one sample, more examples than features.
        y: of the other.
        corrected: take the jackknife's estimate of the bias away, without which values of
            different sample sizes cannot be compared; published values do not.
        **options: groups, level, permutations, generator, as for `mmd`.

    Raises:
        AleatorError: samples that do not match or are too small, or an option out of range.
    """
    x, y = two_samples(x, y)
    return jackknife(_frechet, x.double(), y.double(), corrected=corrected, **options)


def _frechet(x: Tensor, y: Tensor) -> float:
    a, b = torch.cov(x.T).reshape(x.shape[1], -1), torch.cov(y.T).reshape(x.shape[1], -1)
    # Tr (A B)^{1/2} = Tr (R B R)^{1/2} with R = A^{1/2}: symmetric, so that it stays real.
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    return (shift + a.trace() + b.trace() - 2 * cross).item()


def jackknife(
    statistic: Statistic,
    x: Tensor,
    y: Tensor,
    *,
    corrected: bool = False,
    groups: int = 20,
    level: float = 0.95,
    permutations: int = 0,
    generator: torch.Generator | None = None,
) -> Distance:
    """A statistic of two independent samples with the delete-a-group jackknife's uncertainty.

    Args:
        statistic: (x (N, ...), y (M, ...)) -> number.
        x: one sample.
        y: the other.
        corrected: take the estimated bias away.
        groups: parts that each sample is cut into.
        level: of the interval.
        permutations: of the test; 0 for none.
        generator: permutations.
    """
    _check_options(x, y, groups, level, permutations)
    whole = statistic(x, y)
    without_x = [statistic(_without(x, g, groups), y) for g in range(groups)]
    without_y = [statistic(x, _without(y, g, groups)) for g in range(groups)]
    p_value = None
    if permutations:
        pooled, n, larger = torch.cat([x, y]), len(x), 0
        for _ in range(permutations):
            order = torch.randperm(len(pooled), generator=generator)
            larger += statistic(pooled[order[:n]], pooled[order[n:]]) >= whole
        p_value = (1 + larger) / (1 + permutations)
    return _distance(whole, without_x, without_y, level, p_value, corrected)


def _without(x: Tensor, group: int, groups: int) -> Tensor:
    keep = torch.arange(len(x)) % groups != group
    return x[keep.to(x.device)]


def _distance(
    whole: float,
    without_x: Sequence[float],
    without_y: Sequence[float],
    level: float,
    p_value: float | None,
    corrected: bool = False,
) -> Distance:
    from scipy import stats

    variance, bias = 0.0, 0.0
    for values in (without_x, without_y):
        groups = len(values)
        mean = sum(values) / groups
        variance += (groups - 1) / groups * sum((v - mean) ** 2 for v in values)
        bias += (groups - 1) * (mean - whole)
    value, stderr = whole - (bias if corrected else 0.0), math.sqrt(variance)
    half = float(stats.t.ppf(0.5 + level / 2, len(without_x) - 1)) * stderr
    return Distance(value, stderr, value - half, value + half, p_value)


_EXACT = "donot_use_mm_for_euclid_dist"  # the matrix product loses half the digits of small ones


def _pairwise(
    kernel: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    groups: int = 20,
    level: float = 0.95,
    permutations: int = 0,
    generator: torch.Generator | None = None,
) -> Distance:
    """E k(X, X') + E k(Y, Y') - 2 E k(X, Y) by sums over pairs of groups, visited once."""
    x, y = two_samples(x, y)
    _check_options(x, y, groups, level, permutations)
    n, m = len(x), len(y)
    z = torch.cat([x, y])
    part = torch.cat([torch.arange(n) % groups, groups + torch.arange(m) % groups])
    member = torch.nn.functional.one_hot(part, 2 * groups).to(z)
    labels = _permuted_labels(n, m, permutations, generator).to(z)
    sums, quadratic = z.new_zeros(2 * groups, 2 * groups).double(), []
    diagonal = z.new_zeros(2 * groups).double()
    step = max(1, _BLOCK // len(z))
    linear = []
    for first in range(0, len(z), step):
        rows = slice(first, first + step)
        block = kernel(z[rows], z)
        index = torch.arange(first, first + len(block), device=z.device)
        own = block[torch.arange(len(block), device=z.device), index]
        diagonal += (member[rows].T @ own).double()
        sums += (member[rows].T @ (block @ member)).double()
        if permutations:
            off = block @ labels - own[:, None] * labels[rows]
            quadratic.append((off * labels[rows]).sum(0).double())
            linear.append(off.sum(0).double())
    sums -= diagonal.diag()
    counts = member.sum(0).double()
    whole = _from_group_sums(sums, counts, groups)
    without = []
    for g in range(2 * groups):
        keep = torch.arange(2 * groups) != g
        kept, size = sums[keep][:, keep], counts[keep]
        without.append(_from_group_sums(kept, size, groups - (g < groups)))
    p_value = None
    if permutations:
        within, touching = torch.stack(quadratic).sum(0), torch.stack(linear).sum(0)
        cross = touching - within
        rest = sums.sum() - within - 2 * cross
        values = within / (n * (n - 1)) + rest / (m * (m - 1)) - 2 * cross / (n * m)
        larger = int((values >= whole - 1e-12 * abs(whole)).sum())
        p_value = (1 + larger) / (1 + permutations)
    return _distance(whole, without[:groups], without[groups:], level, p_value)


def _from_group_sums(sums: Tensor, counts: Tensor, of_x: int) -> float:
    """The U-statistic from sums over pairs of groups without their diagonals, x's groups first."""
    n, m = counts[:of_x].sum(), counts[of_x:].sum()
    within = sums[:of_x, :of_x].sum() / (n * (n - 1))
    other = sums[of_x:, of_x:].sum() / (m * (m - 1))
    return (within + other - 2 * sums[:of_x, of_x:].sum() / (n * m)).item()


def _permuted_labels(n: int, m: int, count: int, generator: torch.Generator | None) -> Tensor:
    """(n + m, count): ones for who plays x."""
    labels = torch.zeros(n + m, count)
    for k in range(count):
        labels[torch.randperm(n + m, generator=generator)[:n], k] = 1
    return labels


def two_samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Flattened to (N, D) and (M, D), in one floating type."""
    if x.dim() < 1 or y.dim() < 1 or x.shape[1:] != y.shape[1:]:
        raise AleatorError(
            f"samples of shape {tuple(x.shape)} and {tuple(y.shape)}; (N, *E) and (M, *E) needed"
        )
    for name, sample in (("first", x), ("second", y)):
        if not sample.isfinite().all():
            raise AleatorError(f"the {name} sample has NaN or infinite values")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return (s.detach().to(dtype).reshape(len(s), -1) for s in (x, y))  # type: ignore[return-value]


def _check_options(x: Tensor, y: Tensor, groups: int, level: float, permutations: int) -> None:
    if groups < 2 or not 0 < level < 1 or permutations < 0:
        raise AleatorError(
            f"groups={groups}, level={level}, permutations={permutations}: at least two groups, "
            "a level in (0, 1) and no negative number of permutations"
        )
    if min(len(x), len(y)) < 2 * groups:
        raise AleatorError(
            f"samples of {len(x)} and {len(y)} examples for {groups} groups; give at least two "
            "examples a group, or fewer groups"
        )
