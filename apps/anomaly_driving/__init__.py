"""Unexpected objects in traffic: synthesised, trained with, scored at every pixel."""
