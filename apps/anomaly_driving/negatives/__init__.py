"""Simulated anomalies: what is pasted (sources), where and in which shape (paste), one config."""

from apps.anomaly_driving.negatives.config import KINDS, NegativesConfig

__all__ = ["KINDS", "NegativesConfig"]
