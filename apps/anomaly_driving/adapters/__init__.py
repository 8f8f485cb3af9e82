"""Folders of the field's data sets: which files belong together, and what their labels mean."""

from apps.anomaly_driving.adapters.label_maps import LabelMap
from apps.anomaly_driving.adapters.layouts import LAYOUTS, Frame, Layout, discover

__all__ = ["LAYOUTS", "Frame", "LabelMap", "Layout", "discover"]
