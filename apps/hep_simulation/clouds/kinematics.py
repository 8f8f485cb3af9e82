r"""Four-momenta of clouds, and the laws that a jet's constituents keep.

    Σ p = p_jet:   Σ vector pT = 1 (relative), axis at (0, 0), mass as given

Constituents are massless, at etarel, phirel with ptrel. What is generated is moved, turned to
the axis and scaled in angle until it keeps all four laws; data do so by definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROUNDS = 30
"""Of the fixed point; each gains more than a digit for the angles of a jet."""


@dataclass(frozen=True)
class Axis:
    """Sum of massless constituents.

    Attributes:
        pt: (N,) relative to the jet's.
        rapidity: (N,) relative to the jet's; where it is 0, so is the pseudorapidity.
        phi: (N,) relative to the jet's.
        mass: (N,) in units of the jet's pT.
    """

    pt: np.ndarray
    rapidity: np.ndarray
    phi: np.ndarray
    mass: np.ndarray


def axis(points: np.ndarray, mask: np.ndarray) -> Axis:
    """Of points (N, P, 3) etarel, phirel, ptrel with a mask (N, P)."""
    eta, phi = points[:, :, 0], points[:, :, 1]
    pt = np.where(mask, points[:, :, 2], 0.0)
    px, py = (pt * np.cos(phi)).sum(1), (pt * np.sin(phi)).sum(1)
    # E ∓ pz = pT exp(∓η): m² = Σ pT e^η Σ pT e^-η - pT², without cancellation in E² - p²
    plus, minus = (pt * np.exp(eta)).sum(1), (pt * np.exp(-eta)).sum(1)
    total = np.hypot(px, py)
    squared = plus * minus - total**2
    along = 0.5 * np.log(np.maximum(plus, 1e-300) / np.maximum(minus, 1e-300))
    return Axis(total, along, np.arctan2(py, px), np.sqrt(squared.clip(0)))


def centred(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same relative to the sum of the constituents: a boost along the beam, and a turn."""
    found, total = points.astype(np.float64), axis(points, mask)
    found[:, :, 0] -= total.rapidity[:, None]
    found[:, :, 1] -= total.phi[:, None]
    found[:, :, 2] /= total.pt[:, None]
    return found * mask[:, :, None]


def closed(points: np.ndarray, mask: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Points that keep the four laws, near those given.

    Args:
        points: (N, P, 3) etarel, phirel, ptrel > 0.
        mask: (N, P).
        mass: (N,) in units of pT; that of a single constituent is 0, whatever is asked.
    """
    found = centred(points, mask)
    wanted = np.where(mask.sum(1) > 1, mass, 0.0)
    for _ in range(ROUNDS):
        now = axis(found, mask).mass
        ratio = np.where(now > 1e-9, wanted / np.maximum(now, 1e-9), 1.0)
        if np.abs(ratio - 1).max(initial=0.0) < 1e-7:
            break
        found[:, :, :2] *= ratio.clip(0.2, 5.0)[:, None, None]
        found = centred(found, mask)
    return found
