"""Normalizing flows: presets over `core.transforms`, all with densities that say what they are."""

from core.flows.base import Flow
from core.flows.continuous import CNF
from core.flows.glow import Glow
from core.flows.residual import ResidualFlow
from core.flows.vector import MAF, NSF, RealNVP

__all__ = ["CNF", "MAF", "NSF", "Flow", "Glow", "RealNVP", "ResidualFlow"]
