r"""Distances of feature samples as particle physics quotes them: FPD and KPD.

    FPD   Fréchet distance of Gaussian fits, extrapolated linearly in 1/N to infinite N
    KPD   unbiased MMD² with the kernel (x·y / d + 1)⁴, median over random batches

Features are divided by the reference's greatest absolute value. Both definitions are those of
Kansal et al. (2023), arXiv:2211.10295; FPD depends on the range of N that it is extrapolated from,
so only numbers of one range compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.errors import AleatorError


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float


def fpd(
    reference: np.ndarray,
    generated: np.ndarray,
    *,
    least: int = 1000,
    points: int = 8,
    repeats: int = 6,
    seed: int = 42,
) -> Estimate:
    """Fréchet physics distance of (N, F) from (M, F) features.

    Args:
        reference: real.
        generated: not.
        least: smallest sample of the extrapolation; the greatest is the smaller sample.
        points: sizes between, evenly in 1/N.
        repeats: random samples of each size.
        seed: of them.

    Raises:
        AleatorError: too few showers for the extrapolation.
    """
    most = min(len(reference), len(generated))
    if most <= least:
        raise AleatorError(f"FPD: {most} showers; more than {least} are needed to extrapolate")
    x, y = normalised(reference, generated)
    random = np.random.default_rng(seed)
    sizes = (1 / np.linspace(1 / least, 1 / most, points)).astype(int)
    values = [
        np.mean([frechet(_pick(x, n, random), _pick(y, n, random)) for _ in range(repeats)])
        for n in sizes
    ]
    (slope, intercept), covariance = np.polyfit(1 / sizes, values, 1, cov=True)
    if intercept < 0 or slope < 0:
        return Estimate(max(0.0, float(intercept)), float(np.sqrt(covariance[1, 1])))
    return Estimate(float(intercept), float(np.sqrt(covariance[1, 1])))


def _pick(x: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    return x[random.integers(len(x), size=count)]


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """|m - n|² + Tr(A + B - 2 (A B)^{1/2}) of samples (N, F) and (M, F)."""
    difference = x.mean(0) - y.mean(0)
    a, b = np.cov(x.T).reshape(x.shape[1], -1), np.cov(y.T).reshape(y.shape[1], -1)
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ b @ root).clip(min=0)
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * np.sqrt(cross).sum())


def kpd(
    reference: np.ndarray,
    generated: np.ndarray,
    *,
    batch: int = 5000,
    repeats: int = 10,
    seed: int = 42,
) -> Estimate:
    """Kernel physics distance of (N, F) from (M, F) features.

    The median over random batches, with half the interquartile range as its error; samples that
    are smaller than a batch are taken whole, once, and the error is 0.
    """
    x, y = normalised(reference, generated)
    random = np.random.default_rng(seed)
    sizes = (min(batch, len(x)), min(batch, len(y)))
    if sizes == (len(x), len(y)):
        repeats = 1  # the batch is everything: there is nothing to repeat
    values = []
    for _ in range(repeats):
        parts = [
            part[random.permutation(len(part))[:n]] for part, n in zip((x, y), sizes, strict=True)
        ]
        values.append(polynomial_mmd(*parts))
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Estimate(float(middle), float(0.5 * (high - low)))


def polynomial_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased MMD² of samples (N, F) and (M, F) with the kernel (x·y / F + 1)⁴."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 4

    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    own = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(own - 2 * kernel(x, y).mean())


def normalised(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both over the reference's greatest absolute value of each feature."""
    scale = np.abs(reference).max(0)
    scale = np.where(scale > 0, scale, 1.0)
    return reference / scale, other / scale
