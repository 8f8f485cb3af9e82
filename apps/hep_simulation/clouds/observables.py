r"""What physicists look at in jets: masses, widths, energy-flow polynomials, N-subjettiness.

    girth = Σ z r        pTD = √Σ z²        mass² = (Σ p)²
    EFP_G = Σ_{i_1..i_N} z_{i_1} ... z_{i_N} Π_{(k,l) in G} θ_{i_k i_l}
    τ_N   = Σ_i z_i min_k R_{ik} / (Σ_i z_i R_0),   axes: exclusive kT jets

z = pT / Σ pT, θ the distance in (η, φ). Polynomials are contracted by matrix products, so that the
cost is P² or P³, not P^N. References: Komiske, Metodiev and Thaler (2018) arXiv:1712.07124;
Thaler and Van Tilburg (2011) arXiv:1011.2268; Kansal et al. (2021) arXiv:2106.11535.
"""

from __future__ import annotations

import itertools

import numpy as np

from apps.hep_simulation.clouds.data import Clouds, masses

EFPS = ("edge", "double edge", "wedge", "triangle")
"""Polynomials of up to three edges that are features."""
FOUR = (
    "cycle",
    "triangle and edge",
    "path, outer doubled",
    "path, inner doubled",
    "star, doubled",
)
"""Those of four points and four edges: what JetNet's W1-EFP is of."""
NAMES = ("multiplicity", "mass", "girth", "pTD", "tau1", "tau21", "tau32", "leading ptrel", *EFPS)
RADIUS = 0.4
"""R_0 of the N-subjettiness; it cancels in ratios."""
_BLOCK = 500


def features(clouds: Clouds) -> np.ndarray:
    """(N, 12) of `NAMES`; masses in units of the jet's pT."""
    blocks = [clouds.rows(slice(i, i + _BLOCK)) for i in range(0, len(clouds), _BLOCK)]
    return np.concatenate([_features(_trimmed(block)) for block in blocks])


def four_points(clouds: Clouds) -> np.ndarray:
    """(N, 5) of `FOUR`."""
    blocks = [clouds.rows(slice(i, i + _BLOCK)) for i in range(0, len(clouds), _BLOCK)]
    return np.concatenate([_four(*_shares(_trimmed(block))) for block in blocks])


def labelled(clouds: Clouds) -> np.ndarray:
    """(N, 4) share of pT of charged hadrons, neutral hadrons, photons; number of the charged."""
    z = _normalised(clouds)
    shares = [(z * (clouds.species == k)).sum(1) for k in (1, 2, 3)]
    return np.stack([*shares, (clouds.species == 1).sum(1)], 1)


def _features(clouds: Clouds) -> np.ndarray:
    z, theta = _shares(clouds)
    radius = np.hypot(clouds.points[:, :, 0], clouds.points[:, :, 1])
    taus = [subjettiness(clouds.points, clouds.mask, n) for n in (1, 2, 3)]
    ratios = [
        np.where(a > 1e-12, b / np.maximum(a, 1e-12), 0.0) for a, b in itertools.pairwise(taus)
    ]
    columns = [
        clouds.counts, masses(clouds), (z * radius).sum(1), np.sqrt((z**2).sum(1)), taus[0],
        *ratios, z.max(1), *efps(z, theta).T,
    ]  # fmt: skip
    return np.stack([np.asarray(c, np.float64) for c in columns], 1)


