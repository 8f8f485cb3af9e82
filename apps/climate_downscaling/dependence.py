r"""Whether members hang together as nature does: in space, in time, and between variables.

    correlation length   the distance at which the mean correlation of two cells falls to 1/e
    lag-1                mean over cells of the correlation of a time with the next
    between variables    mean over cells of the correlation of two variables in time

All of anomalies from the mean over time of the cell. An ensemble whose members are right cell by
cell but independent of one another is useless for a river basin.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.sphere import unit_vectors
from core.errors import AleatorError

RADIUS = 6371.0
"""Of the Earth, km."""
MOST_CELLS = 600


def correlation_length(fields: Tensor, lat: np.ndarray, lon: np.ndarray, bins: int = 30) -> float:
    """Distance, km, at which the mean correlation of two cells falls below 1/e.

    Args:
        fields: (T, H, W); NaN where there are no data, in the same cells at all times.
        lat: (H, W) degrees.
        lon: (H, W) degrees.
        bins: of distance, up to half of the largest.

    Returns:
        kilometres; infinite if the correlation stays above, NaN if it starts below.

    Raises:
        AleatorError: fewer than three cells, or fewer than three times.
    """
    valid = fields.isfinite().all(0)
    cells = valid.nonzero()
    if len(cells) < 3 or len(fields) < 3:
        raise AleatorError("a correlation length needs three cells and three times with data")
    cells = cells[:: math.ceil(len(cells) / MOST_CELLS)]
    rows, columns = cells[:, 0], cells[:, 1]
    values = fields[:, rows, columns].double()
    varies = values.std(0) > 0
    values = values[:, varies]
    p = unit_vectors(lat[rows, columns], lon[rows, columns])[:, varies.numpy()]
    distance = RADIUS * np.arccos(np.clip(p.T @ p, -1, 1))
    correlation = torch.corrcoef(values.T).numpy()
    upper = np.triu_indices(len(correlation), 1)
    d, c = distance[upper], correlation[upper]
    edges = np.linspace(0, d.max() / 2, bins + 1)
    place = np.digitize(d, edges) - 1
    centres, means = [0.0], [1.0]
    for k in range(bins):
        if (place == k).any():
            centres.append(float(d[place == k].mean()))
            means.append(float(c[place == k].mean()))
    below = np.flatnonzero(np.asarray(means) < 1 / math.e)
    if not len(below):
        return math.inf
    k = int(below[0])
    share = (means[k - 1] - 1 / math.e) / (means[k - 1] - means[k])
    return centres[k - 1] + share * (centres[k] - centres[k - 1])


def cell_correlation(a: Tensor, b: Tensor) -> float:
    """Mean over cells of the correlation in time of a and b (T, H, W); cells with NaN left out."""
    x, y = (v.double() - v.double().mean(0) for v in (a, b))
    norm = (x.square().sum(0) * y.square().sum(0)).sqrt()
    r = (x * y).sum(0) / norm
    known = norm > 0  # NaN is not
    if not known.any():
        raise AleatorError("no cell in which both fields have data and vary")
    return r[known].mean().item()


def lag_one(fields: Tensor, keys: np.ndarray) -> float:
    """Mean over cells of the correlation of a time with the next, of fields (T, H, W).

    Args:
        fields: NaN where there are no data.
        keys: (T,) seconds; only pairs that are one usual step apart count.
    """
    steps = np.diff(keys)
    pairs = np.flatnonzero(steps == np.median(steps))
    return cell_correlation(fields[pairs], fields[pairs + 1])


def spatial_gap(fields: np.ndarray, reference: np.ndarray) -> float:
    """How far the correlations of cells with each other are from the reference's.

    Args:
        fields: (T, ...) of one variable, cells on the other axes; some hundred are looked at.
        reference: (R, ...) of the same cells.

    Returns:
        mean over pairs of cells of the absolute difference; NaN of a single cell.
    """
    every = math.ceil(fields[0].size / MOST_CELLS)
    flat = (x.reshape(len(x), -1)[:, ::every].astype(np.float64) for x in (fields, reference))
    ours, theirs = (_correlations(x, x) for x in flat)
    pairs = np.triu_indices(len(ours), 1)
    return float(np.abs(ours - theirs)[pairs].mean()) if len(pairs[0]) else math.nan


def variable_gap(fields: np.ndarray, reference: np.ndarray, v: int) -> float:
    """How far the correlations of a variable with the others, in a cell, are from the reference's.

    Args:
        fields: (T, V, ...), cells on the last axes.
        reference: (R, V, ...) of the same cells.
        v: of which variable.

    Returns:
        mean over the other variables and cells of the absolute difference; NaN without others.
    """
    gaps = []
    for other in set(range(fields.shape[1])) - {v}:
        ours, theirs = (_paired(x[:, v], x[:, other]) for x in (fields, reference))
        gaps.append(np.abs(ours - theirs).mean())
    return float(np.mean(gaps)) if gaps else math.nan


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of all columns of a (T, N) with all of b (T, M), (N, M); 0 of what does not vary."""
    x, y = (_standard(v) for v in (a, b))
    return x.T @ y / len(x)


def _paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of a (T, ...) with b (T, ...) in time, cell by cell, flat."""
    x, y = (_standard(v.reshape(len(v), -1).astype(np.float64)) for v in (a, b))
    return (x * y).mean(0)


def _standard(x: np.ndarray) -> np.ndarray:
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, np.inf)
