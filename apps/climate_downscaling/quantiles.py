r"""Bias adjustment of a model against a reference, cell by cell and season by season.

    quantile mapping          x̂ = F_ref⁻¹(F_hist(x))
    quantile delta mapping    x̂ = F_ref⁻¹(τ) + x - F_hist⁻¹(τ),   τ = F_x(x) in its own period
                              x̂ = F_ref⁻¹(τ) · x / F_hist⁻¹(τ)     of amounts

The first makes the model's climate the reference's, and changes its trends with it; the second
keeps the change of every quantile. Quantile functions are those of the days within half a window
of the day's place in the year. Dry days are random numbers below the wet-day threshold while
quantiles are compared, so that frequencies of wet days are adjusted like any other quantile.
References: Panofsky and Brier (1968); Cannon et al. (2015) doi:10.1175/JCLI-D-14-00754.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from core.errors import AleatorError

Method = Literal["qm", "qdm"]
METHODS: tuple[Method, ...] = ("qm", "qdm")
GROUPS = 24
"""Pieces of the year that get quantile functions of their own."""


def adjust(
    values: np.ndarray,
    history: np.ndarray,
    reference: np.ndarray,
    season: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    method: Method = "qdm",
    window: float = 0.25,
    threshold: float | None = None,
    levels: int = 201,
    seed: int = 0,
) -> np.ndarray:
    """Adjust a series of the model.

    Args:
        values: (T, ...) to adjust, cells on the other axes.
        history: (S, ...) the same model over the reference's period.
        reference: (R, ...).
        season: places in the year of the three, in [0, 1).
        method: "qm" or "qdm".
        window: of the year, centred, that quantile functions are estimated in.
        threshold: of amounts, below which a day is dry; None for what may be negative.
        levels: of the quantile functions.
        seed: of the random numbers that stand for dry days.

    Returns:
        (T, ...) adjusted.

    Raises:
        AleatorError: an unknown method, or a season without days in one of the series.
    """
    if method not in METHODS:
        raise AleatorError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    amount = threshold is not None
    series = [values, history, reference]
    if threshold is not None:
        series = [wetted(x, threshold, seed + k) for k, x in enumerate(series)]
    result = np.array(series[0], np.float64)
    tau = (np.arange(levels) + 0.5) / levels
    for rows, near in pieces(season, window):
        own, then, wanted = (
            np.quantile(x[days], tau, axis=0) for x, days in zip(series, near, strict=True)
        )
        result[rows] = _mapped(series[0][rows], own, then, wanted, method, amount)
    if threshold is not None:
        result = np.where(result < threshold, 0.0, result)
    return result.astype(values.dtype)


def pieces(
    season: Sequence[np.ndarray], window: float
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Pieces of the year: days of the first series in one, and days of each around its middle.

    Args:
        season: places in the year of some series, in [0, 1).
        window: of the year, centred.

    Yields:
        positions of days of the first series, and for each series (T,) which of its days count.

    Raises:
        AleatorError: a piece without days in one of the series.
    """
    places = np.floor(season[0] * GROUPS).astype(int)
    for group in np.unique(places):
        centre = (group + 0.5) / GROUPS
        near = [_near(s, centre, window) for s in season]
        if not all(days.any() for days in near):
            raise AleatorError(
                f"no days within {window * 365.25 / 2:.0f} days of day {centre * 365.25:.0f} of "
                "the year in one of the series: give data of the same season, or a wider window"
            )
        yield np.flatnonzero(places == group), near


def _mapped(
    x: np.ndarray, own: np.ndarray, then: np.ndarray, wanted: np.ndarray, method: str, amount: bool
) -> np.ndarray:
    """Values (T, ...) through quantile functions (Q, ...)."""
    shape, count = x.shape, len(own)
    x, own, then, wanted = (
        v.reshape(len(v), -1).astype(np.float64) for v in (x, own, then, wanted)
    )
    out = np.empty_like(x)
    grid = np.arange(count, dtype=np.float64)
    for c in range(x.shape[1]):
        source = then[:, c] if method == "qm" else own[:, c]
        place = np.interp(x[:, c], source, grid)
        before, target = (np.interp(place, grid, v[:, c]) for v in (then, wanted))
        if method == "qm":  # beyond the ends, as far beyond as it was
            before = np.interp(place, grid, source)
        change = x[:, c] / np.maximum(before, 1e-12) if amount else x[:, c] - before
        out[:, c] = target * change if amount else target + change
    return out.reshape(shape)


def wetted(x: np.ndarray, threshold: float, seed: int) -> np.ndarray:
    """Dry days as random numbers from a thousandth of the threshold up to it.

    Their logarithms are uniform, so that a ratio of wet quantiles makes few dry days wet.
    """
    noise = threshold * 10 ** -np.random.default_rng(seed).uniform(0.0, 3.0, x.shape)
    return np.where(x < threshold, noise, x)


def _near(season: np.ndarray, centre: float, window: float) -> np.ndarray:
    apart = np.abs((season - centre + 0.5) % 1 - 0.5)
    return apart <= window / 2
