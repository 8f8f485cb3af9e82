"""Particles by PDG number or name, as users write them."""

from __future__ import annotations

from core.errors import AleatorError

NAMES = {11: "electron", 22: "photon", 211: "pion"}
"""PDG number -> the name in CaloChallenge's binning files."""
_WORDS = {
    **{name: pdg for pdg, name in NAMES.items()},
    **{f"{name}s": pdg for pdg, name in NAMES.items()},
    "e-": 11,
    "e+": -11,
    "gamma": 22,
    "pi+": 211,
    "pi-": -211,
    "positron": -11,
}


def particle_number(text: str | int) -> int:
    """PDG number of what a user wrote.

    Raises:
        AleatorError: neither a number nor a known name.
    """
    try:
        return int(text)
    except ValueError:
        pass
    if str(text) not in _WORDS:
        raise AleatorError(
            f"particle {text!r}: neither a PDG number nor one of {', '.join(sorted(_WORDS))}"
        )
    return _WORDS[str(text)]


def particle_name(number: int) -> str:
    """In words."""
    return NAMES.get(number, f"PDG {number}")
