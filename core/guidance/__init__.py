"""Guidance: strengthening or adding conditions while sampling."""

from core.guidance.classifier import Classifier
from core.guidance.classifier_free import ClassifierFree, from_weight
from core.guidance.inpainting import ExactMask, RePaint
from core.guidance.inverse import DPS, MomentMatching, PiGDM

__all__ = [
    "DPS",
    "Classifier",
    "ClassifierFree",
    "ExactMask",
    "MomentMatching",
    "PiGDM",
    "RePaint",
    "from_weight",
]
