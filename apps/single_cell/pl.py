"""Scanpy-style doors to the figures: `pl.embeddings(adata, "cell_type")`."""

from apps.single_cell.plots import calibration, cross_validation, embeddings, markers, save

__all__ = ["calibration", "cross_validation", "embeddings", "markers", "save"]
