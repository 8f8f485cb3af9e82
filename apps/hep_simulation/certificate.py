r"""What a generated sample is worth: closure of each observable, and its worth in oracle events.

The Cramér distance of two distribution functions F, G is D² = ∫ (F - G)² dx. A perfect sample of
n events has E D² = ∫ F (1 - F) dx / n from the truth, so that a generator at distance D is worth

    N_eq = ∫ F (1 - F) dx / D²

oracle events in that observable, however many are generated. D² is estimated without bias from
finite samples; where it is not above its own noise, N_eq is at least what the noise allows.
The same idea with KS distances: CMS HGCal challenge (2026).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apps.hep_simulation.features import Features


@dataclass(frozen=True)
class Closure:
    """How an observable closes.

    Attributes:
        bias: difference of means, in standard deviations of the reference.
        bias_error: its standard error.
        distance: D² over ∫ F (1 - F); 0 between equal laws, may come out negative.
        worth: N_eq, in oracle events.
        at_least: whether `worth` is a lower bound only.
    """

    bias: float
    bias_error: float
    distance: float
    worth: float
    at_least: bool


def cramer(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Unbiased D² of samples x (n,) and y (m,), and ∫ F (1 - F) of y."""
    n, m = len(x), len(y)
    points = np.sort(np.concatenate([x, y]))
    gaps = np.diff(points)
    f = np.searchsorted(np.sort(x), points[:-1], "right") / n
    g = np.searchsorted(np.sort(y), points[:-1], "right") / m
    spread_x = np.sum(f * (1 - f) * gaps) / (n - 1)
    spread_y = np.sum(g * (1 - g) * gaps) / (m - 1)
    return float(np.sum((f - g) ** 2 * gaps) - spread_x - spread_y), float(spread_y * m)


def closure(generated: np.ndarray, reference: np.ndarray) -> Closure:
    """Compare samples (n,) and (m,) of an observable."""
    spread = max(float(reference.std()), 1e-12)
    error = np.hypot(
        generated.std() / np.sqrt(len(generated)), reference.std() / np.sqrt(len(reference))
    )
    squared, unit = cramer(generated, reference)
    share = squared / max(unit, 1e-300)
    # what equal laws reach by chance, at two standard deviations of the estimate
    noise = 1.0 / len(generated) + 1.0 / len(reference)
    bound = share < noise
    return Closure(
        float((generated.mean() - reference.mean()) / spread),
        float(error / spread),
        float(share),
        float(1.0 / max(share, noise)),
        bool(bound),
    )


def observables(found: Features) -> dict[str, np.ndarray]:
    """One number a shower for each thing that users look at."""
    place = np.arange(found.layers.shape[1])
    safe = np.maximum(found.total, 1e-6)
    depth = found.layers @ place / safe
    shares = {"response": found.response, "depth": depth}
    shares["length"] = np.sqrt(np.maximum(found.layers @ place**2 / safe - depth**2, 0))
    shares["greatest layer"] = found.layers.max(1) / found.incident
    shares["radius"] = (found.centre_r * found.layers).sum(1) / safe
    shares["width"] = (found.width_r * found.layers).sum(1) / safe
    shares["occupancy"] = 1 - found.sparsity.mean(1)
    if found.centre_eta.shape[1] == found.layers.shape[1]:
        shares["centre eta"] = (found.centre_eta * found.layers).sum(1) / safe
        shares["centre phi"] = (found.centre_phi * found.layers).sum(1) / safe
    return shares


def certify(generated: Features, reference: Features) -> dict[str, Closure]:
    """Closure of every observable; both samples of the same spectrum of energies."""
    known = observables(reference)
    return {name: closure(x, known[name]) for name, x in observables(generated).items()}