def efps(z: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """(N, 4) of `EFPS`, from shares (N, P) and distances (N, P, P)."""
    reach = (theta @ z[:, :, None])[:, :, 0]
    double = (theta**2 @ z[:, :, None])[:, :, 0]
    through = _through(z, theta)
    triangle = _weighted(z, (theta * through) @ z[:, :, None])
    return np.stack([(z * reach).sum(1), (z * double).sum(1), (z * reach**2).sum(1), triangle], 1)


def _four(z: np.ndarray, theta: np.ndarray) -> np.ndarray:
    reach = (theta @ z[:, :, None])[:, :, 0]
    double = (theta**2 @ z[:, :, None])[:, :, 0]
    through = _through(z, theta)
    corner = ((theta * through) @ z[:, :, None])[:, :, 0]
    onward = (theta @ (z * reach)[:, :, None])[:, :, 0]
    pairs = z[:, :, None] * z[:, None, :]
    return np.stack(
        [
            (pairs * through**2).sum((1, 2)),
            (z * reach * corner).sum(1),
            (z * double * onward).sum(1),
            (pairs * theta**2 * reach[:, :, None] * reach[:, None, :]).sum((1, 2)),
            (z * reach**2 * double).sum(1),
        ],
        1,
    )


def _through(z: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Σ_j θ_ij z_j θ_jk."""
    return theta @ (z[:, :, None] * theta)


def _weighted(z: np.ndarray, column: np.ndarray) -> np.ndarray:
    return (z * column[:, :, 0]).sum(1)


def _normalised(clouds: Clouds) -> np.ndarray:
    pt = clouds.points[:, :, 2] * clouds.mask
    return pt / pt.sum(1, keepdims=True)


def _shares(clouds: Clouds) -> tuple[np.ndarray, np.ndarray]:
    """Shares z (N, P) and distances θ (N, P, P)."""
    eta, phi = clouds.points[:, :, 0], clouds.points[:, :, 1]
    return _normalised(clouds), np.hypot(
        eta[:, :, None] - eta[:, None, :], _turn(phi[:, :, None] - phi[:, None, :])
    )


def _turn(phi: np.ndarray) -> np.ndarray:
    return (phi + np.pi) % (2 * np.pi) - np.pi


def subjettiness(points: np.ndarray, mask: np.ndarray, number: int) -> np.ndarray:
    """τ_N (jets,) of points (jets, P, 3), with `number` exclusive kT axes.

    A jet of fewer constituents than axes has τ_N = 0.
    """
    axes, alive = exclusive_axes(points, mask, number)
    gap = points[:, :, None, :2] - axes[:, None, :, :2]
    distance = np.hypot(gap[..., 0], _turn(gap[..., 1]))
    nearest = np.where(alive[:, None, :], distance, np.inf).min(2)
    z = np.where(mask, points[:, :, 2], 0.0)
    found = (z * np.where(mask, nearest, 0.0)).sum(1) / (z.sum(1) * RADIUS)
    return np.where(mask.sum(1) <= number, 0.0, found)


def exclusive_axes(
    points: np.ndarray, mask: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exclusive kT jets in the E scheme: (jets, P, 3) η, φ, pT, and which of them are alive.

    Pairs are joined by the least min(pT)² ΔR² until `number` are left; nothing is lost to a beam,
    as the constituents are those of a jet already. All jets of a block go on together.
    """
    pt, eta, phi = (np.where(mask, points[:, :, k], 0.0) for k in (2, 0, 1))
    p4 = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], 2)
    alive, left = mask.copy(), mask.sum(1)
    rows = np.arange(len(points))
    cost = _pair_costs(p4, alive)
    for _ in range(max(0, int(left.max(initial=0)) - number)):
        go = left > number
        flat = cost.reshape(len(cost), -1).argmin(1)
        i, j = flat // cost.shape[1], flat % cost.shape[1]
        r, i, j = rows[go], i[go], j[go]
        p4[r, i] += p4[r, j]
        alive[r, j] = False
        cost[r, j, :] = cost[r, :, j] = np.inf
        fresh = _costs_of(p4[r], i, alive[r])
        cost[r, i, :], cost[r, :, i] = fresh, fresh
        left = left - go
    return _cylindrical(p4), alive


def _pair_costs(p4: np.ndarray, alive: np.ndarray) -> np.ndarray:
    c = _cylindrical(p4)
    gap = c[:, :, None] - c[:, None]
    squares = gap[..., 0] ** 2 + _turn(gap[..., 1]) ** 2
    cost = np.minimum(c[:, :, None, 2], c[:, None, :, 2]) ** 2 * squares
    both = alive[:, :, None] & alive[:, None, :] & ~np.eye(alive.shape[1], dtype=bool)
    return np.where(both, cost, np.inf)


def _costs_of(p4: np.ndarray, one: np.ndarray, alive: np.ndarray) -> np.ndarray:
    c, rows = _cylindrical(p4), np.arange(len(p4))
    own = c[rows, one]
    gap = c - own[:, None]
    cost = np.minimum(c[:, :, 2], own[:, None, 2]) ** 2
    cost = cost * (gap[..., 0] ** 2 + _turn(gap[..., 1]) ** 2)
    cost = np.where(alive, cost, np.inf)
    cost[rows, one] = np.inf
    return cost


def _cylindrical(p4: np.ndarray) -> np.ndarray:
    """Rapidity, azimuth and pT."""
    px, py, pz, energy = np.moveaxis(p4, 2, 0)
    plus, minus = np.maximum(energy + pz, 1e-300), np.maximum(energy - pz, 1e-300)
    return np.stack([0.5 * np.log(plus / minus), np.arctan2(py, px), np.hypot(px, py)], 2)


def _trimmed(clouds: Clouds) -> Clouds:
    """Without padding that no jet of the block needs; constituents come first in files."""
    order = np.argsort(~clouds.mask, 1, kind="stable")
    room = int(clouds.counts.max())
    take = order[:, :room]
    return Clouds(
        clouds.pt, clouds.eta, clouds.kind,
        np.take_along_axis(clouds.points, take[:, :, None], 1),
        np.take_along_axis(clouds.mask, take, 1), np.take_along_axis(clouds.species, take, 1),
    )  # fmt: skip
