"""Units as files spell them, and the linear map from one to another.

A unit is a factor times powers of kg, m, s and K, plus an offset for temperatures:
`kg m-2 s-1`, `kg m**-2 s**-1`, `mm/day`, `mm d^-1`, `degC` and `hPa` are all understood. For
water, 1 kg m-2 is a layer of 1 mm, so that `kg m-2 s-1` and `mm day-1` convert.
"""

from __future__ import annotations

import re
from typing import NamedTuple

WATER_DENSITY = 1000.0
"""kg m-3: what turns a mass per area into a depth."""


class Unit(NamedTuple):
    """SI value = factor · value + offset, with `powers` of (kg, m, s, K)."""

    factor: float
    powers: tuple[int, int, int, int]
    offset: float = 0.0


_BASE = {
    "1": Unit(1.0, (0, 0, 0, 0)),
    "%": Unit(0.01, (0, 0, 0, 0)),
    "kg": Unit(1.0, (1, 0, 0, 0)),
    "g": Unit(1e-3, (1, 0, 0, 0)),
    "m": Unit(1.0, (0, 1, 0, 0)),
    "km": Unit(1e3, (0, 1, 0, 0)),
    "dm": Unit(0.1, (0, 1, 0, 0)),
    "cm": Unit(1e-2, (0, 1, 0, 0)),
    "mm": Unit(1e-3, (0, 1, 0, 0)),
    "inch": Unit(0.0254, (0, 1, 0, 0)),
    "ft": Unit(0.3048, (0, 1, 0, 0)),
    "s": Unit(1.0, (0, 0, 1, 0)),
    "min": Unit(60.0, (0, 0, 1, 0)),
    "h": Unit(3600.0, (0, 0, 1, 0)),
    "day": Unit(86400.0, (0, 0, 1, 0)),
    "K": Unit(1.0, (0, 0, 0, 1)),
    "degC": Unit(1.0, (0, 0, 0, 1), 273.15),
    "degF": Unit(5 / 9, (0, 0, 0, 1), 459.67 * 5 / 9),
    "Pa": Unit(1.0, (1, -1, -2, 0)),
    "hPa": Unit(100.0, (1, -1, -2, 0)),
    "kPa": Unit(1e3, (1, -1, -2, 0)),
    "bar": Unit(1e5, (1, -1, -2, 0)),
    "W": Unit(1.0, (1, 2, -3, 0)),
    "J": Unit(1.0, (1, 2, -2, 0)),
    "knot": Unit(1852 / 3600, (0, 1, -1, 0)),
}
_SPELLINGS = {
    "%": ("percent", "pct"),
    "1": ("", "fraction", "dimensionless", "unitless", "(0 - 1)", "(0-1)", "0-1"),
    "m": ("meter", "metre", "meters", "metres"),
    "km": ("kilometer", "kilometre", "kilometers", "kilometres"),
    "mm": ("millimeter", "millimetre", "millimeters", "millimetres"),
    "s": ("sec", "second", "seconds"),
    "min": ("minute", "minutes"),
    "h": ("hr", "hrs", "hour", "hours"),
    "day": ("d", "days"),
    "K": ("kelvin", "Kelvin", "degK", "deg_K", "degree_K", "degrees_K"),
    "degC": (
        *(
            "C",
            "°C",
            "Celsius",
            "celsius",
            "degreeC",
            "degreesC",
            "deg_C",
            "degree_C",
            "degrees_C",
        ),
        *("degree_Celsius", "degrees_Celsius", "degree_celsius", "degrees_celsius"),
    ),
    "degF": ("F", "°F", "Fahrenheit", "fahrenheit", "degree_F", "degrees_F"),
    "hPa": ("mbar", "mb", "millibar", "millibars"),
    "Pa": ("pascal", "Pascal", "pascals"),
    "knot": ("kt", "kts", "knots"),
    "inch": ("in", "inches"),
    "ft": ("foot", "feet"),
}
_KNOWN = _BASE | {
    spelling: _BASE[name] for name, spellings in _SPELLINGS.items() for spelling in spellings
}
_FACTOR = re.compile(r"(?P<name>[^\d\s^*+\-./][^\d\s^*+\-./]*|1)(?:\^|\*\*)?(?P<power>[+-]?\d+)?")
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


class UnknownUnitError(ValueError):
    """The text is not a unit that this module knows."""


def parse(text: str) -> Unit:
    """Read a unit.

    Args:
        text: as in a file's `units` attribute, e.g. "kg m-2 s-1".

    Returns:
        its factor, powers and offset.

    Raises:
        UnknownUnitError: some part is not known.
    """
    cleaned = re.sub(r"\s+(?:of\s+)?water(?:\s+equivalent)?", "", str(text).strip())
    if cleaned in _KNOWN:
        return _KNOWN[cleaned]
    factor, powers, sign = 1.0, [0, 0, 0, 0], 1
    spaced = re.sub(r"(?<=[A-Za-z0-9])[.](?=[A-Za-z])", " ", cleaned)  # kg.m-2 is kg m-2
    for token in re.findall(r"/|[^\s/]+", spaced):
        if token == "/":
            sign = -1
            continue
        for part in re.split(r"(?<!\*)\*(?!\*)", token):
            unit, power = _part(part, text)
            factor *= unit.factor ** (sign * power)
            powers = [p + sign * power * q for p, q in zip(powers, unit.powers, strict=True)]
        sign = 1
    return Unit(factor, (powers[0], powers[1], powers[2], powers[3]))


def _part(part: str, text: str) -> tuple[Unit, int]:
    if _NUMBER.fullmatch(part):
        return Unit(float(part), (0, 0, 0, 0)), 1
    found = _FACTOR.fullmatch(part)
    if not found or found["name"] not in _KNOWN:
        raise UnknownUnitError(f"unknown unit {text!r}")
    return _KNOWN[found["name"]], int(found["power"] or 1)


def conversion(source: str, target: str, *, water: bool = False) -> tuple[float, float] | None:
    r"""The map target = scale · source + offset.

    Args:
        source: unit of the values.
        target: unit wanted.
        water: the quantity is water, so that 1 kg m-2 is 1 mm.

    Returns:
        (scale, offset), or None where the two do not measure the same thing.

    Raises:
        UnknownUnitError: one of them is not known.
    """
    a, b = parse(source), parse(target)
    scale = a.factor / b.factor
    if a.powers != b.powers:
        difference = tuple(p - q for p, q in zip(a.powers, b.powers, strict=True))
        if not water or difference not in {(1, -3, 0, 0), (-1, 3, 0, 0)}:
            return None
        scale *= WATER_DENSITY ** -difference[0]
    return scale, (a.offset - b.offset) / b.factor


def spelled(text: str) -> str:
    """The unit as UDUNITS spells it: "C" is the coulomb there, "fraction" is nothing."""
    for name, spellings in _SPELLINGS.items():
        if text.strip() in spellings:
            return name
    return text.strip()
