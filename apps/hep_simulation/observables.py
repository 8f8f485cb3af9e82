r"""One-dimensional closure: separation power, Wasserstein distances, response, correlations.

    S²(p, q) = ½ ∫ (p - q)² / (p + q),    0 if equal, 1 if nothing overlaps

with CaloChallenge's bins: 40 logarithmic ones from the threshold for layer energies, 100 from .5
to 1.5 for E_tot / E_inc.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from apps.hep_simulation.features import Features

THRESHOLD = 0.01515
"""MeV, of CaloChallenge's data sets 2 and 3: where its logarithmic bins begin."""

BUSY = 0.2
"""Share of showers that must reach a layer for its correlations to be compared."""


def separation(x: np.ndarray, y: np.ndarray, edges: np.ndarray) -> float:
    """Separation power of two samples, histogrammed as densities over the bins `edges`."""
    counts = [np.histogram(sample, edges)[0].astype(np.float64) for sample in (x, y)]
    p, q = (found / max(found.sum(), 1.0) for found in counts)
    return float(0.5 * np.sum((p - q) ** 2 / (p + q + 1e-16)))


def log_edges(reference: np.ndarray, least: float = THRESHOLD, bins: int = 40) -> np.ndarray:
    """Logarithmic bins from `least` to the reference's greatest value."""
    return np.logspace(np.log10(least), np.log10(max(reference.max(), 2 * least)), bins)


def edges_of(name: str, reference: np.ndarray) -> np.ndarray:
    """The bins of an observable."""
    if name == "response":
        return np.linspace(0.5, 1.5, 101)
    if name in ("layers", "voxels"):
        return log_edges(reference)
    if name == "sparsity":
        return np.linspace(0.0, 1.0, 41)
    low, high = np.quantile(reference, [0.0005, 0.9995])
    return np.linspace(low, max(high, low + 1e-6), 41)


LAYERED = ("layers", "centre_eta", "centre_phi", "width_eta", "width_phi", "centre_r", "width_r")


def separations(
    generated: Features, reference: Features, voxels: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Separation power of every observable; mean over layers for those that have layers.

    Args:
        generated: features.
        reference: features.
        voxels: energies of the non-empty voxels of both, MeV.
    """
    found = {}
    for name in ("response", *LAYERED, "sparsity"):
        x, y = getattr(generated, name), getattr(reference, name)
        if x.ndim == 1:
            found[name] = separation(x, y, edges_of(name, y))
        elif x.shape[1]:
            columns = range(x.shape[1])
            found[name] = float(
                np.mean([separation(x[:, c], y[:, c], edges_of(name, y[:, c])) for c in columns])
            )
    found["voxels"] = separation(*voxels, edges_of("voxels", voxels[1]))
    return found


def wasserstein(x: np.ndarray, y: np.ndarray) -> float:
    """First Wasserstein distance of two samples, in standard deviations of y."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(x, y) / max(y.std(), 1e-12))


@dataclass(frozen=True)
class ResponseBin:
    """Response in a bin of incident energy.

    Attributes:
        low: edge, MeV.
        high: edge, MeV.
        linearity: mean response of the generated showers over that of the reference, minus 1.
        linearity_error: its standard error from both samples.
        resolution: σ / mean of the generated over that of the reference, minus 1.
        resolution_error: its standard error.
        mean: response of the reference.
        spread: σ / mean of the reference.
    """

    low: float
    high: float
    linearity: float
    linearity_error: float
    resolution: float
    resolution_error: float
    mean: float
    spread: float


def response_bins(generated: Features, reference: Features, bins: int = 6) -> list[ResponseBin]:
    """Linearity and resolution in logarithmic bins of the incident energy.

    Within a bin the fluctuation is that of the response over 1/√E_inc, so that showers of a bin
    may be pooled: σ / mean is quoted at the bin's geometric middle.
    """
    low, high = reference.incident.min(), reference.incident.max()
    edges = np.geomspace(low, high * (1 + 1e-9), bins + 1)
    found = []
    for a, b in itertools.pairwise(edges):
        moments = [_moments(part, a, b) for part in (generated, reference)]
        if min(m[3] for m in moments) < 10:
            continue
        (gm, gs, gk, gn), (rm, rs, rk, rn) = moments
        found.append(
            ResponseBin(
                *(float(a), float(b)),
                gm / rm - 1,
                float(np.hypot(gs / np.sqrt(gn), rs / np.sqrt(rn)) / rm),
                (gs / gm) / (rs / rm) - 1,
                float(0.5 * np.hypot(np.sqrt((gk - 1) / gn), np.sqrt((rk - 1) / rn))),
                rm,
                rs / rm,
            )
        )
    return found


def _moments(part: Features, low: float, high: float) -> tuple[float, float, float, int]:
    """Mean, standard deviation at the bin's middle, kurtosis and number of responses."""
    chosen = (part.incident >= low) & (part.incident < high)
    if chosen.sum() < 2:
        return 1.0, 1.0, 3.0, int(chosen.sum())
    response = part.response[chosen]
    mean = response.mean()
    away = (response - mean) * np.sqrt(part.incident[chosen] / np.sqrt(low * high))
    spread = away.std(ddof=1)
    kurtosis = float(np.mean(away**4) / max(spread, 1e-12) ** 4)
    return float(mean), float(spread), kurtosis, int(chosen.sum())


def correlation_error(generated: Features, reference: Features) -> float:
    """Greatest difference of correlation coefficients between energies of layers in use."""
    worst, parts = 0.0, []
    busy = np.all([(part.layers > 0).mean(0) > BUSY for part in (generated, reference)], 0)
    for part in (generated, reference):
        parts.append(np.corrcoef(part.layers[:, busy].T))
    if busy.sum() > 1:
        worst = float(np.abs(parts[0] - parts[1]).max())
    return worst


def following(features: Features) -> float:
    """How closely a shower's centre follows itself: its correlation from a layer to the next.

    The mean over layers that most showers reach, in both directions across; 0 where each layer is
    drawn by itself, which spectra of single layers do not see.
    """
    found = []
    for centre in (features.centre_eta, features.centre_phi):
        for a, b in itertools.pairwise(centre.T):
            both = (a != 0) & (b != 0)  # a layer without energy has its centre at 0 exactly
            if both.mean() > 0.5 and min(a[both].std(), b[both].std()) > 0:
                found.append(np.corrcoef(a[both], b[both])[0, 1])
    return float(np.mean(found)) if found else 0.0
