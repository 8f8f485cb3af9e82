r"""What to output if the score is the squared error of log-normalised *noisy* counts.

    m_g = E log(1 + 10⁴ x_g / n),    x_g ~ NB(mean r λ_g, shape of λ_g | counts)
    y   with log(1 + 10⁴ y_g / Σ y) = m_g for all genes but one

The public benchmark of denoising compares log-normalised output with log-normalised test molecules
at a ninth of the depth. Its optimum is not the rates but m, the posterior mean of what it looks
at: mostly zeros, and so little mass in all that the rest of the total must lie somewhere. It is
put on the gene with the largest m, where it costs least. This is a decision for one loss, not
expression: nothing else should be computed from it. Rates, their interval and `denoised_log` are
what denoising is for.
"""

from __future__ import annotations

import numpy as np

from apps.single_cell.mcv import TARGET
from apps.single_cell.posterior import SHAPES, Rates

TAIL = 1e-5
"""Probability beyond which larger counts are left out."""
LARGE = 30.0
"""Means above this are taken by the second-order expansion of the logarithm."""


def expected_log_counts(mean: np.ndarray, shape: np.ndarray, depth: np.ndarray) -> np.ndarray:
    r"""E log(1 + 10⁴ x / n) of negative-binomial counts.

    By summing over counts; for means above `LARGE`, to second order around the mean.

    Args:
        mean: (B, G) of the counts.
        shape: (B, G) of the gamma law of their rates.
        depth: n (B,), molecules of each cell.

    Returns:
        (B, G).
    """
    m, r = mean.astype(np.float64).ravel(), np.clip(shape, *SHAPES).astype(np.float64).ravel()
    unit = np.broadcast_to((TARGET / depth)[:, None], mean.shape).ravel()
    large = m > LARGE
    found = np.zeros(len(m))
    place = np.flatnonzero(~large & (m > 0))
    odds = m[place] / (r[place] + m[place])
    p = np.exp(-r[place] * np.log1p(m[place] / r[place]))
    left = 1 - p
    k = 0
    while len(place):
        k += 1
        p = p * (k - 1 + r[place]) / k * odds
        found[place] += p * np.log1p(k * unit[place])
        left = left - p
        kept = left > TAIL
        place, p, odds, left = place[kept], p[kept], odds[kept], left[kept]
    variance = m[large] + m[large] ** 2 / r[large]
    one = 1 / unit[large]
    found[large] = np.log1p(m[large] * unit[large]) - variance / (2 * (m[large] + one) ** 2)
    return found.reshape(mean.shape)


def for_log_error(found: Rates, ratio: float, depth: np.ndarray) -> np.ndarray:
    """Output (B, G) of least expected squared error of log-normalised test molecules.

    Args:
        found: rates at the depth of the training molecules.
        ratio: test molecules for one of training.
        depth: (B,) training molecules of each cell.

    Returns:
        values with the total of the cell's training molecules.
    """
    wanted = expected_log_counts(found.mean * ratio, found.shape, depth * ratio)
    share = np.expm1(wanted) / TARGET
    over = share.sum(1)
    share /= np.maximum(over, 1.0)[:, None]
    largest = share.argmax(1)
    share[np.arange(len(share)), largest] += np.maximum(1 - share.sum(1), 0)
    return share * depth[:, None]
