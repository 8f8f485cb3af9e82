"""Bijections with log-determinants: what flows are made of."""

from core.transforms.affine import Affine, Elementwise, Univariate
from core.transforms.autoregressive import Autoregressive
from core.transforms.base import Composition, Flatten, Inverse, Transform
from core.transforms.coupling import Coupling, CouplingConv, CouplingMLP
from core.transforms.linear import ActNorm, Permutation, PLUConvolution
from core.transforms.logit import Logit
from core.transforms.monotone import Monotone
from core.transforms.multiscale import Split, Squeeze
from core.transforms.ode import ODE
from core.transforms.residual import Residual
from core.transforms.spline import RationalQuadratic, compile_splines

__all__ = [
    "ODE",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Composition",
    "Coupling",
    "CouplingConv",
    "CouplingMLP",
    "Elementwise",
    "Flatten",
    "Inverse",
    "Logit",
    "Monotone",
    "PLUConvolution",
    "Permutation",
    "RationalQuadratic",
    "Residual",
    "Split",
    "Squeeze",
    "Transform",
    "Univariate",
    "compile_splines",
]
