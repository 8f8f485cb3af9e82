"""Points on the unit sphere: means that survive the date line, rotated poles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SAME_PLACE = 1 / 6371
"""Radians, a kilometre: stations this near are the same."""


def unit_vectors(lat: Any, lon: Any) -> np.ndarray:
    """Points (3, ...) of the unit sphere at latitudes and longitudes (...) in degrees."""
    phi, lam = np.deg2rad(lat), np.deg2rad(lon)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)])


def apart(one: Any, other: Any) -> np.ndarray:
    """Distance on the unit sphere between the `lat` and `lon` of two grids, cell by cell."""
    return np.linalg.norm(
        unit_vectors(one.lat, one.lon) - unit_vectors(other.lat, other.lon), axis=0
    )


def directions(p: np.ndarray, near: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude (degrees, within half a turn of `near`) of vectors (3, ...)."""
    lat = np.rad2deg(np.arctan2(p[2], np.hypot(p[0], p[1])))
    lon = np.rad2deg(np.arctan2(p[1], p[0]))
    return lat, near + (lon - near + 180) % 360 - 180


def unrotate(
    y: np.ndarray, x: np.ndarray, mapping: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    r"""Geographic coordinates of a rotated-pole grid.

    The pole is tilted about the y axis by the colatitude θ of the rotated north pole, then turned
    by its longitude:

        (x', y', z') = (x cos θ − z sin θ, y, x sin θ + z cos θ)
        φ = asin z',  λ = atan2(y', x') + λ_pole + 180°

    Args:
        y: (ny,) rotated latitudes, degrees.
        x: (nx,) rotated longitudes, degrees.
        mapping: CF attributes of `rotated_latitude_longitude`.

    Returns:
        latitude and longitude (ny, nx), degrees; longitude within −180...180.
    """
    pole = np.deg2rad(float(mapping["grid_north_pole_latitude"]))
    turn = float(mapping.get("north_pole_grid_longitude", 0.0))
    p = unit_vectors(*np.meshgrid(y, np.asarray(x) - turn, indexing="ij"))
    cos, sin = np.sin(pole), np.cos(pole)
    lat, lon = directions(np.stack([p[0] * cos - p[2] * sin, p[1], p[0] * sin + p[2] * cos]))
    east = float(mapping["grid_north_pole_longitude"]) + 180
    return lat, (lon + east + 180) % 360 - 180
