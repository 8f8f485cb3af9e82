"""Colliders: learned calorimeter showers, jets and inference, judged as the field judges them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.public import on_demand

if TYPE_CHECKING:
    from apps.hep_simulation.conditions import Listed, Spectrum
    from apps.hep_simulation.jets.model import ObjectSimulator
    from apps.hep_simulation.simulate import Simulator

__all__ = ["Listed", "ObjectSimulator", "Simulator", "Spectrum"]

_HOMES = {
    "Listed": "apps.hep_simulation.conditions",
    "ObjectSimulator": "apps.hep_simulation.jets.model",
    "Simulator": "apps.hep_simulation.simulate",
    "Spectrum": "apps.hep_simulation.conditions",
}

__getattr__ = on_demand(__name__, _HOMES)
