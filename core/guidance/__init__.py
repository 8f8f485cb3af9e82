"""Guidance: strengthening or adding conditions while sampling."""

from core.guidance.classifier_free import ClassifierFree, from_weight

__all__ = ["ClassifierFree", "from_weight"]
