r"""Where the sun stands: the cosine of its zenith angle, from time and place alone.

    cos θ(x, t) = p(x) · s(t)

with p the unit vector of the cell and s that of the point on Earth below the sun, by the
low-precision formulae of the Astronomical Almanac (section C5; 0.01° from 1950 to 2050). Of daily
data, the mean over the day of what is above the horizon,

    (h₀ sin φ sin δ + cos φ cos δ sin h₀) / π,    cos h₀ = −tan φ tan δ.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from apps.climate_downscaling.field import Field
from apps.climate_downscaling.grid import Grid
from apps.climate_downscaling.sphere import unit_vectors
from core.errors import AleatorError

SUNS = {"sun": 3, "daily_sun": 1}
"""Entry of a model's clock -> columns that it takes."""

_J2000 = 10957.5
"""Days from 1970 to noon of 1 January 2000."""
_LIKE_OURS = {"standard", "gregorian", "proleptic_gregorian"}


def sun_of(times: np.ndarray) -> str:
    """The kind of sun for these times: of the moment, or of the day where there is one a day."""
    from apps.climate_downscaling.times import time_keys

    return "sun" if len(np.unique(time_keys(times) % 86400)) > 1 else "daily_sun"


def sun_columns(field: Field, kind: str, start: int, stop: int) -> list[np.ndarray]:
    """What a clock says of the sun, (T,) each: the unit vector below it, or its declination."""
    lat, lon = subsolar(_days(field, start, stop))
    return [np.deg2rad(lat)] if kind == "daily_sun" else list(unit_vectors(lat, lon))


def sunshine(columns: Tensor, grid: Grid) -> Tensor:
    """The channel (B, 1, H, W), from the clock's columns (B, 3) or (B, 1).

    Raises:
        AleatorError: the grid does not know its latitudes and longitudes.
    """
    where = grid.geographic()
    if where is None:
        raise AleatorError(
            "residual.channels=sun: latitudes and longitudes of the cells are not known"
        )
    if columns.shape[1] == 1:
        phi = torch.from_numpy(np.deg2rad(where[0])).to(columns)
        return daily_mean(phi, columns[:, :, None, None])
    p = torch.from_numpy(unit_vectors(*where)).to(columns)
    return torch.einsum("bk,kij->bij", columns, p)[:, None]


def daily_mean(phi: Tensor, delta: Tensor) -> Tensor:
    """Mean over a day of max(0, cos θ) at latitudes φ and declinations δ, radians."""
    half = torch.acos((-torch.tan(phi) * torch.tan(delta)).clamp(-1, 1))
    high = half * phi.sin() * delta.sin() + phi.cos() * delta.cos() * half.sin()
    return (high / np.pi).clamp_min(0)


def subsolar(days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of the point below the sun, degrees.

    Args:
        days: (T,) since noon (UTC) of 1 January 2000.
    """
    anomaly = np.deg2rad(357.528 + 0.9856003 * days)
    mean = 280.460 + 0.9856474 * days
    longitude = np.deg2rad(mean + 1.915 * np.sin(anomaly) + 0.020 * np.sin(2 * anomaly))
    tilt = np.deg2rad(23.439 - 4e-7 * days)
    ascension = np.arctan2(np.cos(tilt) * np.sin(longitude), np.cos(longitude))
    declination = np.arcsin(np.sin(tilt) * np.sin(longitude))
    sidereal = 280.46061837 + 360.98564736629 * days
    return np.rad2deg(declination), (np.rad2deg(ascension) - sidereal + 180) % 360 - 180


def _days(field: Field, start: int, stop: int) -> np.ndarray:
    """Days since noon of 1 January 2000; of calendars that are not ours, in a year of ours."""
    keys = field.time_keys()[start:stop]
    if field.calendar in _LIKE_OURS:
        return keys / 86400 - _J2000
    date = np.floor(365.2422 * field.year_fraction()[start:stop])
    return date + keys % 86400 / 86400 - 0.5
